"""Every chart, described once: a function of plain numbers to an Altair chart.

`draw` makes them SVG for the page and for files. Their colors are literals of
`palette`, which the page's style and a file's replace by light and dark ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from jaxr18.report import curves as curves_lib
from jaxr18.report import palette, places
from jaxr18.report.points import GOAL, Point, front

SHAPES = ("circle", "square", "diamond", "triangle-up")  # of series
SIZE = 12  # of letters


def styled(chart: alt.TopLevelMixin) -> Any:
  """Returns a chart in the colors and letters of all of them."""
  letters: dict[str, Any] = dict(
    labelColor=palette.SOFT, titleColor=palette.SOFT, labelFontSize=SIZE,
    titleFontSize=SIZE,
  )  # fmt: skip
  # All at once: Altair copies the whole chart at each call.
  return chart.configure(
    background="transparent",
    font="sans-serif",
    padding=2,
    view=alt.ViewConfig(stroke=None),
    axis=alt.AxisConfig(
      domain=False, ticks=False, gridColor=palette.LINE, labelPadding=5,
      titleFontWeight="normal", labelLimit=400, **letters,
    ),
    legend=alt.LegendConfig(
      orient="top", title=None, symbolOpacity=1, labelLimit=400, offset=6,
      **letters,
    ),
    title=alt.TitleConfig(
      color=palette.INK, fontSize=SIZE + 1, fontWeight="normal",
      anchor="start",
    ),
  )  # fmt: skip


def pareto(
  points: Sequence[Point],
  score_label: str = "score",
  *,
  split: str = "test",
  goal: float | None = GOAL,
  size: tuple[int, int] = (860, 410),
  letters: int = 26,
  legend: bool = True,
) -> alt.LayerChart:
  """Describes accuracy against score, with the front and the goal.

  Args:
    points: the first one's series gets the strongest color and labels first.
    score_label: says which score it is.
    split: whose images the accuracy is of.
    goal: an accuracy that is drawn as a line, None where there is none.
    size: width and height of the axes, in pixels.
    letters: of the longest label.
    legend: whether the series are named above the axes.
  """
  f = places.frame(points, *size, goal)
  x, y = _axes(f, f"{score_label}, lower is better", f"{split} accuracy, %")
  order = places.series_of(points)
  colors = [palette.SERIES[i % 6] for i in range(len(order))]
  shapes = [SHAPES[i % 4] for i in range(len(order))]
  shown = alt.Legend() if legend else None
  color = alt.Color(
    "series:N", scale=alt.Scale(domain=order, range=colors), legend=shown
  )
  shape = alt.Shape(
    "series:N", scale=alt.Scale(domain=order, range=shapes), legend=shown
  )
  rows = _point_rows(points, f, letters, dict(zip(order, colors, strict=True)))
  line = [
    {"i": i, "x": s, "y": places.error_of(a)}
    for i, (s, a) in enumerate(places.steps(points, f))
  ]
  fill = alt.Fill("fill:N", scale=None)
  layers = [
    alt.Chart(data(line))
    .mark_line(color=palette.SOFT, strokeWidth=1.2, aria=False)
    .encode(x, y, alt.Order("i:Q")),
    *_goal(f, x, y),
    alt.Chart(data([r for r in rows if r["low"] != r["high"]]))
    .mark_rule(strokeWidth=1.6)
    .encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color, description="said:N"),
    alt.Chart(data(rows))
    .mark_point(size=90, strokeWidth=1.6, opacity=1)
    .encode(x, y, color, shape, fill, description="said:N"),
    alt.Chart(data([r for r in rows if r["short"]]))
    .mark_text(
      align="left", baseline="alphabetic", fontSize=SIZE,
      dx=alt.expr("datum.dx"), dy=alt.expr("datum.dy"),
      aria=False,
    )
    .encode(x, y, color, text="short:N"),
  ]  # fmt: skip
  return styled(alt.layer(*layers).properties(width=size[0], height=size[1]))


def _axes(f: places.Frame, across: str, upwards: str) -> tuple[alt.X, alt.Y]:
  """Both axes, logarithmic: the score, and the share of wrong answers."""
  x = alt.X(
    "x:Q",
    scale=alt.Scale(type="log", domain=f.scores, nice=False),
    axis=alt.Axis(
      values=places.score_ticks(f), format="~g", labelOverlap=False
    ),
    title=across,
  )
  y = alt.Y(
    "y:Q",
    scale=alt.Scale(type="log", domain=f.errors, nice=False),
    axis=alt.Axis(
      values=[places.error_of(a) for a in places.accuracy_ticks(f)],
      labelExpr="format(100 * (1 - datum.value), '.4~g')",
      labelOverlap=False,
    ),
    title=upwards,
  )
  return x, y


def _point_rows(points, f, letters: int, colors) -> list[dict[str, Any]]:
  """A row a point, the first one last, and so above the others."""
  best, placed = set(front(points)), places.labels(points, f, letters)
  rows = []
  for i, p in enumerate(points):
    label = placed.get(i, places.Label("", 0, 0))
    rows.append(
      {
        "x": p.score,
        "y": places.error_of(p.accuracy),
        "low": places.error_of(p.accuracy - p.error),
        "high": places.error_of(p.accuracy + p.error),
        "series": p.series,
        "said": places.spoken(p),
        "fill": colors[p.series] if p in best else palette.PAPER,
        "short": label.text,
        "dx": round(label.dx, 1),
        "dy": round(label.dy, 1),
      }
    )
  return rows[::-1]


def _goal(f: places.Frame, x, y) -> list[alt.Chart]:
  """The goal's line, or where it lies outside an arrow at that end."""
  if f.goal is None:
    return []
  if f.goal_inside:
    line = data([{"y": places.error_of(f.goal)}])
    rule = alt.Chart(line).mark_rule(
      color=palette.GOAL, strokeDash=[6, 4], aria=False
    )
    return [rule.encode(y)]
  above = f.goal > 1 - f.errors[1]
  end = {"x": f.scores[0], "y": f.errors[1 if above else 0],
         "text": f"{100 * f.goal:g}% {'↑' if above else '↓'}"}  # fmt: skip
  mark = alt.Chart(data([end])).mark_text(
    align="left", dx=4, dy=10 if above else -8, color=palette.GOAL,
    fontSize=SIZE, aria=False,
  )  # fmt: skip
  return [mark.encode(x, y, text="text:N")]


def curves(metrics: curves_lib.Metrics) -> alt.VConcatChart | None:
  """Describes accuracy above loss by epoch; None where there is no curve."""
  if not any(len(rows) > 1 for rows in metrics.values()):
    return None
  begins = curves_lib.starts(metrics)
  last = max(begins[p] + r["epoch"] for p, rows in metrics.items()
             for r in rows) or 1  # fmt: skip
  ticks = sorted({round(t) for t in places.ticks(0, last)})
  panels = []
  for fields, label in (
    (curves_lib.ACCURACIES, "accuracy, %"),
    (curves_lib.LOSSES, "training loss"),
  ):
    if lines := curves_lib.curves(metrics, fields):
      panels.append(_panel(lines, label, begins, (last, ticks)))
  if not panels:
    return None
  together = alt.vconcat(*panels, spacing=14)
  return styled(together.resolve_scale(color="independent"))


def _panel(lines, label: str, begins: Mapping[str, int], epochs):
  """One of the curves' two charts."""
  last, ticks = epochs
  scale = 100 if "%" in label else 1
  x = alt.X(
    "x:Q",
    scale=alt.Scale(domain=(0, last), nice=False),
    axis=alt.Axis(values=ticks, format="d", grid=False, labelOverlap=False),
    title="epoch",
  )
  y = alt.Y(
    "y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5), title=label
  )
  names = list(dict.fromkeys(c.name for c in lines))
  color = alt.Color(
    "name:N",
    scale=alt.Scale(
      domain=names, range=[palette.SERIES[2 * i] for i in range(len(names))]
    ),
    legend=alt.Legend(symbolType="stroke", offset=22) if names[1:] else None,
  )
  rows = [
    {"x": a, "y": scale * b, "name": c.name, "line": i, "faint": c.faint}
    for i, c in enumerate(lines)
    for a, b in c.points
  ]
  layers = []
  starts = [{"x": at, "phase": p} for p, at in begins.items()]
  if len(starts) > 1:
    base = alt.Chart(data(starts))
    layers.append(alt.Chart(data(starts[1:])).mark_rule(
      color=palette.SOFT, strokeDash=[2, 3], aria=False
    ).encode(x))  # fmt: skip
    layers.append(base.mark_text(
      color=palette.SOFT, align="left", dx=4, dy=-5, fontSize=SIZE, y=0,
      baseline="bottom", aria=False,
    ).encode(x, text="phase:N"))  # fmt: skip
  for faint, width in ((True, 1.0), (False, 2.0)):
    some = [r for r in rows if r["faint"] is faint]
    if not some:
      continue
    mark = alt.Chart(data(some)).mark_line(
      strokeWidth=width, opacity=0.45 if faint else 1, aria=False,
      point=False if faint or len(some) > 19 else {"size": 24, "opacity": 1},
    )  # fmt: skip
    layers.append(mark.encode(x, y, color=color, detail="line:N"))
  return alt.layer(*layers).properties(width=360, height=150)


def growth(covered: Sequence[tuple[float, float]]) -> alt.Chart:
  """Describes the share that a search's front covers, by hours of training."""
  rows = [{"x": hours, "y": 100 * share} for hours, share in covered]
  mark = alt.Chart(data(rows)).mark_line(
    interpolate="step-after", color=palette.SERIES[0], strokeWidth=2, aria=False
  )
  y = alt.Y("y:Q", scale=alt.Scale(domain=(0, 100)), title="covered, %",
            axis=alt.Axis(tickCount=5))  # fmt: skip
  axis = alt.Axis(grid=False, tickCount=5)
  x = alt.X("x:Q", title="hours of training", axis=axis)
  return styled(mark.encode(x, y).properties(width=360, height=150))


def data(rows: Sequence[Mapping[str, Any]]) -> alt.InlineData:
  """Returns rows as a chart's data; a number that is not finite is left out."""
  finite = [
    {k: v for k, v in r.items()
     if not isinstance(v, float) or math.isfinite(v)} for r in rows
  ]  # fmt: skip
  # Altair copies a chart when it is layered: lists are copied, tuples kept.
  return alt.InlineData(values=tuple(finite))
