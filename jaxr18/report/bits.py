"""A picture of accuracy against bits."""

from collections.abc import Mapping

from matplotlib.figure import Figure


def draw(curves: Mapping[str, Mapping[int, float]], whole: float) -> Figure:
  """One line for each way to quantize, and the unquantized one.

  Args:
    curves: accuracies, 0 to 1, by name and by bits.
    whole: accuracy in 32 bits.
  """
  fig = Figure(figsize=(5.5, 3.6), layout="constrained")
  ax = fig.subplots()
  every = sorted({b for curve in curves.values() for b in curve})
  place = {b: i for i, b in enumerate(every)}
  ax.axhline(100 * whole, color="gray", linestyle="--", linewidth=1)
  ax.annotate(
    f"32 bits, {100 * whole:.2f}",
    (0, 100 * whole),
    (0, -3),
    textcoords="offset points",
    va="top",
    fontsize=8,
    color="gray",
  )
  for (name, curve), marker in zip(curves.items(), "os^Dv", strict=False):
    bits = sorted(curve)
    values = [100 * curve[b] for b in bits]
    ax.plot([place[b] for b in bits], values, marker=marker, label=name)
  ax.set_xticks(range(len(every)), every)
  ax.set_xlabel("bits of weights and inputs; stem and head 8")
  ax.set_ylabel("test accuracy in %")
  ax.grid(axis="y", alpha=0.3)
  ax.legend(loc="lower right")
  return fig
