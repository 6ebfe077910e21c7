"""Finds runs in folders, and reads what they have left.

What the report cannot show is left out with the reason, and the others are
shown: a result with a number out of its range, a line that is no row.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxr18.cost.figures import FIGURES, LayerScore
from jaxr18.host import paths, sealed
from jaxr18.host.workdir import WorkdirError, read_result

DEPTH = 2  # folders below an argument: STUDY/trials/0001
LARGEST = 1e15  # beyond it a number is no count, no loss and no score
_WHOLE, _NUMBER = (int,), (int, float)


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: its folder's, with what is above it where needed.
    folder: holds result.json, and mostly the run's other files.
    result: what result.json holds, as `fault` accepts it.
    metrics: rows of metrics.jsonl by phase, as far as they are there.
  """

  name: str
  folder: pathlib.Path
  result: dict[str, Any]
  metrics: dict[str, list[dict[str, Any]]]


def find(arguments: Sequence[str]) -> tuple[list[Run], list[str]]:
  """The finished runs of workdirs, and of folders that hold workdirs.

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
    found = _workdirs(root, DEPTH, remarks) or [root]
    results, left_out = _read_all(found, root)
    remarks += left_out
    for folder, result in results.items():
      whole = folder.resolve()
      if whole in seen:
        continue
      seen.add(whole)
      name = _new_name(whole, names)
      names.add(name)
      metrics, odd = read_metrics(folder, result)
      remarks += [f"{name}/{line}" for line in odd]
      runs.append(Run(name, folder, result, metrics))
  if not runs:
    raise WorkdirError(f"there is no finished run: {'; '.join(remarks)}")
  return runs, remarks


def shown(text: str) -> str:
  """A text that can be printed and drawn, whatever bytes a name is made of."""
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
    found
    for child in children
    for found in _workdirs(child, depth - 1, remarks)
  ]


def _read_all(folders, root):
  """Results by folder, and a line for each reason that others have."""
  results, left_out = {}, {}
  for folder in folders:
    try:
      result = _texts_shown(read_result(folder))
      why = fault(result)
    except RecursionError:
      why = "result.json is nested too deeply"
    except WorkdirError as e:
      if folder == root:
        return {}, [str(e)]
      if not (folder / "result.json").is_file():
        why = "not finished"
      elif "is damaged" in str(e):
        why = f"damaged ({e.__cause__})"
      else:
        why = "no result of a run"
    if why:
      name = root if folder == root else folder.relative_to(root)
      left_out.setdefault(why, []).append(shown(str(name)))
    else:
      results[folder] = result
  return results, [f"{why}: {', '.join(x)}" for why, x in left_out.items()]


def _texts_shown(value: Any) -> Any:
  """The same with texts that can be printed; a JSON's may be halves of one."""
  if isinstance(value, dict):
    return {_texts_shown(k): _texts_shown(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_texts_shown(v) for v in value]
  if isinstance(value, str):
    return value.encode("utf-8", "replace").decode()
  return value


class _Odd(ValueError):
  """What a result lacks, or which number cannot be."""


def fault(result: dict[str, Any]) -> str:
  """Why a result cannot be shown: what it lacks, which number cannot be.

  Returns:
    '' where all that the report reads is there and can be drawn.
  """
  try:
    _check(result)
  except _Odd as e:
    return str(e)
  return ""


def _check(result) -> None:
  for name in (
    "test_accuracy",
    "score.per_network.p_s",
    "score.per_network.p_u",
  ):
    _number(result, name, 0, 1)
  _number(result, "test_count", 1, LARGEST, _WHOLE)
  _number(result, "test_correct", 0, result["test_count"], _WHOLE)
  _number(result, "seed", 0, LARGEST, _WHOLE)
  _number(result, "spec.head.classes", 1, LARGEST, _WHOLE)
  _number(result, "seconds", 0, LARGEST)
  _number(result, "score.macs", 0, LARGEST, _WHOLE)
  for name in FIGURES:
    for term in ("params_term", "ops_term"):
      _number(result, f"score.{name}.{term}", 0, LARGEST)
    _number(result, f"score.{name}.total", 1e-12, LARGEST)
  for i, _ in enumerate(_typed(result, "score.rows", list)):
    _check_row(result, f"score.rows.{i}")
  if not result["score"]["rows"]:
    raise _Odd("score.rows is empty")
  for name in ("command", "device", "platform", "python", "config.data.name"):
    _typed(result, name, str)
  versions = _typed(result, "versions", dict)
  if not all(type(version) is str for version in versions.values()):
    raise _Odd(f"versions is {_short(versions)}, and not by name")
  phases = _typed(result, "config.phases", list)
  if not all(isinstance(name, str) for name in phases):
    raise _Odd(f"config.phases is {phases!r}, which cannot be names")
  if not phases:
    raise _Odd("config.phases is empty")
  if "members" in result:
    _check_members(result)


def _check_row(result, at: str) -> None:
  row = _typed(result, at, dict)
  try:
    LayerScore(**row)
  except TypeError as e:
    raise _Odd(f"{at} is no layer of this release") from e
  _typed(result, f"{at}.path", str)
  for i, _ in enumerate(_typed(result, f"{at}.kernel_shape", list)):
    _number(result, f"{at}.kernel_shape.{i}", 1, LARGEST, _WHOLE)
  _number(result, f"{at}.weights", 1, LARGEST, _WHOLE)
  _number(result, f"{at}.kept", 0, row["weights"], _WHOLE)
  _number(result, f"{at}.w_bits", 1, 64, _WHOLE)
  _number(result, f"{at}.a_bits", 1, 64, _WHOLE)
  for name in ("macs", "biases", "biases_kept"):
    _number(result, f"{at}.{name}", 0, LARGEST, _WHOLE)


def _check_members(result) -> None:
  members = _typed(result, "members", list)
  if not members:
    raise _Odd("members is empty")
  for i, member in enumerate(members):
    _check_answers(result, f"members.{i}")
    for name in FIGURES:
      _number(result, f"members.{i}.score.{name}", 1e-12, LARGEST)
    if "seed" in member:
      _number(result, f"members.{i}.seed", 0, LARGEST, _WHOLE)
  if "votes" in result:
    for how in _typed(result, "votes", dict):
      _check_answers(result, f"votes.{how}")
    _typed(result, "vote", str)
  if result.get("disagreement") is not None:
    for i, _ in enumerate(_typed(result, "disagreement", list)):
      for j, _ in enumerate(_typed(result, f"disagreement.{i}", list)):
        _number(result, f"disagreement.{i}.{j}", 0, 1)


def _check_answers(result, at: str) -> None:
  found = _typed(result, at, dict)
  _number(result, f"{at}.test_accuracy", 0, 1)
  if found.get("validation_accuracy") is not None:
    _number(result, f"{at}.validation_accuracy", 0, 1)


def _at(tree: Any, name: str) -> Any:
  """A value by its dotted name; a list's by its number."""
  done: list[str] = []
  for part in name.split("."):
    done.append(part)
    try:
      tree = tree[int(part) if isinstance(tree, list) else part]
    except (LookupError, TypeError, ValueError) as e:
      raise _Odd(f"it lacks {'.'.join(done)}") from e
  return tree


def _typed(tree, name: str, kind: type) -> Any:
  value = _at(tree, name)
  if type(value) is not kind:
    raise _Odd(f"{name} is {_short(value)}, and no {kind.__name__}")
  return value


def _number(tree, name: str, low, high, kinds=_NUMBER) -> None:
  value = _at(tree, name)
  if type(value) not in kinds or not low <= value <= high:
    what = "a whole number" if kinds is _WHOLE else "a number"
    raise _Odd(
      f"{name} is {_short(value)}, and not {what} from {low:g} to {high:g}"
    )


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:37]}..."


def read_metrics(
  folder: pathlib.Path, result: dict[str, Any]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
  """PHASE/metrics.jsonl, or PHASE.jsonl beside result.json, by phase.

  Returns:
    The rows, and a line for each file whose lines are not all rows.
  """
  out, remarks = {}, []
  for phase in result["config"]["phases"]:
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
        raise _Odd(f"it has {each} members, and those before have {members}")
    except _Odd as e:
      odd[number] = str(e)
    else:
      rows.append(row)
  return rows, odd


def _check_line(row: dict[str, Any]) -> int:
  """Raises _Odd where it is no row; the number of its population's members."""
  _number(row, "epoch", 0, LARGEST, _WHOLE)
  for name in ("train_accuracy", "validation_accuracy"):
    if row.get(name) is not None:
      _number(row, name, 0, 1)
  if row.get("loss") is not None:
    _number(row, "loss", -LARGEST, LARGEST)
  if row.get("validation_accuracies") is None:
    return 0
  each = _typed(row, "validation_accuracies", list)
  for i, _ in enumerate(each):
    _number(each, str(i), 0, 1)
  return len(each)
