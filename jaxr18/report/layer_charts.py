"""Charts whose rows are a network's layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from jaxr18.report import charts, palette
from jaxr18.report.layers import LayerBar

BLUE, TEAL = palette.SERIES[0], palette.SERIES[3]


def layers(bars: Sequence[LayerBar]) -> alt.HConcatChart:
  """Describes five panels whose rows are the same layers."""
  rows = [
    {
      "layer": b.path, "kept": b.kept, "removed": b.weights - b.kept,
      "density": b.density, "macs": b.macs, "weight bits": max(b.w_bits),
      "input bits": max(b.a_bits), "weights": b.params_term, "MACs": b.ops_term,
    }
    for b in bars
  ]  # fmt: skip
  order = [b.path for b in bars]
  panels = []
  for i, (title, fields, colors) in enumerate(
    (
      ("weights", ("kept", "removed"), (BLUE, palette.LINE)),
      ("density", ("density",), (BLUE,)),
      ("MACs", ("macs",), (TEAL,)),
      ("bits", ("weight bits", "input bits"), (BLUE, TEAL)),
      ("per-layer score", ("weights", "MACs"), (BLUE, TEAL)),
    )
  ):
    long = [
      {"layer": r["layer"], "value": r[f], "part": f, "i": j}
      for r in rows
      for j, f in enumerate(fields)
    ]
    several = len(fields) > 1
    encoding: dict[str, Any] = dict(
      x=alt.X(
        "value:Q", title=title, stack="zero",
        axis=alt.Axis(tickCount=3, format="~s" if i != 4 else "~g"),
      ),
      y=alt.Y("layer:N", sort=order, title=None,
              axis=alt.Axis(labels=i == 0, grid=False)),
      color=alt.Color(
        "part:N", scale=alt.Scale(domain=fields, range=colors),
        legend=alt.Legend() if several else None,
      ),
      order=alt.Order("i:Q"),
    )  # fmt: skip
    if title == "bits":  # beside each other, and no sum
      encoding["x"] = alt.X("value:Q", title=title, stack=None,
                            axis=alt.Axis(tickCount=3))  # fmt: skip
      encoding["yOffset"] = alt.YOffset("part:N", sort=list(fields))
    mark = alt.Chart(charts.data(long)).mark_bar(aria=False)
    size = dict(width=150, height=15 * len(bars))
    panels.append(mark.encode(**encoding).properties(**size))
  together = alt.hconcat(*panels, spacing=14).resolve_scale(color="independent")
  return charts.styled(together)


def heatmap(result: Mapping[str, Any]) -> alt.LayerChart:
  """Describes the points of accuracy that a layer loses with its sparsity.

  Args:
    result: what `jaxr18.sensitivity` has found: accuracies by layer, those of
      the whole network, sparsities and the criterion.
  """
  unpruned, names = result["accuracy"], list(result["accuracies"])
  rows = [
    {"layer": name, "removed": f"{s:.0%}", "lost": 100 * (unpruned - a),
     "text": f"{100 * (a - unpruned):+.1f}"}
    for name in names
    for s, a in zip(result["sparsities"], result["accuracies"][name],
                    strict=True)
  ]  # fmt: skip
  most = max([r["lost"] for r in rows] + [1.0])
  for r in rows:
    r["share"] = max(0.0, r["lost"]) / most
  base = alt.Chart(charts.data(rows)).encode(
    x=alt.X("removed:N", sort=None, axis=alt.Axis(labelAngle=0),
            title=f"removed, by {result['criterion']}"),
    y=alt.Y("layer:N", sort=names, title=None),
  )  # fmt: skip
  cells = base.mark_rect(color=palette.GOAL, aria=False).encode(
    opacity=alt.Opacity("share:Q", legend=None,
                        scale=alt.Scale(domain=(0, 1), range=(0, 0.45)))
  )  # fmt: skip
  words = base.mark_text(color=palette.INK, fontSize=charts.SIZE, aria=False)
  title = f"points of accuracy lost (-), of {100 * unpruned:.1f}%"
  chart = alt.layer(cells, words.encode(text="text:N")).properties(
    title=title, width=52 * len(result["sparsities"]), height=20 * len(names)
  )
  return charts.styled(chart)
