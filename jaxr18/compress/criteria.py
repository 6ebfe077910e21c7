"""How much each weight matters: scores by layer path, higher is kept.

A criterion is a function of a network, and of images where it looks at
activations or gradients. Scores have their kernels' shapes, are finite, and
compare across layers where `distribution` compares them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.distill import cross_entropy
from jaxr18.host import own
from jaxr18.nn.network import (
  Network,
  apply_masks,
  forward_train,
  input_norms,
  kernels,
)

Scores = dict[str, np.ndarray]  # by layer path, the kernel's shape


def score(
  name: str,
  net: Network,
  *,
  key: Any = None,
  images: jax.Array | None = None,
  labels: jax.Array | None = None,
  movement: Any = None,
) -> Scores:
  """Scores every weight.

  With w a weight, g the loss's gradient and x the layer's input:

  - magnitude_l1: |w|; magnitude_l2: w^2. The same order of single weights,
    another one of channels.
  - random: uniform in [0, 1).
  - gradient: |g|.
  - taylor: (g w)^2, the loss's change when w goes (Molchanov et al., 2019,
    arXiv:1906.10771, equation 8).
  - snip: |g w| / sum |g w| over the network (Lee et al., 2019,
    arXiv:1810.02340, equation 6).
  - movement: the sum of -rate g w over the steps so far (Sanh et al., 2020,
    arXiv:2005.07683, section 4), which training sums where it is asked to.
  - wanda: |w| * ||x||_2, the norm over images and pixels of the input channel
    that the weight multiplies (Sun et al., 2023, arXiv:2306.11695, equation 1).

  Args:
    name: one of `NAMES`, or 'module:function', which is called with the
      network, `images` and `labels`.
    net: its masks are applied; what they remove scores by the weight's 0, but
      `gradient` sees it as if it were there.
    key: for random.
    images: [n, size, size, channels], normalized, for gradient, taylor, snip
      and wanda.
    labels: [n], ints, for gradient, taylor and snip.
    movement: the sums of `train.state.sum_movement`, a tree like `params`.

  Raises:
    ValueError: an unknown name, or what the criterion needs is missing.
  """
  if own.is_own(name):
    return _own(name, net, images, labels)
  if name not in CRITERIA:
    raise ValueError(f"criterion (={name!r}) must be one of {NAMES}")
  criterion = CRITERIA[name]
  given = _Given(net, key, images, labels, movement)
  missing = [k for k in criterion.needs if getattr(given, k) is None]
  if missing:
    raise ValueError(f"criterion {name!r} needs {' and '.join(missing)}")
  w = {k: np.asarray(v) for k, v in kernels(masked(net).params).items()}
  return criterion.score(w, given)


class _Given(NamedTuple):
  """What criteria look at beside the kernels; see `score`."""

  net: Network
  key: Any
  images: Any
  labels: Any
  movement: Any


@dataclasses.dataclass(frozen=True)
class Criterion:
  """One way to score weights.

  Attributes:
    score: from the masked kernels by layer path, and what is given.
    needs: of what may be given to `score`, what must be.
  """

  score: Callable[[Scores, _Given], Scores]
  needs: tuple[str, ...] = ()


def _random(w: Scores, given: _Given) -> Scores:
  keys = jax.random.split(given.key, len(w))
  return {
    k: np.asarray(jax.random.uniform(one, v.shape))
    for one, (k, v) in zip(keys, w.items(), strict=True)
  }


def _gradients(given: _Given) -> Scores:
  g = dense_gradient(given.net, given.images, given.labels)
  return {k: np.asarray(v) for k, v in g.items()}


def _gradient(w: Scores, given: _Given) -> Scores:
  del w
  return {k: np.abs(g) for k, g in _gradients(given).items()}


def _taylor(w: Scores, given: _Given) -> Scores:
  g = _gradients(given)
  return {k: (g[k] * v) ** 2 for k, v in w.items()}


def _snip(w: Scores, given: _Given) -> Scores:
  g = _gradients(given)
  total = sum(np.abs(g[k] * v).sum(dtype=np.float64) for k, v in w.items())
  scale = 1 / total if total else 0.0
  return {k: np.abs(g[k] * v) * np.float32(scale) for k, v in w.items()}


def _movement(w: Scores, given: _Given) -> Scores:
  sums = kernels(given.movement)
  return {k: np.asarray(sums[k]) for k in w}


def _wanda(w: Scores, given: _Given) -> Scores:
  out = {}
  norms = input_norms(given.net, given.images)
  groups = {layer.path: layer.groups for layer in given.net.spec.layers()}
  for path, kernel in w.items():
    norm = np.asarray(norms[path])
    if kernel.ndim == 2:
      out[path] = np.abs(kernel) * norm[:, None]
      continue
    # Output block g of a grouped kernel meets input block g.
    blocks = norm.reshape(groups[path], kernel.shape[2])
    by_output = np.repeat(blocks, kernel.shape[3] // groups[path], axis=0)
    out[path] = np.abs(kernel) * by_output.T
  return out


CRITERIA = {
  "magnitude_l1": Criterion(lambda w, _: {k: np.abs(v) for k, v in w.items()}),
  "magnitude_l2": Criterion(lambda w, _: {k: v**2 for k, v in w.items()}),
  "random": Criterion(_random, ("key",)),
  "gradient": Criterion(_gradient, ("images", "labels")),
  "taylor": Criterion(_taylor, ("images", "labels")),
  "snip": Criterion(_snip, ("images", "labels")),
  "movement": Criterion(_movement, ("movement",)),
  "wanda": Criterion(_wanda, ("images",)),
}
NAMES = tuple(CRITERIA)


def _own(name: str, net: Network, images, labels) -> Scores:
  """Calls a criterion of the user's own; raises ValueError if it misfits."""
  scores = own.load(name)(net, images=images, labels=labels)
  scores = {k: np.asarray(v) for k, v in scores.items()}
  shapes = {k: v.shape for k, v in kernels(net.params).items()}
  for path, shape in shapes.items():
    if path not in scores or scores[path].shape != shape:
      got = list(scores[path].shape) if path in scores else "nothing"
      raise ValueError(
        f"criterion {name!r} gives {got} for {path}, expected the shape of its"
        f" kernel, {list(shape)}"
      )
  return {path: scores[path] for path in shapes}


def check_finite(scores: Mapping[str, np.ndarray]) -> None:
  """Refuses scores by which nothing can be ranked.

  A NaN compares as neither above nor below any number, so a ranking with one
  in it is arbitrary; an infinity is an overflow, not an importance.

  Args:
    scores: arrays of any shape by the name of a layer or a channel group.

  Raises:
    ValueError: NaN or infinity, with its place.
  """
  for name, s in scores.items():
    bad = ~np.isfinite(s)
    if bad.any():
      first = tuple(map(int, np.argwhere(bad)[0]))
      raise ValueError(
        f"{name}: scores must be finite, and {np.count_nonzero(bad)} of its"
        f" {bad.size} are not (the first is {np.asarray(s)[first]} at"
        f" {list(first)}); the network's weights or its gradients are not"
        " finite: train it again at a lower learning_rate"
      )


@jax.jit
def masked(net: Network) -> Network:
  """Sets the masked weights to 0 in `params` itself."""
  return net.replace(params=apply_masks(net.params, net.masks))


@jax.jit
def gradients(net: Network, images: jax.Array, labels: jax.Array):
  """Computes the cross entropy's gradient, a tree like `params`.

  Batch norm uses the batch's statistics; masks apply, so what they remove has
  a gradient of 0.

  Args:
    net: the network.
    images: [n, size, size, channels], normalized.
    labels: [n], ints.
  """

  def loss(params):
    logits, _ = forward_train(net.replace(params=params), images)
    return cross_entropy(logits, labels)

  return jax.grad(loss)(net.params)


def dense_gradient(net: Network, images, labels) -> dict[str, jax.Array]:
  """Gradients of kernels, those of removed weights too, as if they were 0."""
  every = jax.tree.map(jnp.ones_like, net.masks)
  return kernels(gradients(masked(net).replace(masks=every), images, labels))
