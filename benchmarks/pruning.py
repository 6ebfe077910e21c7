"""What masks, removal and a pruned network's steps cost, on this machine.

    python -m benchmarks.pruning --out docs/results/pruning/result.json
    python -m benchmarks.pruning --width=4 --rounds=2 --seconds=0.2

Seconds to mask nine tenths of all of ResNet-18's 11.2 million weights by global
magnitude, and to remove half of its channels. Then images a second of a narrow
ResNet-18: dense, with single weights masked, with channels masked, and with the
same channels removed, by turns, so that what disturbs one round disturbs all.
`--runs` adds the networks of runs of configs/prune_structured.py, masked and
shrunk. Some 10 minutes. For our fastest, `pip install "jaxr18[cpu]"`.
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

# Before JAX, since it arranges memory.
from benchmarks.speed_ours import Ours, random_batch  # isort: split

import jax

from benchmarks.bench_tables import pruning_tables
from benchmarks.results import write
from jaxr18.compress import channels, criteria, prune, shrink
from jaxr18.host import compiled
from jaxr18.host.provenance import computer
from jaxr18.nn import network, onednn, spec
from jaxr18.run import sources

DENSITY = 0.1  # of single weights
KEPT = (0.75, 0.5, 0.3)  # of channels


def masked_weights(net: network.Network, density: float) -> network.Network:
  scores = criteria.score("magnitude_l1", net)
  return prune.prune(net, scores, density, floor=0.01)


def masked_channels(net: network.Network, kept: float) -> network.Network:
  scores = channels.importance("l2", net)
  keep = channels.kept_channels(net.spec, scores, kept)
  return channels.mask_channels(net, keep)


def time_on_host(run: Callable, rounds: int) -> dict[str, float]:
  """Seconds of the first call, which compiles, and of those after it."""
  times = []
  for _ in range(rounds + 1):
    start = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - start)
  first, *rest = times
  return {"first_s": first, "median_s": statistics.median(rest),
          "worst_s": max(rest)}  # fmt: skip


def host(rounds: int) -> dict[str, dict]:
  """What happens between two steps, for the whole ResNet-18."""
  net = jax.block_until_ready(network.init(jax.random.key(0), spec.resnet18()))
  half = masked_channels(net, 0.5)
  return {
    "masks": time_on_host(lambda: masked_weights(net, DENSITY), rounds),
    "shrink": time_on_host(lambda: shrink.shrink(half), rounds),
  }


def contenders(width: int, runs: list[str]) -> dict[str, network.Network]:
  """Networks by name.

  How many channels are masked changes no program, so one stands for all.
  """
  net = network.init(
    jax.random.key(0), spec.resnet([width * 2**i for i in range(4)])
  )
  nets = {"dense": net, "weights masked": masked_weights(net, DENSITY)}
  nets["channels masked"] = masked_channels(net, KEPT[0])
  for kept in KEPT:
    nets[f"shrunk to {kept:.0%}"] = shrink.shrink(masked_channels(net, kept))
  for run in map(pathlib.Path, runs):
    nets[f"masked {run.name}"] = sources.load_network(run, "prune")
    nets[f"shrunk {run.name}"] = shrink.shrink(nets[f"masked {run.name}"])
  return nets


def beside(name: str) -> str:
  """What a network is compared with."""
  if name.startswith("shrunk to"):
    return "channels masked"
  if name.startswith("shrunk "):
    return name.replace("shrunk", "masked")
  return "dense"


def rate(run: Callable, size: int, seconds: float) -> float:
  """Images a second over so many seconds, at least two calls."""
  count, start = 0, time.perf_counter()
  while count < 2 or time.perf_counter() - start < seconds:
    run()
    count += 1
  return count * size / (time.perf_counter() - start)


def measure(
  nets: dict[str, network.Network], batch: int, rounds: int, seconds: float
) -> dict[str, dict]:
  """Medians over rounds, in which all take turns, by name."""
  images = random_batch(batch)
  workers = {}
  for name, net in nets.items():
    print(f"{name} ...", file=sys.stderr, flush=True)
    workers[name] = Ours(net, images)
    for what in ("train", "forward"):  # compile
      getattr(workers[name], what)()
  rates = {name: {"train": [], "forward": []} for name in nets}
  for _ in range(rounds):
    for what in ("train", "forward"):
      for name, worker in workers.items():
        run = getattr(worker, what)
        rates[name][what].append(rate(run, batch, seconds))
  out = {}
  for name, by_kind in rates.items():
    base = beside(name)
    row = {"macs": sum(layer.macs for layer in nets[name].spec.layers()),
           "beside": base}  # fmt: skip
    for what, values in by_kind.items():
      row[what] = statistics.median(values)
      ratios = [a / b for a, b in zip(values, rates[base][what], strict=True)]
      row[f"{what}_ratio"] = statistics.median(ratios)
      row[f"{what}_ratios"] = [min(ratios), max(ratios)]
    out[name] = row
  return out


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=int, default=128, help="images a step")
  parser.add_argument("--width", type=int, default=16, help="of stage 1")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
  parser.add_argument("--runs", nargs="*", default=[], help="workdirs")
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  compiled.keep_compiled()
  hosted = host(args.rounds)
  nets = contenders(args.width, args.runs)
  rows = measure(nets, args.batch, args.rounds, args.seconds)
  result = {
    "batch": args.batch,
    "rounds": args.rounds,
    "seconds": args.seconds,
    "width": args.width,
    "density": DENSITY,
    "convolutions": "oneDNN" if onednn.reason() is None else "XLA",
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "platform": computer(),
    "host": hosted,
    "rows": rows,
  }
  print(pruning_tables(result))
  write(result, args.out)


if __name__ == "__main__":
  main()
