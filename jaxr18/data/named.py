"""What the name of a data set stands for."""

import difflib
import pathlib

from jaxr18.data.facts import KNOWN, Facts, ImagesError
from jaxr18.host import own, paths


def facts_of(name: str, data_dir: str = "") -> Facts:
  """Reads what is to be known of a data set, and not its images.

  Args:
    name: of `KNOWN`, 'module:function', or as `locate` takes it.
    data_dir: as in `locate`.

  Raises:
    ImagesError: a file or a folder that is not there, or is no data set.
  """
  if name in KNOWN:
    return KNOWN[name]
  # Imported late: a config of a known set needs neither NumPy nor Pillow.
  from jaxr18.data import folder, function, npz

  if own.is_own(name):
    return function.facts(name)
  path = locate(name, data_dir)
  return npz.facts(path) if path.suffix == npz.SUFFIX else folder.facts(path)


def locate(name: str, data_dir: str = "") -> pathlib.Path:
  """Finds the .npz or the folder of images that a name stands for.

  Args:
    name: of a file or a folder.
    data_dir: where it lies; '' is where the name says.

  Raises:
    ImagesError: there is none.
  """
  given = paths.folder(name)
  path = paths.folder(data_dir) / given if data_dir else given
  if data_dir and not path.exists():  # it was moved there
    path = paths.folder(data_dir) / given.name
  if path.is_dir() or path.suffix == ".npz" and path.exists():
    return path
  fact = (
    f"{name!r} is no data set: it is none of {', '.join(KNOWN)}, and there is"
    f" no .npz and no folder of images at {path.absolute()}"
  )
  if near := difflib.get_close_matches(name, _candidates(path), 1):
    raise ImagesError(fact, f"did you mean {near[0]}?")
  raise ImagesError(
    fact, "give its path; docs/data.md says how to make such a file"
  )


def _candidates(path: pathlib.Path) -> list[str]:
  """Lists the names that may be meant: known ones, and those beside it."""
  found = list(KNOWN)
  if path.parent.is_dir():
    found += [
      str(p) for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".npz"
    ]
  return found
