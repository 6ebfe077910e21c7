"""Bits by layer: what each layer loses in few bits, and the best that fit.

The loss of a network is taken as the sum of what its layers lose alone, as in
HAWQ (Dong et al., 2020); which bits then lose least at a score is a knapsack
with one choice a layer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.cost.score import score
from jaxr18.nn.network import (
  Network,
  apply_masks,
  at,
  check_four_levels,
  forward,
  kernels,
  with_kernels,
)
from jaxr18.nn.quantize import input_levels, quantize_kernel
from jaxr18.nn.resnet import ResNet
from jaxr18.nn.spec import TWO_BITS, NetSpec, with_bits

EDGES = ("stem", "head")  # stay at 8 bits unless asked for
_STEPS = 20_000  # of the target, to which costs are rounded up

Losses = dict[str, dict[int, float]]  # by unit of the spec, by bits


class Measured(NamedTuple):
  """What bits lose on some images, and how well that is known.

  Attributes:
    losses: the mean KL divergence over the images.
    errors: the standard error of each mean, as if the images were drawn anew.
  """

  losses: Losses
  errors: Losses

  def undecided(self, bits: Mapping[str, int]) -> list[str]:
    """Units whose loss in their bits no other choice differs from by 2 errors.

    Args:
      bits: what was chosen, by unit; units that were not measured are left out.
    """
    return [
      unit
      for unit, b in bits.items()
      if any(
        other != b
        and abs(loss - self.losses[unit][b])
        < 2 * math.hypot(self.errors[unit][other], self.errors[unit][b])
        for other, loss in self.losses.get(unit, {}).items()
      )
    ]


@jax.jit
def _calibrated(net: Network, levels, images) -> dict:
  """Each input's best bound on so many levels, in the tree of `params`."""
  variables = {"params": net.params, "batch_stats": net.batch_stats}
  _, found = ResNet(net.spec, train=True).apply(
    variables | {"levels": levels}, images, mutable=["batch_stats", "mse"]
  )
  return dict(found["mse"])


@jax.jit
def _divergence(net: Network, levels, logits, images) -> jax.Array:
  """KL(softmax(logits) || the network's), of each image."""
  variables = {"params": net.params, "batch_stats": net.batch_stats}
  got: Any = ResNet(net.spec).apply(variables | {"levels": levels}, images)
  p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(got)
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _check(net: Network, bits, batches, two_bits: str) -> None:
  if not batches:
    raise ValueError("no images to measure what bits lose on")
  if any(layer.w_bits < 32 or layer.a_bits < 32 for layer in net.spec.layers()):
    raise ValueError("bits are allocated to a network in 32 bits")
  if not bits or not all(2 <= b <= 8 for b in bits):
    raise ValueError(f"bits (={tuple(bits)}) must each be from 2 to 8")
  if 2 in bits:
    two = with_bits(net.spec, [(".*", 2, 2)], two_bits=two_bits)
    check_four_levels(net.replace(spec=two))


def bit_losses(
  net: Network,
  bits: Sequence[int],
  batches: Iterable[jax.Array],
  two_bits: str = TWO_BITS[0],
  done: Callable[[str], None] = lambda unit: None,
) -> Measured:
  """Measures what each layer's bits lose while all others have 8.

  Bits are traced numbers, as the levels of inputs and as kernels that were
  quantized before: one compiled evaluation serves all of them.

  Args:
    net: in 32 bits.
    bits: 2 to 8, of weights and inputs alike.
    batches: of images, all of one shape, [n, resolution, resolution, channels],
      normalized; bounds are calibrated on the first.
    two_bits: what 2 bits of a weight are, one of `spec.TWO_BITS`.
    done: is told each unit that is measured.

  Returns:
    The mean KL divergence from the network in 32 bits to the quantized one, and
    its standard error.

  Raises:
    ValueError: a network that is quantized, other bits, or no batch; or one
      that is pruned, and 2 bits that have no zero.
  """
  batches, layers = list(batches), net.spec.layers()
  _check(net, bits, batches, two_bits)
  spec = with_bits(net.spec, [(".*", 32, 8)], "fixed")
  pruned = apply_masks(net.params, net.masks)
  ones = dict.fromkeys((x.path for x in layers), jnp.ones(()))
  plain = Network(_put(pruned, "input_bound", ones), net.batch_stats, (), spec)

  def levels(b):
    return {
      x.path: jnp.float32(input_levels(b, x.signed_input)) for x in layers
    }

  choices = {}
  for b in sorted({8, *bits}):
    quantized = {
      p: quantize_kernel(k, b, two_bits=two_bits)
      for p, k in kernels(pruned).items()
    }
    calibrated = _calibrated(plain, _put({}, "input", levels(b)), batches[0])
    bounds = {x.path: at(calibrated, x.path)["input_bound"] for x in layers}
    choices[b] = quantized, bounds, levels(b)

  logits = [forward(net, images) for images in batches]

  def of_images(unit: str, b: int) -> np.ndarray:
    own = [x.path for x in layers if x.unit == unit]
    mixed = [
      eight | {path: few[path] for path in own}
      for eight, few in zip(choices[8], choices[b], strict=True)
    ]
    params = _put(with_kernels(plain.params, mixed[0]), "input_bound", mixed[1])
    candidate = plain.replace(params=params), _put({}, "input", mixed[2])
    found = [
      np.asarray(_divergence(*candidate, one, images), np.float64)
      for one, images in zip(logits, batches, strict=True)
    ]
    return np.concatenate(found)

  losses, errors = {}, {}
  for unit, _ in net.spec.units():
    each = {b: of_images(unit, b) for b in bits}
    losses[unit] = {b: float(x.mean()) for b, x in each.items()}
    spread = {b: x.std(ddof=1) if len(x) > 1 else 0 for b, x in each.items()}
    errors[unit] = {
      b: float(s / math.sqrt(len(each[b]))) for b, s in spread.items()
    }
    done(unit)
  return Measured(losses, errors)


def allocate(
  spec: NetSpec, losses: Losses, target: float, masks=None
) -> NetSpec:
  """Chooses the bits of the smallest total loss at a score within `target`.

  Args:
    spec: the network; its own bits do not matter.
    losses: of `bit_losses`, its means; units that are not in it have 8 bits.
    target: the per-layer figure to reach.
    masks: of the network, as `score` takes them.

  Returns:
    The spec with bits. The sum is the least but for costs that are rounded up
    to a 20,000th of the target.

  Raises:
    ValueError: no choice reaches the target, with the lowest score there is;
      or a loss is not finite.
  """
  if not target > 0:
    raise ValueError(f"target (={target}) must be above 0")
  for unit, row in losses.items():
    if odd := {b: loss for b, loss in row.items() if not math.isfinite(loss)}:
      raise ValueError(
        f"{unit}: the loss by bits must be finite, got {odd}; the network's"
        " weights or statistics are not finite: train it again at a lower"
        " learning_rate"
      )
  tables = {}
  units = [unit for unit, _ in spec.units()]
  for b in sorted({8, *(b for row in losses.values() for b in row)}):
    rows = score(with_bits(spec, [(".*", b, b)]), masks=masks).rows
    for layer, row in zip(spec.layers(), rows, strict=True):
      cost = tables.setdefault(layer.unit, {})
      cost[b] = cost.get(b, 0) + row.per_layer.total
  choices = {u: losses.get(u, {8: 0.0}) for u in units}
  lowest = sum(min(tables[u][b] for b in choices[u]) for u in units)
  best = np.full(_STEPS + 1, np.inf)  # by the cost spent so far
  best[0] = 0
  taken = []
  for unit in units:
    new, which = np.full_like(best, np.inf), np.zeros(_STEPS + 1, np.int8)
    for b, loss in choices[unit].items():
      steps = math.ceil(tables[unit][b] / target * _STEPS)
      if steps <= _STEPS:
        moved = np.full_like(best, np.inf)
        moved[steps:] = best[: _STEPS + 1 - steps] + loss
        which = np.where(moved < new, b, which)
        new = np.minimum(moved, new)
    best = new
    taken.append(which)
  if not np.isfinite(best).any():
    raise ValueError(
      f"no choice of bits brings the per-layer score to {target}: the lowest is"
      f" {lowest:.6f}; allow fewer bits, or make the network smaller"
    )
  spent = int(np.argmin(best))
  bits = {}
  for unit, which in zip(reversed(units), reversed(taken), strict=True):
    bits[unit] = int(which[spent])
    spent -= math.ceil(tables[unit][bits[unit]] / target * _STEPS)
  return with_bits(spec, rules_for(bits))


def rules_for(bits: Mapping[str, int]) -> tuple[tuple[str, int, int], ...]:
  """Rules of `with_bits` for bits by unit, one for each number of bits."""
  by_bits: dict[int, list[str]] = {}
  for unit, b in bits.items():
    by_bits.setdefault(b, []).append(unit)
  *few, most = sorted(by_bits, key=lambda b: len(by_bits[b]))
  rules = [("|".join(by_bits[b]), b, b) for b in sorted(few, reverse=True)]
  return (*rules, (".*", most, most))


def _put(tree, name: str, leaves: Mapping[str, jax.Array]) -> dict:
  """The tree with a leaf of that name at each path."""
  out = jax.tree.map(lambda x: x, tree)
  for path, leaf in leaves.items():
    node = out
    for part in path.split("/"):
      node = node.setdefault(part, {})
    node[name] = leaf
  return out
