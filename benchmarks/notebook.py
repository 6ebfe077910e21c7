"""Runs docs/tour.ipynb as a script, and writes what its cells print.

    python -m benchmarks.notebook

Only printed text is kept, so the file stays small and a change of it can be
read. Where training decides a number, which differs by machine, a cell has the
tag `varies`.
"""

import contextlib
import io
import json
import pathlib
import re
from typing import Any

NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "tour.ipynb"


def source(cell: dict[str, Any]) -> str:
  return "".join(cell["source"])


def told(cell: dict[str, Any]) -> str:
  """Returns what a cell's outputs say, without numbers where they vary."""
  text = "".join("".join(output["text"]) for output in cell["outputs"])
  varies = "varies" in cell["metadata"].get("tags", ())
  return re.sub(r"\d+(\.\d+)?", "#", text) if varies else text


def run(notebook: dict[str, Any]) -> dict[str, Any]:
  """Runs the code cells in order, in the notebook's folder.

  Args:
    notebook: as nbformat 4 has it; its outputs are replaced.

  Returns:
    The names that the cells have set.
  """
  names: dict[str, Any] = {}
  for cell in notebook["cells"]:
    if cell["cell_type"] != "code":
      continue
    said = io.StringIO()
    code = compile(source(cell), f"<{cell['id']} of the notebook>", "exec")
    with contextlib.chdir(NOTEBOOK.parent), contextlib.redirect_stdout(said):
      exec(code, names)
    lines = said.getvalue().splitlines(keepends=True)
    stream = {"name": "stdout", "output_type": "stream", "text": lines}
    cell["outputs"] = [stream] if lines else []
  return names


def main():
  notebook = json.loads(NOTEBOOK.read_text())
  run(notebook)
  NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
