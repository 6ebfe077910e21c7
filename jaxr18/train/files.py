"""The small files of a run: written whole or not at all, and read with care."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any


class CheckpointError(Exception):
  """A file of a run that cannot be written, read or trusted."""


class NotFiniteError(CheckpointError):
  """A number is NaN or infinite and would be compared, written or drawn."""


class OccupiedError(CheckpointError):
  """Another process runs in the folder."""


@contextlib.contextmanager
def writing(path: pathlib.Path, flag: str = "--workdir") -> Iterator[None]:
  """Turns a failed write into a CheckpointError that says how to mend it.

  `flag` is the one that says where to write.
  """
  try:
    yield
  except OSError as e:
    raise CheckpointError(
      f"cannot write {path}: {e.strerror or e}; make room, mend the folder or"
      f" give another {flag}; the same command goes on from what is there"
    ) from e


def write_atomically(
  path: pathlib.Path, content: str | bytes, flag: str = "--workdir"
) -> None:
  """Writes the whole content or nothing, also when killed in between."""
  part = path.with_name(path.name + ".part")
  data = content.encode() if isinstance(content, str) else content
  with writing(path, flag):
    try:
      with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      part.replace(path)
    except OSError:  # a full disk: the part would keep it full
      with contextlib.suppress(OSError):
        part.unlink()
      raise


def not_finite(value: Any, name: str = "") -> str:
  """Says which number in nested dicts and sequences is not finite first.

  Returns:
    Such as 'score.course.total is nan'; '' where all are finite.
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
  """JSON, which has no NaN and no infinity.

  Args:
    value: dicts, lists, strings, numbers.
    what: the file, or what else the text is for; names it in an error.

  Raises:
    NotFiniteError: a number that is not finite; its place is named.
  """
  try:
    return json.dumps(value, indent=indent, allow_nan=False)
  except ValueError as e:
    raise NotFiniteError(
      f"{what} is not written: {not_finite(value) or e}, and a number that can"
      " be compared is expected; train again in a new --workdir, with a lower"
      " learning_rate, a longer warmup_epochs or a clip_norm of 1"
    ) from e


def write_json(path: pathlib.Path, value: Any, flag: str = "--workdir") -> None:
  """Writes JSON as `write_atomically` does; nothing if it is not finite."""
  write_atomically(path, to_json(value, path, 1) + "\n", flag)


def read_json(path: pathlib.Path) -> Any:
  """What a file of `write_atomically` holds.

  Raises:
    CheckpointError: it is missing, or no JSON.
  """
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise CheckpointError(
      f"cannot read {path}: {e}; remove it, and its command makes it again"
    ) from e


@contextlib.contextmanager
def alone_in(workdir: pathlib.Path, first: bool = True) -> Iterator[None]:
  """Keeps other runs out: two would remove each other's files.

  The lock ends with the process, however that ends. Where the file system has
  no locks there is none.

  Args:
    workdir: of the run.
    first: whether this is the first of the run's processes, which holds it.

  Raises:
    OccupiedError: another process runs there.
    CheckpointError: it cannot be written.
  """
  if not first:
    yield
    return
  path = workdir / ".lock"
  with writing(path):
    file = path.open("a")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise OccupiedError(
        f"another process is running in {workdir}; wait for its end or stop it,"
        " or give another --workdir"
      ) from e
    except OSError:
      pass
    yield


@contextlib.contextmanager
def in_turn(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process is in its turn; as `alone_in` otherwise."""
  path = folder / ".turn"
  with writing(path):
    file = path.open("a")
  with file:
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


class MetricsFile:
  """metrics.jsonl: one line an epoch, none twice after a resume.

  Attributes:
    validation: the validation accuracy by step, of all lines so far that
      are of `select_from` or later.
    last_step: the last line's, or 0.
    empty: whether there is no line.
  """

  def __init__(self, path: pathlib.Path, writes: bool, select_from: int = 0):
    """Reads what is there; `writes` is false in all processes but one."""
    self._path, self._writes = path, writes
    self._select_from = select_from
    self.validation: dict[int, float] = {}
    self._set(_read_rows(path))

  @property
  def rows(self) -> list[dict[str, Any]]:
    """All lines so far."""
    return list(self._rows)

  def row(self, step: int) -> dict[str, Any]:
    """The line of a step; empty where there is none."""
    return next((row for row in self._rows if row["step"] == step), {})

  def go_on_from(self, step: int) -> None:
    """Drops the lines of later steps: they are made again."""
    self._set([row for row in self._rows if row["step"] <= step])
    if self._writes:
      lines = [to_json(row, self._path) + "\n" for row in self._rows]
      write_atomically(self._path, "".join(lines))

  def write(self, row: dict[str, Any]) -> None:
    """Adds a line; it is on disk when this returns."""
    line = to_json(row, self._path) + "\n"
    self._set([*self._rows, row])
    if self._writes:
      with writing(self._path), self._path.open("a") as f:
        f.write(line)
        f.flush()
        os.fsync(f.fileno())

  def _set(self, rows: list[dict[str, Any]]) -> None:
    self._rows = rows
    self.last_step, self.empty = rows[-1]["step"] if rows else 0, not rows
    pairs = [(row["step"], row["validation_accuracy"]) for row in rows]
    self.validation.clear()
    self.validation.update(
      (s, a) for s, a in pairs if a is not None and s >= self._select_from
    )


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """All whole lines; from one on that a kill cut off, none."""
  rows = []
  with writing(path):
    lines = path.read_text().splitlines() if path.exists() else []
  for line in lines:
    try:
      row = json.loads(line)
      row["step"], row["validation_accuracy"]
    except (ValueError, LookupError, TypeError):
      break
    rows.append(row)
  return rows
