"""Accuracy against sparsity, one layer or channel group at a time.

How many weights or channels stay is a traced number, compared with their
ranks, so one compiled evaluation serves the whole table.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.channels import channel_groups
from jaxr18.compress.criteria import check_finite
from jaxr18.nn.network import Network, at, forward, kernels, with_kernels

Ranks = dict[str, np.ndarray]  # 0 for the best, by layer path or group name


def weight_ranks(scores: dict[str, np.ndarray]) -> Ranks:
  """Ranks of weights within their layer, of equal ones the first is better.

  Raises:
    ValueError: a score is not finite.
  """
  check_finite(scores)
  return {
    path: _ranks(s.reshape(1, -1)).reshape(s.shape)
    for path, s in scores.items()
  }


def channel_ranks(net: Network, scores: dict[str, np.ndarray]) -> Ranks:
  """Ranks of channels within their block of a group, [size] by group name.

  Raises:
    ValueError: a score is not finite.
  """
  check_finite(scores)
  return {
    g.name: _ranks(scores[g.name].reshape(g.blocks, -1)).reshape(-1)
    for g in channel_groups(net.spec)
  }


def _ranks(scores: np.ndarray) -> np.ndarray:
  order = np.argsort(-scores, axis=1, kind="stable")
  return np.argsort(order, axis=1).astype(np.int32)


@jax.jit
def correct_with_weights(net: Network, ranks, counts, images, labels):
  """Counts right answers when each layer keeps its best `counts` weights.

  Args:
    net: in evaluation; what its masks remove stays removed.
    ranks: of `weight_ranks`.
    counts: int32 scalars by layer path.
    images: [n, size, size, channels], normalized.
    labels: [n], ints.
  """
  old = kernels(net.masks)
  new = {p: (r < counts[p]) & old[p] for p, r in ranks.items()}
  pruned = net.replace(masks=with_kernels(net.masks, new))
  return _correct(pruned, images, labels)


@jax.jit
def correct_with_channels(net: Network, ranks, counts, images, labels):
  """Counts right answers with only the first channels of each group kept.

  Masked scales and biases make a channel zero, so its kernel need not change.

  Args:
    net: the network to prune.
    ranks: int [channels] by group name; the best channel has rank 0.
    counts: channels to keep, by group name.
    images: [batch, height, width, 3], normalized.
    labels: int [batch].
  """
  masks = jax.tree.map(lambda m: m, net.masks)
  for group in channel_groups(net.spec):
    keep = ranks[group.name] < counts[group.name]
    for norm in group.norms:
      node = at(masks, norm)
      for v in ("scale", "bias"):
        node[v] = node[v] & keep
  return _correct(net.replace(masks=masks), images, labels)


def _correct(net, images, labels):
  logits = forward(net, images)
  correct = jnp.sum(jnp.argmax(logits, -1) == labels)
  # The largest of NaNs would be the first class, which some images are of.
  return jnp.where(jnp.isfinite(logits).all(), correct, jnp.nan)


def sensitivity(
  net: Network,
  ranks: Ranks,
  densities: tuple[float, ...],
  batches: Callable[[], Iterator[tuple[jax.Array, jax.Array]]],
  *,
  structured: bool,
) -> dict[str, list[float]]:
  """Measures accuracy with one layer or group pruned to each density.

  Where a logit is not finite the accuracy is NaN.

  Args:
    net: one network.
    ranks: of `weight_ranks`, or of `channel_ranks` if structured.
    densities: shares to keep, each above 0.
    batches: gives (images, labels) anew at each call, all batches of one
      shape; [n, size, size, channels], normalized, and [n].
    structured: whole channels.

  Raises:
    ValueError: there is no batch, or a density out of range.
  """
  for d in densities:
    if not 0 < d <= 1:
      raise ValueError(f"density (={d}) must be above 0 and at most 1")
  if structured:
    blocks = {g.name: g.blocks for g in channel_groups(net.spec)}
    sizes = {name: r.size // blocks[name] for name, r in ranks.items()}
    run = correct_with_channels
  else:
    sizes = {path: r.size for path, r in ranks.items()}
    run = correct_with_weights
  out = {}
  for name in ranks:
    out[name] = []
    for d in densities:
      counts = {n: np.int32(s) for n, s in sizes.items()}
      counts[name] = np.int32(max(1, round(d * sizes[name])))
      correct = total = 0
      for images, labels in batches():
        correct += float(run(net, ranks, counts, images, labels))
        total += len(labels)
      if not total:
        raise ValueError("no images to measure accuracy on")
      out[name].append(correct / total)
  return out
