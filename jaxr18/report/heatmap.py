"""A heat map of accuracy by layer and sparsity."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def draw(result: dict[str, Any]) -> Figure:
  """The picture of what `jaxr18.sensitivity` found.

  Args:
    result: its JSON: accuracies by layer, sparsities, the whole's accuracy.
  """
  names = list(result["accuracies"])
  values = np.array([result["accuracies"][n] for n in names]) * 100
  size = (2.5 + 0.75 * values.shape[1], 1.2 + 0.3 * len(names))
  fig = Figure(figsize=size, layout="constrained")
  ax = fig.subplots()
  whole = 100 * result["accuracy"]
  # From chance to the whole network, unless something is beyond.
  low, high = min(10, values.min()), max(whole, values.max(), 11)
  image = ax.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
  ax.set_xticks(
    range(values.shape[1]), [f"{s:.0%}" for s in result["sparsities"]]
  )
  ax.set_yticks(range(len(names)), names)
  ax.set_xlabel(f"removed, by {result['criterion']}")
  ax.set_title(f"accuracy in %, {whole:.1f} unpruned", fontsize=10)
  for (i, j), value in np.ndenumerate(values):
    # Dark on the bright end of viridis, white elsewhere.
    bright = value > low + 0.6 * (high - low)
    color = "black" if bright else "white"
    ax.text(j, i, f"{value:.1f}", ha="center", va="center", color=color,
            fontsize=8)  # fmt: skip
  fig.colorbar(image, ax=ax)
  return fig
