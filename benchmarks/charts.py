"""Charts of docs/ that no single run has."""

from collections.abc import Mapping, Sequence

import altair as alt

from jaxr18.report import charts, palette, places


def tradeoff(
  series: Mapping[str, Sequence[tuple[str, float, float, Sequence[float]]]],
  costs: Sequence[str],
  title: str = "",
) -> alt.HConcatChart:
  """Describes accuracy against what a network costs, a panel for each cost.

  Args:
    series: a line for each, of (label, accuracy, half an error bar, a number
      for each cost); accuracies from 0 to 1.
    costs: the axes' names.
    title: above all.
  """
  names = list(series)
  colors = [palette.SERIES[2 * i % 6] for i in range(len(names))]
  panels = []
  for i, cost in enumerate(costs):
    rows = [
      {"series": name, "label": label, "x": numbers[i], "y": 100 * accuracy,
       "low": 100 * (accuracy - error), "high": 100 * (accuracy + error),
       "dy": 18 if k % 2 else -13}
      for k, (name, found) in enumerate(series.items())
      for label, accuracy, error, numbers in found
    ]  # fmt: skip
    low, high = min(r["x"] for r in rows), max(r["x"] for r in rows)
    pad = (high / low) ** 0.12
    ends = (low / pad, high * pad)
    base = alt.Chart(charts.data(rows)).encode(
      x=alt.X("x:Q", title=cost, scale=alt.Scale(type="log", domain=ends,
                                                 nice=False),
              axis=alt.Axis(values=list(places.log_ticks(*ends)),
                            format="~s" if high >= 1000 else "~g",
                            labelOverlap="greedy")),
      y=alt.Y("y:Q", title="test accuracy, %" if i == 0 else None,
              scale=alt.Scale(zero=False, padding=14)),
      color=alt.Color("series:N", scale=alt.Scale(domain=names, range=colors),
                      legend=alt.Legend()),
    )  # fmt: skip
    panels.append(
      alt.layer(
        base.mark_line(strokeWidth=1.6, aria=False),
        base.mark_rule(strokeWidth=1.4, aria=False).encode(
          y="low:Q", y2="high:Q"
        ),
        base.mark_point(filled=True, size=55, opacity=1, aria=False),
        base.mark_text(
          fontSize=charts.SIZE, dy=alt.expr("datum.dy"), aria=False
        ).encode(text="label:N"),
      ).properties(width=330, height=270)
    )
  return charts.styled(alt.hconcat(*panels, spacing=20).properties(title=title))


def bits(
  found: Mapping[str, Mapping[int, float]], whole: float
) -> alt.LayerChart:
  """Describes accuracy against bits, a line for each way to quantize.

  Args:
    found: accuracies, 0 to 1, by name and by bits.
    whole: accuracy in 32 bits.
  """
  names = list(found)
  every = sorted({b for curve in found.values() for b in curve})
  rows = [
    {"name": name, "bits": b, "y": 100 * accuracy}
    for name, curve in found.items()
    for b, accuracy in sorted(curve.items())
  ]
  x = alt.X("bits:O", sort=every, axis=alt.Axis(labelAngle=0),
            title="bits of weights and inputs; stem and head 8")  # fmt: skip
  y = alt.Y("y:Q", title="test accuracy, %", scale=alt.Scale(zero=False))
  color = alt.Color(
    "name:N",
    scale=alt.Scale(domain=names,
                    range=[palette.SERIES[i] for i in (0, 2, 4)[: len(names)]]),
    legend=alt.Legend(),
  )  # fmt: skip
  base = alt.Chart(charts.data(rows)).encode(x, y, color=color)
  line = alt.Chart(charts.data([{"y": 100 * whole, "bits": every[0],
                           "text": f"32 bits: {100 * whole:.2f}"}]))  # fmt:skip
  chart = alt.layer(
    line.mark_rule(color=palette.SOFT, strokeDash=[6, 4], aria=False).encode(y),
    line.mark_text(
      color=palette.SOFT, fontSize=charts.SIZE, dy=14, aria=False
    ).encode(x, y, text="text:N"),
    base.mark_line(strokeWidth=1.8, aria=False),
    base.mark_point(filled=True, size=60, opacity=1, aria=False),
  ).properties(width=430, height=260)
  return charts.styled(chart)
