"""How much each weight matters: scores by layer path, higher is kept.

A criterion is a function of a network, and of images where it looks at
activations or gradients. Scores have their kernels' shapes, are finite, and
compare across layers where `distribution` compares them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.distill import cross_entropy
from jaxr18.nn.network import (
  Network,
  apply_masks,
  forward_train,
  input_norms,
  kernels,
)

Scores = dict[str, np.ndarray]  # by layer path, the kernel's shape

NAMES = (
  "magnitude_l1",
  "magnitude_l2",
  "random",
  "gradient",
  "taylor",
  "snip",
  "movement",
  "wanda",
)


def score(
  name: str,
  net: Network,
  *,
  key: Any = None,
  images: jax.Array | None = None,
  labels: jax.Array | None = None,
  movement: Any = None,
) -> Scores:
  """Scores of every weight.

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
    name: one of `NAMES`.
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
  if name not in NAMES:
    raise ValueError(f"criterion (={name!r}) must be one of {NAMES}")
  needs = {
    "random": {"key": key},
    "movement": {"movement": movement},
    "wanda": {"images": images},
  } | dict.fromkeys(
    ("gradient", "taylor", "snip"), {"images": images, "labels": labels}
  )
  missing = [k for k, v in needs.get(name, {}).items() if v is None]
  if missing:
    raise ValueError(f"criterion {name!r} needs {' and '.join(missing)}")
  w = {k: np.asarray(v) for k, v in kernels(masked(net).params).items()}
  if name == "magnitude_l1":
    return {k: np.abs(v) for k, v in w.items()}
  if name == "magnitude_l2":
    return {k: v**2 for k, v in w.items()}
  if name == "random":
    keys = jax.random.split(key, len(w))
    return {
      k: np.asarray(jax.random.uniform(one, v.shape))
      for one, (k, v) in zip(keys, w.items(), strict=True)
    }
  if name == "movement":
    sums = kernels(movement)
    return {k: np.asarray(sums[k]) for k in w}
  if name == "wanda":
    return _wanda(net, w, images)
  g = {k: np.asarray(v) for k, v in dense_gradient(net, images, labels).items()}
  if name == "gradient":
    return {k: np.abs(v) for k, v in g.items()}
  if name == "taylor":
    return {k: (g[k] * v) ** 2 for k, v in w.items()}
  total = sum(np.abs(g[k] * v).sum(dtype=np.float64) for k, v in w.items())
  scale = 1 / total if total else 0.0
  return {k: np.abs(g[k] * v) * np.float32(scale) for k, v in w.items()}


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
  """The network whose masked weights are 0 in `params` itself."""
  return net.replace(params=apply_masks(net.params, net.masks))


@jax.jit
def gradients(net: Network, images: jax.Array, labels: jax.Array):
  """The cross entropy's gradient, a tree like `params`.

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


def _wanda(net: Network, w: Scores, images) -> Scores:
  out = {}
  norms = input_norms(net, images)
  groups = {layer.path: layer.groups for layer in net.spec.layers()}
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
