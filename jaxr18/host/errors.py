"""The base of all errors whose text is everything that a person needs."""

import contextlib
import pathlib
from collections.abc import Iterator


class ToldError(Exception):
  """An error that a command prints without a traceback.

  Its text says where it is, what was got, what was expected and the mend.

  Attributes:
    status: the exit status of the command that it ends.
  """

  status = 1


class FileError(ToldError):
  """A file that cannot be written, read or trusted."""


@contextlib.contextmanager
def writing(path: pathlib.Path, flag: str = "--workdir") -> Iterator[None]:
  """Turns a failed write into a FileError that says how to mend it.

  `flag` is the one that says where to write.
  """
  try:
    yield
  except OSError as e:
    raise FileError(
      f"cannot write {path}: {e.strerror or e}; make room, mend the folder or"
      f" give another {flag}; the same command goes on from what is there"
    ) from e


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """Turns a failed read of a run's own file into a FileError."""
  try:
    yield
  except OSError as e:
    raise FileError(
      f"cannot read {path}: {e.strerror or e}; mend it, or give another"
      " --workdir"
    ) from e
