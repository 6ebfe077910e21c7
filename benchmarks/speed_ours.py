"""A process that trains one row of benchmarks.train_step with jaxr18.

See speed_serve for what it reads and answers.
"""

import functools
import json
import sys
import time

from benchmarks.speed_serve import serve
from jaxr18.data.augment import Augment, normalize
from jaxr18.host.memory import keep_freed_memory

_START = time.perf_counter()
keep_freed_memory()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.speed_rows import make_spec  # noqa: E402
from jaxr18.deploy import integer  # noqa: E402
from jaxr18.deploy.fold import Folded, fold  # noqa: E402
from jaxr18.nn import network, onednn  # noqa: E402
from jaxr18.train import state as state_lib  # noqa: E402
from jaxr18.train import terms  # noqa: E402
from jaxr18.train.mesh import make_mesh, replicate, shard  # noqa: E402
from jaxr18.train.step import Batch, Teachers, make_train_step  # noqa: E402

_AUGMENT = Augment(0, "none", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def random_batch(n: int) -> Batch:
  """CIFAR's shapes, in NumPy."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, n, np.int32)
  return Batch(images, labels, np.arange(n, dtype=np.int32))


def make_network(row: dict, images: np.ndarray) -> network.Network:
  net = network.init(jax.random.key(0), make_spec(row))
  if row["bits"] < 32:
    net = network.calibrate(net, jnp.asarray(images / 255.0, jnp.float32))
  if row["density"] < 1:
    key = jax.random.key(1)
    keep = lambda p: jax.random.bernoulli(key, row["density"], p.shape)
    masks = jax.tree.map(
      lambda p, m: keep(p) if p.ndim == 4 else m, net.params, net.masks
    )
    net = net.replace(masks=masks)
  return net


class Ours:
  """The training step and the forward passes of a network on one batch.

  Args:
    dtype: of the step's and the simulation's convolutions and activations.
  """

  def __init__(self, net: network.Network, batch: Batch, dtype="float32"):
    mesh = make_mesh()
    self.batch = shard(batch, mesh)
    images = normalize(batch.images, _AUGMENT.mean, _AUGMENT.std,
                            net.spec.resolution)  # fmt: skip
    self.images = jnp.asarray(images)
    self.size = len(batch.labels)
    optimizer = state_lib.make_optimizer(
      "sgd", state_lib.Rate(0.01, 10_000), weight_decay=5e-4
    )
    self.net = net
    self.state = replicate(state_lib.create(net, optimizer, False), mesh)
    answers = (terms.cross_entropy(),)
    self.dtype = jnp.dtype(dtype)
    self.step = make_train_step(
      answers, optimizer, _AUGMENT, None, mesh, self.dtype
    )
    self.evaluate = jax.jit(network.forward, static_argnames="dtype")
    self.by_integers = jax.jit(integer.forward, static_argnums=1)
    self.key = jax.random.key(0)

  def train(self):
    args = Teachers(), self.batch, self.key, 0
    self.state, loss = self.step(self.state, *args)
    return loss.block_until_ready()

  def forward(self):
    logits = self.evaluate(self.net, self.images, dtype=self.dtype)
    return logits.block_until_ready()

  def integers(self):
    folded = self.folded
    logits = self.by_integers(folded, self.net.spec, self.images)
    return logits.block_until_ready()

  @functools.cached_property
  def folded(self) -> Folded:
    return fold(self.net)

  def describe(self) -> str:
    reason = onednn.reason()
    return "oneDNN" if reason is None else f"XLA ({reason})"

  def peak(self) -> float:
    """GFLOP/s of a matrix product of 2048."""
    a = jnp.ones((2048, 2048), self.dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(5):
      start = time.perf_counter()
      product(a).block_until_ready()
      times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times) / 1e9


if __name__ == "__main__":
  row = json.loads(sys.argv[1])
  batch = random_batch(row["batch"])
  net = make_network(row, batch.images)
  serve(Ours(net, batch, row["dtype"]), _START)
