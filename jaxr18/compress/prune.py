"""Masks of single weights: criterion, distribution, schedule, mask.

Four plain functions, each of its own file or name, and `prune` that puts them
together. Masks are computed on the host with NumPy, between two training
steps; the step itself only applies them, and projects weights after its
update, so that neither momentum nor weight decay revives one.
"""

import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress import criteria, density
from jaxr18.compress.channels import mask_channels
from jaxr18.compress.criteria import Scores
from jaxr18.compress.shrink import dead_channels
from jaxr18.nn.network import (
  Network,
  check_four_levels,
  kernels,
  with_kernels,
)

SCHEDULES = ("one_shot", "linear", "cubic", "iterative")


def top_k(scores: np.ndarray, count: int) -> np.ndarray:
  """Marks the `count` highest by True; of equal ones the first, row-major.

  Raises:
    ValueError: a score is not finite.
  """
  criteria.check_finite({"top_k": scores})
  flat = scores.ravel()
  if count <= 0:
    return np.zeros(scores.shape, bool)
  if count >= flat.size:
    return np.ones(scores.shape, bool)
  threshold = density.kth_highest(flat, count)
  keep = flat > threshold
  ties = np.flatnonzero(flat == threshold)
  keep[ties[: count - np.count_nonzero(keep)]] = True
  return keep.reshape(scores.shape)


def n_of_m(scores: np.ndarray, n: int, m: int, path: str = "") -> np.ndarray:
  """Keeps the n highest of every m consecutive input channels.

  Args:
    scores: [..., in, out], a kernel's shape; `in` divisible by m.
    n: kept, 1 to m.
    m: in a row.
    path: names the layer in an error.

  Raises:
    ValueError: a pattern that does not fit, or a score that is not finite.
  """
  criteria.check_finite({path or "n_of_m": scores})
  *taps, inputs, features = scores.shape
  if not 1 <= n <= m:
    raise ValueError(f"pattern {n}:{m} must keep from 1 to {m} of {m}")
  if inputs % m:
    raise ValueError(
      f"{path}: {inputs} input channels a filter must be divisible by m (={m})"
      " of the pattern; leave the layer out"
    )
  split = scores.reshape(-1, inputs // m, m, features)
  ranks = np.argsort(np.argsort(-split, axis=2, kind="stable"), axis=2)
  return (ranks < n).reshape(*taps, inputs, features)


def density_at(
  schedule: str, start: float, final: float, progress: float
) -> float:
  """Returns the density at a point of the schedule.

  With t the progress: one_shot is `final` at once; linear goes evenly; cubic
  is final + (start - final) (1 - t)^3 (Zhu and Gupta, 2017, arXiv:1710.01878,
  equation 1); iterative is start (final / start)^t, the same share of what is
  left at every update (Frankle and Carbin, 2019, arXiv:1803.03635).

  Args:
    schedule: one of `SCHEDULES`.
    start: density before, (0, 1].
    final: density after, (0, 1].
    progress: [0, 1].
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"schedule (={schedule!r}) must be one of {SCHEDULES}")
  if schedule == "one_shot" or progress >= 1:
    return final
  if schedule == "linear":
    return start + (final - start) * progress
  if schedule == "cubic":
    return final + (start - final) * (1 - progress) ** 3
  return start * (final / start) ** progress


def drop_share(first: float, progress: float) -> float:
  """Returns the share that RigL moves, a cosine from `first` to 0 (eq. 1)."""
  return first / 2 * (1 + math.cos(math.pi * min(1.0, progress)))


def scored(net: Network, scores: Scores, layers: str = ".*") -> Scores:
  """Selects the scores of the layers that match; masked ones are lowest.

  Raises:
    ValueError: the regex matches no layer, or a score is not finite.
  """
  masks = kernels(net.masks)
  out = {p: s for p, s in scores.items() if re.fullmatch(layers, p)}
  if not out:
    raise ValueError(
      f"layers (={layers!r}) matches no layer; there are {list(scores)}"
    )
  criteria.check_finite(out)
  # Lower than any score, however large those are, and finite.
  low = 2 * min(min(float(s.min()) for s in out.values()), 0.0) - 1
  return {
    p: np.where(np.asarray(masks[p]), s, np.float32(low))
    for p, s in out.items()
  }


def prune(
  net: Network,
  scores: Scores,
  target: float,
  *,
  distribution: str = "global",
  layers: str = ".*",
  floor: float = 0.0,
  rules: Sequence[tuple[str, float]] = (),
  at_most: bool = False,
) -> Network:
  """Masks all but the best weights; what is masked already stays masked.

  Args:
    net: one network.
    scores: of `criteria.score`; lamp takes magnitudes alone.
    target: share to keep of all weights in the layers that match.
    distribution: one of `density.NAMES`.
    layers: regex on whole layer paths; others are not touched.
    floor: share that each layer keeps at least.
    rules: (regex, density) of the explicit distribution.
    at_most: it is no error where all the masks together have fewer left. A
      layer that has fewer keeps these in any case.

  Raises:
    ValueError: as `density.counts`; or more weights are wanted than the masks
      have left; or other scores for lamp.
  """
  chosen = scored(net, scores, layers)
  if distribution == "lamp":
    chosen = _squares(net, chosen)
  kept = density.counts(distribution, chosen, target, floor=floor, rules=rules)
  if distribution == "per_output":
    # An output that has fewer left keeps these: masks only ever go.
    return with_masks(
      net,
      {p: _of_outputs(s, kept[p] // s.shape[-1]) for p, s in chosen.items()},
    )
  left = {
    path: int(np.count_nonzero(_full(net, path, s.shape)))
    for path, s in chosen.items()
  }
  if not at_most and sum(kept.values()) > sum(left.values()):
    raise ValueError(
      f"{sum(kept.values())} weights are to be kept and the masks have"
      f" {sum(left.values())} left; lower density (={target})"
    )
  # A layer that has fewer left keeps these: masks only ever go.
  return with_masks(
    net, {p: top_k(s, min(kept[p], left[p])) for p, s in chosen.items()}
  )


def _squares(net: Network, chosen: Scores) -> Scores:
  """LAMP's w^2 of layers whose scores are |w| or w^2: the same order."""
  squares = criteria.score("magnitude_l2", net)
  out = scored(net, {p: squares[p] for p in chosen})
  sizes = criteria.score("magnitude_l1", net)
  for path, s in chosen.items():
    mask = _full(net, path, s.shape)
    if not any(np.array_equal(s[mask], x[path][mask]) for x in (sizes, out)):
      raise ValueError(
        f"{path}: distribution 'lamp' ranks by w^2, and the scores are others;"
        " give it those of magnitude_l1 or magnitude_l2, or choose another"
        " distribution"
      )
  return out


def _of_outputs(scores: np.ndarray, kept: int) -> np.ndarray:
  """Keeps the `kept` highest of each output, of equal ones the first."""
  flat = scores.reshape(-1, scores.shape[-1])
  ranks = np.argsort(np.argsort(-flat, axis=0, kind="stable"), axis=0)
  return (ranks < kept).reshape(scores.shape)


def prune_pattern(
  net: Network, scores: Scores, n: int, m: int, layers: str = ".*"
) -> Network:
  """Prunes to N:M sparsity along input channels, such as 2:4 (`n_of_m`).

  Of every m in a row at most n stay: fewer where more are masked already.

  Args:
    net: of any masks.
    scores: by layer path, each of its kernel's shape; higher is kept.
    n, m: how many of how many stay.
    layers: regex of the layer paths to prune.
  """
  chosen = scored(net, scores, layers)
  return with_masks(net, {p: n_of_m(s, n, m, p) for p, s in chosen.items()})


def regrow(
  net: Network,
  growth: Scores,
  share: float,
  layers: str = ".*",
) -> Network:
  """Drops the smallest kept weights of each layer and grows as many others.

  With the magnitude of the step's own gradient as growth it is RigL (Evci et
  al., 2020, arXiv:1911.11134, algorithm 1), with random numbers SET (Mocanu et
  al., 2018, arXiv:1707.04780). A weight that was just dropped may grow at once
  and then keeps its value; what was masked before starts at 0. What a dead
  channel writes or reads does not grow, since it can change no logit.

  Args:
    net: its masks are full arrays where it is pruned.
    growth: scores of the weights that could grow.
    share: of the kept weights to drop, [0, 1].
    layers: regex on whole layer paths.

  Raises:
    ValueError: a share out of range, or a score that is not finite.
  """
  if not 0 <= share <= 1:
    raise ValueError(f"share (={share}) must be from 0 to 1")
  criteria.check_finite(growth)
  size = criteria.score("magnitude_l1", net)
  useful = _in_live_channels(net)
  masks = {}
  for path, s in scored(net, size, layers).items():
    mask = _full(net, path, s.shape)
    kept = int(np.count_nonzero(mask))
    moved = int(share * kept)
    new = top_k(s, kept - moved)
    free = np.flatnonzero(~new & (mask | useful[path]))
    grown = free[top_k(np.asarray(growth[path]).ravel()[free], moved)]
    new.flat[grown] = True
    masks[path] = new
  net = criteria.masked(net)  # what was masked before grows from 0
  return _replaced(net, masks)


def _in_live_channels(net: Network) -> dict[str, np.ndarray]:
  """By layer path, True for weights that no dead channel writes or reads."""
  whole = net.replace(masks=jax.tree.map(lambda m: np.array(True), net.masks))
  live = {name: ~dead for name, dead in dead_channels(net).items()}
  alive = mask_channels(whole, live)
  return {p: _full(alive, p, k.shape) for p, k in kernels(net.params).items()}


def with_masks(net: Network, masks: dict[str, np.ndarray]) -> Network:
  """Adds masks of kernels to a network's own, and sets masked weights to 0.

  What is masked stays masked, whatever the new masks say: only `regrow` brings
  a weight back.
  """
  old = {p: _full(net, p, np.shape(m)) for p, m in masks.items()}
  return _replaced(net, {p: m & old[p] for p, m in masks.items()})


def _replaced(net: Network, masks: dict[str, np.ndarray]) -> Network:
  new = with_kernels(net.masks, {p: jnp.asarray(m) for p, m in masks.items()})
  net = net.replace(masks=new)
  check_four_levels(net)
  return criteria.masked(net)


def full_masks(net: Network, layers: str = ".*") -> Network:
  """Makes scalar masks arrays in layers that match, so shapes never change.

  A step is compiled for the shapes of its masks.
  """
  masks = {
    p: jnp.broadcast_to(m, kernels(net.params)[p].shape)
    for p, m in kernels(net.masks).items()
    if re.fullmatch(layers, p)
  }
  return net.replace(masks=with_kernels(net.masks, masks))


def rewind(net: Network, to: Network) -> Network:
  """Puts the weights of an earlier network under this one's masks.

  Lottery tickets (Frankle and Carbin, 2019): train, prune, rewind, train again.

  Raises:
    ValueError: another network.
  """
  if net.spec != to.spec:
    raise ValueError("a network rewinds to an earlier state of itself only")
  return criteria.masked(
    net.replace(params=to.params, batch_stats=to.batch_stats)
  )


def densities(net: Network) -> dict[str, float]:
  """Returns the share of weights kept, by layer path."""
  params = kernels(net.params)
  return {
    p: float(np.mean(np.broadcast_to(np.asarray(m), params[p].shape)))
    for p, m in kernels(net.masks).items()
  }


def total_density(net: Network, layers: str = ".*") -> float:
  """Returns the share of all weights kept in layers that match."""
  sizes = {p: k.size for p, k in kernels(net.params).items()}
  found = {p: d for p, d in densities(net).items() if re.fullmatch(layers, p)}
  total = sum(sizes[p] for p in found)
  return sum(d * sizes[p] for p, d in found.items()) / total


def _full(net: Network, path: str, shape) -> np.ndarray:
  return np.broadcast_to(np.asarray(kernels(net.masks)[path]), shape)
