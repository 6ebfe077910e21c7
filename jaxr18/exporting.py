"""A finished run's network as a file for others, held against the network."""

import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np

from jaxr18 import packed, sources
from jaxr18.augment import normalize
from jaxr18.compress import integer
from jaxr18.compress.fold import fold
from jaxr18.compress.pack import bytes_of_data, pack
from jaxr18.cost.score import score
from jaxr18.finished import reopen
from jaxr18.network import Network
from jaxr18.train.evaluate import compare, in_batches, predict
from jaxr18.train.files import write_atomically, write_sealed, writing
from jaxr18.train.step import make_mesh

SUFFIXES = {"packed": "safetensors", "stablehlo": "stablehlo", "onnx": "onnx"}


def export_run(
  workdir: str, name: str, out: str = "", data_dir: str | None = None
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Writes the file, loads it again, and tests it on the test split.

  Args:
    workdir: of a finished run of one network.
    name: of the format, one of `SUFFIXES`.
    out: the file; '' is WORKDIR/export/network.SUFFIX.
    data_dir: TFDS's folder, in place of the config's.

  Returns:
    The file, and what result.json now holds under "export" and the name: its
    bytes, and what `train.evaluate.compare` says of its logits.

  Raises:
    WorkdirError, CheckpointError: no finished run, or a file that cannot be
      written.
    ImportError: a package that the format needs.
  """
  folder, config, result, dataset = reopen(workdir, data_dir)
  net = sources.load_network(folder)
  path = pathlib.Path(out).expanduser()
  if not out:
    path = folder / "export" / f"network.{SUFFIXES[name]}"
    with writing(path, "--out"):
      path.parent.mkdir(exist_ok=True)
  data, about = _export(name, net, dataset, _provenance(result))
  write_atomically(path, data, "--out")

  images, labels = dataset.test.images, dataset.test.labels
  size = min(config.eval_batch_size, len(images))
  reference = predict(net, images, dataset, size, make_mesh())
  logits = in_batches(load(name, path), images, size)
  found = compare(logits, reference, labels)
  found = {"file": path.name, "bytes": len(data), **about, **found}
  result.setdefault("export", {})[name] = found
  write_sealed(folder / "result.json", result)
  return path, found


def load(name: str, path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """uint8 images [n, size, size, channels] -> logits, from a file alone."""
  if name == "packed":
    return packed.load(path)[0]
  if name == "onnx":
    from jaxr18.compress.to_onnx import load_onnx

    return load_onnx(path)
  return jax.jit(jax.export.deserialize(path.read_bytes()).call)


def integer_logits(
  net: Network, dataset, images: np.ndarray
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
  """uint8 images -> logits by integers, and the arithmetic that does it.

  Args:
    net: not stacked.
    dataset: what images are normalized as.
    images: on which integer convolutions are held against float32 ones.
  """
  folded, spec = fold(net), net.spec
  prepare = jax.jit(
    lambda x: normalize(x, dataset.mean, dataset.std, spec.resolution)
  )
  arithmetic = integer.choose_arithmetic(folded, spec, prepare(images))
  forward = jax.jit(
    lambda folded, x: integer.forward(folded, spec, prepare(x), arithmetic)
  )
  return lambda x: forward(folded, x), arithmetic


def by_integers(net: Network, dataset, batch_size: int) -> dict[str, Any]:
  """What `compare` says of integers on the test split, and the arithmetic."""
  images, size = dataset.test.images, min(batch_size, len(dataset.test))
  reference = predict(net, images, dataset, size, make_mesh())
  run, arithmetic = integer_logits(net, dataset, images[:size])
  found = compare(in_batches(run, images, size), reference, dataset.test.labels)
  return {"arithmetic": arithmetic, **found}


def _provenance(result: dict[str, Any]) -> dict[str, Any]:
  return {
    "test_correct": result["test_correct"],
    "test_count": result["test_count"],
    "trained_by": result.get("command"),
    "exported_by": shlex.join(["python", "-m", "jaxr18.export", *sys.argv[1:]]),
    "versions": result.get("versions"),
  }


def _export(name, net, dataset, provenance) -> tuple[bytes, dict[str, int]]:
  """The file's content, and what else is worth knowing of it."""
  how = dict(mean=dataset.mean, std=dataset.std)
  size = dataset.test.images.shape[1]
  if name == "packed":
    test = dataset.test
    tested_on = packed.identity(dataset.name, test.images, test.labels)
    data = pack(net, **how, provenance=provenance, data=tested_on)
    bits = sum(r.stored_bits for r in score(net.spec, masks=net.masks).rows)
    about = {
      "bytes_of_weights": bytes_of_data(data),
      "bytes_charged": -(-bits // 8),
    }
    return data, about
  if name == "onnx":
    from jaxr18.compress.to_onnx import to_onnx

    return to_onnx(net, **how, size=size, provenance=provenance), {}
  from jaxr18.compress.to_stablehlo import to_stablehlo

  return to_stablehlo(net, **how, size=size), {}
