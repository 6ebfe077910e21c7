"""What stands in docs/results/, and a table of it."""

import argparse
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxr18.run.result import Result, read

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def run(name: str) -> Result:
  """Reads a run's docs/results/NAME/result.json."""
  return read(RESULTS / name)


def load(name: str) -> dict[str, Any]:
  """Reads a benchmark's docs/results/NAME/result.json."""
  return json.loads((RESULTS / name / "result.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
  """A Markdown table; all columns but the first are right-aligned."""
  lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
  return "".join("| " + " | ".join(row) + " |\n" for row in lines)


def rows_with(
  parser: argparse.ArgumentParser, rows: Iterable[str], part: str
) -> list[str]:
  """Chooses the rows that contain a part; ends the program where none does."""
  rows = list(rows)
  found = [name for name in rows if part in name]
  if not found:
    parser.error(f"no row contains {part!r}; there are {', '.join(rows)}")
  return found


def write(out: dict[str, Any], path: str | None) -> None:
  """Writes what a benchmark measured; nowhere if there is no path."""
  if not path:
    return
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(out, indent=1, allow_nan=False) + "\n")
