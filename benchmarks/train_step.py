"""Images a second of ours and PyTorch's, side by side.

    python -m benchmarks.train_step --out docs/results/train_step/result.json
    python -m benchmarks.train_step --rows=dense --rounds=3 --seconds=0.5

All rows take some 40 minutes. All train the same ResNet (3x3 stem, 32x32
pixels, SGD with Nesterov momentum) on the same machine, each in a process of
its own, by turns, so that what disturbs one round disturbs all. PyTorch runs
in channels_last with its own number of threads, eager and by torch.compile,
under autocast in a row of bfloat16; the better one counts. A row of few bits
has its float twin beside it. ONNX Runtime evaluates the same architecture as
float32 and quantized by its own static quantization, from uint8 images.

Rows of bfloat16 run where training uses it. Needs torch, onnx and onnxruntime;
for our fastest, `pip install "jaxr18[cpu]"`.

Seconds to the first step are those of the whole process, imports and
compilation included: with an empty cache of compiled programs, and, of ours,
again with what the first start left there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.bench_tables import speed_tables
from benchmarks.results import rows_with, write
from benchmarks.speed_rows import ROWS, make_spec
from jaxr18.host.provenance import computer
from jaxr18.nn.conv import training_type
from jaxr18.nn.machine import arithmetic


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
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "torch"),
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


def contenders(row: dict, compiled: bool) -> dict[str, tuple[str, dict]]:
  """The module and the row of each process, by name."""
  out = {
    "ours": ("speed_ours", row),
    "eager": ("speed_torch", row | {"compile": False}),
    "compile": ("speed_torch", row | {"compile": True}),
    "float": ("speed_ours", row | {"bits": 32}),
    "onnx": ("speed_onnx", row),
  }
  left_out = {"float"} if row["bits"] == 32 else set()
  left_out |= set() if compiled else {"compile"}
  return {name: found for name, found in out.items() if name not in left_out}


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
  for name, (module, its_row) in contenders(row, compiled).items():
    process = Process(f"benchmarks.{module}", its_row, cache)
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


def asked(row: dict, processes: dict) -> dict[str, list[str]]:
  """What is measured, and of which processes."""
  wanted = {
    "train": ["ours", "float", "eager", "compile"],
    "forward": ["ours", "float", "eager", "compile", "onnx"],
  }
  if row["bits"] < 32:  # a simulation, which ONNX Runtime does not run
    wanted["forward"].remove("onnx")
    wanted["integers"] = ["ours", "onnx"]
  return {
    what: [name for name in names if name in processes]
    for what, names in wanted.items()
  }


def measure(row: dict, rounds: int, seconds: float, compiled: bool) -> dict:
  """Medians over rounds of each contender, by name."""
  with tempfile.TemporaryDirectory() as cache:
    processes, results = start(row, compiled, cache)
    ask = asked(row, processes)
    try:
      rates = {what: {name: [] for name in ask[what]} for what in ask}
      for i in range(-1, rounds):  # the first one compiles, and fills caches
        for what, names in ask.items():
          for name in names:
            answer = processes[name].ask(what, seconds)
            results[name]["peak_bytes"] = answer["peak_bytes"]
            if i >= 0:
              rates[what][name].append(answer["images_per_s"])
      results["ours"] |= processes["ours"].ask("peak", 0)
    finally:
      for process in processes.values():
        process.close()
  for what, by_name in rates.items():
    for name, values in by_name.items():
      results[name][what] = statistics.median(values)
  return results | ratios(rates) | {"macs": macs(row)}


def ratios(rates: dict[str, dict[str, list[float]]]) -> dict:
  """Ours by the best other of each round, and by our float twin.

  Args:
    rates: of each round, by what was measured and by contender.

  Returns:
    `NAME`, the median of the rounds, and `NAMEs`, the lowest and the highest.
  """
  out = {}
  twin = rates["forward"].get("float")
  for what, by_name in rates.items():
    others = [v for k, v in by_name.items() if k not in ("ours", "float")]
    beside = {"ratio": [max(best) for best in zip(*others, strict=True)]}
    if twin is not None:
      beside["of_float"] = rates["train"]["float"] if what == "train" else twin
    for kind, theirs in beside.items():
      each = [a / b for a, b in zip(by_name["ours"], theirs, strict=True)]
      out[f"{what}_{kind}"] = statistics.median(each)
      out[f"{what}_{kind}s"] = [min(each), max(each)]
  return out


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
  _, why = training_type("bfloat16", 1)
  if why is not None:
    print(f"without rows of bfloat16: {why}", file=sys.stderr, flush=True)
    rows = {k: v for k, v in rows.items() if v["dtype"] != "bfloat16"}
    if not rows:
      return

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
    "onnx": first["onnx"]["description"],
    "arithmetic": arithmetic(),
    "platform": computer(),
    "rows": results,
  }
  print(speed_tables(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
