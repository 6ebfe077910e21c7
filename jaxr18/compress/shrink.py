"""Real removal: masked channels, and whole blocks, leave the network.

The shrunk network computes what the masked one does, and its spec says its
new widths; nothing of its history is needed to run it.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.channels import (
  Group,
  blocks_of,
  channel_groups,
  mask_channels,
)
from jaxr18.nn.network import Network, at
from jaxr18.nn.spec import ConvSpec, NetSpec, check


def dead_channels(net: Network) -> dict[str, np.ndarray]:
  """Finds channels that are always 0, bool [size] by group name.

  Such a channel has all its writers' weights and all its batch norms' scales
  and biases masked: a bias alone would leak.
  """
  out = {}
  for group in channel_groups(net.spec):
    dead = np.ones(group.size, bool)
    leaves = [at(net.masks, w)["kernel"] for w in group.writers]
    leaves += [
      at(net.masks, n)[v] for n in group.norms for v in ("scale", "bias")
    ]
    for mask in map(np.asarray, leaves):
      if mask.ndim == 0:
        dead &= ~mask
      else:
        dead &= ~mask.reshape(-1, group.size).any(axis=0)
    out[group.name] = dead
  return out


def shrink(net: Network) -> Network:
  """Removes the dead channels of a network.

  Args:
    net: one network. Masks of single weights stay, on what is left.

  Raises:
    ValueError: a group would lose all its channels, or unequal numbers in the
      blocks of a grouped convolution.
  """
  groups = channel_groups(net.spec)
  keep = {name: ~dead for name, dead in dead_channels(net).items()}
  for group in groups:
    _check(group, keep[group.name])
  # A dead channel's readers multiply zeros: they may be unmasked so far.
  net = mask_channels(net, keep)
  # In NumPy: each shape would be a program of its own, compiled in seconds.
  params, stats, masks = (
    jax.tree.map(np.asarray, t)
    for t in (net.params, net.batch_stats, net.masks)
  )
  layers = {layer.path: layer for layer in net.spec.layers()}
  inputs: dict[str, np.ndarray] = {}
  outputs: dict[str, np.ndarray] = {}
  for group in groups:
    kept = keep[group.name]
    inputs |= dict.fromkeys(group.readers, kept)
    outputs |= dict.fromkeys((*group.writers, *group.through), kept)
    for path in group.norms:
      for tree, names in (
        (params, ("scale", "bias")),
        (masks, ("scale", "bias")),
        (stats, ("mean", "var")),
      ):
        node = at(tree, path)
        for name in names:
          if np.ndim(node[name]):
            node[name] = node[name][kept]
  for path, layer in layers.items():
    kept_in, kept_out = inputs.get(path), outputs.get(path)
    for tree in (params, masks):
      node = at(tree, path)
      if np.ndim(node["kernel"]):
        node["kernel"] = _cut(node["kernel"], layer, kept_in, kept_out)
      if np.ndim(node.get("kernel_bound", 0)) and kept_out is not None:
        node["kernel_bound"] = node["kernel_bound"][kept_out]
  masks = jax.tree.map(lambda m: np.array(True) if np.all(m) else m, masks)
  spec = narrower(net.spec, {g.name: int(keep[g.name].sum()) for g in groups})
  params, stats, masks = jax.tree.map(jnp.asarray, (params, stats, masks))
  return Network(params, stats, masks, spec)


def drop_blocks(net: Network, names: Sequence[str]) -> Network:
  """Removes whole residual blocks; the rest of a stage moves up.

  Args:
    net: one network.
    names: such as 'stage3_block2'; their shortcut is the identity.

  Raises:
    ValueError: no such block, one whose shortcut is a projection, or a stage
      that would be empty.
  """
  spec, moves = without_blocks(net.spec, names)
  move = functools.partial(moved, spec=net.spec, moves=moves)
  return Network(move(net.params), move(net.batch_stats), move(net.masks), spec)


def moved(
  table: Mapping[str, Any], spec: NetSpec, moves: Mapping[str, str]
) -> dict[str, Any]:
  """Renames what is by path in a network to the new names of its blocks.

  Args:
    table: by a block's name or a path in one, and by others, which stay.
    spec: of the network before.
    moves: new names of the blocks that stay, of `without_blocks`.
  """
  blocks = dict(spec.blocks())
  out = {}
  for path, value in table.items():
    block, slash, rest = path.partition("/")
    if block not in blocks or block in moves:
      out[moves.get(block, block) + slash + rest] = value
  return out


def matching_blocks(spec: NetSpec, pattern: str) -> list[str]:
  """Lists the blocks that a regex matches; an empty regex matches none.

  Raises:
    ValueError: it is not empty and matches none.
  """
  blocks = [name for name, _ in spec.blocks()]
  found = [name for name in blocks if pattern and re.fullmatch(pattern, name)]
  if pattern and not found:
    raise ValueError(f"matches no block; there are {blocks}")
  return found


def without_blocks(
  spec: NetSpec, names: Sequence[str]
) -> tuple[NetSpec, dict[str, str]]:
  """Removes blocks from a spec; returns the new names of the others, too.

  Raises:
    ValueError: as `drop_blocks`.
  """
  blocks = dict(spec.blocks())
  for name in names:
    if name not in blocks:
      raise ValueError(f"no block {name!r}; there are {list(blocks)}")
    if blocks[name].proj is not None:
      raise ValueError(
        f"{name} cannot go: its shortcut is a projection that changes the shape"
      )
  stages, moves = [], {}
  for i, stage in enumerate(spec.stages, 1):
    old = [f"stage{i}_block{j}" for j in range(1, len(stage) + 1)]
    left = [name for name in old if name not in names]
    if not left:
      raise ValueError(f"stage {i} would lose all its blocks; keep one")
    moves |= {name: f"stage{i}_block{j}" for j, name in enumerate(left, 1)}
    stages.append(tuple(blocks[name] for name in left))
  spec = dataclasses.replace(spec, stages=tuple(stages))
  check(spec)
  return spec, moves


def _check(group: Group, kept: np.ndarray) -> None:
  by_block = kept.reshape(group.blocks, -1).sum(axis=1)
  if not by_block.any():
    raise ValueError(
      f"{group.name} would lose all its {group.size} channels"
      f" ({', '.join(group.writers)}); keep one"
    )
  if by_block.min() != by_block.max():
    raise ValueError(
      f"{group.name}: {', '.join((*group.writers, *group.readers))} meet its"
      f" channels in {group.blocks} groups, which must keep equally many; they"
      f" keep {by_block.tolist()}"
    )


def _cut(kernel, layer, kept_in, kept_out):
  """A kernel without the inputs and outputs that go."""
  if kept_in is not None:
    parts = []
    for output, block in blocks_of(layer, kernel.shape):
      parts.append(kernel[..., output][..., kept_in[block], :])
    kernel = np.concatenate(parts, axis=-1)
  if kept_out is not None:
    kernel = kernel[..., kept_out]
  return kernel


def narrower(spec: NetSpec, sizes: dict[str, int]) -> NetSpec:
  """Changes the widths of a spec, by group name."""

  def width(conv: ConvSpec, size: int) -> ConvSpec:
    return dataclasses.replace(conv, features=size)

  stream = sizes["stem/stream"]
  stem = width(spec.stem, stream)
  names = iter(spec.blocks())
  stages = []
  for stage in spec.stages:
    new = []
    for _ in stage:
      name, block = next(names)
      proj = block.proj
      if proj is not None:
        stream = sizes[f"{name}/stream"]
        proj = width(proj, stream)
      new.append(
        dataclasses.replace(
          block,
          conv1=width(block.conv1, sizes[f"{name}/inner"]),
          conv2=width(block.conv2, stream),
          proj=proj,
        )
      )
    stages.append(tuple(new))
  spec = dataclasses.replace(spec, stem=stem, stages=tuple(stages))
  check(spec)
  return spec
