"""Channel groups: what has to lose the same channels, and which to lose.

A ResNet's channels come in coupled sets. The channels between a block's two
convolutions are its own; those that a shortcut adds up belong to all that
write to the stream and all that read from it. They follow from the spec.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.criteria import check_finite
from jaxr18.compress.density import at_least, budget
from jaxr18.nn.network import Network, at, check_four_levels
from jaxr18.nn.spec import Layer, NetSpec

CRITERIA = ("l2", "bn_scale", "taylor", "geometric_median", "random")
DISTRIBUTIONS = ("uniform", "global", "global_raw")


@dataclasses.dataclass(frozen=True)
class Group:
  """Channels that go together.

  Attributes:
    name: 'stage1_block1/inner' between a block's convolutions, 'stem/stream'
      or 'stage2_block1/stream' for what the block's end and its shortcut write.
    size: channels.
    blocks: equal numbers are kept of so many consecutive runs of channels: the
      least common multiple of the groups of the convolutions that meet them.
    writers: layers whose outputs they are; batch norm follows each.
    through: depthwise layers that they pass, channel by channel.
    readers: layers whose inputs they are.
    norms: paths of the batch norms behind the writers.
  """

  name: str
  size: int
  blocks: int
  writers: tuple[str, ...]
  through: tuple[str, ...]
  readers: tuple[str, ...]
  norms: tuple[str, ...]


def channel_groups(spec: NetSpec) -> tuple[Group, ...]:
  """Lists the groups of coupled channels of a network, 12 in ResNet-18.

  The channels between the layers of one low-rank convolution are not among
  them: they are its ranks.
  """
  units: dict[str, list[Layer]] = {}
  for layer in spec.layers():
    units.setdefault(layer.unit, []).append(layer)
  sets: list[dict] = []

  def begin(name, size):
    sets.append(
      dict(name=name, size=size, blocks=1, writers=[], through=[], readers=[],
           norms=[])
    )  # fmt: skip
    return sets[-1]

  def write(group, unit, norm):
    last = units[unit][-1]
    group["writers"].append(last.path)
    group["norms"].append(norm)
    group["blocks"] = math.lcm(group["blocks"], last.groups)

  def read(group, unit):
    for layer in units[unit]:
      depthwise = layer.kind == "conv" and layer.groups == layer.in_features > 1
      if not (depthwise and layer.path.endswith("/depthwise")):
        group["readers"].append(layer.path)
        group["blocks"] = math.lcm(group["blocks"], layer.groups)
        return
      group["through"].append(layer.path)

  stream = begin("stem/stream", spec.stem.features)
  write(stream, "stem", "stem_bn")
  for name, block in spec.blocks():
    read(stream, f"{name}/conv1")
    inner = begin(f"{name}/inner", block.conv1.features)
    write(inner, f"{name}/conv1", f"{name}/bn1")
    read(inner, f"{name}/conv2")
    if block.proj is not None:
      read(stream, f"{name}/proj")
      stream = begin(f"{name}/stream", block.conv2.features)
      write(stream, f"{name}/proj", f"{name}/proj_bn")
    write(stream, f"{name}/conv2", f"{name}/bn2")
  read(stream, "head")
  return tuple(
    Group(
      s["name"],
      s["size"],
      s["blocks"],
      *(tuple(s[k]) for k in ("writers", "through", "readers", "norms")),
    )
    for s in sets
  )


def importance(
  name: str,
  net: Network,
  *,
  key: Any = None,
  grads: Any = None,
) -> dict[str, np.ndarray]:
  """Scores each channel's importance, [size] by group name.

  A channel's filter is what all writers of its group compute it with.

  - l2: the filter's norm (Li et al., 2017, arXiv:1608.08710, with L2).
  - bn_scale: |scale| of the batch norm behind it, the mean of those of a
    stream (Liu et al., 2017, arXiv:1708.06519).
  - taylor: (sum of g p)^2 over batch norm's scales and biases (Molchanov et
    al., 2019, arXiv:1906.10771, section 3.2).
  - geometric_median: the filter's summed distance to the others (He et al.,
    2019, arXiv:1811.00250, equation 7).
  - random: uniform in [0, 1).

  Args:
    name: one of `CRITERIA`.
    net: one network; its masks apply.
    key: for random.
    grads: the loss's gradient, a tree like `params`, for taylor.

  Raises:
    ValueError: an unknown name, or what the criterion needs is missing.
  """
  if name not in CRITERIA:
    raise ValueError(f"criterion (={name!r}) must be one of {CRITERIA}")
  if (name == "random" and key is None) or (name == "taylor" and grads is None):
    missing = "key" if name == "random" else "grads"
    raise ValueError(f"criterion {name!r} needs {missing}")
  params = jax.tree.map(
    lambda p, m: np.asarray(jnp.where(m, p, 0)), net.params, net.masks
  )
  out = {}
  for i, group in enumerate(channel_groups(net.spec)):
    if name == "random":
      one = jax.random.fold_in(key, i)
      value = np.asarray(jax.random.uniform(one, (group.size,)))
    elif name == "bn_scale":
      scales = [np.abs(at(params, n)["scale"]) for n in group.norms]
      value = np.mean(scales, axis=0, dtype=np.float64)
    elif name == "taylor":
      value = sum(
        np.asarray(at(grads, n)[v]) * at(params, n)[v]
        for n in group.norms
        for v in ("scale", "bias")
      )
      value = value**2
    else:
      filters = np.concatenate(
        [
          at(params, w)["kernel"].reshape(-1, group.size).T
          for w in group.writers
        ],
        axis=1,
      )
      value = np.linalg.norm(filters, axis=1)
      if name == "geometric_median":
        value = np.array(
          [np.linalg.norm(filters - f, axis=1).sum() for f in filters]
        )
    out[group.name] = np.asarray(value, np.float64)
  return out


def kept_channels(
  spec: NetSpec,
  scores: dict[str, np.ndarray],
  density: float,
  *,
  distribution: str = "uniform",
  floor: float = 0.0,
  multiple: int = 1,
) -> dict[str, np.ndarray]:
  """Chooses the channels that stay, bool [size] by group name.

  Equally many stay in each of a group's `blocks`, the best of each.

  Args:
    spec: the network.
    scores: of `importance`; a negative one is of a channel that is gone.
    density: share of channels to keep, (0, 1]: in each group if uniform, in
      all together otherwise.
    distribution: one of `DISTRIBUTIONS`. Global compares scores over their
      group's mean, so that no group goes for its scale alone; global_raw the
      scores as they are, as the papers of taylor and bn_scale do.
    floor: share that each group keeps at least; the two global ones lower it
      where all together are more than the density allows.
    multiple: the number kept is a multiple of it, unless the group's own size
      is none: then it is as near as the blocks allow.

  Raises:
    ValueError: numbers out of range, a score that is not finite, or groups
      that cannot keep so few.
  """
  if distribution not in DISTRIBUTIONS:
    raise ValueError(
      f"distribution (={distribution!r}) must be one of {DISTRIBUTIONS}"
    )
  if not 0 < density <= 1 or not 0 <= floor <= density or multiple < 1:
    raise ValueError(
      f"density (={density}) must be above 0 and at most 1, floor (={floor})"
      f" from 0 to it, multiple (={multiple}) at least 1"
    )
  check_finite(scores)
  groups = channel_groups(spec)
  steps = steps_of(groups, multiple)
  if distribution == "uniform":
    wanted = evenly(groups, density, steps, floor)
  else:
    if distribution == "global":
      scores = {name: _over_mean(s) for name, s in scores.items()}
    wanted = _globally(groups, scores, density, steps, floor)
  return {
    g.name: _best_by_block(
      scores[g.name], g.blocks, wanted[g.name] * steps[g.name]
    )
    for g in groups
  }


def steps_of(groups: Sequence[Group], multiple: int) -> dict[str, int]:
  """Returns the number of channels by which each group can shrink."""
  steps = {}
  for g in groups:
    step = math.lcm(g.blocks, multiple)
    steps[g.name] = step if g.size % step == 0 else g.blocks
  return steps


def evenly(
  groups: Sequence[Group], density: float, steps: dict[str, int], floor: float
) -> dict[str, int]:
  """Counts the steps that each group keeps at the same density.

  Args:
    groups: of channels.
    density: the share of each group's channels to keep.
    steps: channels that are kept or removed together, by group name.
    floor: the least share of each group.

  Returns:
    The number of steps by group name.
  """
  least = at_least({g.name: g.size for g in groups}, floor, steps)
  return {
    g.name: max(least[g.name], round(g.size * density / steps[g.name]))
    for g in groups
  }


def _best_by_block(scores: np.ndarray, blocks: int, kept: int) -> np.ndarray:
  split = scores.reshape(blocks, -1)
  ranks = np.argsort(np.argsort(-split, axis=1, kind="stable"), axis=1)
  return (ranks < kept // blocks).reshape(-1)


def _over_mean(scores: np.ndarray) -> np.ndarray:
  """Scores over the mean of those above 0; others are of what is gone."""
  above = scores > 0
  mean = scores[above].mean() if above.any() else 1.0
  return np.where(above, scores / mean, scores)


def _globally(groups, scores, density, steps, floor) -> dict[str, int]:
  """Steps of channels by group, the best of all under the budget."""
  sizes = {g.name: g.size for g in groups}
  total, kept = budget(sizes, density, floor, steps)
  spent = sum(kept[g.name] * steps[g.name] for g in groups)
  offers = []
  for g in groups:
    s = np.asarray(scores[g.name])
    # The i-th best of every block, several ranks to a step.
    ranked = -np.sort(-s.reshape(g.blocks, -1), axis=1).mean(axis=0)
    ranked = ranked[: g.size // steps[g.name] * (steps[g.name] // g.blocks)]
    by_step = ranked.reshape(-1, steps[g.name] // g.blocks).mean(axis=1)
    offers += [
      (-value, i, g.name)
      for i, value in enumerate(by_step)
      if i >= kept[g.name]
    ]
  for _, i, name in sorted(offers):
    # Values fall with i, so what comes after a step left out is left out too.
    if i == kept[name] and spent + steps[name] <= total:
      kept[name] += 1
      spent += steps[name]
  return kept


def mask_channels(net: Network, keep: dict[str, np.ndarray]) -> Network:
  """Masks channels in every kernel and batch norm that holds them.

  Batch norm's scale and bias are masked too: its bias would leak through a
  masked kernel, and logits differ from the shrunk network's by 0.2. Where all
  is True a mask stays as it was.

  Args:
    net: one network.
    keep: bool [size] by group name, of `kept_channels`; others keep all.
  """
  masks = jax.tree.map(
    lambda p, m: np.array(np.broadcast_to(np.asarray(m), p.shape)),
    net.params,
    net.masks,
  )
  layers = {layer.path: layer for layer in net.spec.layers()}
  for group in channel_groups(net.spec):
    if group.name not in keep or np.all(keep[group.name]):
      continue
    kept = np.asarray(keep[group.name], bool)
    for path in (*group.writers, *group.through):
      at(masks, path)["kernel"][..., ~kept] = False
    for path in group.norms:
      for v in ("scale", "bias"):
        at(masks, path)[v][~kept] = False
    for path in group.readers:
      kernel = at(masks, path)["kernel"]
      for output, inputs in blocks_of(layers[path], kernel.shape):
        kernel[..., ~kept[inputs], output] = False

  def tidy(new, old):
    same = np.array_equal(new, np.broadcast_to(np.asarray(old), new.shape))
    return old if same else jnp.asarray(new)

  masks = jax.tree.map(tidy, masks, net.masks)
  # In NumPy: each shape would be a program of its own, compiled in seconds.
  params = jax.tree.map(
    lambda p, m: jnp.asarray(np.where(m, p, np.float32(0))), net.params, masks
  )
  masked = net.replace(params=params, masks=masks)
  check_four_levels(masked)
  return masked


def blocks_of(layer: Layer, shape: Sequence[int]):
  """Lists the (output slice, input slice) of each block of a kernel."""
  groups = layer.groups
  inputs, outputs = layer.in_features // groups, shape[-1] // groups
  for g in range(groups):
    yield (
      slice(g * outputs, (g + 1) * outputs),
      slice(g * inputs, (g + 1) * inputs),
    )


def group_lasso(params, spec: NetSpec) -> jax.Array:
  """Sums sqrt(n) times the norm of a channel's n scales over all channels.

  Coupled batch norms go to zero together (Yuan and Lin, 2006, equation 2.1, on
  the scales of Liu et al., 2017); the square root of the group's size makes a
  stream's channel of n batch norms cost what n lone ones do. It is a term of a
  loss, times a weight.
  """
  total = jnp.zeros(())
  for group in channel_groups(spec):
    squares = sum(at(params, n)["scale"] ** 2 for n in group.norms)
    # The square root has no gradient at 0, where a channel is gone.
    size = math.sqrt(len(group.norms))
    total += size * jnp.sum(jnp.sqrt(squares + 1e-12))
  return total
