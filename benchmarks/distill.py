"""What an epoch costs without a teacher, with one, and with its logits kept.

    python -m benchmarks.distill --out docs/results/distill/result.json
    python -m benchmarks.distill --rounds=2 --steps=5

Each step is what the training loop does: images taken on the host, logits read
from the table, the jitted step, the loss of the step before. All variants take
the same steps by turns, so that what disturbs one round disturbs all; the
table is on disk and has every row, as from the second epoch or phase on.
Images are random numbers: what they show costs nothing.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bench_tables import distill_table
from benchmarks.results import write
from jaxr18.data import dataset as data
from jaxr18.data.augment import Augment
from jaxr18.host.provenance import computer
from jaxr18.nn import network
from jaxr18.nn.spec import NetSpec, resnet
from jaxr18.train import state as state_lib
from jaxr18.train import terms
from jaxr18.train.average import Average
from jaxr18.train.mesh import make_mesh, replicate
from jaxr18.train.mesh import shard as shard_over
from jaxr18.train.step import Batch, Teachers, make_train_step
from jaxr18.train.teacher_table import CachedTeacher

STRIDES = (2, 2, 2, 1)
# Student's and teacher's widths by stage.
ROWS = {
  "kd_population": ((8, 16, 24, 24), (16, 32, 48, 56)),
  "dense_narrow": ((16, 32, 48, 56), (32, 64, 96, 112)),
}
PAD, FLIP = 2, "alternating"


def random_images(n: int) -> data.Dataset:
  """As CIFAR-10 in all that costs time."""
  rng = np.random.default_rng(0)
  split = data.Split(
    rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
    rng.integers(0, 10, n, dtype=np.int32),
    np.arange(n, dtype=np.int32),
  )
  return data.Dataset(
    "random", 10, split, split.take(slice(0)), split.take(slice(0)),
    data.CIFAR10_MEAN, data.CIFAR10_STD, "random",
  )  # fmt: skip


def make_step(dataset, taught: bool, members=()):
  """The optimizer and the step of configs/kd_population.py."""
  optimizer = state_lib.make_optimizer(
    "sgd", state_lib.Rate(0.1, 3510, 702), weight_decay=5e-4
  )
  augment = Augment(PAD, FLIP, mean=dataset.mean, std=dataset.std)
  answers = (terms.cross_entropy(),)
  if taught:
    answers = terms.cross_entropy(0.0, 1 - 0.9), terms.soft(4.0, 0.9)
  step = make_train_step(
    answers, optimizer, augment, Average(0.998), make_mesh(), members=members
  )
  return optimizer, step


class Variant:
  """One way to train, at some step."""

  def __init__(self, spec: NetSpec, dataset, batch_size: int, teacher, cached):
    self.dataset, self.cached, self.mesh = dataset, cached, make_mesh()
    taught = teacher is not None or cached is not None
    optimizer, step = make_step(dataset, taught)
    net = network.init(jax.random.key(0), spec)
    self.key = replicate(jax.random.key(1), self.mesh)
    nets = () if teacher is None else (teacher,)
    self.teachers = replicate(Teachers(nets), self.mesh)
    self.state = replicate(
      state_lib.create(net, optimizer, average=True), self.mesh
    )
    self.order = data.batches(len(dataset.train), batch_size, 0, 0)
    self.run = step.lower(
      self.state, self.teachers, self.batch(0), self.key, np.int32(0)
    ).compile()

  def batch(self, i: int) -> Batch:
    part = self.dataset.train.take(self.order[i])
    logits = None
    if self.cached is not None:
      logits = self.cached(self.key, i, 0, part)
    return shard_over(
      Batch(part.images, part.labels, part.index, logits), self.mesh
    )

  def steps(self, first: int, n: int) -> float:
    """Images a second of n steps, the same steps whenever it is asked."""
    at = jnp.full((), first, jnp.int32)
    self.state = self.state.replace(step=replicate(at, self.mesh))
    began, before = time.perf_counter(), None
    for i in range(first, first + n):
      self.state, loss = self.run(
        self.state, self.teachers, self.batch(i), self.key, np.int32(0)
      )
      if before is not None:
        np.asarray(before)
      before = loss
    jax.block_until_ready(loss)
    return n * len(self.order[0]) / (time.perf_counter() - began)


def measure(widths, dataset, rounds: int, steps: int, batch_size: int) -> dict:
  """Images a second by variant, medians over rounds, and their ratios."""
  spec, teacher_spec = (resnet(w, strides=STRIDES) for w in widths)
  teacher = network.init(jax.random.key(2), teacher_spec)
  with tempfile.TemporaryDirectory() as folder:
    cached = CachedTeacher(
      (teacher,), dataset, pathlib.Path(folder), pad=PAD, flip=FLIP
    )
    make = lambda teacher, cached: Variant(
      spec, dataset, batch_size, teacher, cached
    )
    variants = {
      "plain": make(None, None),
      "cached": make(None, cached),
      "uncached": make(teacher, None),
    }
    began = time.perf_counter()
    for step in range(rounds * steps):  # the rows that will be read
      variants["cached"].batch(step)
    filling = cached.computed / (time.perf_counter() - began)
    computed = cached.computed
    for variant in variants.values():
      variant.steps(0, min(3, steps))
    rates = {name: [] for name in variants}
    for i in range(rounds):
      for name, variant in variants.items():
        rates[name].append(variant.steps(i * steps, steps))
    if cached.computed != computed:
      raise RuntimeError("the table was not full while it was measured")
  out = {name: statistics.median(r) for name, r in rates.items()}
  for name in ("cached", "uncached"):
    ratios = [
      plain / r for plain, r in zip(rates["plain"], rates[name], strict=True)
    ]
    out[f"{name}_cost"] = statistics.median(ratios)
    out[f"{name}_costs"] = [min(ratios), max(ratios)]
  macs = [sum(x.macs for x in s.layers()) for s in (spec, teacher_spec)]
  return out | {
    "student_macs": macs[0],
    "teacher_macs": macs[1],
    "rows_computed_per_second": filling,
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=30, help="of a round")
  parser.add_argument("--batch", type=int, default=128, help="images a step")
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  dataset = random_images(max(1, args.rounds * args.steps) * args.batch)
  results = {}
  for name, widths in ROWS.items():
    print(f"{name} ...", flush=True)
    results[name] = measure(
      widths, dataset, args.rounds, args.steps, args.batch
    )
  out = {
    "batch": args.batch,
    "rounds": args.rounds,
    "steps": args.steps,
    "platform": computer(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "jax": jax.__version__,
    "rows": results,
  }
  print(distill_table(out))
  write(out, args.out)


if __name__ == "__main__":
  main()
