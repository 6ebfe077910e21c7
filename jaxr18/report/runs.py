"""Finds runs in folders, and reads what they have left.

What the report cannot show is left out with the reason, and the others are
shown: a result with a number out of its range, a line that is no row.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxr18.config.lift import lift
from jaxr18.host import paths, sealed
from jaxr18.host.checked import Checked, OddValueError
from jaxr18.host.workdir import WorkdirError
from jaxr18.run.result import Result, read

DEPTH = 2  # folders below an argument: STUDY/trials/0001


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: its folder's, with what is above it where needed.
    folder: holds result.json, and mostly the run's other files.
    result: of the run.
    metrics: rows of metrics.jsonl by phase, as far as they are there.
  """

  name: str
  folder: pathlib.Path
  result: Result
  metrics: dict[str, list[dict[str, Any]]]


def find(arguments: Sequence[str]) -> tuple[list[Run], list[str]]:
  """Finds the finished runs of workdirs, and of folders that hold workdirs.

  Returns:
    The runs in the order of the arguments, each once, and lines that name what
    was left out, and why.

  Raises:
    WorkdirError: no argument is a finished run or holds one.
  """
  runs: list[Run] = []
  remarks: list[str] = []
  seen, names = set(), set()
  for argument in arguments:
    root = paths.folder(argument)
    workdirs = _workdirs(root, DEPTH, remarks) or [root]
    results, left_out = _read_all(workdirs, root)
    remarks += left_out
    for folder, result in results.items():
      resolved = folder.resolve()
      if resolved in seen:
        continue
      seen.add(resolved)
      name = _new_name(resolved, names)
      names.add(name)
      metrics, odd = read_metrics(folder, result)
      remarks += [f"{name}/{line}" for line in odd]
      runs.append(Run(name, folder, result, metrics))
  if not runs:
    raise WorkdirError(f"there is no finished run: {'; '.join(remarks)}")
  return runs, remarks


def shown(text: str) -> str:
  """Makes a text that can be printed and drawn, whatever bytes a name has."""
  text = os.fsencode(text).decode("utf-8", "replace") if text else text
  return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _new_name(folder: pathlib.Path, taken: set[str]) -> str:
  """The folder's last names, as many as tell it from the others."""
  parts = [shown(part) for part in folder.parts]
  names = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
  names += [f"{names[-1]} ({i})" for i in range(2, len(taken) + 3)]
  return next(name for name in names if name not in taken)


def _workdirs(folder: pathlib.Path, depth: int, remarks: list[str]):
  try:
    if any((folder / f).is_file() for f in ("result.json", "config.json")):
      return [folder]
    children = sorted(folder.iterdir()) if depth and folder.is_dir() else []
  except OSError as e:
    remarks.append(f"{shown(str(folder))} cannot be read ({e.strerror})")
    return []
  return [
    workdir
    for child in children
    for workdir in _workdirs(child, depth - 1, remarks)
  ]


def _read_all(folders, root):
  """Results by folder, and a line for each reason that others have."""
  results, left_out = {}, {}
  for folder in folders:
    try:
      result = results[folder] = read(folder)
      lift(result.config)
    except (WorkdirError, TypeError, ValueError, LookupError,
            AttributeError) as e:  # fmt: skip
      results.pop(folder, None)
      if folder == root:
        return {}, [str(e)]
      why = getattr(e, "why", "") or f"a config that cannot be read ({e})"
      left_out.setdefault(why, []).append(shown(str(folder.relative_to(root))))
  return results, [f"{why}: {', '.join(x)}" for why, x in left_out.items()]


def read_metrics(
  folder: pathlib.Path, result: Result
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
  """Reads PHASE/metrics.jsonl, or PHASE.jsonl beside result.json, by phase.

  Returns:
    The rows, and a line for each file whose lines are not all rows.
  """
  out, remarks = {}, []
  for phase in result.config["phases"]:
    for name in (f"{phase}/metrics.jsonl", f"{phase}.jsonl"):
      if not (folder / name).is_file():
        continue
      try:
        lines = sealed.read_lines(folder / name, sealed.demanded(folder))
      except OSError as e:
        remarks.append(f"{name} cannot be read ({e.strerror})")
        break
      out[phase], odd = _rows(lines)
      if odd:
        more = f", and {len(odd) - 1} more" if len(odd) > 1 else ""
        first = min(odd)
        remarks.append(f"{name}, line {first}: {odd[first]}{more}")
      break
  return out, remarks


def _rows(lines: sealed.Lines) -> tuple[list[dict[str, Any]], dict[int, str]]:
  """The lines that can be drawn, and what is wrong with each other line."""
  rows, odd, members = [], dict(lines.damaged), None
  for number, row in zip(lines.numbers, lines.rows, strict=True):
    try:
      each = _check_line(row)
      members = each if members is None else members
      if each != members:
        odd[number] = f"it has {each} members, and those before have {members}"
        continue
    except OddValueError as e:
      odd[number] = str(e)
    else:
      rows.append(row)
  return rows, odd


def _check_line(row: dict[str, Any]) -> int:
  """Raises where it is no row; the number of its population's members."""
  at = Checked(row)
  at.at("epoch").whole()
  for name in ("train_accuracy", "validation_accuracy"):
    at.maybe(name, lambda x: x.number(0, 1))
  at.maybe("loss", Checked.number)
  each = at.maybe(
    "validation_accuracies", lambda x: x.each(lambda y: y.number(0, 1))
  )
  return len(each or ())
