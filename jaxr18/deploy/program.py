"""A network as integers alone: the one definition that all share.

`lower.py` turns a packed file's numbers into steps. Each step is a convolution
of integer codes and one rescaling of its sums,

    q = clip((sum * multiplier + offset) >> shift, low, high),

in 64 bits, by output channel. `run` computes them with NumPy or with JAX, and
`to_c.py` writes them as C. docs/integer.md says why each rule is as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxr18.deploy import packed


@dataclasses.dataclass(frozen=True)
class Rescale:
  """clip((x * multiplier + offset) >> shift, low, high), in 64 bits.

  Attributes:
    multiplier: int64 [channels] or [1], of 30 bits and a sign.
    offset: int64 of the same shape, one half of the result's unit included, so
      that the shift rounds to the nearest integer, halves up.
    shift: 1 to 46 binary places.
    low, high: the smallest and the largest result.
  """

  multiplier: np.ndarray
  offset: np.ndarray
  shift: int
  low: int
  high: int

  def __call__(self, x, xp=np):
    """Rescales integers [..., channels] to int64."""
    wide = x.astype(xp.int64)
    wide = wide * xp.asarray(self.multiplier) + xp.asarray(self.offset)
    return xp.clip(wide >> self.shift, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Step:
  """One convolution, from a tensor to another.

  Attributes:
    path: of the layer.
    source, target: names of tensors; "image" and "logits" are the outer ones.
    kernel: int8 HWIO.
    stride, groups: of the convolution, with padding kernel // 2.
    w_bits: what a weight is stored in.
    low, high: the smallest and the largest of its input codes.
    size, out_size: sides of what it reads and writes, in pixels.
    table: int16 [channels, 256], the codes of the image's bytes; or None.
    resize: int64 [size of the image, size], the weights of a row's or column's
      pixels; or None.
    read: makes codes of residual sums or of a resized image; or None.
    pooled: whether the sums are added up over all pixels first.
    write: makes of the sums what is stored.
    unit: what an integer of that is worth as a float.
    to_sums: whether `write` makes residual sums or an operand of them.
    plus: the tensor that is added, before what is below 0 becomes 0; or ''.
    shortcut: brings that tensor to the grid of `write` first; or None.
  """

  path: str
  source: str
  target: str
  kernel: np.ndarray
  stride: int
  groups: int
  w_bits: int
  low: int
  high: int
  size: int
  out_size: int
  write: Rescale
  unit: float
  table: np.ndarray | None = None
  resize: np.ndarray | None = None
  read: Rescale | None = None
  pooled: bool = False
  to_sums: bool = False
  plus: str = ""
  shortcut: Rescale | None = None

  @property
  def features(self) -> int:
    return self.kernel.shape[-1]

  @property
  def in_features(self) -> int:
    return self.kernel.shape[2] * self.groups

  @property
  def largest_sum(self) -> int:
    """The largest size of a sum that the kernel allows, whatever the input."""
    return int(np.max(np.maximum(*reach(self.kernel, self.low, self.high))))


@dataclasses.dataclass(frozen=True)
class Program:
  """Steps from uint8 images [n, size, size, channels] to logits [n, classes].

  Attributes:
    steps: in order.
    sum_bits: of a residual sum and of its two operands.
    logit_bits: a logit is an int32 in units of 2 to the power of -logit_bits.
    size, channels, classes: of an image and of the logits.
    provenance: what the packed file says of its making.
  """

  steps: tuple[Step, ...]
  sum_bits: int
  logit_bits: int
  size: int
  channels: int
  classes: int
  provenance: dict[str, Any]


def run(
  program: Program,
  images: Any,
  convolve: Callable | None = None,
  xp: Any = np,
  watch: Callable[[Step, Any], None] = lambda step, operand: None,
):
  """Computes the logits of images.

  Args:
    program: of `lower`.
    images: uint8 [n, size, size, channels].
    convolve: maps codes [n, h, w, inputs], as int64, and a `Step` to sums;
      NumPy's by default.
    xp: numpy, or jax.numpy where 64 bits are enabled.
    watch: is given what makes residual sums: the stem's output, and a step's
      output and its shortcut, in units of the step's.

  Returns:
    int64 [n, classes], in units of 2**-logit_bits.
  """
  tensors = {"image": images}
  for step in program.steps:
    x, other = tensors[step.source], tensors.get(step.plus)
    tensors[step.target] = output(step, x, other, convolve, xp, watch)
  return tensors["logits"][:, 0, 0]


def output(
  step: Step,
  x: Any,
  other: Any = None,
  convolve: Callable | None = None,
  xp: Any = np,
  watch: Callable[[Step, Any], None] = lambda step, operand: None,
):
  """Computes what one step writes, int64.

  Args:
    step: one of a program's.
    x: what it reads.
    other: the tensor that is added; None where there is none.
    convolve, xp, watch: as `run` takes them.
  """
  y = step.write((convolve or _convolve)(codes(step, x, xp), step), xp)
  if step.to_sums:
    watch(step, y)
  if step.plus:
    if step.shortcut is not None:
      other = step.shortcut(other, xp)
      watch(step, other)
    y = xp.maximum(y + other, 0)
  return y


def codes(step: Step, x: Any, xp: Any = np):
  """Makes the codes that a step convolves of what it reads."""
  if step.pooled:
    x = xp.sum(x, axis=(1, 2), keepdims=True)
  if step.resize is not None:
    by = xp.asarray(step.resize)
    x = xp.einsum("nhwc,hH,wW->nHWc", x.astype(xp.int64), by, by)
  if step.table is not None:
    channel = np.arange(step.in_features)
    return xp.asarray(step.table)[channel, x.astype(xp.int32)]
  return x if step.read is None else step.read(x, xp)


def accumulators(program: Program) -> list[tuple[str, int, int]]:
  """Lists the widths that the layers' sums need, in bits with the sign.

  Returns:
    (path, width by the layer's own weights, width by its number of bits) in
    order; the second is what must be reckoned with before there are weights.
  """
  rows = []
  for step in program.steps:
    largest = max(-step.low, step.high)
    weight = max(1, 2 ** (step.w_bits - 1))
    worst = int(np.prod(step.kernel.shape[:3])) * largest * weight
    rows.append((step.path, width(step.largest_sum), width(worst)))
  return rows


def width(largest: int) -> int:
  """Counts the bits of an integer of this size, with a sign."""
  return int(largest).bit_length() + 1


def _convolve(x, step: Step):
  kernel = step.kernel.astype(np.float64)  # exact: sums are below 2**31
  sums = packed.convolve(x.astype(np.float64), kernel, step.stride, step.groups)
  return sums.astype(np.int64)


def reach(kernel: np.ndarray, low: int, high: int):
  """Computes how far a channel's sums go below and above 0, int64 [out]."""
  wide = kernel.astype(np.int64)
  up = np.maximum(wide, 0).sum((0, 1, 2))
  down = np.maximum(-wide, 0).sum((0, 1, 2))
  return down * high - up * low, up * high - down * low
