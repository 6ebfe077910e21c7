"""From a file that a user writes to a checked experiment.

`base()` makes the config that files in configs/ start from.
"""

import importlib

_HOMES = {
  "base": "configdict",
  "tiny": "configdict",
  "for_images": "configdict",
  "parse": "reading",
  "ConfigError": "faults",
}


def __getattr__(name: str):
  """Imports a name's module late: --help needs neither JAX nor NumPy."""
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
  return getattr(module, name)
