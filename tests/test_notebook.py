"""docs/tour.ipynb runs, says what it shows, and is small."""

import copy
import json

import pytest

import jaxr18
from benchmarks import notebook

SHOWN = json.loads(notebook.NOTEBOOK.read_text())
CODE = [cell for cell in SHOWN["cells"] if cell["cell_type"] == "code"]


def test_only_short_printed_text_is_kept():
  assert notebook.NOTEBOOK.stat().st_size < 20_000
  outputs = [output for cell in CODE for output in cell["outputs"]]
  assert {output["output_type"] for output in outputs} == {"stream"}
  assert all(cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
def test_the_notebook():
  """A stranger's script: compresses a network, trains it on, runs it."""
  pytest.importorskip("onnxruntime")
  run = copy.deepcopy(SHOWN)
  names = notebook.run(run)
  for cell, shown in zip(run["cells"], SHOWN["cells"], strict=True):
    if cell["cell_type"] == "code":
      assert notebook.told(cell) == notebook.told(shown)
  before, result = names["before"], names["result"]
  assert result.test.correct > 2 * before.correct
  assert abs(names["right"] - result.test.correct) <= 1
  score = jaxr18.score(names["net"])  # of masks and bits that training kept
  assert score.per_layer.total == result.score.per_layer.total
