"""Draws the pictures of docs/ from docs/results/: needs the extra `report`.

    python -m benchmarks.pictures
    python -m benchmarks.pictures pruned

Each into docs/results/NAME/NAME.svg and NAME.png.
"""

import argparse
import json
from collections.abc import Callable

from matplotlib.figure import Figure

from benchmarks.results import RESULTS
from benchmarks.results import run as run_of
from benchmarks.run_tables import PRUNED_STRUCTURED, PRUNED_WEIGHTS, QUANT_BITS
from jaxr18.report import bits, entry, figure, points, runs, tradeoff
from jaxr18.report import pictures as report_pictures
from jaxr18.search import table


def pruned() -> Figure:
  """Accuracy of pruned networks against what is left of them."""
  series = {
    name: [(run.rpartition("_")[2], run_of(run)) for run in runs]
    for name, runs in (
      ("single weights", PRUNED_WEIGHTS),
      # All channels: the same network trained on for as long.
      ("whole channels", (PRUNED_WEIGHTS[0], *PRUNED_STRUCTURED)),
    )
  }
  return tradeoff.draw(
    series,
    {"parameters kept": tradeoff.parameters_kept,
     "per-layer score (lower is better)": tradeoff.per_layer_score},
    "Pruned and trained on for 4 epochs, by the share kept",
  )  # fmt: skip


def quantized() -> Figure:
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
  return bits.draw(curves, accuracy("dense_narrow"))


def search() -> Figure:
  """A study's candidates: accuracy on validation images against the score."""
  found = json.loads((RESULTS / "search" / "search.json").read_text())
  return report_pictures.pareto(
    table.points(found["trials"]), "per-layer score", "validation"
  )


def results() -> Figure:
  """All runs among the published results: test accuracy against the score."""
  found, _ = runs.find([str(RESULTS)])
  entries = [
    entry.Entry(group, None, "")
    for group in points.group(found)
    if group.task == points.published_task()
  ]
  return report_pictures.pareto(
    entry.all_points(entries, "per_layer"), "per-layer score"
  )


PICTURES: dict[str, Callable[[], Figure]] = {
  "pruned": pruned,
  "quantized": quantized,
  "results": results,
  "search": search,
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
    figure.save(PICTURES[name](), *paths)
    print(f"{folder}/{name}.svg, {name}.png")


if __name__ == "__main__":
  main()
