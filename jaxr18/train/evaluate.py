"""Counting correct answers, every image once, whatever the batch size."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxr18.compress import ensemble
from jaxr18.data.augment import normalize
from jaxr18.data.dataset import Dataset
from jaxr18.deploy import integer
from jaxr18.deploy.fold import fold
from jaxr18.host.files import STEADIER, NotFiniteError
from jaxr18.nn.conv import split_over
from jaxr18.nn.network import Network, forward, members
from jaxr18.nn.spec import HALF_BITS, NetSpec
from jaxr18.train.mesh import replicate, shard


class Evaluation(NamedTuple):
  """correct of count images; loss is the mean cross entropy in nats."""

  correct: int
  count: int
  loss: float

  @property
  def accuracy(self) -> float:
    return self.correct / self.count


@functools.partial(jax.jit, static_argnames=("mean", "std", "mesh"))
def _predict(net: Network, images, mean, std, mesh):
  x = normalize(images, mean, std, net.spec.resolution)
  with split_over(mesh):
    if members(net) is None:
      logits = forward(net, x)
    else:
      logits = jnp.swapaxes(ensemble.forward_members(net, x), 0, 1)
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(logits, replicated)


@functools.partial(jax.jit, static_argnames=("spec", "mean", "std", "mesh"))
def _predict_folded(folded, images, spec, mean, std, mesh):
  x = normalize(images, mean, std, spec.resolution)
  with split_over(mesh):
    logits = integer.forward(folded, spec, x, "float32")
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(logits, replicated)


def has_integers(spec: NetSpec) -> bool:
  """Returns whether a layer multiplies integers by integers."""
  return any(max(x.w_bits, x.a_bits) < HALF_BITS for x in spec.layers())


def predict(
  net: Network, images: np.ndarray, dataset, batch_size: int, mesh: Mesh
) -> np.ndarray:
  """Computes logits [n, classes], float32, of uint8 images [n, h, w, c].

  A network of integers is evaluated as it is stored, batch norm folded and
  sums of codes scaled once: the simulation that trains it rounds otherwise, and
  now and then a value in the middle of two codes goes to the other. Stacked
  networks give [n, members, classes], all simulated in one program.

  Args:
    net: one network, or stacked ones.
    images: uint8 [n, height, width, channels].
    dataset: gives mean and deviation of the channels.
    batch_size: images a step, over all devices.
    mesh: over which a batch is split.

  Raises:
    NotFiniteError: a number of the network is NaN or infinite.
  """
  _check_network(net)
  devices = mesh.devices.size
  batch_size = -(-min(batch_size, len(images)) // devices) * devices
  rest = dataset.mean, dataset.std, mesh
  if members(net) is None and has_integers(net.spec):
    spec, folded = net.spec, replicate(fold(net), mesh)
    run = lambda part: _predict_folded(folded, shard(part, mesh), spec, *rest)
  else:
    net = replicate(net, mesh)
    run = lambda part: _predict(net, shard(part, mesh), *rest)
  return in_batches(run, images, batch_size)


def in_batches(
  run: Callable, images: np.ndarray, batch_size: int
) -> np.ndarray:
  """Applies run(images [batch_size, ...]) to all images; returns [n, ...].

  The last batch is filled up with zeros, so one program serves all; the
  filling is cut off again.
  """
  out = []
  for start in range(0, len(images), batch_size):
    part = images[start : start + batch_size]
    fill = batch_size - len(part)
    part = np.pad(part, [(0, fill)] + [(0, 0)] * (images.ndim - 1))
    out.append(np.asarray(run(part))[: batch_size - fill])
  return np.concatenate(out)


def compare(
  logits: np.ndarray, reference: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
  """Compares the logits [n, classes] of two implementations of a network.

  Returns:
    correct of count answers and the accuracy; how many answers are the same
    as the reference's; the largest difference of a logit; and in how many
    images one differs by more than 1e-4.
  """
  check_finite(reference)
  correct, total, _ = count(logits, labels)
  apart = np.abs(logits.astype(np.float64) - reference).max(-1)
  return {
    "accuracy": correct / total,
    "correct": correct,
    "count": total,
    "same_answers": int(np.sum(logits.argmax(-1) == reference.argmax(-1))),
    "largest_difference": float(apart.max()),
    "images_beyond_1e-4": int(np.sum(apart > 1e-4)),
  }


def evaluate(
  net: Network, split, dataset, batch_size: int, mesh: Mesh
) -> Evaluation:
  """Counts a network's right answers on all images of a split.

  Args:
    net: one network.
    split: the images, of the data set.
    dataset, batch_size, mesh: as `predict`.
  """
  logits = predict(net, split.images, dataset, batch_size, mesh)
  return count(logits, split.labels)


@dataclasses.dataclass(frozen=True)
class Validation:
  """Measures networks on a data set's validation images, if it has any.

  Attributes:
    dataset: whose images they are.
    batch_size: images a step.
    mesh: over which a batch is split.
  """

  dataset: Dataset
  batch_size: int
  mesh: Mesh

  def compile(self, net: Network) -> None:
    """Compiles what `accuracies` runs, on the first images."""
    images = self.dataset.validation.images[: self.batch_size]
    if len(images):
      predict(net, images, self.dataset, self.batch_size, self.mesh)

  def accuracies(self, net: Network) -> list[float]:
    """Returns the accuracy of the network, or of each of the stacked ones.

    Raises:
      NotFiniteError: a logit is NaN or infinite.
    """
    split = self.dataset.validation
    if not len(split):
      return []
    logits = predict(
      net, split.images, self.dataset, self.batch_size, self.mesh
    ).reshape(len(split), -1, net.spec.head.classes)
    return [
      count(logits[:, i], split.labels).accuracy for i in range(logits.shape[1])
    ]


def count(logits: np.ndarray, labels: np.ndarray) -> Evaluation:
  """Counts the right answers of logits [n, classes], by labels [n].

  Raises:
    NotFiniteError: a logit is NaN or infinite: the largest one would be the
      first class, and some of the images are of it.
  """
  check_finite(logits)
  log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)), np.float64)
  loss = -log_p[np.arange(len(logits)), labels].mean()
  correct = int(np.sum(np.argmax(logits, -1) == labels))
  return Evaluation(correct, len(logits), float(loss))


def _check_network(net: Network) -> None:
  """Raises NotFiniteError where a number of a network is none.

  The logits do not always tell: XLA's ReLU on a CPU makes some NaNs 0.
  """
  trees = {"params": net.params, "batch_stats": net.batch_stats}
  for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
    if not np.isfinite(leaf).all():
      name = "/".join(str(key.key) for key in path)
      raise NotFiniteError(
        f"the network's {name} is not finite: nothing is computed with it;"
        f" train again in a new --workdir, with {STEADIER}"
      )


def check_finite(logits: np.ndarray) -> None:
  """Raises NotFiniteError where logits [n, classes] are no numbers."""
  bad = np.flatnonzero(~np.isfinite(logits).all(-1))
  if len(bad):
    raise NotFiniteError(
      f"the network's logits are not finite for {len(bad)} of {len(logits)}"
      f" images, the first of them number {bad[0]}: nothing is counted;"
      f" train again in a new --workdir, with {STEADIER}"
    )
