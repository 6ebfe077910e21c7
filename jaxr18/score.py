"""Scores a network: python -m jaxr18.score --config=configs/baseline.py

Prints MACs, weights, bits and their shares of the score layer by layer, and
the three figures that the finished run will have, without training or
initializing anything. Where training decides what each layer keeps, it says so
and prints the lowest and the highest that they can be. With
--workdir=runs/NAME, and no config needed, it scores a finished run, masks
included; of an ensemble or a population all members, as if they voted. The
figures are defined in jaxr18/cost/score.py, and the bytes of activations in
jaxr18/cost/memory.py. With --latency it also times the files that export wrote
to the run's folder, or a new network of the config as JAX runs it.

python -m jaxr18.score --onnx=FILE [--data=cifar10] scores anybody's network
from its ONNX or QONNX file, by the bits that its nodes apply, and with --data
tests it by ONNX Runtime on all test images (extra `onnx`).

Exit status: 0 when it was scored; 1 when the run is not finished or damaged;
2 when the command or the config cannot be run.
"""

import json
import shlex

from absl import app, flags, logging

from jaxr18 import cli
from jaxr18.host import paths

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag("A finished run's folder: score its network.")
_PHASE = cli.phase_flag()
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")
_MEMBERS = flags.DEFINE_integer(
  "members", 1, "Networks of an ensemble, each charged.", lower_bound=1
)
_VIEWS = flags.DEFINE_integer(
  "views", 1, "Passes over one image (test-time augmentation).", lower_bound=1
)
_ONNX = flags.DEFINE_string("onnx", None, "An ONNX or QONNX file to score.")
_ZEROS = flags.DEFINE_enum(
  "zeros", "level", ["level", "removed"],
  "Zeros in the integer kernels of --onnx: a level of the grid, or pruned.",
)  # fmt: skip
_SHAPE = flags.DEFINE_list(
  "shape",
  [],
  "Of the input of --onnx, where the file leaves it open: 1,3,32,32.",
)
_DATA = flags.DEFINE_string(
  "data", None, "Test --onnx on the test images of this data set or .npz."
)
_DATA_DIR = cli.data_dir_flag()
_LATENCY = flags.DEFINE_bool(
  "latency", False, "Also time the exported files of --workdir, or a network."
)


def main(argv: list[str]) -> None:
  del argv
  if _ONNX.value:
    _judge(_ONNX.value)
    return
  if not _CONFIG.file and not _WORKDIR.value:
    raise app.UsageError(
      "give --config=FILE, such as configs/baseline.py, --workdir=DIR of a"
      " finished run, or --onnx=FILE"
    )
  result, specs = _of_run() if _WORKDIR.value else _of_config()
  cost = _on_a_device(result, specs)
  if _LATENCY.value:
    cost |= _latency(specs)
  if _JSON.value:
    print(json.dumps(result.as_dict() | {"device": cost}, allow_nan=False))
  else:
    _show(result)
    _tell(cost)


def _on_a_device(result, specs) -> dict:
  """Bytes of activations, and of weights where they are known."""
  from jaxr18.cost import memory

  moment = max(map(memory.peak, specs), key=lambda m: m.bytes)
  out = {"activation_bytes": moment.bytes, "largest_at": moment.path}
  if hasattr(result, "stored_bytes"):
    out["weight_bytes"] = result.stored_bytes
  return out


def _latency(specs) -> dict:
  """Times of the files in --workdir, or of a new network of the config."""
  from jaxr18.run import latency

  count = max(len(specs), _MEMBERS.value * _VIEWS.value)
  if count > 1:
    raise app.UsageError(
      f"--latency times one network once, and {count} are asked for; leave it"
      " out, or time each member's own run"
    )
  if _WORKDIR.value:
    workdir, phase = paths.folder(_WORKDIR.value), _PHASE.value
    found = latency.of_exports(workdir, specs[0], phase)
    if not found:
      command = ["python", "-m", "jaxr18.export", f"--workdir={workdir}"]
      command += [f"--phase={phase}"] if phase else []
      raise app.UsageError(
        f"--latency needs a file of the network in {workdir / 'export'}:"
        f" `{shlex.join(command)}` writes one"
      )
  else:
    found = latency.of_spec(specs[0])
  return {"latency": {name: speed._asdict() for name, speed in found.items()}}


def _tell(cost: dict) -> None:
  print(
    f"activations {cost['activation_bytes']:,} bytes for one image, while"
    f" {cost['largest_at']} runs"
  )
  if "weight_bytes" in cost:
    print(f"weights {cost['weight_bytes']:,} bytes on disk")
  for name, speed in cost.get("latency", {}).items():
    print(
      f"{name}: {speed['milliseconds']:.2f} ms for one image,"
      f" {speed['images_per_second']:,.0f} images a second in batches of"
      f" {speed['batch']}"
    )


def _show(result) -> None:
  # Imported late: --help and a wrong flag need no JAX.
  from rich.console import Console

  # ResNet-18's table is 96 wide; a narrower terminal wraps it whole.
  console = Console(width=max(Console().width, 108))
  console.print(result.table(), markup=False)
  console.print(result.summary())


def _judge(file: str) -> None:
  """Scores the network of an ONNX file, and tests it where --data is given."""
  if _CONFIG.file or _WORKDIR.value:
    raise app.UsageError("give one of --config, --workdir and --onnx")
  try:
    shape = tuple(int(n) for n in _SHAPE.value)
  except ValueError as e:
    raise app.UsageError(
      f"--shape (={','.join(_SHAPE.value)}) must be integers such as 1,3,32,32"
    ) from e
  try:
    from jaxr18.deploy.judge import judge
  except ImportError as e:
    raise app.UsageError(
      f"--onnx needs the packages of the extra `onnx` ({e}):"
      " pip install 'jaxr18[onnx]'"
    ) from e
  path = paths.folder(file)
  judged = judge(
    path, shape=shape, zeros_removed=_ZEROS.value == "removed"
  )  # fmt: skip
  answers = _tested(path, _DATA.value) if _DATA.value else None
  if _JSON.value:
    out = judged.score.as_dict()
    out |= {"zeros": judged.zeros, "remarks": judged.remarks}
    if answers is not None:
      out |= {"test_correct": answers[0], "test_count": answers[1]}
    print(json.dumps(out, allow_nan=False))
    return
  _show(judged.score)
  print(f"{judged.zeros:,} weights are 0; written by {judged.producer or '?'}")
  for remark in judged.remarks:
    print(f"note: {remark}")
  if answers is not None:
    print(
      f"test accuracy {answers[0] / answers[1]:.2%} ({answers[0]} of"
      f" {answers[1]} images of {_DATA.value}, by ONNX Runtime)"
    )


def _tested(path, data: str) -> tuple[int, int]:
  """Right answers of an ONNX file, and of how many test images."""
  from jaxr18.data import dataset
  from jaxr18.deploy.judge import accuracy

  images = dataset.load(data, _DATA_DIR.value or "", validation=0)
  return accuracy(path, images.test, images.mean, images.std)


def _of_run():
  """The score of a finished run's networks, and their specs."""
  from jaxr18.cost.score import score
  from jaxr18.cost.several import ensemble_score

  networks = _finished()
  _hold({spec for spec, _ in networks})
  if _CONFIG.file:
    _, outlooks = _configured()
    if outlooks and outlooks[0].spec != networks[0][0]:
      logging.warning(
        "the run's network is not the config's; the run's is used"
      )
  if len(networks) > 1:
    _one_network(len(networks), _WORKDIR.value)
    return ensemble_score(networks), [spec for spec, _ in networks]
  ((spec, masks),) = networks
  found = score(spec, masks=masks, members=_MEMBERS.value, views=_VIEWS.value)
  return found, [spec]


def _of_config():
  """The score that the run will end with, or bounds; and the specs.

  Where training decides the widths, those are the largest.
  """
  from jaxr18.config.forecast.score import score_of

  ensemble, outlooks = _configured()
  specs = [one.spec for one in outlooks]
  _hold({*specs})
  if len(outlooks) > 1 and ensemble:
    _one_network(len(outlooks), _CONFIG.file)
  if _MEMBERS.value > 1:
    outlooks, ensemble = [outlooks[0]] * _MEMBERS.value, True
  return score_of(outlooks, ensemble, _VIEWS.value), specs


def _one_network(count: int, where: str) -> None:
  if _MEMBERS.value * _VIEWS.value > 1:
    raise app.UsageError(
      f"--members and --views are for one network, and {where} has"
      f" {count}, each of which is charged"
    )


def _hold(specs) -> None:
  """Holds the closed form of each spec against what the network does."""
  from jaxr18.cost.score import score

  for spec in specs:
    score(spec, counted=_count(spec))


def _configured():
  """Whether a phase is an ensemble, and its outlooks.

  Raises:
    ConfigError: another run decides the score, and is not there.
  """
  from jaxr18.config.experiment import Place, Source
  from jaxr18.config.faults import ConfigError
  from jaxr18.config.forecast.outlook import outlooks_of_networks
  from jaxr18.config.reading import parse
  from jaxr18.run import sources

  values, missing = _CONFIG.value or {}, {}
  if "search" in values:
    raise app.UsageError(
      f"--config={_CONFIG.file} describes a search, of which each candidate has"
      " a score; give the config.json of one, in trials/NUMBER of its workdir"
    )

  def read(data, name: str) -> Source:
    del data
    # Whatever is wrong with another run, the run itself will say.
    try:
      nets = sources.load_other(name)
    except Exception as e:
      missing[name] = str(e)
      return Source()
    return Source(outlooks_of_networks(nets, name))

  phases = {p.name: p for p in parse(values, Place(source=read)).phases}
  name = _PHASE.value or [*phases][-1]
  if name not in phases:
    raise app.UsageError(f"--phase={name} must be one of {tuple(phases)}")
  found = phases[name].outlooks
  if found is None or any(one.unknown for one in found):
    raise ConfigError(
      f"config.{name} has the score that another run's masks leave it, which"
      f" cannot be read: {'; '.join(missing.values())}; run that first, or take"
      f" its name away, such as by --config.{name}.start.init="
    )
  return bool(paths.names(phases[name].options.ensemble.members)), found


def _finished():
  """Spec and masks of each network of a finished run: one, or members."""
  from jaxr18.run import sources

  workdir = paths.folder(_WORKDIR.value)
  nets = sources.load_networks(workdir, _PHASE.value)
  return [(net.spec, net.masks) for net in nets]


def _count(spec):
  import jax
  import jax.numpy as jnp

  from jaxr18.cost.macs import count_macs
  from jaxr18.nn import network

  net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  shape = (1, spec.resolution, spec.resolution, spec.channels)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  return count_macs(network.forward, net, images)


if __name__ == "__main__":
  cli.run(main)
