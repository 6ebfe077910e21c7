"""Kills a run with -9 again and again: python -m benchmarks.kill_resume

A run is killed at random moments and started again by the same command until
the kills are used up, and then runs to its end. Every array of its last and of
its best checkpoints, its metrics and its result must equal those of a run that
nobody touched. Every second kill strikes by the clock, the others just before
one of the process's own writes, renames and removals in the workdir, chosen at
random. A last run is killed at `MOMENTS`, which chance seldom finds.

Exits with 1 where anything differs.
"""

import argparse
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import results

ROOT = pathlib.Path(__file__).parents[1]
# Operation and path, in the order in which a run meets them.
MOMENTS = (
  "os.rename config.json.part",
  "os.rename starts.jsonl.part",
  "open teacher/metrics.jsonl",  # between a checkpoint and its line
  "open teacher/phase.json.part",  # after the last checkpoint
  "os.rename teacher/phase.json.part",
  "os.rename student/metrics.jsonl.part",
  "os.rename student/phase.json.part",
  "os.rename result.json.part",
)
# Takes the workdir and when to be killed: before its n-th operation on a file
# in there, or before the first that is called so. What never comes is 0.
CHILD = """
import atexit, os, runpy, signal, sys, threading
workdir, moment, count = sys.argv.pop(1), sys.argv.pop(1), 0
lock = threading.Lock()

def hook(event, args):
  global count
  if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
    return
  path = os.fspath(args[0]) if isinstance(args[0], (str, os.PathLike)) else ""
  writes = event != "open" or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
  if writes and str(path).startswith(workdir + os.sep):
    with lock:
      count += 1
      name = f"{event} {os.path.relpath(path, workdir)}"
      if moment in (str(count), name):
        os.write(2, name.encode())
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
atexit.register(lambda: print("file operations:", count))
runpy.run_module("jaxr18.main", run_name="__main__", alter_sys=True)
"""


class Run:
  """One workdir and the command that it belongs to."""

  def __init__(self, workdir: pathlib.Path, flags: list[str], cache: str):
    self.workdir, self.flags = workdir, flags
    self.env = os.environ | {
      "JAX_COMPILATION_CACHE_DIR": cache,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }

  def start(self, moment: str = "0") -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, "-c", CHILD, str(self.workdir), moment,
       f"--workdir={self.workdir}", "--config.progress=none", *self.flags],
      cwd=ROOT, env=self.env, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

  def phases(self) -> list[pathlib.Path]:
    return sorted(p.parent for p in self.workdir.glob("*/checkpoints"))

  def steps(self) -> dict[str, int]:
    """The latest checkpoint of each phase that has begun."""
    return {
      p.name: max(
        (int(x.name) for x in (p / "checkpoints").iterdir()
         if x.name.isdecimal()), default=0)
      for p in self.phases()
    }  # fmt: skip

  def unfinished(self) -> list[str]:
    """What the kill left half done: temporary files and folders."""
    found = [*self.workdir.rglob("*.part"), *self.workdir.glob("*/*/*-tmp*")]
    return sorted(str(p.relative_to(self.workdir)) for p in found)

  def outcome(self) -> dict[str, Any]:
    """All that must be the same: hashes of arrays by name, and numbers."""
    from jaxr18.host import workdir
    from jaxr18.train import checkpoint, files

    out = {}
    for phase in self.phases():
      info = files.read_phase(phase)
      out[f"{phase.name} best"] = [info["step"], info["validation_accuracy"]]
      for step in {info["step"], self.steps()[phase.name]}:
        arrays, _ = checkpoint.read(phase / "checkpoints" / str(step))
        for name, a in arrays.items():
          digest = hashlib.sha256(f"{a.dtype} {a.shape}".encode() + a.tobytes())
          out[f"{phase.name} {step} array {name}"] = digest.hexdigest()
      for row in files.MetricsFile(phase / "metrics.jsonl", False).rows:
        for timing in ("seconds", "images_per_second"):
          del row[timing]
        out[f"{phase.name} metrics of epoch {row['epoch']}"] = row
    for key, value in workdir.read_result(self.workdir).items():
      if key not in ("seconds", "phases", "command", "starts"):
        out[f"result {key}"] = value
    return out


def ended(process: subprocess.Popen, timeout: float | None = None) -> str:
  """Waits for the end, or brings it about; returns what it printed last.

  Any other end than a good one or SIGKILL is an error of the run's.
  """
  try:
    out, err = process.communicate(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    out, err = process.communicate()
  if process.returncode not in (0, -9):
    sys.exit(f"The run failed with status {process.returncode}:\n{out}{err}")
  return (out if process.returncode == 0 else err).strip()


def trains(run: Run, process: subprocess.Popen) -> None:
  """Waits for the process's first checkpoint, or its end."""
  before = run.steps()
  while process.poll() is None and run.steps() == before:
    time.sleep(0.05)


def kill(
  run: Run, moment: str = "", seconds: float = 0.0, starting: bool = False
) -> dict[str, Any] | None:
  """Starts the run and kills it, and tells.

  Args:
    run: goes on from where it was.
    moment: as `CHILD` takes it; '' is by the clock.
    seconds: to wait then, from the first checkpoint on ...
    starting: ... or from the start.

  Returns:
    What is worth knowing; None if it came to its end before.
  """
  before, began = run.steps(), time.monotonic()
  process = run.start(moment or "0")
  if not (moment or starting):
    trains(run, process)
  said = ended(process, None if moment else seconds)
  if process.returncode == 0:
    return None
  found = {
    "killed": f"before {said.splitlines()[-1]}" if moment else "by the clock",
    "seconds": round(time.monotonic() - began, 1),
    "went_on_from": before,
    "checkpoints": run.steps(),
    "left_unfinished": run.unfinished(),
  }
  steps = ", ".join(f"{k} {v}" for k, v in found["checkpoints"].items())
  print(f"{found['seconds']:6.1f} s  {steps:24s} {found['killed']}", flush=True)
  return found


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/kd_quant.py:digits")
  parser.add_argument("--kills", type=int, default=20, help="at random moments")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", help="write the result here, as JSON")
  args = parser.parse_args(argv)
  began = time.monotonic()
  chance = random.Random(args.seed)
  flags = [f"--config={args.config}", "--config.checkpoint.every_seconds=1"]
  kills, differences, compared = [], [], 0
  with tempfile.TemporaryDirectory() as folder:
    home = pathlib.Path(folder).resolve()
    cache = str(home / "cache")

    def compare(run: Run) -> None:
      nonlocal compared
      got = run.outcome()
      names = sorted(got.keys() | expected.keys())
      found = [x for x in names if got.get(x) != expected.get(x)]
      compared += len(names)
      differences.extend(found)
      print(f"Finished: {len(names)} compared, {len(found)} differ {found[:3]}",
            flush=True)  # fmt: skip

    whole = Run(home / "whole", flags, cache)
    process = whole.start()
    trains(whole, process)
    training = time.monotonic()
    operations = int(ended(process).rpartition("file operations:")[2])
    seconds = time.monotonic() - began
    # What each kill may use up of the run: two thirds of its share on average.
    share = 4 / 3 * (time.monotonic() - training) / args.kills
    print(f"Untouched: {seconds:.0f} s, {operations} file operations.")
    expected, run = whole.outcome(), None
    while run is not None or len(kills) < args.kills:
      n = len(kills)
      run = run or Run(home / f"killed{n}", flags, cache)
      if n < args.kills:
        starting = n % 8 == 0
        wait = chance.uniform(0, 10 if starting else share)
        at = chance.randint(1, 1 + 4 * operations // (3 * args.kills))
        if found := kill(run, str(at) if n % 2 else "", wait, starting):
          kills.append(found)
          continue
        share /= 2  # the untouched run was slower than this one
      else:
        ended(run.start())
      compare(run)
      run = None
    run = Run(home / "moments", flags, cache)
    kills += [found for m in MOMENTS if (found := kill(run, m))]
    ended(run.start())
    compare(run)
  print(f"{len(kills)} kills, {compared} arrays and numbers compared,"
        f" {len(differences)} differ")  # fmt: skip
  if args.out:
    result = {
      "command": f"python -m benchmarks.kill_resume --config={args.config}"
      f" --kills={args.kills} --seed={args.seed}",
      "kills": kills,
      "arrays": sum(" array " in name for name in expected),
      "compared": compared,
      "differences": differences,
      "seconds_untouched": round(seconds, 1),
      "seconds": round(time.monotonic() - began, 1),
      "platform": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
      "versions": {
        v: importlib.metadata.version(v) for v in ("jax", "orbax-checkpoint")
      },
    }
    results.write(result, args.out)
  return 1 if differences else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
