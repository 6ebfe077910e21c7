"""The `ml_collections` config that a person's file fills in, as plain values.

Nothing below jaxr18/config/ knows of it: `plain` gives nested dicts of tuples
and Python's own scalars.
"""

from collections.abc import Sequence
from typing import Any

import ml_collections
from ml_collections.config_dict import RequiredValueError

from jaxr18.config.schema import defaults
from jaxr18.data.named import facts_of


class Config(ml_collections.ConfigDict):
  """A ConfigDict that takes a scalar of NumPy or JAX for its plain number.

  Those come from np.linspace and the like; ml_collections refuses some of them,
  and none goes through JSON.
  """

  def __setitem__(self, key, value):
    super().__setitem__(key, scalar(value))


def base(phases: Sequence[str] = ("train",), search: bool = False) -> Config:
  """The default config with a section for each phase, in their order.

  The last phase's network is the one that is tested and scored.

  Args:
    phases: their names.
    search: adds the section of a search.
  """
  config = _section(defaults(phases, search))
  config.lock()
  return config


def _section(values: dict[str, Any]) -> Config:
  out = Config()
  for name, value in values.items():
    out[name] = _section(value) if isinstance(value, dict) else value
  return out


def tiny(config: Any, **network: Any) -> Any:
  """The same phases in seconds: two epochs of one block a stage on the digits.

  Args:
    config: of any phases; it is changed.
    **network: fields of all phases' networks that change too.

  Returns:
    The config.
  """
  config.data.name, config.data.validation = "digits", 200
  for phase in [config[name] for name in config.phases]:
    phase.network.update({"blocks": (1,)} | network)
    phase.epochs, phase.batch_size, phase.dtype = 2, 32, "float32"
    phase.augment.flip = "none"
    phase.prune.every = min(phase.prune.every, 10)
    if phase.average.ema_decay:
      phase.average.ema_decay = 0.9
  return config


def for_images(config: Any, name: str) -> Any:
  """The same phases on a person's own images, of any size.

  A tenth of the training images selects. Images of 64 pixels or more are seen
  by a first convolution of stride 2.

  Args:
    config: of any phases; it is changed.
    name: of a file or a folder of images, or of a data set, as `data.name`.

  Returns:
    The config.

  Raises:
    DataError: it is no data set.
  """
  found = facts_of(name)
  config.data.name, config.data.validation = name, found.train // 10
  for phase in [config[name] for name in config.phases]:
    phase.network.resolution = found.size
    phase.network.stem_stride = 2 if found.size >= 64 else 1
    phase.batch_size = max(8, min(128, found.train // 50))
    phase.augment.pad = min(16, found.size // 8)
  return config


def plain(config: Any) -> Any:
  """Nested dicts, tuples and Python's scalars of what a config holds.

  A required placeholder that nobody has filled is None.
  """
  if isinstance(config, ml_collections.ConfigDict):
    out = {}
    for key in config.keys():
      try:
        out[key] = plain(config[key])
      except RequiredValueError:
        out[key] = None
    return out
  if isinstance(config, dict):
    return {key: plain(value) for key, value in config.items()}
  return tuples(scalar(config))


def tuples(value: Any) -> Any:
  """A value with tuples in the place of lists."""
  if type(value) in (tuple, list):
    return tuple(map(tuples, value))
  return value


def scalar(value: Any) -> Any:
  """A value without scalars of NumPy or JAX, in tuples and lists neither."""
  if isinstance(value, (tuple, list)):
    # Not of named tuples, which are made of their fields one by one.
    same = type(value) in (tuple, list)
    return type(value)(map(scalar, value)) if same else value
  if getattr(value, "shape", None) == () and hasattr(value, "item"):
    return value.item()
  return value
