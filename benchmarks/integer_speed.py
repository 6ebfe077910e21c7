"""Images a second of quantized networks in float32 and in integers, by turns.

    python -m benchmarks.integer_speed --out FILE

Each network is computed in float32 as a network of its shape that was never
quantized, and in integers as `evaluate --integer` and as a program of integers
alone, each with int8 convolutions by XLA and by oneDNN; all from uint8 images
to logits. The seconds are of the processor, over all threads, so other
processes matter little. The numbers are the best of the rounds.
"""

import argparse
import functools
import importlib.metadata
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.bench_tables import integers_table
from benchmarks.results import RESULTS, rows_with, write
from jaxr18.data.augment import normalize
from jaxr18.deploy import integer, packed, program_xla, saved
from jaxr18.deploy.fold import fold
from jaxr18.deploy.lower import lower
from jaxr18.deploy.pack import pack
from jaxr18.host.memory import keep_freed_memory
from jaxr18.nn import machine, network, spec

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Run = Callable[[np.ndarray], np.ndarray]


def networks(images: np.ndarray) -> dict[str, Callable[[], network.Network]]:
  """Makes networks by name; the numbers of all but the first are random."""

  def of(width: int, bits: int) -> network.Network:
    layers = [("stem|head", 8, 8), (".*", bits, bits)]
    plain = spec.resnet([width * 2**i for i in range(4)])
    net = network.init(jax.random.key(0), spec.with_bits(plain, layers))
    return network.calibrate(net, normalize(images[:32], MEAN, STD, 32))

  file = RESULTS / "three_bits" / "network.safetensors"
  return {
    "three_bits": lambda: saved.unpack(file),
    "widths 16 to 128, 4 bits": lambda: of(16, 4),
    "widths 64 to 512, 8 bits": lambda: of(64, 8),
  }


def contenders(net: network.Network) -> dict[str, Run]:
  """Functions from uint8 images to logits, by name."""
  plain = spec.with_bits(net.spec, [(".*", 32, 32)])
  plain = network.init(jax.random.key(0), plain)
  prepare = lambda x: normalize(x, MEAN, STD, net.spec.resolution)
  floats = jax.jit(lambda net, x: network.forward(net, prepare(x)))
  folded = fold(net)

  @functools.partial(jax.jit, static_argnames="path")
  def integers(folded, x, path):
    return integer.forward(folded, net.spec, prepare(x), "int8", path)

  data = pack(net, mean=MEAN, std=STD, provenance={})
  program = lower(*packed.parse(data, "the network"))
  run = {"float32": lambda x: floats(plain, x)}
  for path in ("xla", "auto"):
    run[f"integer_{path}"] = functools.partial(integers, folded, path=path)
    run[f"program_{path}"] = program_xla.runner(program, path)
  return run


def seconds(run: Run, images: np.ndarray) -> float:
  """Processor seconds of one batch."""
  start = time.process_time()
  np.asarray(run(images))
  return time.process_time() - start


def measure(net: network.Network, images: np.ndarray, rounds: int) -> dict:
  """Images a second by contender."""
  runs = contenders(net)
  for run in runs.values():  # compiles, and fills caches
    seconds(run, images)
  best = dict.fromkeys(runs, float("inf"))
  for _ in range(rounds):
    for name, run in runs.items():
      best[name] = min(best[name], seconds(run, images))
  return {name: len(images) / s for name, s in best.items()}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", default="", help="only those that contain this")
  parser.add_argument("--batch", type=int, default=128, help="images at once")
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  keep_freed_memory()
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (args.batch, 32, 32, 3), np.uint8)
  made = networks(images)
  rows = {
    name: measure(made[name](), images, args.rounds)
    for name in rows_with(parser, made, args.rows)
  }
  versions = ("jax", "numpy", machine.onednn.LIBRARY)
  out = {
    "batch": args.batch,
    "rounds": args.rounds,
    "images_per_processor_s": rows,
    "machine": machine.arithmetic(),
    "versions": {v: importlib.metadata.version(v) for v in versions},
  }
  print(integers_table(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
