"""Images a second of ours and PyTorch's, side by side.

    python -m benchmarks.train_step                  # all rows, half an hour
    python -m benchmarks.train_step --rows=dense --rounds=3 --seconds=0.5

Both train the same ResNet-18 (3x3 stem, 32x32 pixels, SGD with Nesterov
momentum) on the same machine, each in a process of its own, by turns, so that
what disturbs one round disturbs both. PyTorch runs in channels_last with its
own number of threads, eager and by torch.compile; the better one counts. Needs
torch; for our fastest, `pip install "jaxr18[cpu]"`.
"""

import argparse
import json
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.speed_rows import ROWS, make_spec


class Process:
  """One framework, at work on one row."""

  def __init__(self, module: str, row: dict):
    self.process = subprocess.Popen(
      [sys.executable, "-m", module, json.dumps(row)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def answer(self) -> dict:
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f"{self.process.args} ended without an answer")
    return json.loads(line)

  def ask(self, name: str, seconds: float) -> dict:
    self.process.stdin.write(f"{name} {seconds}\n")
    self.process.stdin.flush()
    return self.answer()

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def measure(row: dict, rounds: int, seconds: float, compiled: bool) -> dict:
  """Medians over rounds of each contender, by name."""
  contenders = {
    "ours": ("benchmarks.speed_ours", row),
    "eager": ("benchmarks.speed_torch", row | {"compile": False}),
  }
  if compiled:
    contenders["compile"] = (
      "benchmarks.speed_torch",
      row | {"compile": True},
    )
  processes, results = {}, {}
  try:
    for name, (module, arguments) in contenders.items():
      processes[name] = Process(module, arguments)
      results[name] = processes[name].answer()  # one starts after the other
    for process in processes.values():
      process.ask("train", seconds)
      process.ask("forward", seconds)
    rates = {name: {"train": [], "forward": []} for name in processes}
    for _ in range(rounds):
      for what in ("train", "forward"):
        for name, process in processes.items():
          answer = process.ask(what, seconds)
          rates[name][what].append(answer["images_per_s"])
          results[name]["peak_bytes"] = answer["peak_bytes"]
    for name, by_kind in rates.items():
      for what, values in by_kind.items():
        results[name][what] = statistics.median(values)
    results["ours"] |= processes["ours"].ask("peak", 0)
  finally:
    for process in processes.values():
      process.close()
  for what in ("train", "forward"):
    ratios = [
      ours / max(others)
      for ours, *others in zip(
        *(rates[name][what] for name in contenders), strict=True
      )
    ]
    results[f"{what}_ratio"] = statistics.median(ratios)
  return results


def macs(row: dict) -> int:
  """MACs of a forward pass of one image."""
  return sum(layer.macs for layer in make_spec(row).layers())


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", default="", help="only those that contain this")
  parser.add_argument("--batch", type=int, default=128, help="images a step")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
  parser.add_argument("--eager", action="store_true", help="no torch.compile")
  parser.add_argument("--json", help="a file for all numbers")
  args = parser.parse_args()
  rows = {name: row for name, row in ROWS.items() if args.rows in name}
  if not rows:
    parser.error(f"no row contains {args.rows!r}; there are {', '.join(ROWS)}")

  table = Table(title=f"Images a second, batch {args.batch}")
  for column in ("row", "train", "PyTorch", "ratio", "GFLOP/s", "of peak"):
    table.add_column(column, justify="left" if column == "row" else "right")
  for column in ("forward", "PyTorch", "ratio", "first step", "peak GB"):
    table.add_column(column, justify="right")
  results = {}
  for name, row in rows.items():
    print(f"{name} ...", file=sys.stderr, flush=True)
    row = row | {"batch": args.batch}
    result = measure(row, args.rounds, args.seconds, not args.eager)
    results[name] = result
    ours, eager = result["ours"], result["eager"]
    compiled = result.get("compile", eager)
    best = {k: max(eager[k], compiled[k]) for k in ("train", "forward")}
    rate = 2 * 3 * macs(row) * ours["train"] / 1e9  # forward and two gradients
    table.add_row(
      name,
      f"{ours['train']:.0f}",
      f"{best['train']:.0f}",
      f"{result['train_ratio']:.2f}",
      f"{rate:.0f}",
      f"{rate / ours['gflop_per_s']:.0%}",
      f"{ours['forward']:.0f}",
      f"{best['forward']:.0f}",
      f"{result['forward_ratio']:.2f}",
      f"{ours['first_step_s']:.1f} / {eager['first_step_s']:.1f} s",
      f"{ours['peak_bytes'] / 1e9:.1f} / {eager['peak_bytes'] / 1e9:.1f}",
    )
    if args.json:
      with open(args.json, "w") as file:
        json.dump(results, file, indent=1)
  Console(width=120).print(table)
  first = next(iter(results.values()))
  print(
    f"Ours by {first['ours']['description']}; {first['eager']['description']}."
  )
  print("First step and peak memory: ours / PyTorch eager, whole process.")


if __name__ == "__main__":
  main()
