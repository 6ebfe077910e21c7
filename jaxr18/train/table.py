"""A file of logits by image and view, each row with a checksum.

A checksum holds its row's place and is written after the row: a row that a kill
or a bad disk left wrong is found when the table is opened, and made anew. The
files are not mapped into memory: on a full disk, or where another process cuts
a mapped file, the system ends the process by SIGBUS, without a word.
"""

import errno
import json
import os
import pathlib
import sys
import weakref
from collections.abc import Iterable

import numpy as np

from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import make_way, read_bytes

FORMAT = "jaxr18 teacher table 1"


class TableError(ToldError):
  """A table that cannot be written, or logits that it cannot hold."""


class _Rows:
  """A file of rows of one size, read and written by their numbers."""

  def __init__(self, path: pathlib.Path, size: int):
    self._path, self._size = path, size
    self._fd = os.open(path, os.O_RDWR)
    weakref.finalize(self, os.close, self._fd)

  def read(self, first: int, count: int = 1) -> bytes:
    """Returns rows [count * size]; raises TableError where the file ends."""
    want = count * self._size
    data = os.pread(self._fd, want, first * self._size)
    if len(data) != want:
      raise TableError(
        f"{self._path} ends after {os.fstat(self._fd).st_size:,} bytes,"
        f" expected row {first:,} of {self._size} bytes: something cut it while"
        " it was in use; the same command makes what is missing anew"
      )
    return data

  def write(self, numbers: Iterable[int], rows: np.ndarray) -> None:
    """Writes each of the rows [n, ...] in its place; raises TableError."""
    try:
      for number, row in zip(numbers, rows, strict=True):
        data = row.tobytes()
        if os.pwrite(self._fd, data, int(number) * self._size) != len(data):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as e:
      raise _cannot_keep(self._path.parent, e) from e

  def flush(self) -> None:
    try:
      os.fsync(self._fd)
    except OSError as e:
      raise _cannot_keep(self._path.parent, e) from e


def _cannot_keep(folder: pathlib.Path, e: OSError) -> TableError:
  return TableError(
    f"cannot keep a teacher's logits in {folder}: {e.strerror or e}; make"
    " room or mend the folder, and the same command goes on; or set"
    " teacher.cache = 'none', in a new --workdir if the phase has begun"
  )


class Table:
  """The file [images, views, classes] in float32, and its checksums."""

  def __init__(self, folder: pathlib.Path, shape: tuple[int, int, int]):
    """Opens the table or makes an empty one.

    Args:
      folder: of this table alone; its name tells teacher and data.
      shape: (images, views, classes).

    Raises:
      TableError: the folder cannot be written.
    """
    self.folder, self.shape = folder, shape
    sizes = {
      "logits.f32": 4 * int(np.prod(shape)),
      "checks.u32": 4 * shape[0] * shape[1],
    }
    meta = {"format": FORMAT, "shape": list(shape)}
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if reason := self._unusable(sizes, meta):
        if reason != "new":
          _say(f"{folder} is damaged ({reason}); it is made anew")
        for name, size in sizes.items():
          make_way(folder / name)
          with (folder / name).open("wb") as f:
            f.truncate(size)  # sparse zeros: no row is filled
        (folder / "table.json").write_text(json.dumps(meta))
      self._file = _Rows(folder / "logits.f32", 4 * shape[2])
      self._checks_file = _Rows(folder / "checks.u32", 4)
    except OSError as e:
      raise _cannot_keep(folder, e) from e
    kept = self._checks_file.read(0, shape[0] * shape[1])
    self._checks = np.frombuffer(kept, np.uint32).reshape(shape[:2]).copy()
    self._drop_damaged()

  def _unusable(self, sizes, meta) -> str:
    path = self.folder / "table.json"
    if not path.exists():
      return "new"
    try:
      header = json.loads(read_bytes(path))
    except ValueError:
      return f"{path.name} is not JSON"
    if header != meta:
      return f"{path.name} is {header}, expected {meta}"
    for name, size in sizes.items():
      file = self.folder / name
      if not file.exists() or file.stat().st_size != size:
        return f"{name} has not {size:,} bytes"
    return ""

  def _drop_damaged(self) -> None:
    dropped, first = 0, None
    for start in range(0, self.shape[0], 1024):
      checks = self._checks[start : start + 1024]
      image, view = np.nonzero(checks)
      data = self._file.read(start * self.shape[1], checks.size)
      rows = np.frombuffer(data, np.float32).reshape(-1, *self.shape[1:])
      rows, image = rows[image, view], image + start
      wrong = self._checks[image, view] != _check(rows, image, view)
      if wrong.any():
        image, view = image[wrong], view[wrong]
        self._set_checks(image, view, np.zeros(len(view), np.uint32))
        dropped += len(view)
        first = first or f"image {image[0]}, view {view[0]}"
    if dropped:
      _say(
        f"{self.folder}: {dropped:,} rows are damaged (first: {first}); they"
        " are made anew"
      )

  def _set_checks(self, image, view, checks: np.ndarray) -> None:
    self._checks_file.write(self._number(image, view), checks)
    self._checks[image, view] = checks

  def _number(self, image, view) -> np.ndarray:
    return np.asarray(image, np.int64) * self.shape[1] + view

  def filled(self, image, view) -> np.ndarray:
    """Returns which rows are there, bool of the shape of `image` and `view`."""
    return self._checks[image, view] != 0

  def put(self, image: np.ndarray, view: np.ndarray, logits) -> None:
    """Stores rows [n, classes]; image and view are ints [n], no place twice.

    Raises:
      TableError: a logit that is not finite, or a disk that is full.
    """
    rows = np.asarray(logits, np.float32)
    if not np.isfinite(rows).all():
      raise TableError("a teacher's logits must be finite; mend the teacher")
    self._file.write(self._number(image, view), rows)
    self._set_checks(image, view, _check(rows, image, view))  # after the rows

  def get(self, image, view) -> np.ndarray:
    """Returns the rows [..., classes] of filled places.

    Raises:
      TableError: they are no longer what was put there.
    """
    numbers = self._number(image, view)
    data = b"".join(self._file.read(int(n)) for n in numbers.flat)
    rows = np.frombuffer(data, np.float32).reshape(-1, self.shape[2])
    image, view = np.ravel(image), np.ravel(view)
    wrong = np.flatnonzero(
      self._checks[image, view] != _check(rows, image, view)
    )
    if wrong.size:
      at = f"image {image[wrong[0]]}, view {view[wrong[0]]}"
      raise TableError(
        f"{self.folder}: {wrong.size:,} rows are no longer what was kept"
        f" (first: {at}): something else has written there; the same command"
        " makes them anew"
      )
    return rows.reshape(*numbers.shape, self.shape[2])

  def flush(self) -> None:
    """Writes what was put to the disk, and waits for it."""
    self._file.flush()
    self._checks_file.flush()


def _check(rows: np.ndarray, image, view) -> np.ndarray:
  """FNV-1a over a row's bits and its place, never 0: uint32 [n]."""
  h = np.full(len(rows), 2166136261, np.uint32)
  prime = np.uint32(16777619)
  bits = np.ascontiguousarray(rows).view(np.uint32)
  words = [np.asarray(image), np.asarray(view), *bits.T]
  for word in words:
    h = (h ^ word.astype(np.uint32)) * prime
  return h | np.uint32(1)


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
