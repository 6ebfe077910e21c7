"""Files that are written whole or not at all, also when killed in between."""

import contextlib
import errno
import json
import math
import os
import pathlib
import shlex
import time
from collections.abc import Iterator
from typing import IO, Any

from jaxr18.host import locks
from jaxr18.host.errors import FileError, writing
from jaxr18.host.inputs import check_file, is_plain, make_way

_PATIENCE = 60  # seconds to wait for another process's file
# What keeps numbers finite in a training that has lost them.
STEADIER = "a lower learning_rate, a longer warmup_epochs or a clip_norm of 1"


class NotFiniteError(FileError):
  """A number is NaN or infinite and would be compared, written or drawn."""


def write_atomically(
  path: pathlib.Path, content: str | bytes | memoryview, flag: str = "--workdir"
) -> None:
  """Writes the whole content or nothing, also when killed in between."""
  data = content.encode() if isinstance(content, str) else content
  with writing(path, flag):
    _check_target(path)
    with _part_of(path) as (part, f):
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
      part.replace(path)


def try_writing(
  path: pathlib.Path, flag: str = "--workdir", make_folder: bool = True
) -> None:
  """Finds out whether a file can be written, before the work for it is done.

  Leaves nothing but its folder, which is made where it is missing.

  Raises:
    FileError: it cannot; the disk is full, for one.
  """
  with writing(path, flag):
    _check_target(path)
    if make_folder:
      path.parent.mkdir(parents=True, exist_ok=True)
    with _part_of(path) as (part, f):
      f.write(bytes(4096))
      f.flush()
      os.fsync(f.fileno())
      part.unlink()


def _check_target(path: pathlib.Path) -> None:
  """Raises OSError for a folder, or a device, which a file would replace."""
  if path.is_dir():
    raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
  check_file(path)


@contextlib.contextmanager
def _part_of(path: pathlib.Path) -> Iterator[tuple[pathlib.Path, IO[bytes]]]:
  """PATH.part, empty and ours alone; removed where writing it fails.

  A link or a pipe that stands there is removed and not followed. Processes
  that write the same file wait for each other.
  """
  part = path.with_name(path.name + ".part")
  with _opened(part) as f:
    try:
      yield part, f
    except OSError:  # a full disk: the part would keep it full
      with contextlib.suppress(OSError):
        part.unlink()
      raise


def _opened(part: pathlib.Path) -> IO[bytes]:
  deadline = time.monotonic() + _PATIENCE
  while True:
    make_way(part)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    f = os.fdopen(os.open(part, flags, 0o666), "wb")
    if locks.taken(f) and _same(f, part):
      f.truncate()
      return f
    f.close()
    if time.monotonic() > deadline:
      what = f"another process has been writing it for {_PATIENCE} s"
      raise OSError(errno.EBUSY, what)
    time.sleep(0.01)


def _same(f: IO[bytes], part: pathlib.Path) -> bool:
  """Whether the file is still what has the name: another may have moved it."""
  try:
    status = part.lstat()
  except FileNotFoundError:
    return False
  return is_plain(status) and os.path.samestat(os.fstat(f.fileno()), status)


def not_finite(value: Any, name: str = "") -> str:
  """Says which number in nested dicts and sequences is not finite first.

  Returns:
    Such as 'score.per_network.total is nan'; '' where all are finite.
  """
  if isinstance(value, dict):
    parts = ((f"{name}.{k}".lstrip("."), v) for k, v in value.items())
  elif isinstance(value, list | tuple):
    parts = ((f"{name}[{i}]", v) for i, v in enumerate(value))
  else:
    bad = isinstance(value, float) and not math.isfinite(value)
    return f"{name or 'it'} is {value}" if bad else ""
  return next(filter(None, (not_finite(v, n) for n, v in parts)), "")


def to_json(value: Any, what: Any, indent: int | None = None) -> str:
  """Writes a value as JSON, which has no NaN and no infinity.

  Args:
    value: dicts, lists, strings, numbers.
    what: the file, or what else the text is for; names it in an error.
    indent: spaces a level; None writes one line.

  Raises:
    NotFiniteError: a number that is not finite; its place is named.
  """
  try:
    return json.dumps(value, indent=indent, allow_nan=False)
  except ValueError as e:
    raise NotFiniteError(
      f"{what} is not written: {not_finite(value) or e}, and a number that can"
      " be compared is expected; train again in a new --workdir, with"
      f" {STEADIER}"
    ) from e


def write_json(path: pathlib.Path, value: Any, flag: str = "--workdir") -> None:
  """Writes JSON as `write_atomically` does; nothing if it is not finite."""
  write_atomically(path, to_json(value, path, 1) + "\n", flag)


def removing(paths: list[pathlib.Path]) -> str:
  """Names the shell's command that removes those of the paths that exist."""
  there = [str(p) for p in paths if p.exists()]
  return f"`{shlex.join(['rm', '-r', *there])}`" if there else "remove nothing"
