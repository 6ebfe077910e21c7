"""Images a second of ours and PyTorch's, side by side.

    python -m benchmarks.train_step --out docs/results/train_step/result.json
    python -m benchmarks.train_step --rows=dense --rounds=3 --seconds=0.5

All rows take some 30 minutes. Both train the same ResNet-18 (3x3 stem, 32x32
pixels, SGD with Nesterov momentum) on the same machine, each in a process of
its own, by turns, so that what disturbs one round disturbs both. PyTorch runs
in channels_last with its own number of threads, eager and by torch.compile; the
better one counts. Needs torch; for our fastest, `pip install "jaxr18[cpu]"`.

Seconds to the first step are those of the whole process, imports and
compilation included: with an empty cache of compiled programs, and again with
what the first start left there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.bench_tables import speed_table
from benchmarks.results import rows_with, write
from benchmarks.speed_rows import ROWS, make_spec
from jaxr18.host.provenance import computer


class Process:
  """One framework, at work on one row."""

  def __init__(self, module: str, row: dict, cache: str):
    self.errors = tempfile.TemporaryFile("w+")
    self.process = subprocess.Popen(
      [sys.executable, "-m", module, json.dumps(row)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      text=True,
      env=os.environ
      | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        # As nn/compiled.py sets it.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
      },
    )

  def answer(self) -> dict:
    """Raises RuntimeError with what the process said last if it ended."""
    line = self.process.stdout.readline()
    if not line:
      self.errors.seek(0)
      said = [x for x in map(str.strip, self.errors) if "Error" in x]
      raise RuntimeError(said[-1][:200] if said else "ended without a word")
    return json.loads(line)

  def ask(self, name: str, seconds: float) -> dict:
    self.process.stdin.write(f"{name} {seconds}\n")
    self.process.stdin.flush()
    return self.answer()

  def close(self):
    self.process.stdin.close()
    self.process.wait()
    self.process.stdout.close()
    self.errors.close()


def start(row: dict, compiled: bool, cache: str) -> tuple[dict, dict]:
  """Starts each contender, one after the other.

  Returns:
    The processes by name, and what each said of its first step. Where
    torch.compile cannot compile a row, its entry says why.
  """
  ours = Process("benchmarks.speed_ours", row, cache)
  cold = ours.answer()["first_step_s"]
  ours.close()
  processes, results = {}, {}
  for name in ("ours", "eager", "compile")[: 2 + compiled]:
    module = f"benchmarks.speed_{'ours' if name == 'ours' else 'torch'}"
    process = Process(module, row | {"compile": name == "compile"}, cache)
    try:
      results[name] = process.answer()
      processes[name] = process
    except RuntimeError as e:
      process.close()
      if name != "compile":
        raise RuntimeError(f"{name}: {e}") from e
      results[name] = {"failed": str(e)}
  ours = results["ours"]
  ours["first_step_again_s"], ours["first_step_s"] = ours["first_step_s"], cold
  return processes, results


def measure(row: dict, rounds: int, seconds: float, compiled: bool) -> dict:
  """Medians over rounds of each contender, by name."""
  with tempfile.TemporaryDirectory() as cache:
    processes, results = start(row, compiled, cache)
    try:
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
        *(rates[name][what] for name in processes), strict=True
      )
    ]
    results[f"{what}_ratio"] = statistics.median(ratios)
    results[f"{what}_ratios"] = [min(ratios), max(ratios)]
  results["macs"] = macs(row)
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
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  rows = {name: ROWS[name] for name in rows_with(parser, ROWS, args.rows)}

  results = {}
  for name, row in rows.items():
    print(f"{name} ...", file=sys.stderr, flush=True)
    row = row | {"batch": args.batch}
    results[name] = measure(row, args.rounds, args.seconds, not args.eager)
  first = next(iter(results.values()))
  out = {
    "batch": args.batch,
    "rounds": args.rounds,
    "seconds": args.seconds,
    "ours": first["ours"]["description"],
    "theirs": first["eager"]["description"],
    "platform": computer(),
    "rows": results,
  }
  print(speed_table(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
