"""Draws the pictures of docs/ from docs/results/: needs the extra `report`.

    python -m benchmarks.pictures
    python -m benchmarks.pictures pruned

Each into docs/results/NAME/NAME.svg and NAME.png.
"""

import argparse
import json
import math
from collections.abc import Callable

import altair as alt

from benchmarks import charts as own_charts
from benchmarks.results import RESULTS
from benchmarks.results import run as run_of
from benchmarks.run_tables import PRUNED_STRUCTURED, PRUNED_WEIGHTS, QUANT_BITS
from jaxr18.report import charts, draw, entry, layer_charts, points, runs
from jaxr18.run.result import Result
from jaxr18.search import table


def pruned() -> alt.TopLevelMixin:
  """Accuracy of pruned networks against what is left of them."""
  series = {
    name: [(run.rpartition("_")[2], run_of(run)) for run in runs]
    for name, runs in (
      ("single weights", PRUNED_WEIGHTS),
      # All channels: the same network trained on for as long.
      ("whole channels", (PRUNED_WEIGHTS[0], *PRUNED_STRUCTURED)),
    )
  }
  costs = ("parameters kept", "per-layer score, lower is better")
  lines = {
    name: [
      (label, r.test.accuracy, _standard_error(r), (_kept(r), _score(r)))
      for label, r in found
    ]
    for name, found in series.items()
  }
  title = "Pruned and trained on for 4 epochs, by the share kept"
  return own_charts.tradeoff(lines, costs, title)


def _kept(result: Result) -> float:
  """Parameters that no mask removes, batch norm's included."""
  c = result.score.per_network
  return c.w * (1 - c.p_s - c.p_u)


def _score(result: Result) -> float:
  return result.score.per_layer.total


def _standard_error(result: Result) -> float:
  """That of the test accuracy, over the choice of test images."""
  p = result.test.accuracy
  return math.sqrt(p * (1 - p) / result.test.count)


def quantized() -> alt.TopLevelMixin:
  """Accuracy in fewer bits, calibrated alone and trained on."""
  accuracy = lambda name: run_of(name).test.accuracy
  epochs = run_of(f"quant_{QUANT_BITS[0]}").config["quant"]["epochs"]
  curves = {
    label: {b: accuracy(f"quant_{kind}{b}") for b in QUANT_BITS}
    for kind, label in (
      ("", f"trained {epochs} epochs, distilled"),
      ("ptq", "calibrated only"),
    )
  }
  return own_charts.bits(curves, accuracy("dense_narrow"))


def search() -> alt.TopLevelMixin:
  """A study's candidates: accuracy on validation images against the score."""
  found = json.loads((RESULTS / "search" / "search.json").read_text())
  return charts.pareto(
    table.points(found["trials"]), "per-layer score", split="validation"
  )


def results() -> alt.TopLevelMixin:
  """All runs among the published results: test accuracy against the score."""
  found, _ = runs.find([str(RESULTS)])
  entries = [
    entry.Entry(group, None, "")
    for group in points.group(found)
    if group.task == points.published_task()
  ]
  return charts.pareto(
    entry.all_points(entries, "per_layer"), "per-layer score"
  )


def sensitivity() -> alt.TopLevelMixin:
  """Accuracy that each layer loses when it alone is pruned."""
  path = RESULTS / "sensitivity" / "weights.json"
  return layer_charts.heatmap(json.loads(path.read_text()))


PICTURES: dict[str, Callable[[], alt.TopLevelMixin]] = {
  "pruned": pruned,
  "quantized": quantized,
  "results": results,
  "search": search,
  "sensitivity": sensitivity,
}


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}")
  args = parser.parse_args(argv)
  if unknown := set(args.names) - PICTURES.keys():
    parser.error(f"no picture {', '.join(unknown)}; there are {list(PICTURES)}")
  for name in args.names or PICTURES:
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{suffix}" for suffix in (".svg", ".png")]
    draw.save(PICTURES[name](), *paths)
    print(f"{folder}/{name}.svg, {name}.png")


if __name__ == "__main__":
  main()
