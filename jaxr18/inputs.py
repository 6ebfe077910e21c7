"""Files that are read: what a person names, and what a run has left."""

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
  """What a file holds; raises OSError as `check_file` and reading do."""
  check_file(path)
  return pathlib.Path(path).read_bytes()
