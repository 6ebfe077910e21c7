"""Counts the parameters of a network's layers, and those its masks keep.

Everything follows from the spec and the masks; no weight is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr18.nn.spec import HALF_BITS, Layer, batch_norm_of, has_bound


@dataclasses.dataclass(frozen=True)
class LayerWeights:
  """The parameters of one layer and of the batch norm that follows it.

  All are summed over the members of an ensemble.

  Attributes:
    size: weights of the kernel.
    kept: those that no mask removes.
    structured: masked weights in output or input channels that are masked
      wholly, the part of `size - kept` that shrinking can take away.
    biases: one an output channel where batch norm folds into a bias, or the
      head's own; `biases_kept` of them are not masked.
    params: kernel, bias, and batch norm's scale and bias, as PyTorch counts a
      model's parameters; `params_kept` and `params_structured` likewise.
  """

  size: int
  kept: int
  structured: int
  biases: int
  biases_kept: int
  params: int
  params_kept: int
  params_structured: int


def layer_weights(
  layer: Layer, masks: Any = None, sparsity: float = 0.0, members: int = 1
) -> LayerWeights:
  """Counts one layer's parameters.

  Args:
    layer: as `NetSpec.layers` gives it.
    masks: bool, nested dicts like the network's parameters; True keeps, a
      scalar holds for the whole array. Arrays may have a leading axis of
      `members`. None keeps everything.
    sparsity: without masks, the fraction of every kernel to take as removed,
      to the nearest weight.
    members: networks in the ensemble.

  Raises:
    ValueError: a mask that is missing, not bool, or of another shape.
  """
  size = math.prod(layer.kernel_shape)
  vectors = vector_paths(layer)
  folded = layer.features if vectors else 0
  params = size + layer.features * len(vectors)
  if masks is None:
    removed = round(size * sparsity)
    counts = (
      size,
      size - removed,
      0,
      folded,
      folded,
      params,
      params - removed,
      0,
    )
    return LayerWeights(*(members * n for n in counts))

  kernel = _mask(masks, f"{layer.path}/kernel", layer.kernel_shape, members)
  dead = ~kernel.any(axis=tuple(range(1, kernel.ndim - 1)))  # out channels
  kept = int(kernel.sum())
  structured = int(_in_dead_channels(kernel, dead, layer.groups).sum())
  params_kept, params_structured, biases_kept = kept, structured, 0
  for path in vectors:
    vector = _mask(masks, path, (layer.features,), members)
    params_kept += int(vector.sum())
    params_structured += int((~vector & dead).sum())
    if path.endswith("/bias"):
      biases_kept = int(vector.sum())
  return LayerWeights(
    members * size,
    kept,
    structured,
    members * folded,
    biases_kept,
    members * params,
    params_kept,
    params_structured,
  )


def encodings(
  kernel_shape: Sequence[int], kept: float, w_bits: int, members: int = 1
) -> dict[str, Any]:
  """Counts the bits of a kernel in each form of a file, by name.

  'dense' is all weights, 'bitmask' one bit a weight and the kept weights,
  'indices' the kept weights with an index each.

  Args:
    kernel_shape: of one member.
    kept: weights that no mask removes, over all members.
    w_bits: of a weight.
    members: networks in the ensemble.
  """
  size = math.prod(kernel_shape)
  index_bits = math.ceil(math.log2(size))
  out = {
    "dense": members * size * w_bits,
    "bitmask": members * size + kept * w_bits,
    "indices": kept * (w_bits + index_bits),
  }
  if w_bits == 1 and kept < members * size:
    del out["dense"]  # a sign has no zero for what is masked
  return out


def stored_scales(layer: Layer) -> int:
  """Counts the 32-bit numbers beside one member's weights and biases.

  One for each output channel of integers, and one for an input with a learned
  bound. A kernel in float16 cannot take batch norm's scale, which is stored
  beside it.
  """
  beside = layer.w_bits == HALF_BITS and batch_norm_of(layer) is not None
  scales = layer.features if layer.w_bits < HALF_BITS or beside else 0
  return scales + int(has_bound(layer))


def vector_paths(layer: Layer) -> tuple[str, ...]:
  """Lists the [features] parameters of a layer: its bias, or batch norm's."""
  if layer.kind == "dense":
    return (f"{layer.path}/bias",)
  norm = batch_norm_of(layer)
  return () if norm is None else (f"{norm}/scale", f"{norm}/bias")


def _mask(masks, path, shape, members) -> np.ndarray:
  """The mask at a path as [members, *shape]."""
  node = masks
  for key in path.split("/"):
    try:
      node = node[key]
    except (KeyError, TypeError, IndexError):
      raise ValueError(
        f"masks have no {path!r}; they must have the tree of the parameters,"
        " with a scalar True where nothing is pruned"
      ) from None
  mask = np.asarray(node)
  if mask.dtype != bool:
    raise ValueError(f"mask {path!r} has dtype {mask.dtype}, expected bool")
  shape = tuple(shape)
  stacked = members, *shape
  if mask.shape in ((), shape, stacked):
    return np.broadcast_to(mask, stacked)
  if members > 1 and mask.shape == (members,):
    return np.broadcast_to(mask.reshape(members, *[1] * len(shape)), stacked)
  if mask.shape[1:] == shape:
    hint = (
      f"a stack of {mask.shape[0]} networks is charged with"
      f" members={mask.shape[0]}"
    )
  else:
    hint = (
      "a network that was shrunk has smaller masks, and those from before"
      " are not charged again"
    )
  raise ValueError(
    f"mask {path!r} has shape {mask.shape}, expected {shape} or (), with"
    f" members={members}: {hint}"
  )


def _in_dead_channels(kernel, dead, groups) -> np.ndarray:
  """The weights that lie in wholly masked output or input channels."""
  members, *taps, inputs, features = kernel.shape
  # Input channel i of group g meets only the outputs of group g.
  split = kernel.reshape(members, -1, inputs, groups, features // groups)
  inputs_dead = ~split.any(axis=(1, 4), keepdims=True)
  outputs_dead = dead.reshape(members, 1, 1, groups, features // groups)
  return np.broadcast_to(inputs_dead | outputs_dead, split.shape)
