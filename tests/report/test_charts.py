"""Charts: that they hold the numbers, and how they become SVG."""

import json
import re

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from benchmarks import charts as own_charts
from jaxr18.report import charts, draw, layer_charts, palette, places
from jaxr18.report.points import Point

SPREAD = [
  Point("cheap", 0.75, 0.005),
  Point("better", 0.85, 0.02, error=0.01),
  Point("beaten", 0.80, 0.03, series="others"),
  Point("best", 0.93, 2.0, series="others"),
]
HEAT = {
  "accuracy": 0.9,
  "criterion": "l2",
  "sparsities": (0.5, 0.9),
  "accuracies": {"stem": [0.91, 0.1], "head": [0.05, 0.02]},
}
METRICS = {
  phase: [{"epoch": e, "loss": 1 / e, "validation_accuracy": 0.5 + e / 10,
           "train_accuracy": 0.4} for e in (1, 2, 3)]
  for phase in ("teacher", "student")
}  # fmt: skip


def words(svg):
  """The texts of an SVG."""
  return re.findall(r"<text[^>]*>(.*?)</text>", svg)


@pytest.mark.parametrize(
  "chart",
  [
    charts.pareto(SPREAD),
    charts.curves(METRICS),
    layer_charts.heatmap(HEAT),
    own_charts.bits({"a": {2: 0.5, 4: 0.7}}, 0.9),
    own_charts.tradeoff({"a": [("x", 0.5, 0.1, (9.0, 1.0)),
                           ("y", 0.7, 0.1, (90.0, 2.0))]}, ("w", "score")),
  ],
)  # fmt: skip
class TestEach:
  def test_is_what_altair_allows_and_the_same_again(self, chart, tmp_path):
    chart.to_dict()  # checks it
    paths = [tmp_path / n for n in ("a.svg", "b.svg", "a.png", "b.png")]
    draw.save(chart, *paths[::2])
    draw.save(chart, *paths[1::2])
    files = [path.read_bytes() for path in paths]
    assert files[0] == files[1] and files[2] == files[3]
    assert files[2].startswith(b"\x89PNG")

  def test_draws_by_attributes_of_known_colors_alone(self, chart):
    svg = draw.markup(chart)
    assert "style=" not in svg and "<style" not in svg and "<script" not in svg
    known = {light for light, _ in palette.VARIABLES.values()}
    found = set(re.findall(r'(?:fill|stroke)="(#\w+)"', svg))
    assert found and found <= known


class TestInline:
  def test_ids_are_unique_and_what_it_is_is_said(self):
    line = [("x", 0.5, 0.1, (9.0,)), ("y", 0.7, 0.1, (90.0,))]
    chart = own_charts.tradeoff({"a": line}, ("w",))
    both = "".join(draw.inline(chart, k, "<b>", "all of it") for k in "kl")
    ids = re.findall(r'\bid="([^"]*)"', both)
    assert len(ids) == len(set(ids)) >= 4
    for used in re.findall(r"url\(#(.*?)\)", both):
      assert used in ids
    assert "&lt;b&gt;" in both and both.count('role="img"') == 2
    assert not re.search(r'<svg[^>]* (width|height)="', both)

  def test_a_file_is_dark_where_the_system_is(self, tmp_path):
    draw.save(layer_charts.heatmap(HEAT), tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert "prefers-color-scheme: dark" in svg
    for name, (light, dark) in palette.VARIABLES.items():
      assert f"--{name}: {light};" in svg and f"--{name}: {dark};" in svg
      assert f'[fill="{light}"] {{ fill: var(--{name}); }}' in svg


class TestPareto:
  def test_points_say_what_they_are(self):
    svg = draw.markup(charts.pareto(SPREAD))
    for p in SPREAD:
      assert f'aria-label="{places.spoken(p)}"' in svg
      assert p.label in words(svg)
    assert "others" in words(svg)
    assert "others" not in words(
      draw.markup(charts.pareto(SPREAD, legend=False))
    )

  @pytest.mark.parametrize(
    "accuracies, said",
    [((0.75, 0.93), None), ((0.76, 0.80), "90% ↑"), ((0.98, 0.985), "90% ↓")],
  )
  def test_the_goal_takes_no_half_of_it(self, accuracies, said):
    points = [Point(str(a), a, a) for a in accuracies]
    f = places.frame(points, 800, 400)
    assert f.goal_inside == (said is None)
    drawn = words(draw.markup(charts.pareto(points)))
    assert (said in drawn) if said else not {"90% ↑", "90% ↓"} & set(drawn)
    heights = [f.y(a) for a in accuracies]
    assert max(heights) - min(heights) > 0.5 * f.height

  @pytest.mark.parametrize("ratio", [1.0, 1.02, 1.3, 3.0, 40.0, 1e4])
  def test_axes_have_three_ticks(self, ratio):
    points = [Point("a", 0.80, 0.0176), Point("b", 0.82, 0.0176 * ratio)]
    f = places.frame(points, 800, 400, None)
    found = places.score_ticks(f)
    assert 3 <= len(found) < 20 and len(places.accuracy_ticks(f)) >= 3
    assert f.scores[0] <= found[0] and found[-1] <= f.scores[1]


def test_curves_begin_where_the_phase_before_ended():
  spec = json.dumps(charts.curves(METRICS).to_dict())
  assert '"phase": "student"' in spec and '"x": 6' in spec
  said = words(draw.markup(charts.curves(METRICS)))
  assert {"teacher", "student", "validation", "training"} <= set(said)
  assert charts.curves({"train": METRICS["student"][:1]}) is None


def test_a_heat_map_tells_points_lost():
  said = words(draw.markup(layer_charts.heatmap(HEAT)))
  for text in ("stem", "head", "removed, by l2", "90%", "+1.0", "-80.0"):
    assert text in said
