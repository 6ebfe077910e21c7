"""ResNet-18 for CIFAR-10, small and cheap, every number proven.

    import jaxr18

    net = jaxr18.load("network.safetensors")
    net = jaxr18.prune(net, 0.5)
    jaxr18.score(net)

Each name is imported when it is first used, so `import jaxr18` takes no time.
"""

import importlib
import sys
import types

__version__ = "0.1.0"

_API = (
  "count_macs", "dataset", "distill", "evaluate", "export", "factorize",
  "init", "judge", "load", "prune", "quantize", "resnet", "run", "save",
  "score", "shrink", "vote",
)  # fmt: skip
__all__ = ["__version__", *_API]


def __getattr__(name: str):
  if name not in _API:
    raise AttributeError(f"module 'jaxr18' has no attribute {name!r}")
  return getattr(importlib.import_module("jaxr18.api"), name)


def __dir__():
  return sorted(__all__)


class _Package(types.ModuleType):
  """Keeps the API's names: folders and commands of the same names exist."""

  def __setattr__(self, name, value):
    # Importing jaxr18.run.experiment would make `jaxr18.run` that folder.
    if not (name in _API and isinstance(value, types.ModuleType)):
      super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
