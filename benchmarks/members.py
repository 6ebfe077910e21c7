"""Several networks in one vmapped program, against one after the other.

    python -m benchmarks.members --out docs/results/members/result.json
    python -m benchmarks.members --rounds=2 --rows=kd_population

- An ensemble's forward and its members' gradients, vmapped, against a loop over
  the members within one jit.
- A population's training step, each member with a batch of its own, against
  steps of one network at a time.

By turns, so that what disturbs one round disturbs all; medians over rounds.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bench_tables import members_table
from benchmarks.distill import STRIDES, make_step, random_images
from benchmarks.results import rows_with, write
from jaxr18.compress import ensemble
from jaxr18.compress.distill import cross_entropy
from jaxr18.host.provenance import computer
from jaxr18.nn import network
from jaxr18.nn.spec import NetSpec, resnet
from jaxr18.train import state as state_lib
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.step import Batch, Member, Teachers

# Widths by stage, and whether its convolutions are depthwise-separable.
ROWS = {
  "kd_population": ((8, 16, 24, 24), False),
  "dense_narrow": ((16, 32, 48, 56), False),
  "depthwise": ((16, 32, 48, 56), True),
}


def make_spec(name: str) -> NetSpec:
  widths, depthwise = ROWS[name]
  return resnet(widths, strides=STRIDES, depthwise=(depthwise,) * 4)


def of_ensembles(spec: NetSpec, members: int, batch: int) -> dict:
  """Functions without arguments, by name, and images of one call of each."""
  nets = [network.init(jax.random.key(i), spec) for i in range(members)]
  x = jax.random.normal(jax.random.key(99), (batch, 32, 32, 3))
  labels = jnp.arange(batch) % 10

  def loss(params, net):
    logits, _ = network.forward_train(net.replace(params=params), x)
    return cross_entropy(logits, labels)

  def gradient(net):
    return jax.grad(loss)(net.params, net)

  def loop(f):
    compiled = jax.jit(lambda nets: [f(net) for net in nets])
    return lambda: compiled(nets)

  def vmapped(f):
    compiled, stacked = jax.jit(jax.vmap(f)), ensemble.stack(nets)
    return lambda: compiled(stacked)

  forward = lambda net: network.forward(net, x)
  return {
    "forward_vmapped": vmapped(forward),
    "forward_loop": loop(forward),
    "gradient_vmapped": vmapped(gradient),
    "gradient_loop": loop(gradient),
  }


class Population:
  """Members that train together, or one at a time with `together` False."""

  def __init__(self, spec: NetSpec, members: int, batch: int, together: bool):
    dataset, mesh = random_images(members * batch), make_mesh()
    each = (Member(1.0, 1.0),) * members if together else ()
    optimizer, step = make_step(dataset, taught=False, members=each)
    nets = [network.init(jax.random.key(i), spec) for i in range(members)]
    keys = [jax.random.key(i) for i in range(members)]
    rows = np.arange(members * batch).reshape(members, batch)
    if together:
      nets, keys, rows = [ensemble.stack(nets)], [jnp.stack(keys)], [rows]
    self.states = [
      replicate(state_lib.create(n, optimizer, average=True), mesh)
      for n in nets
    ]
    self.keys = [replicate(k, mesh) for k in keys]
    self.batches = []
    for r in rows:
      part = dataset.train.take(r)
      self.batches.append(
        shard(Batch(part.images, part.labels, part.index), mesh, r.ndim - 1)
      )
    self.step = step

  def __call__(self):
    losses = []
    for i, state in enumerate(self.states):
      self.states[i], loss = self.step(
        state, Teachers(), self.batches[i], self.keys[i], np.int32(0)
      )
      losses.append(loss)
    return losses


def time_by_turns(functions: dict, rounds: int, seconds: float) -> dict:
  """Seconds a call of each function: a list over rounds."""
  repeats = {}
  for name, f in functions.items():
    jax.block_until_ready(f())  # compiles
    began = time.perf_counter()
    jax.block_until_ready(f())
    repeats[name] = max(1, round(seconds / (time.perf_counter() - began)))
  taken = {name: [] for name in functions}
  for _ in range(rounds):
    for name, f in functions.items():
      began = time.perf_counter()
      for _ in range(repeats[name]):
        result = f()
      jax.block_until_ready(result)
      taken[name].append((time.perf_counter() - began) / repeats[name])
  return taken


def measure(spec, members, batch, rounds, seconds) -> dict:
  """Images a second over all members, and the vmapped one's speed-up."""
  functions = of_ensembles(spec, members, batch)
  functions["population_vmapped"] = Population(spec, members, batch, True)
  functions["population_loop"] = Population(spec, members, batch, False)
  taken = time_by_turns(functions, rounds, seconds)
  out = {
    name: members * batch / statistics.median(t) for name, t in taken.items()
  }
  for what in ("forward", "gradient", "population"):
    ratios = [
      loop / vmapped
      for vmapped, loop in zip(
        taken[f"{what}_vmapped"], taken[f"{what}_loop"], strict=True
      )
    ]
    out[f"{what}_speedup"] = statistics.median(ratios)
    out[f"{what}_speedups"] = [min(ratios), max(ratios)]
  return out | {"macs": sum(layer.macs for layer in spec.layers())}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", default="", help="only those that contain this")
  parser.add_argument("--members", type=int, default=8)
  parser.add_argument("--batch", type=int, default=128, help="of each member")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=1.0, help="of a round")
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  results = {}
  for name in rows_with(parser, ROWS, args.rows):
    print(f"{name} ...", flush=True)
    results[name] = measure(
      make_spec(name), args.members, args.batch, args.rounds, args.seconds
    )
  out = {
    "members": args.members,
    "batch": args.batch,
    "rounds": args.rounds,
    "seconds": args.seconds,
    "platform": computer(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "rows": results,
  }
  print(members_table(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
