"""The small files of a run: written whole or not at all, and read with care."""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import shlex
import time
from collections.abc import Iterator
from typing import IO, Any

from jaxr18.host import sealed
from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import check_file, is_plain, make_way

_PATIENCE = 60  # seconds to wait for another process's file
# What keeps numbers finite in a training that has lost them.
STEADIER = "a lower learning_rate, a longer warmup_epochs or a clip_norm of 1"


class CheckpointError(ToldError):
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


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """As `writing`, of a file that the run has written before."""
  try:
    yield
  except OSError as e:
    raise CheckpointError(
      f"cannot read {path}: {e.strerror or e}; mend it, or give another"
      " --workdir"
    ) from e


def write_atomically(
  path: pathlib.Path, content: str | bytes, flag: str = "--workdir"
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
    CheckpointError: it cannot; the disk is full, for one.
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
    if _locked(f) and _same(f, part):
      f.truncate()
      return f
    f.close()
    if time.monotonic() > deadline:
      what = f"another process has been writing it for {_PATIENCE} s"
      raise OSError(errno.EBUSY, what)
    time.sleep(0.01)


def _locked(f: IO[bytes]) -> bool:
  try:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # a file system without locks
    pass
  return True


def _same(f: IO[bytes], part: pathlib.Path) -> bool:
  """Whether the file is still what has the name: another may have moved it."""
  try:
    found = part.lstat()
  except FileNotFoundError:
    return False
  return is_plain(found) and os.path.samestat(os.fstat(f.fileno()), found)


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
      " be compared is expected; train again in a new --workdir, with"
      f" {STEADIER}"
    ) from e


def write_json(path: pathlib.Path, value: Any, flag: str = "--workdir") -> None:
  """Writes JSON as `write_atomically` does; nothing if it is not finite."""
  write_atomically(path, to_json(value, path, 1) + "\n", flag)


def write_sealed(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON file with its hash."""
  write_json(path, sealed.seal(value))


def read_phase(directory: pathlib.Path) -> dict[str, Any]:
  """What the phase.json of a finished phase holds.

  Args:
    directory: of the phase.

  Raises:
    CheckpointError: it is missing or damaged.
  """
  path, workdir = directory / "phase.json", directory.parent
  try:
    return sealed.read(path, sealed.demanded(workdir))
  except FileNotFoundError as e:
    result = workdir / "result.json"
    mend = "run its command again to its end"
    if result.exists():  # the command would take it for finished
      mend = f"{removing([result])}, and the run's own command ends it"
    raise CheckpointError(
      f"{directory} is not finished: it has no phase.json; {mend}"
    ) from e
  except (OSError, ValueError) as e:
    gone = [path, workdir / "result.json"]
    raise CheckpointError(
      f"{path} is damaged ({e}); {removing(gone)}, and the run's own command"
      " makes it again: nothing is trained anew"
    ) from e


def latest_step(directory: pathlib.Path) -> int | None:
  """The step that a phase would go on from; None if it has not begun."""
  names = [p.name for p in (directory / "checkpoints").glob("*")]
  steps = [int(name) for name in names if name.isdecimal()]
  if not steps and (directory / "phase.json").exists():
    return 0
  return max(steps, default=None)


def mend_checkpoint(path: pathlib.Path) -> str:
  """Says what to do about a checkpoint that is damaged or gone.

  What was made of it is removed with it, also the later checkpoints: what is
  trained again from an earlier one has the same bits.

  Args:
    path: of the checkpoint, WORKDIR/PHASE/checkpoints/STEP.
  """
  folder, phase = path.parent, path.parents[1]
  steps = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
  later = sorted(s for s in steps if s >= int(path.name))
  earlier = [s for s in steps if s < int(path.name)]
  gone = [folder / str(s) for s in later]
  gone += [phase / "phase.json", phase.parent / "result.json"]
  where = f"goes on at step {max(earlier)}" if earlier else "begins the phase"
  return f"{removing(gone)}, and the run's own command {where}"


def removing(paths: list[pathlib.Path]) -> str:
  """Names the shell's command that removes those of the paths that exist."""
  there = [str(p) for p in paths if p.exists()]
  return f"`{shlex.join(['rm', '-r', *there])}`" if there else "remove nothing"


@contextlib.contextmanager
def alone_in(workdir: pathlib.Path, first: bool = True) -> Iterator[None]:
  """Keeps other runs out: two would remove each other's files.

  The lock ends with the process, however that ends. Where the file system has
  no locks there is none.

  Args:
    workdir: of the run; made if it is missing.
    first: whether this is the first of the run's processes, which holds it.

  Raises:
    OccupiedError: another process runs there.
    CheckpointError: it cannot be written.
  """
  if not first:
    yield
    return
  path = workdir / ".lock"
  if workdir.exists() and not workdir.is_dir():
    raise CheckpointError(
      f"cannot use {workdir} as a workdir: it is no folder; give another"
      " --workdir"
    )
  with writing(path):
    workdir.mkdir(parents=True, exist_ok=True)
    check_file(path)
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
    check_file(path)
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
    """Reads what is there; `writes` is false in all processes but one.

    Raises:
      CheckpointError: a line is damaged.
    """
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
    self._write_all()

  def write(self, row: dict[str, Any]) -> None:
    """Adds a line; it is on disk when this returns."""
    line = self._line(row)
    last = self.empty or row["step"] > self.last_step
    self._set(sorted([*self._rows, row], key=lambda row: row["step"]))
    if not last:
      self._write_all()
    elif self._writes:
      with writing(self._path), self._path.open("a") as f:
        f.write(line)
        f.flush()
        os.fsync(f.fileno())

  def _write_all(self) -> None:
    if self._writes:
      write_atomically(self._path, "".join(map(self._line, self._rows)))

  def _line(self, row: dict[str, Any]) -> str:
    return to_json(sealed.seal(row, sealed.LINE), self._path) + "\n"

  def _set(self, rows: list[dict[str, Any]]) -> None:
    self._rows = rows
    self.last_step, self.empty = rows[-1]["step"] if rows else 0, not rows
    pairs = [(row["step"], row["validation_accuracy"]) for row in rows]
    self.validation.clear()
    self.validation.update(
      (s, a) for s, a in pairs if a is not None and s >= self._select_from
    )


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """All whole lines of a phase's metrics.jsonl, in the order of steps."""
  if not path.exists():
    return []
  with reading(path):
    lines = sealed.read_lines(path, sealed.demanded(path.parents[1]))
  damaged, last = dict(lines.damaged), -1
  for number, row in zip(lines.numbers, lines.rows, strict=True):
    step = row.get("step")
    if "validation_accuracy" not in row or not isinstance(step, int):
      damaged[number] = "it lacks a step or a validation_accuracy"
    elif step <= last:
      damaged[number] = f"its step is {step}, and {last} is before it"
    else:
      last = step
  if damaged:
    first = min(damaged)
    raise CheckpointError(
      f"{path} is damaged: line {first}: {damaged[first]};"
      f" `{sealed.without(path, damaged)}` removes"
      f" {'it' if len(damaged) == 1 else f'{len(damaged)} such lines'}, and the"
      " same command measures again what is needed of them"
    )
  return lines.rows
