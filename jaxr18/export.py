"""Exports a finished run's network: python -m jaxr18.export --workdir=runs/NAME

    python -m jaxr18.export --workdir=runs/kd_quant --format=packed
    python -m jaxr18.export --workdir=runs/kd_quant --format=stablehlo
    python -m jaxr18.export --workdir=runs/kd_quant --format=onnx

All take uint8 images [n, size, size, channels] and give logits; normalization
and folded batch norm are inside. packed is a safetensors file with each weight
at its true bits, which jaxr18/packed.py runs with NumPy alone; stablehlo is
jax.export's, for CPUs and CUDA (extra `export`); onnx is for ONNX Runtime
(extra `onnx`).

The file is loaded again and held against the network on the test split; what
was found is printed and kept in WORKDIR/result.json under "export".

Exit status: 0 when it is written; 1 when the run is not finished or damaged, or
the file cannot be written; 2 when the command cannot be run.
"""

import json
import pathlib
import shlex
import sys

from absl import app, flags

from jaxr18 import cli

_FORMATS = {
  "packed": ".safetensors",
  "stablehlo": ".stablehlo",
  "onnx": ".onnx",
}

_WORKDIR = cli.workdir_flag()
_DATA_DIR = cli.data_dir_flag()
_FORMAT = flags.DEFINE_string("format", "packed", "packed, stablehlo or onnx.")
_OUT = flags.DEFINE_string(
  "out", None, "The file; default: WORKDIR/export/network.SUFFIX."
)


def main(argv: list[str]) -> None:
  del argv
  if not _WORKDIR.value:
    raise app.UsageError("give --workdir=DIR of a finished run")
  name = _FORMAT.value
  if name not in _FORMATS:
    raise app.UsageError(f"--format={name} must be one of {list(_FORMATS)}")
  _need_extra(name)
  # Imported late: --help and a wrong flag need no JAX.
  from jaxr18 import configfile, experiment, sources
  from jaxr18.compress import ensemble
  from jaxr18.train.evaluate import compare, in_batches, predict
  from jaxr18.train.files import write_atomically, writing
  from jaxr18.train.step import make_mesh
  from jaxr18.validate import validate
  from jaxr18.workdir import WorkdirError, read_result

  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  result = read_result(workdir)
  config = configfile.from_json(workdir / "config.json")
  validate(config, sources=False)
  if _DATA_DIR.value is not None:
    config.data.dir = _DATA_DIR.value
  net = sources.load_network(workdir)
  if (count := ensemble.members(net)) is not None:
    raise WorkdirError(
      f"{workdir} holds a population of {count} networks, and one network is"
      " exported; give the --workdir of a run of one"
    )
  dataset = experiment.load_data(config)
  path = workdir / "export" / f"network{_FORMATS[name]}"
  if _OUT.value:
    path = pathlib.Path(_OUT.value).expanduser()
  else:
    with writing(path, "--out"):
      path.parent.mkdir(exist_ok=True)
  provenance = {
    "test_correct": result["test_correct"],
    "test_count": result["test_count"],
    "trained_by": result.get("command"),
    "exported_by": shlex.join(["python", "-m", "jaxr18.export", *sys.argv[1:]]),
    "versions": result.get("versions"),
  }
  data, about = _export(name, net, dataset, provenance)
  write_atomically(path, data, "--out")

  images, labels = dataset.test.images, dataset.test.labels
  size = min(config.eval_batch_size, len(images))
  reference = predict(net, images, dataset, size, make_mesh())
  logits = in_batches(_loaded(name, path), images, size)
  found = compare(logits, reference, labels)
  found = {"file": path.name, "bytes": len(data), **about, **found}
  result.setdefault("export", {})[name] = found
  write_atomically(workdir / "result.json", json.dumps(result, indent=1) + "\n")
  n = found["count"]
  print(f"{path}: {len(data):,} bytes")
  for key, value in about.items():
    print(f"{key.replace('_', ' ')}: {value:,}")
  print(f"test accuracy {found['accuracy']:.2%} ({found['correct']} of {n})")
  print(
    f"the same answer as the network in {found['same_answers']} of {n} images;"
    f" logits differ by up to {found['largest_difference']:.2g}, by more than"
    f" 1e-4 in {found['images_beyond_1e-4']} images"
  )


def _need_extra(name: str) -> None:
  """Raises where the format's packages are not installed."""
  modules = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}
  extra = {"onnx": "onnx", "stablehlo": "export"}
  for module in modules.get(name, ()):
    try:
      __import__(module)
    except ImportError as e:
      raise app.UsageError(
        f"--format={name} needs {module} ({e}): pip install"
        f" 'jaxr18[{extra[name]}]'"
      ) from e


def _export(name, net, dataset, provenance) -> tuple[bytes, dict[str, int]]:
  """The file's content, and what else is worth knowing of it."""
  how = dict(mean=dataset.mean, std=dataset.std)
  size = dataset.test.images.shape[1]
  if name == "packed":
    from jaxr18.compress.pack import bytes_of_data, pack
    from jaxr18.cost.score import score

    data = pack(net, **how, provenance=provenance)
    bits = sum(r.stored_bits for r in score(net.spec, masks=net.masks).rows)
    about = {
      "bytes_of_weights": bytes_of_data(data),
      "bytes_charged_by_the_score": -(-bits // 8),
    }
    return data, about
  if name == "onnx":
    from jaxr18.compress.to_onnx import to_onnx

    data = to_onnx(net, **how, size=size, provenance=provenance)
    return data, {}
  from jaxr18.compress.to_stablehlo import to_stablehlo

  return to_stablehlo(net, **how, size=size), {}


def _loaded(name: str, path: pathlib.Path):
  """uint8 images -> logits, by what is in the file."""
  if name == "packed":
    from jaxr18 import packed

    return packed.load(path)[0]
  if name == "onnx":
    import onnxruntime

    session = onnxruntime.InferenceSession(
      str(path), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]
  import jax
  from jax import export

  return jax.jit(export.deserialize(path.read_bytes()).call)


if __name__ == "__main__":
  cli.run(main)
