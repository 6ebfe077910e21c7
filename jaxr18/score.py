"""Scores a network: python -m jaxr18.score --config=configs/baseline.py

Prints MACs, weights, bits and their shares of the score layer by layer, and
the three figures, without training or initializing anything. With
--workdir=runs/NAME, and no config needed, it scores a finished run, masks
included; of an ensemble or a population all members, as if they voted. The
figures are defined in jaxr18/cost/score.py.

Exit status: 0 when it was scored; 1 when the run is not finished or damaged;
2 when the command or the config cannot be run.
"""

from absl import app, flags, logging

from jaxr18 import cli, paths

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
  from jaxr18.cost.several import ensemble_score

  wanted = _configured() if _CONFIG.file is not None else None
  networks = _finished() if _WORKDIR.value else [(wanted, None)]
  if wanted not in (None, networks[0][0]):
    logging.warning("the run's network is not the config's; the run's is used")
  # The closed form of the spec is held against what the network really does.
  for spec in dict(networks):
    score(spec, counted=_count(spec))
  if len(networks) > 1:
    if _MEMBERS.value * _VIEWS.value > 1:
      raise app.UsageError(
        f"--members and --views are for one network, and {_WORKDIR.value} has"
        f" {len(networks)}, each of which is charged"
      )
    result = ensemble_score(networks)
  else:
    ((spec, masks),) = networks
    passes = dict(members=_MEMBERS.value, views=_VIEWS.value)
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
  """Spec and masks of each network of a finished run: one, or members."""
  from jaxr18 import sources

  workdir = paths.folder(_WORKDIR.value)
  nets = sources.load_networks(workdir, _PHASE.value)
  return [(net.spec, net.masks) for net in nets]


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
