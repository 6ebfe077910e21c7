"""Batch norm folded into the convolution before it: what is trained is stored.

In evaluation batch norm is `y * m + b` by output channel, with
m = scale / sqrt(variance + 1e-5) and b = bias - mean * m. A quantized kernel
has a scale for each output channel, which takes m; its integer codes stay as
they were trained. A float32 kernel is multiplied itself; one in float16, which
would be rounded once more, gets a scale.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from jaxr18.nn.network import (
  Network,
  apply_masks,
  at,
  check_four_levels,
  members,
)
from jaxr18.nn.quantize import SMALLEST_BOUND, kernel_codes
from jaxr18.nn.resnet import BATCH_NORM_EPSILON
from jaxr18.nn.spec import FLOAT_BITS, HALF_BITS, Layer, batch_norm_of

Folded = dict[str, dict[str, np.ndarray]]


def fold(net: Network) -> Folded:
  """Folds batch norm: returns what evaluation needs, by layer path.

  Computed in float64 and rounded once. Masks are applied: what they remove is
  0 in `codes` and `kernel`.

  Returns:
    For each layer, HWIO (the head [1, 1, in, out]):
      codes: int8, of weights of 1 to 8 bits; or
      kernel: float16 or float32, of 16 or 32 bits.
      scale: float32 [out], by which an output channel's sums are multiplied:
        with codes, and with float16 where batch norm follows.
      bias: float32 [out], behind the layers that batch norm follows, and the
        head's.
      input_bound: float32 scalar, where the input has one.
    For each block, where residual sums are quantized:
      sum_bound: float32 scalar.

  Raises:
    ValueError: stacked networks, or masks on four levels.
  """
  if (count := members(net)) is not None:
    raise ValueError(
      f"{count} networks are stacked here, and one at a time can be folded:"
      " ensemble.unstack gives them"
    )
  check_four_levels(net)
  params, stats = jax.device_get(
    (apply_masks(net.params, net.masks), net.batch_stats)
  )
  layers = net.spec.layers()
  integers = {
    x.path: (at(params, x.path), x.w_bits, x.two_bits)
    for x in layers
    if x.w_bits < HALF_BITS
  }
  kernels = {
    path: (node["kernel"], node.get("kernel_bound"))
    for path, (node, *_) in integers.items()
  }
  bits = tuple(integers[path][1:] for path in sorted(integers))
  codes = jax.device_get(_all_codes(kernels, bits))
  folded = {x.path: _layer(x, params, stats, codes) for x in layers}
  if net.spec.sum_bits == FLOAT_BITS:
    return folded
  return folded | {
    name: {"sum_bound": _bound(params[name]["sum_bound"])}
    for name, _ in net.spec.blocks()
  }


@functools.partial(jax.jit, static_argnames="bits")
def _all_codes(kernels: dict[str, tuple], bits: tuple[tuple[int, str], ...]):
  """(codes, scale) by path, in one program as in the simulation."""
  paths = sorted(kernels)
  return {
    path: kernel_codes(kernel, b, bound, two_bits)
    for path, (b, two_bits) in zip(paths, bits, strict=True)
    for kernel, bound in (kernels[path],)
  }


def _layer(layer: Layer, params, stats, codes) -> dict[str, np.ndarray]:
  node = at(params, layer.path)
  multiplier, bias = np.float64(1), node.get("bias")
  if (norm := batch_norm_of(layer)) is not None:
    multiplier, bias = _affine(at(params, norm), at(stats, norm))
  kernel = np.asarray(node["kernel"]).reshape(hwio(layer))
  out = {}
  if layer.w_bits < HALF_BITS:
    integers, scale = codes[layer.path]
    out["codes"] = integers.reshape(hwio(layer))
    out["scale"] = np.float32(np.float64(scale) * multiplier)
  elif layer.w_bits == HALF_BITS:
    largest = np.finfo(np.float16).max
    out["kernel"] = np.clip(kernel, -largest, largest).astype(np.float16)
    if norm is not None:  # a product would have to be rounded again
      out["scale"] = np.float32(multiplier)
  else:
    out["kernel"] = np.float32(kernel * multiplier)
  if bias is not None:
    out["bias"] = np.float32(bias)
  if "input_bound" in node:
    out["input_bound"] = _bound(node["input_bound"])
  return out


def _bound(learned) -> Any:
  return np.float32(max(learned, SMALLEST_BOUND))


def hwio(layer: Layer) -> tuple[int, ...]:
  """Returns the kernel's shape, with the head as a 1x1 convolution."""
  shape = layer.kernel_shape
  return shape if len(shape) == 4 else (1, 1, *shape)


def _affine(norm: dict, stats: dict) -> tuple[np.ndarray, np.ndarray]:
  """m and b of a batch norm, float64 [features]."""
  mean, variance = np.float64(stats["mean"]), np.float64(stats["var"])
  m = np.float64(norm["scale"]) / np.sqrt(variance + BATCH_NORM_EPSILON)
  return m, np.float64(norm["bias"]) - mean * m
