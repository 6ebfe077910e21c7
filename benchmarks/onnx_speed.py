"""Images a second of a run's exports and of the network itself, by turns.

    python -m jaxr18.export --workdir=runs/kd_quant --format=onnx
    python -m benchmarks.onnx_speed --workdir=runs/kd_quant \\
        --out docs/results/onnx_speed/result.json

Measures ONNX Runtime on the ONNX files in WORKDIR/export/, the StableHLO
program if it is there, and in XLA the simulation that was trained
(`network.forward` with the fastest convolution here) and the integer path; all
from uint8 images to logits, on the CPU with all its cores, in rounds of a few
seconds each, so that what disturbs one round disturbs all. The numbers are
medians over rounds.
"""

import argparse
import importlib.metadata
import pathlib
import statistics
import time

import jax
import numpy as np

from benchmarks.bench_tables import onnx_speed_table
from benchmarks.results import write
from jaxr18.config import file as configfile
from jaxr18.config import parse
from jaxr18.data.augment import normalize
from jaxr18.host.provenance import computer
from jaxr18.nn import network
from jaxr18.run import experiment, sources
from jaxr18.run import export as exporting


def contenders(workdir: pathlib.Path, dataset, names: list[str]) -> dict:
  """Functions from uint8 images to logits, by name."""
  net = sources.load_network(workdir)

  @jax.jit
  def simulated(net, images):
    x = normalize(images, dataset.mean, dataset.std, net.spec.resolution)
    return network.forward(net, x)

  out = {
    "simulated": lambda x: simulated(net, x),
    "integer": exporting.integer_logits(net, dataset, dataset.test.images[:8])[
      0
    ],
  }
  for name in ("onnx", "onnx_int", "onnx4", "stablehlo", "packed"):
    path = workdir / "export" / f"network.{exporting.SUFFIXES[name]}"
    if path.exists():
      out[name] = exporting.load(name, path)
  return {k: v for k, v in out.items() if not names or k in names}


def rate(run, images: np.ndarray, seconds: float) -> float:
  """Images a second over at least so many seconds and one batch."""
  count, start = 0, time.perf_counter()
  while not count or time.perf_counter() - start < seconds:
    np.asarray(run(images))
    count += len(images)
  return count / (time.perf_counter() - start)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="a finished run")
  parser.add_argument("--only", nargs="*", default=[], help="of these alone")
  parser.add_argument("--batch", type=int, default=100, help="images at once")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  workdir = pathlib.Path(args.workdir).expanduser()
  values = configfile.from_json(workdir / "config.json")
  dataset = experiment.load_data(parse(values).data)
  images = dataset.test.images[: args.batch]
  runs = contenders(workdir, dataset, args.only)
  for run in runs.values():  # compiles, and fills caches
    rate(run, images, 0)
  rates = {name: [] for name in runs}
  for _ in range(args.rounds):
    for name, run in runs.items():
      rates[name].append(rate(run, images, args.seconds))
  versions = ("jax", "numpy", "onnx", "onnxruntime")
  out = {
    "run": workdir.name,
    "batch": len(images),
    "rounds": args.rounds,
    "seconds": args.seconds,
    "images_per_s": {k: statistics.median(v) for k, v in rates.items()},
    "of_each_round": rates,
    "device": str(jax.devices()[0].device_kind),
    "platform": computer(),
    "versions": {v: importlib.metadata.version(v) for v in versions},
  }
  print(onnx_speed_table(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
