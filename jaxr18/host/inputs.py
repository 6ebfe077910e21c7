"""Files that are opened with care: others may have put something there."""

import contextlib
import os
import pathlib
import stat


def check_file(path: str | os.PathLike) -> None:
  """Refuses what is there and is no file, such as a pipe or a device.

  Reading a pipe waits for a writer that may never come, and a device such as
  /dev/zero has no end. What is not there is left to the reader.

  Raises:
    OSError: as a reader's own.
  """
  path = pathlib.Path(path)
  try:
    mode = path.stat().st_mode
  except (OSError, ValueError):  # a name with a null byte among them
    return
  if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
    raise OSError("it is a pipe, socket or device, expected a file")


def read_bytes(path: str | os.PathLike) -> bytes:
  """Reads a file; raises OSError as `check_file` and reading do."""
  check_file(path)
  return pathlib.Path(path).read_bytes()


def is_plain(status: os.stat_result) -> bool:
  """Returns whether a status is that of a file with one name only."""
  return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def make_way(path: pathlib.Path) -> None:
  """Removes a link or a pipe that has the name of a file of ours.

  What is written then goes nowhere else and waits for nobody.
  """
  with contextlib.suppress(FileNotFoundError):
    if not is_plain(path.lstat()):
      path.unlink()
