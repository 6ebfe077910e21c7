"""Pictures: that they hold the numbers, and are the same when drawn again."""

import re

import pytest

pytest.importorskip("matplotlib")

from results import values

from jaxr18.report import figure, heatmap, tradeoff
from jaxr18.run.result import Result


def _result(accuracy, w, p_u=0.0, p_s=0.0, per_layer=0.02):
  found = values(correct=round(10_000 * accuracy), test_count=10_000)
  found["score"]["per_network"] |= {"w": w, "p_s": p_s, "p_u": p_u}
  terms = {"params_term": per_layer, "ops_term": 0.0, "total": per_layer}
  found["score"]["per_layer"] = terms
  return Result.from_json(found)


class TestTradeoff:
  def test_costs(self):
    result = _result(0.8, 200_000, p_u=0.5, p_s=0.25)
    assert tradeoff.parameters_kept(result) == 50_000
    assert tradeoff.macs(result) == result.score.macs
    assert tradeoff.per_layer_score(result) == 0.02

  def test_a_picture(self, tmp_path):
    series = {
      "weights": [("all of it", _result(0.84, 200_000)),
                  ("a tenth", _result(0.79, 200_000, 0.9))],
      "channels": [("half", _result(0.78, 60_000, per_layer=0.01))],
    }  # fmt: skip
    costs = {
      "kept": tradeoff.parameters_kept,
      "score": tradeoff.per_layer_score,
    }
    paths = [tmp_path / name for name in ("a.svg", "b.svg", "a.png", "b.png")]
    for two in (paths[::2], paths[1::2]):
      figure.save(tradeoff.draw(series, costs, "Runs"), *two)
    files = [path.read_bytes() for path in paths]
    assert files[0] == files[1] and files[2] == files[3]
    assert files[2].startswith(b"\x89PNG")
    # matplotlib draws letters as shapes, and says what they are in comments.
    said = re.findall(r"<!-- (.*?) -->", files[0].decode())
    for words in ("weights", "channels", "Runs", "score", "test accuracy, %"):
      assert words in said
    # A label in each of two panels; the costs' own numbers on the axes.
    assert said.count("a tenth") == said.count("half") == 2
    assert "50 k" in said and "0.02" in said


@pytest.mark.parametrize("whole", [0.9, 0.06])
def test_a_heat_map_of_good_and_bad_networks(whole, tmp_path):
  result = {
    "accuracy": whole,
    "criterion": "l2",
    "sparsities": (0.5, 0.9),
    "accuracies": {"stem": [whole, 0.1], "head": [0.05, 0.02]},
  }
  figure.save(heatmap.draw(result), tmp_path / "a.svg")
  said = re.findall(r"<!-- (.*?) -->", (tmp_path / "a.svg").read_text())
  for words in ("stem", "head", "removed, by l2", "90%", "5.0", "2.0"):
    assert words in said
