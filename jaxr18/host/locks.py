"""Locks on files, which end with the process that holds them."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from jaxr18.host.errors import FileError, writing
from jaxr18.host.inputs import check_file


class OccupiedError(FileError):
  """Another process runs in the folder."""


def taken(file: IO, wait: bool = False) -> bool:
  """Locks an open file for this process.

  Args:
    file: stays locked until it is closed.
    wait: whether to wait for the process that holds it.

  Returns:
    Whether no other process holds it; True where the file system has no locks.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    return False
  except OSError:
    pass
  return True


@contextlib.contextmanager
def alone_in(folder: pathlib.Path, first: bool = True) -> Iterator[None]:
  """Keeps other runs out of a folder: two would remove each other's files.

  Args:
    folder: the run's; made if it is missing.
    first: whether this is the first of the run's processes, which holds it.

  Raises:
    OccupiedError: another process runs there.
    FileError: it cannot be written.
  """
  if not first:
    yield
    return
  if folder.exists() and not folder.is_dir():
    raise FileError(
      f"cannot use {folder} as a workdir: it is no folder; give another"
      " --workdir"
    )
  with _opened(folder / ".lock") as file:
    if not taken(file):
      raise OccupiedError(
        f"another process is running in {folder}; wait for its end or stop it,"
        " or give another --workdir"
      )
    yield


@contextlib.contextmanager
def in_turn(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process is in its turn in the folder.

  Raises:
    FileError: the folder cannot be written.
  """
  with _opened(folder / ".turn") as file:
    taken(file, wait=True)
    yield


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
  """Waits for the lock on a file, which is removed at the end.

  Raises:
    OSError: the file cannot be made.
  """
  while True:
    with open(path, "w") as file:
      taken(file, wait=True)
      try:
        same = os.path.samestat(os.fstat(file.fileno()), path.stat())
      except FileNotFoundError:
        same = False
      if same:  # else who had it removed it: this one guards nothing
        try:
          yield
        finally:
          path.unlink()
        return


def _opened(path: pathlib.Path) -> IO[str]:
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    check_file(path)
    return path.open("a")
