"""Finds runs in folders, and reads what they have left."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxr18 import sealed
from jaxr18.workdir import WorkdirError, read_result

DEPTH = 2  # folders below an argument: STUDY/trials/0001


class Run(NamedTuple):
  """A finished run.

  Attributes:
    name: its folder's, with what is above it where needed.
    folder: holds result.json, and mostly the run's other files.
    result: what result.json holds.
    metrics: rows of metrics.jsonl by phase, as far as they are there.
  """

  name: str
  folder: pathlib.Path
  result: dict[str, Any]
  metrics: dict[str, list[dict[str, Any]]]


def find(arguments: Sequence[str]) -> tuple[list[Run], list[str]]:
  """The finished runs of workdirs, and of folders that hold workdirs.

  Returns:
    The runs in the order of the arguments, each once, and lines that name the
    folders that were left out.

  Raises:
    WorkdirError: an argument is no finished run and holds none.
  """
  runs: list[Run] = []
  remarks: list[str] = []
  seen = set()
  for argument in arguments:
    root = pathlib.Path(argument).expanduser()
    found = _workdirs(root, DEPTH)
    if found in ([], [root]):  # one run, or what read_result says
      found = [root]
      results = {root: read_result(root)}
    else:
      results, left_out = _read_all(found, root)
      remarks += left_out
      if not results:
        raise WorkdirError(
          f"{root} holds no finished run ({'; '.join(left_out)}): run one to"
          " its end, or give another WORKDIR"
        )
    for folder, result in results.items():
      if folder.resolve() in seen:
        continue
      seen.add(folder.resolve())
      name = folder.resolve().name
      if name in {run.name for run in runs}:
        name = "/".join(folder.resolve().parts[-2:])
      if name in {run.name for run in runs}:
        name = str(folder)
      runs.append(Run(name, folder, result, read_metrics(folder, result)))
  return runs, remarks


def _workdirs(folder: pathlib.Path, depth: int) -> list[pathlib.Path]:
  if any((folder / f).is_file() for f in ("result.json", "config.json")):
    return [folder]
  if not depth or not folder.is_dir():
    return []
  return [
    found
    for child in sorted(folder.iterdir())
    for found in _workdirs(child, depth - 1)
  ]


def _read_all(folders, root):
  results, left_out = {}, {}
  for folder in folders:
    try:
      results[folder] = read_result(folder)
    except WorkdirError:
      there = (folder / "result.json").is_file()
      why = "no result of a run" if there else "not finished"
      left_out.setdefault(why, []).append(str(folder.relative_to(root)))
  return results, [f"{why}: {', '.join(x)}" for why, x in left_out.items()]


def read_metrics(
  folder: pathlib.Path, result: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
  """PHASE/metrics.jsonl, or PHASE.jsonl beside result.json, by phase.

  A line that is damaged, or that a killed run has left half written, is
  skipped.
  """
  out = {}
  for phase in result["config"]["phases"]:
    for path in (folder / phase / "metrics.jsonl", folder / f"{phase}.jsonl"):
      if path.is_file():
        must = sealed.demanded(folder)
        out[phase] = sealed.read_lines(path, must).rows
        break
  return out
