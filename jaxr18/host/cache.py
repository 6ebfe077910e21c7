"""The user's cache folder, for what can be made again."""

import os
import pathlib

from jaxr18.host import paths


def folder(given: str = "") -> pathlib.Path:
  """Names the cache folder, which may not be there yet.

  Args:
    given: a folder as a person writes it; '' is `$XDG_CACHE_HOME/jaxr18`, or
      `~/.cache/jaxr18` where that variable is not set.
  """
  if given:
    return paths.folder(given)
  return paths.folder(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxr18"
