"""How time and memory grow: of a training step, `score`, `report`, `search`.

    python -m benchmarks.growth --out docs/results/growth/result.json
    python -m benchmarks.growth --rows=width

Each size is measured in a process of its own, ROUNDS times by turns, and the
fastest counts. Memory is the peak above what the process had after its imports,
so compiling is in it. An exponent is that between the two largest sizes: 1
means that what is twice as large takes twice as long. Work is the step's
multiply-accumulates, or the number of layers, runs and trials.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import math
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench_tables import growth_table
from benchmarks.results import RESULTS, rows_with, run, write
from jaxr18.host import sealed
from jaxr18.host.provenance import computer

ROUNDS, SECONDS = 3, 1.0
BATCH, WIDTH, BLOCKS, RESOLUTION = 128, 16, 2, 32
# What grows, its sizes, and what of it is the size.
ROWS = {
  "step: width": (16, 32, 64),
  "step: blocks of a stage": (1, 2, 4, 8),
  "step: batch": (64, 128, 256, 512),
  "step: pixels of a side": (16, 32, 64),
  "step: members": (2, 4, 8),
  "step, 4 bits: width": (16, 32, 64),
  "score: blocks of a stage": (8, 16, 32),
  "report: runs": (10, 40, 160),
  "search: trials": (50, 100, 200, 400),
}


class Measured(contextlib.AbstractContextManager):
  """What a size gave; seconds are those of the block."""

  def __init__(self, work: int):
    self.work, self.base = work, _peak()

  def __enter__(self):
    self.began = time.perf_counter()
    return self

  def __exit__(self, *_):
    self.seconds = time.perf_counter() - self.began

  def found(self) -> dict[str, float]:
    return {"work": self.work, "seconds": self.seconds,
            "bytes": _peak() - self.base}  # fmt: skip


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(what: str, size: int, bits: int) -> dict[str, float]:
  """Measures one step of training; `what` is the part that has that size."""
  import jax
  import jax.numpy as jnp

  import jaxr18
  from benchmarks.members import Population
  from benchmarks.speed_ours import Ours, random_batch
  from jaxr18.nn import network, spec

  sizes = dict(
    width=WIDTH, blocks=BLOCKS, batch=BATCH, pixels=RESOLUTION, members=1
  )
  sizes[what.split()[0]] = size
  widths = [sizes["width"] * 2**i for i in range(3)]
  form = jaxr18.resnet(
    widths, blocks=sizes["blocks"], resolution=sizes["pixels"]
  )
  if bits < spec.FLOAT_BITS:
    form = spec.with_bits(form, [(".*", bits, bits)])
  images = sizes["members"] * sizes["batch"]
  macs = sum(layer.macs for layer in form.layers()) * images
  measured = Measured(3 * macs)  # forward, and both gradients
  if sizes["members"] > 1:
    call = Population(form, sizes["members"], BATCH, together=True)
  else:
    batch = random_batch(images)
    net = network.init(jax.random.key(0), form)
    if bits < spec.FLOAT_BITS:
      pixels = jnp.asarray(batch.images / 255.0, jnp.float32)
      net = network.calibrate(net, pixels)
    call = Ours(net, batch).train
  for _ in range(2):  # compiles
    jax.block_until_ready(call())
  times = []
  while sum(times) < SECONDS or len(times) < 3:
    with measured:
      jax.block_until_ready(call())
    times.append(measured.seconds)
  return measured.found() | {"seconds": min(times)}


def score(blocks: int) -> dict[str, float]:
  """Measures the score of a network, its MACs read from the jaxpr."""
  import jaxr18

  form = jaxr18.resnet((8, 16, 32), blocks=blocks)
  jaxr18.score(jaxr18.resnet((8, 16), blocks=1))  # imports
  with Measured(len(form.layers())) as measured:
    jaxr18.score(form)
  return measured.found()


def report(runs: int) -> dict[str, float]:
  """Measures `report --quick` of copies of a run, its curves included."""
  known = run("kd_quant")
  curves = list(RESULTS.joinpath("kd_quant").glob("*.jsonl"))
  with tempfile.TemporaryDirectory() as root:
    for i in range(runs):
      folder = pathlib.Path(root, f"run{i}")
      folder.mkdir()
      config = copy.deepcopy(known.config)
      config["student"]["learning_rate"] *= 1 + i  # not seeds of one run
      of_rate = dataclasses.replace(known, config=config)
      sealed.write(folder / "result.json", of_rate.to_json())
      for file in curves:
        shutil.copy(file, folder)
    command = [sys.executable, "-m", "jaxr18.report", root, "--quick"]
    command.append(f"--out={root}/page")
    with Measured(runs) as measured:
      subprocess.run(command, check=True, capture_output=True)
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return measured.found() | {"bytes": children.ru_maxrss * 1024}


def search(trials: int) -> dict[str, float]:
  """Measures what a study costs beside its trainings: asked, told, shown."""
  from jaxr18.search import storage, table

  choices = {f"x{i}": tuple(range(1, 9)) for i in range(6)}
  with tempfile.TemporaryDirectory() as root:
    study = storage.open_study(pathlib.Path(root, "study.log"))
    with Measured(trials) as measured:
      for _ in range(trials):
        number, params = storage.ask(study, choices, 0)
        cost = sum(params.values()) / 48
        storage.charge(study, number, cost, {"score": -1.0})
        accuracy = 0.5 + 0.4 * cost - 0.01 * params["x0"]
        storage.finish(study, number, storage.COMPLETE, accuracy, seconds=1.0)
      table.page(storage.rows(study), "digits")
  return measured.found()


def measure(name: str, size: int) -> dict[str, float]:
  """Measures one size of a row in this process."""
  kind, _, what = name.partition(": ")
  if kind.startswith("step"):
    return step(what, size, 4 if "4 bits" in kind else 32)
  functions: dict[str, Callable[[int], dict[str, float]]] = {
    "score": score, "report": report, "search": search,
  }  # fmt: skip
  return functions[kind](size)


def elsewhere(name: str, size: int) -> dict[str, float]:
  """Measures one size of a row in a new process."""
  command = [sys.executable, "-m", "benchmarks.growth", name, str(size)]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"{name}, {size}: {done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def row(name: str, rounds: int) -> dict[str, Any]:
  """Measures all sizes of a row; the least of each number counts."""
  sizes = ROWS[name]
  found: list[list[dict[str, float]]] = [[] for _ in sizes]
  for _ in range(rounds):
    for i, size in enumerate(sizes):
      found[i].append(elsewhere(name, size))
  out: dict[str, Any] = {"sizes": list(sizes)}
  for key in ("work", "seconds", "bytes"):
    least = [min(one[key] for one in several) for several in found]
    out[key] = least
    out[f"{key}_exponent"] = None  # where nothing was needed
    if least[-2]:
      growth = math.log(least[-1] / least[-2])
      out[f"{key}_exponent"] = growth / math.log(sizes[-1] / sizes[-2])
  return out


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
  parser.add_argument("--rows", default="", help="only those that contain this")
  parser.add_argument("--rounds", type=int, default=ROUNDS)
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args(argv)
  if args.one:
    name, size = args.one
    print(json.dumps(measure(name, int(size))))
    return
  rows = {}
  for name in rows_with(parser, ROWS, args.rows):
    print(f"{name} ...", flush=True)
    rows[name] = row(name, args.rounds)
  out = {
    "rounds": args.rounds,
    "platform": computer(),
    "rows": rows,
  }
  print(growth_table(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
