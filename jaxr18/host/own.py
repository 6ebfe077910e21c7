"""A function of a user's own, which a config names as 'module:function'."""

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

from jaxr18.host.errors import ToldError

_FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class OwnError(ToldError, ValueError):
  """A function of a user's own that cannot be had, or does not serve."""


def is_own(name: Any) -> bool:
  """Returns whether a name has the form 'module:function'."""
  return isinstance(name, str) and _FORM.fullmatch(name) is not None


def load(name: str) -> Callable[..., Any]:
  """Imports a function by its name, from this folder or any that Python knows.

  Args:
    name: such as 'mine:confidence', of mine.py beside the command.

  Raises:
    OwnError: the module cannot be imported, or has no such function.
  """
  module, _, function = name.partition(":")
  if "" not in sys.path:  # as where a console script runs
    sys.path.append("")
  try:
    value = getattr(importlib.import_module(module), function)
  except Exception as e:  # whatever the module raises
    raise OwnError(
      f"{name} cannot be imported ({type(e).__name__}: {e}); run the command in"
      f" the folder of {module.partition('.')[0]}.py, or install its package"
    ) from e
  if not callable(value):
    raise OwnError(f"{name} is a {type(value).__name__}, expected a function")
  return value
