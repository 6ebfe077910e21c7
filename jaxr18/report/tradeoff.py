"""Accuracy against what a network costs, for runs beside each other."""

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jaxr18.run.result import Result


def parameters_kept(result: Result) -> float:
  """Parameters that no mask removes, batch norm's included."""
  c = result.score.per_network
  return c.w * (1 - c.p_s - c.p_u)


def macs(result: Result) -> float:
  """For one image; masks alone remove none."""
  return result.score.macs


def per_layer_score(result: Result) -> float:
  return result.score.per_layer.total


def draw(
  series: Mapping[str, Sequence[tuple[str, Result]]],
  costs: Mapping[str, Callable[[Result], float]],
  title: str = "",
) -> Figure:
  """A figure with a panel for each cost.

  A bar at each point is one standard error of the test accuracy, which says
  how much the choice of test images matters, not that of the seed.

  Args:
    series: a line for each, of (label, result); the runs in their order.
    costs: by the axis' label, a number of a result, above 0.
    title: above all.
  """
  fig = Figure(figsize=(4.6 * len(costs), 3.8), layout="constrained")
  axes = fig.subplots(1, len(costs), sharey=True, squeeze=False)
  for ax, (label, cost) in zip(axes[0], costs.items(), strict=True):
    for i, (name, points) in enumerate(series.items()):
      x = [cost(r) for _, r in points]
      y = [100 * r.test.accuracy for _, r in points]
      bars = [100 * _standard_error(r) for _, r in points]
      line = ax.errorbar(x, y, bars, marker="os^v"[i % 4], ms=5, lw=1.2,
                         capsize=2, label=name)  # fmt: skip
      below = i % 2 == 1
      for (text, _), px, py in zip(points, x, y, strict=True):
        ax.annotate(
          text, (px, py), (4, -11) if below else (-4, 6), fontsize=8,
          textcoords="offset points", ha="left" if below else "right",
          color=line[0].get_color(),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.margins(0.13, 0.12)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(_short))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel(label)
    ax.grid(which="major", alpha=0.3)
  axes[0][0].set_ylabel("test accuracy, %")
  axes[0][0].legend(loc="lower right")
  if title:
    fig.suptitle(title, fontsize=10)
  return fig


def _standard_error(result: Result) -> float:
  p = result.test.accuracy
  return math.sqrt(p * (1 - p) / result.test.count)


def _short(value: float, _) -> str:
  """1,500,000 as 1.5 M."""
  for unit, name in ((1e6, " M"), (1e3, " k")):
    if value >= unit:
      return f"{value / unit:g}{name}"
  return f"{value:g}"
