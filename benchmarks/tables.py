"""Writes the tables of README.md and docs/ from docs/results/.

    python -m benchmarks.tables

Between `<!-- table: NAME -->` and `<!-- end -->` stands what this command
puts there; `--check` only tells whether it is what the results say.
"""

import argparse
import re
import sys
from collections.abc import Callable

from benchmarks import bench_tables, run_tables
from benchmarks.results import ROOT, load

MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {
  "runs": lambda: run_tables.runs(
    "train_on",
    "prune_quant",
    "prune_quant_4",
    "three_bits",
    "cut_blocks",
    "integers",
    "train_on_small",
    "three_bits_small",
    "resnet8",
    "kd_quant",
  ),
  "factorized": lambda: run_tables.runs(
    "dense_narrow", "factorized_g2", "factorized_g8", "depthwise"
  ),
  "pruned": run_tables.pruned,
  "quantization": run_tables.quantization,
  "populations": lambda: run_tables.populations(
    "population_plain", "population_kd"
  ),
  "ensemble": lambda: run_tables.ensemble("ensemble"),
  "search": lambda: run_tables.search("search"),
  "exports": lambda: run_tables.exports("quant_4"),
  "kills": lambda: bench_tables.kills_table(load("kill_resume")),
  "faults": lambda: bench_tables.faults_table(load("faults")),
  "fuzz": lambda: bench_tables.fuzz_table(load("fuzz")),
  "speed": lambda: bench_tables.speed_tables(load("train_step")),
  "speed_avx2": lambda: bench_tables.speed_tables(load("train_step_avx2")),
  "pruning": lambda: bench_tables.pruning_tables(load("pruning")),
  "distill": lambda: bench_tables.distill_table(load("distill")),
  "members": lambda: bench_tables.members_table(load("members")),
  "onnx_forms": lambda: bench_tables.onnx_forms_table(load("onnx_forms")),
  "growth": lambda: bench_tables.growth_table(load("growth")),
  "integer_speed": lambda: bench_tables.integers_table(load("integer_speed")),
  "deploy": lambda: bench_tables.deploy_table(load("deploy")),
  "litert": lambda: bench_tables.litert_table(load("deploy")),
  "onnx_speed": lambda: bench_tables.onnx_speed_table(load("onnx_speed")),
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
