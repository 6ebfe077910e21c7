"""Scores a network: python -m jaxr18.score --config=configs/baseline.py

Prints MACs, weights, bits and their shares of the score layer by layer, and
the three figures, without training or initializing anything. With
--workdir=runs/NAME, and no config needed, it scores a finished run, masks
included. The figures are defined in jaxr18/cost/score.py.

Exit status: 0 when it was scored; 1 when the run is not finished or damaged;
2 when the command or the config cannot be run.
"""

import pathlib

from absl import app, flags, logging

from jaxr18 import cli

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag("A finished run's folder: score its network.")
_PHASE = flags.DEFINE_string("phase", "", "Whose network; default: the last.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")
_MEMBERS = flags.DEFINE_integer(
  "members", 1, "Networks of an ensemble, each charged.", lower_bound=1
)
_VIEWS = flags.DEFINE_integer(
  "views", 1, "Passes over one image (test-time augmentation).", lower_bound=1
)


def main(argv: list[str]) -> None:
  del argv
  if _CONFIG.file is None and not _WORKDIR.value:
    raise app.UsageError(
      "give --config=FILE, such as configs/baseline.py, or --workdir=DIR of a"
      " finished run"
    )
  # Imported late: --help and a wrong flag need no JAX.
  from rich.console import Console

  from jaxr18.cost.score import score

  spec, masks = None, None
  if _CONFIG.file is not None:
    spec = _configured()
  if _WORKDIR.value:
    wanted, (spec, masks) = spec, _finished()
    if wanted not in (None, spec):
      logging.warning(
        "the run's network is not the config's; the run's is used"
      )
  passes = dict(members=_MEMBERS.value, views=_VIEWS.value)
  # The closed form of the spec is held against what the network really does.
  score(spec, masks=masks, counted=_count(spec))
  result = score(spec, masks=masks, **passes)
  if _JSON.value:
    print(result.to_json())
    return
  # ResNet-18's table is 96 wide; a narrower terminal wraps it whole.
  console = Console(width=max(Console().width, 108))
  console.print(result.table())
  console.print(result.summary())


def _configured():
  """The spec of a phase in the config; no other run is needed for it."""
  from jaxr18.netconfig import network_spec
  from jaxr18.validate import validate

  config = _CONFIG.value
  validate(config, sources=False)
  phase = _PHASE.value or config.phases[-1]
  if phase not in config.phases:
    raise app.UsageError(f"--phase={phase} must be one of {config.phases}")
  return network_spec(config[phase].network)


def _finished():
  """The spec and the masks of a finished run."""
  from jaxr18 import sources

  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  net = sources.load_network(workdir, _PHASE.value)
  return net.spec, net.masks


def _count(spec):
  import jax
  import jax.numpy as jnp

  from jaxr18 import network
  from jaxr18.cost.macs import count_macs

  net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  shape = (1, spec.resolution, spec.resolution, spec.channels)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  return count_macs(network.forward, net, images)


if __name__ == "__main__":
  cli.run(main)
