"""Integer biases with which ONNX Runtime gives the network's own codes.

Its int8 convolution, QLinearConv, rounds (sums + bias) * factor to a code, and
the bias is an integer. Batch norm's is none, and a rounded one moves the sums
at which codes begin. With few bits, one code that is another moves all logits.
So kernels and, where need be, inputs are multiples of their codes, which makes
the bias's unit finer, and bias and factor are chosen together: so that each
code begins at the sum at which it begins in the network, or as many as can.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_NEAR = 4  # biases on either side of the nearest that are tried
_FAR = 0.01  # of the factor, that it is moved by at most
_FACTORS = 33  # that are tried where none is right for all codes
_OTHERS = 4  # multiples of an input that are tried
_BIAS_BITS = 30  # and a sign
_TOP = 127  # the largest int8
# Of two products' sum, which x86 without VNNI has in int16.
_LARGEST_PAIR = 2**15 - 1
TOP = 255  # the largest byte
MIDDLE = 128  # the zero point of codes on both sides of 0


@dataclasses.dataclass(frozen=True)
class Grid:
  """Integers from low to high, and the step between two, float32."""

  step: Any
  low: int
  high: int


@dataclasses.dataclass(frozen=True)
class Held:
  """A convolution in integers alone.

  Attributes:
    times: what codes of the input are multiplied by.
    step: between two integers of the input, float32.
    kernel: int8 HWIO.
    scale: float32 [out], the step between two of a kernel's integers.
    bias: int32 [out], in products of scale and step.
    apart: [out], the share of results that are another code than in the
      network, about.
  """

  times: int
  step: Any
  kernel: np.ndarray
  scale: np.ndarray
  bias: np.ndarray
  apart: np.ndarray


def hold(numbers: dict[str, np.ndarray], levels: int, x: Grid, y: Grid) -> Held:
  """Chooses the integers of a layer.

  Args:
    numbers: the layer's of `fold`, with codes.
    levels: the largest code that its weights' bits allow.
    x: the grid of its input.
    y: that of its output, which results are rounded and cut to.
  """
  zero = MIDDLE if x.low else 0
  most = (TOP - zero) // x.high
  best = None
  for times in (1, *range(most, max(1, most - _OTHERS), -1)):
    # Two products fit in int16 so, unless codes are of 8 bits.
    largest = min(_TOP, _LARGEST_PAIR // (2 * (zero + times * x.high)))
    held = _held(numbers, x, y, times, max(1, largest // levels))
    if best is None or held.apart.mean() < best.apart.mean():
      best = held
    if not best.apart.any():
      break
  assert best is not None
  return best


def _held(numbers, x: Grid, y: Grid, times: int, multiple: int) -> Held:
  """As `hold`, with codes of the input and the kernel multiplied so."""
  factor = numbers["scale"] * np.float32(x.step)
  sign = np.where(factor < 0, -1, 1)
  codes, factor = numbers["codes"].astype(np.int64) * sign, np.abs(factor)
  bias = np.broadcast_to(numbers.get("bias", np.float32(0)), factor.shape)
  ends = _ends(codes, x)
  begins = _begins(factor, bias, y, ends)
  # In steps of the output: the unit of the integer sums, and of the bias.
  unit = np.float64(factor) / (times * multiple) / np.float64(y.step)
  wanted = np.float64(bias) / np.float64(y.step)
  # Products are nothing beside such a bias, and it would not fit.
  idle = np.abs(wanted) >= unit * 2.0**_BIAS_BITS
  unit = np.where(idle, 1, unit)
  integer, unit_of, apart = _chosen(
    begins, ends, y, times * multiple, wanted / unit, unit
  )
  integer = np.where(idle, np.clip(np.rint(wanted), y.low, y.high), integer)
  unit = np.where(idle, 1, unit_of)
  step = np.float32(x.step / np.float32(times))
  return Held(
    times,
    step,
    np.where(idle, 0, codes * multiple).astype(np.int8),
    (unit * np.float64(y.step) / np.float64(step)).astype(np.float32),
    integer.astype(np.int32),
    np.where(idle, 0, apart),
  )


def _ends(codes: np.ndarray, x: Grid) -> tuple[np.ndarray, np.ndarray]:
  """The lowest and highest sum of each channel."""
  low, high = codes * x.low, codes * x.high
  axes = tuple(range(codes.ndim - 1))
  return np.minimum(low, high).sum(axes), np.maximum(low, high).sum(axes)


def _begins(factor, bias, y: Grid, ends) -> np.ndarray:
  """The least sum that gives each code above the lowest, [out, codes].

  The lowest sum where all give it, and one above the highest where none does.
  """
  part = np.float32(1) / np.float32(y.step)
  codes = np.arange(y.low + 1, y.high + 1)
  shape = (len(factor), len(codes))
  left = np.broadcast_to(ends[0][:, None], shape)
  right = np.broadcast_to(ends[1][:, None] + 1, shape)
  factor, bias = (x.astype(np.float64)[:, None] for x in (factor, bias))
  while (left < right).any():
    middle = (left + right) // 2
    value = np.float32(middle * factor + bias) * part  # as `packed` has it
    reached = np.rint(np.clip(value, y.low, y.high)) >= codes
    right = np.where(reached, middle, right)
    left = np.where(reached | (left == right), left, middle + 1)
  return left


def _chosen(begins, ends, y: Grid, multiple: int, wanted, unit):
  """A bias and a unit of each channel, and how many codes they move."""
  codes = np.arange(y.low + 1, y.high + 1) - 0.5  # where rounding goes up
  near = np.array(sorted(range(-_NEAR, _NEAR + 1), key=abs))
  bias = np.rint(wanted)[:, None] + near  # [out, biases]
  # A code's first sum reaches its lower end, and the sum before does not; both
  # are divided by the unit: [out, biases, codes].
  first = (multiple * begins)[:, None] + bias[..., None]
  before = first - multiple
  reached = (begins <= ends[1][:, None])[:, None]
  missed = (begins > ends[0][:, None])[:, None]
  # So 1 / unit lies between two numbers for each code.
  up, none = codes > 0, np.inf
  above = np.where(up, np.where(missed, before / codes, -none),
                   np.where(reached, first / codes, -none)).max(-1)  # fmt: skip
  below = np.where(up, np.where(reached, first / codes, none),
                   np.where(missed, before / codes, none)).min(-1)  # fmt: skip
  one = 1 / unit[:, None]
  near_one = one * (1 - _FAR), one * (1 + _FAR)
  above, below = np.clip(above, *near_one), np.clip(below, *near_one)
  rows, best = np.arange(len(bias)), (below - above).argmax(-1)
  chosen, inverse = bias[rows, best], ((above + below) / 2)[rows, best]
  apart = np.zeros(len(bias))
  wrong = np.flatnonzero((below <= above)[rows, best])
  if len(wrong):  # no pair is right for all codes
    chosen[wrong], inverse[wrong], apart[wrong] = _least_apart(
      codes, first[wrong], before[wrong], reached[wrong], missed[wrong],
      np.stack([above, below, np.broadcast_to(one, above.shape)])[:, wrong],
      bias[wrong])  # fmt: skip
    apart *= np.minimum(1, multiple * unit)  # of the sums of one code
  return chosen, 1 / inverse, apart


def _least_apart(codes, first, before, reached, missed, inverses, bias):
  """The pairs with which codes that are common are right.

  Codes are taken as normal, with their largest at three deviations.
  """
  deviation = codes[-1] / 3
  common = (
    np.exp(-((codes / deviation) ** 2) / 2) / np.sqrt(2 * np.pi) / deviation
  )
  best = [np.zeros(len(bias)), np.zeros(len(bias)), np.full(len(bias), np.inf)]
  parts = np.linspace(0, 1, _FACTORS)
  for i in range(bias.shape[1]):
    low, high = inverses[:, :, i].min(0), inverses[:, :, i].max(0)
    tried = low[:, None] + (high - low)[:, None] * parts
    edges = codes * tried[..., None]  # [out, factors, codes]
    moved = reached & (first[:, i, None] < edges)
    moved |= missed & (before[:, i, None] >= edges)
    share = moved @ common
    least = share.argmin(-1)
    rows = np.arange(len(bias))
    found = bias[:, i], tried[rows, least], share[rows, least]
    better = found[2] < best[2]
    best = [np.where(better, a, b) for a, b in zip(found, best, strict=True)]
  return best
