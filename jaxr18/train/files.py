"""The small files of a phase: its end, its lines of metrics, its steps."""

import os
import pathlib
from typing import Any

from jaxr18.host import sealed
from jaxr18.host.errors import FileError, reading, writing
from jaxr18.host.files import removing, to_json, write_atomically


class CheckpointError(FileError):
  """A file of a run that cannot be read or trusted."""


def read_phase(directory: pathlib.Path) -> dict[str, Any]:
  """Reads the phase.json of a finished phase.

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
  """Returns the step that a phase goes on from; None if it has not begun."""
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
    """Returns the line of a step; empty where there is none."""
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
