"""Writes the tables of README.md and docs/ from docs/results/.

    python -m benchmarks.tables

Between `<!-- table: NAME -->` and `<!-- end -->` stands what this command
puts there; `--check` only tells whether it is what the results say.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
  """docs/results/NAME/result.json."""
  return json.loads((RESULTS / name / "result.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
  """A Markdown table; all columns but the first are right-aligned."""
  lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
  return "".join("| " + " | ".join(row) + " |\n" for row in lines)


def runs(*names: str) -> str:
  """Runs by folder: accuracy, score, cost, time."""
  rows = []
  for name in names:
    r = load(name)
    s = r["score"]
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        f"{100 * r['test_accuracy']:.2f}% ({r['test_correct']:,} of"
        f" {r['test_count']:,})",
        f"{s['course']['total']:.4f}",
        f"{s['exact']['total']:.4f}",
        f"{s['stored']['total']:.4f}",
        f"{s['macs'] / 1e6:.1f} M",
        f"{s['course']['w'] / 1e6:.2f} M",
        f"{r['seconds'] / 60:.0f}",
      ]
    )
  header = ["run", "test accuracy", "score: course", "exact", "stored",
            "MACs", "parameters", "minutes"]  # fmt: skip
  return table(header, rows)


QUANT_BITS = (8, 4, 3, 2)


def quantization() -> str:
  """dense_narrow in fewer bits: calibrated alone, and trained on."""

  def cell(name):
    r = load(name)
    return f"[{100 * r['test_accuracy']:.2f}%](docs/results/{name}/result.json)"

  rows = []
  for bits in (32, *QUANT_BITS):
    after = "dense_narrow" if bits == 32 else f"quant_ptq{bits}"
    trained = "dense_narrow" if bits == 32 else f"quant_{bits}"
    score = load(trained)["score"]
    rows.append(
      [
        str(bits),
        cell(after),
        cell(trained),
        f"{score['exact']['total']:.4f}",
        f"{score['stored']['total']:.4f}",
      ]
    )
  header = ["bits", "calibrated only", "trained 4 epochs, distilled",
            "score: exact", "stored"]  # fmt: skip
  return table(header, rows)


def kills() -> str:
  """What `benchmarks.kill_resume` found."""
  r = load("kill_resume")
  midway = sum(bool(k["left_unfinished"]) for k in r["kills"])
  row = [
    "[kill_resume](docs/results/kill_resume/result.json)",
    str(len(r["kills"])),
    str(midway),
    f"{r['compared']:,}",
    str(len(r["differences"])),
  ]
  header = ["benchmark", "kills", "of them in the middle of a write",
            "arrays and numbers compared", "different"]  # fmt: skip
  return table(header, [row])


def speed_table(r: dict[str, Any]) -> str:
  """Ours beside PyTorch, from what `benchmarks.train_step` measured."""
  rows = []
  for name, row in r["rows"].items():
    ours, eager = row["ours"], row["eager"]
    theirs = eager | row.get("compile", {})  # which may have failed
    cells = [name]
    for what in ("train", "forward"):
      best = max(eager[what], theirs[what])
      cells += [
        f"{ours[what]:,.0f} / {best:,.0f}",
        f"{row[f'{what}_ratio']:.2f}",
      ]
    # A training step is the forward and two gradients, a MAC two operations.
    rate = 6 * row["macs"] * ours["train"] / 1e9
    cells += [
      f"{rate:.0f} ({rate / ours['gflop_per_s']:.0%})",
      f"{ours['first_step_s']:.1f}, {ours['first_step_again_s']:.1f}"
      f" / {eager['first_step_s']:.1f}",
      f"{ours['peak_bytes'] / 2**30:.1f} / {eager['peak_bytes'] / 2**30:.1f}",
    ]
    rows.append(cells)
  header = ["network", "training, images/s", "ratio", "evaluation, images/s",
            "ratio", "GFLOP/s (of peak)", "first step, s",
            "memory, GiB"]  # fmt: skip
  return table(header, rows)


def speed() -> str:
  """docs/results/train_step."""
  return speed_table(load("train_step"))


def exports(*names: str) -> str:
  """Runs by folder: each exported file beside the network, on the test set."""
  rows = []
  for name in names:
    r = load(name)
    for form, e in r["export"].items():
      n = e["count"]
      rows.append(
        [
          f"[{name}](docs/results/{name}/result.json), {form}",
          f"{e['bytes']:,}",
          f"{e['bytes_of_weights']:,}" if "bytes_of_weights" in e else "",
          f"{100 * e['accuracy']:.2f}% ({e['correct']:,} of {n:,})",
          f"{e['same_answers']:,}",
          f"{e['images_beyond_1e-4']:,}",
          f"{e['largest_difference']:.2g}",
        ]
      )
  header = ["run, format", "bytes", "of them weights", "test accuracy",
            "same answers", "images with a logit off by over 1e-4",
            "largest difference"]  # fmt: skip
  return table(header, rows)


def onnx_speed_table(r: dict[str, Any]) -> str:
  """From what `benchmarks.onnx_speed` measured."""
  what = {
    "simulated": "the network as trained, XLA",
    "integer": "int8 convolutions, XLA",
    "onnx": "ONNX, ONNX Runtime",
    "stablehlo": "StableHLO, XLA",
    "packed": "packed, NumPy",
  }
  rates = r["images_per_s"]
  base = rates.get("simulated")
  rows = [
    [what[k], f"{v:,.0f}", f"{v / base:.2f}" if base else ""]
    for k, v in rates.items()
  ]
  header = [f"{r['run']}, batches of {r['batch']}", "images/s",
            "to the first"]  # fmt: skip
  return table(header, rows)


# Runs of configs/prune_*.py, each with the share that it keeps behind its name.
PRUNED_WEIGHTS = tuple(f"prune_unstructured_{d}" for d in (1.0, 0.5, 0.3, 0.1))
PRUNED_STRUCTURED = tuple(f"prune_structured_{d}" for d in (0.75, 0.5, 0.3))


def pruned() -> str:
  """Pruned runs beside the dense network that all of them start from."""
  whole = load("dense_narrow")["score"]["course"]["w"]
  rows = []
  for name in ("dense_narrow", *PRUNED_WEIGHTS, *PRUNED_STRUCTURED):
    r = load(name)
    s = r["score"]
    c = s["course"]
    what = ""
    if name in (*PRUNED_WEIGHTS, *PRUNED_STRUCTURED):
      of = "weights" if name in PRUNED_WEIGHTS else "channels"
      density = r["config"]["prune"]["prune"]["density"]
      what = f"{density:.0%} of {of}" if density < 1 else "all, trained on"
    kept = c["w"] * (1 - c["p_s"] - c["p_u"])
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        what,
        f"{100 * r['test_accuracy']:.2f}% ({r['test_correct']:,} of"
        f" {r['test_count']:,})",
        f"{c['total']:.4f}",
        f"{s['exact']['total']:.4f}",
        f"{s['stored']['total']:.4f}",
        f"{s['macs'] / 1e6:.2f} M",
        f"{kept / 1e3:,.1f} k ({kept / whole:.0%})",
        f"{r['seconds'] / 60:.0f}",
      ]
    )
  header = ["run", "keeps", "test accuracy", "score: course", "exact", "stored",
            "MACs", "parameters kept", "minutes"]  # fmt: skip
  return table(header, rows)


def pruning_tables(r: dict[str, Any]) -> str:
  """What `benchmarks.pruning` measured: on the host, then in steps."""
  names = {
    "masks": f"mask all but {r['density']:g} of the weights of ResNet-18",
    "shrink": "remove half of the channels of ResNet-18",
  }
  hosted = table(
    ["between two steps", "seconds", "the first time"],
    [
      [names[k], f"{v['median_s']:.2f}", f"{v['first_s']:.2f}"]
      for k, v in r["host"].items()
    ],
  )
  rows = []
  for name, row in r["rows"].items():
    cells = [name, f"{row['macs'] / 1e6:.1f} M"]
    for what in ("train", "forward"):
      low, high = row[f"{what}_ratios"]
      ratio = f"{row[f'{what}_ratio']:.2f} ({low:.2f} to {high:.2f})"
      cells += [f"{row[what]:,.0f}", "" if name == "dense" else ratio]
    rows.append([*cells, "" if name == "dense" else row["beside"]])
  steps = table(
    ["network", "MACs", "training, images/s", "ratio", "evaluation, images/s",
     "ratio", "to"],
    rows,
  )  # fmt: skip
  return f"{hosted}\n{steps}"


def pruning() -> str:
  """docs/results/pruning."""
  return pruning_tables(load("pruning"))


def distill_table(r: dict[str, Any]) -> str:
  """Epochs with and without a teacher, as `benchmarks.distill` measured."""
  rows = []
  for name, row in r["rows"].items():
    cells = [
      f"{name}, {row['student_macs'] / 1e6:.1f} M MACs",
      f"{row['teacher_macs'] / 1e6:.1f} M MACs",
    ]
    cells += [f"{row[what]:,.0f}" for what in ("plain", "cached", "uncached")]
    cells += [
      f"{row[f'{what}_cost']:.3f} ({low:.3f} to {high:.3f})"
      for what in ("cached", "uncached")
      for low, high in [row[f"{what}_costs"]]
    ]
    rows.append(cells)
  header = ["student", "teacher", "no teacher, images/s", "kept logits",
            "teacher in the step", "epoch with kept logits, of a plain one",
            "with the teacher in the step"]  # fmt: skip
  return table(header, rows)


def members_table(r: dict[str, Any]) -> str:
  """Vmapped members against a loop, as `benchmarks.members` measured."""
  rows = []
  for name, row in r["rows"].items():
    cells = [f"{name}, {row['macs'] / 1e6:.1f} M MACs"]
    for what in ("forward", "gradient", "population"):
      cells += [
        f"{row[f'{what}_vmapped']:,.0f} / {row[f'{what}_loop']:,.0f}",
        f"{row[f'{what}_speedup']:.2f}",
      ]
    rows.append(cells)
  header = [f"{r['members']} members, images/s of all", "forward, vmapped /"
            " loop", "ratio", "gradient, vmapped / loop", "ratio",
            "training, together / one at a time", "ratio"]  # fmt: skip
  return table(header, rows)


def populations(*names: str) -> str:
  """Runs of a population by folder: accuracy over seeds."""
  rows = []
  for name in names:
    r = load(name)
    each = ", ".join(f"{100 * m['test_accuracy']:.2f}" for m in r["members"])
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        f"{100 * r['members_accuracy_mean']:.2f}"
        f" ± {100 * r['members_accuracy_std']:.2f}%",
        each,
        f"{r['members'][0]['score']['exact']:.4f}",
        f"{r['members'][0]['macs'] / 1e6:.1f} M",
        f"{r['seconds'] / 60:.0f}",
      ]
    )
  header = ["run", "test accuracy, mean ± standard deviation", "each seed, %",
            "exact score of one", "MACs of one", "minutes"]  # fmt: skip
  return table(header, rows)


def ensembles(*names: str) -> str:
  """Ensembles by folder: members, their disagreement, the vote."""
  rows = []
  for name in names:
    r = load(name)
    each = [m["test_accuracy"] for m in r["members"]]
    pairs = [x for i, row in enumerate(r["disagreement"]) for x in row[i + 1 :]]
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        str(len(each)),
        f"{100 * min(each):.2f} to {100 * max(each):.2f}%",
        f"{100 * sum(pairs) / max(1, len(pairs)):.1f}%",
        f"{100 * r['test_accuracy']:.2f}% ({r['vote']})",
        f"{r['score']['course']['total']:.4f}",
        f"{r['score']['exact']['total']:.4f}",
        f"{r['score']['stored']['total']:.4f}",
      ]
    )
  header = ["ensemble", "members", "test accuracy of one", "two disagree on",
            "of the vote", "score: course", "exact", "stored"]  # fmt: skip
  return table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
  "runs": lambda: runs("kd_quant"),
  "factorized": lambda: runs(
    "dense_narrow", "factorized_g2", "factorized_g8", "depthwise"
  ),
  "kills": kills,
  "pruned": pruned,
  "pruning": pruning,
  "quantization": quantization,
  "speed": speed,
  "exports": lambda: exports("kd_quant"),
  "onnx_speed": lambda: onnx_speed_table(load("onnx_speed")),
  "distill": lambda: distill_table(load("distill")),
  "members": lambda: members_table(load("members")),
  "populations": lambda: populations("population_plain", "population_kd"),
  "ensembles": lambda: ensembles("hce", "ensemble"),
}


def fill(text: str) -> str:
  """The text with each marked table made anew."""
  return MARKED.sub(
    lambda m: m.group(1) + "\n" + TABLES[m.group(2)]() + "\n" + m.group(3),
    text,
  )


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--check", action="store_true", help="write nothing")
  args = parser.parse_args(argv)
  stale = []
  for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
    text = path.read_text()
    new = fill(text)
    if path.parent != ROOT:
      new = new.replace("](docs/", "](")  # links are relative to the page
    if new != text:
      stale.append(str(path.relative_to(ROOT)))
      if not args.check:
        path.write_text(new)
  if args.check and stale:
    print(f"{', '.join(stale)}: stale; run python -m benchmarks.tables")
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
