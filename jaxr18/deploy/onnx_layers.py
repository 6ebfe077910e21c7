"""The layers of an ONNX graph: kernels, what follows them, and their grids.

A layer is read from its output: batch norm, and multiplications and additions
of constants by channel, are folded into the convolution before them. A tensor
is quantized where nodes round it: QONNX's Quant, QuantizeLinear with
DequantizeLinear, or Round between a division and a multiplication by one step.
Integers may be cut between QuantizeLinear and DequantizeLinear, and their step
may be multiplied behind it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import numpy as np
import onnx
from absl import logging

from jaxr18.deploy.onnx_facts import (
  QONNX,
  Fact,
  attributes,
  bits_of,
  named,
)
from jaxr18.nn.quantize import input_levels
from jaxr18.nn.spec import FLOAT_BITS, HALF_BITS

_RESHAPES = frozenset("Flatten Reshape Squeeze Identity".split())
_AFFINE = frozenset("BatchNormalization Mul Div Add Sub".split())
DENSE = frozenset("Gemm MatMul".split())


@dataclasses.dataclass(frozen=True)
class Grid:
  """What a tensor is rounded to, by which node; 32 bits are none."""

  bits: int = FLOAT_BITS
  bound: float = 0.0
  signed: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
  """One convolution or dense layer.

  Attributes:
    node: that computes it.
    numbers: as `fold` names them.
    bits: of its weights, and whether two bits are four levels.
    grid: of its input.
  """

  node: onnx.NodeProto
  numbers: dict[str, Any]
  bits: tuple[int, bool]
  grid: Grid

  @property
  def kernel(self) -> np.ndarray:
    """HWIO, codes or floats."""
    return self.numbers["codes" if "codes" in self.numbers else "kernel"]

  @property
  def stride(self) -> int:
    return attributes(self.node).get("strides", [1])[0]

  @property
  def groups(self) -> int:
    return attributes(self.node).get("group", 1)


Unit = list[Part]


class Layers:
  """Reads the layers of a graph; tensors go by their names.

  Args:
    graph: its nodes in order.
    known: of `onnx_facts.facts`.
  """

  def __init__(self, graph: onnx.GraphProto, known: dict[str, Fact]):
    self.known = known
    self.maker = {out: n for n in graph.node for out in n.output}

  def unit(
    self, x: str, ops: frozenset[str] = frozenset({"Conv"})
  ) -> tuple[Unit, str]:
    """Reads convolutions with nothing between, and names their input."""
    parts: Unit = []
    while True:
      multiplier, bias, node = self.affine(x)
      if node.op_type not in ops:
        fail(node, f"stands where {' or '.join(sorted(ops))} is expected")
      grid, x = self.grid(node.input[0])
      numbers, bits = self._layer(node, multiplier, bias, last=not parts)
      parts.insert(0, Part(node, numbers, bits, grid))
      if x not in self.maker or self.maker[x].op_type != "Conv":
        return parts, x

  def affine(self, x: str) -> tuple[Any, Any, onnx.NodeProto]:
    """What follows a layer: a multiplier and a bias by channel, float64."""
    node = self.made(x, "a convolution")
    if node.op_type not in _AFFINE or self.is_sum(node):
      return np.float64(1), np.float64(0), node
    values = [self.known[name].value for name in node.input]
    variable = next((i for i, v in enumerate(values) if v is None), 0)
    m, b, layer = self.affine(node.input[variable])
    if node.op_type == "BatchNormalization":
      scale, shift, mean, variance = (np.float64(v) for v in values[1:5])
      scale = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
      return m * scale, (b - mean) * scale + shift, layer
    c = values[1 - variable]
    c = _by_channel(node, c, -1 if layer.op_type in DENSE else -3)
    if node.op_type == "Mul":
      return m * c, b * c, layer
    if node.op_type == "Add":
      return m, b + c, layer
    if variable == 1:
      fail(node, "has a constant before its operator, expected it behind")
    return (m, b - c, layer) if node.op_type == "Sub" else (m / c, b / c, layer)

  def _layer(
    self, node: onnx.NodeProto, multiplier, bias, last: bool
  ) -> tuple[dict[str, Any], tuple[int, bool]]:
    """A layer's numbers as `fold` has them, and bits, of a weighted node."""
    how, dense = attributes(node), node.op_type in DENSE
    outer = 1 if dense and not how.get("transB", 0) else 0
    numbers, bits = self.kernel(node, outer)
    name, kernel = next(iter(numbers.items()))
    if dense:
      kernel = kernel if outer else kernel.T
      numbers[name] = kernel[None, None]
      factors = {how.get("alpha", 1), how.get("beta", 1)}
      if how.get("transA", 0) or factors != {1}:
        fail(node, "has transA, alpha or beta, expected none of them")
    else:
      _check_conv(node, kernel.shape)
      numbers[name] = kernel.transpose(2, 3, 1, 0)
    if len(node.input) > 2 and node.input[2]:
      bias = bias + multiplier * np.float64(self.known[node.input[2]].array)
    if not last:
      if np.any(multiplier != 1) or np.any(bias != 0):
        fail(node, "is scaled or shifted before the next convolution, expected"
              " that or a ReLU at a block's end alone")  # fmt: skip
      return numbers, bits
    features = numbers[name].shape[-1]
    by_channel = np.broadcast_to(multiplier, features)
    if "scale" in numbers:
      numbers["scale"] = np.float32(numbers["scale"] * by_channel)
    elif bits[0] == HALF_BITS:
      numbers["scale"] = np.float32(by_channel)
    else:
      numbers[name] = np.float32(numbers[name] * by_channel)
    numbers["bias"] = np.float32(np.broadcast_to(bias, features))
    return numbers, bits

  def kernel(
    self, node: onnx.NodeProto, axis: int
  ) -> tuple[dict[str, Any], tuple[int, bool]]:
    """A kernel in the node's own order, with scales by channel of an axis."""
    name = node.input[1]
    fact, maker = self.known[name], self.maker.get(name)
    if fact.value is None:
      fail(node, "multiplies by what is no constant")
    if maker is not None and maker.domain in QONNX:
      scale, zero = self.known[maker.input[1]].array, 0
      codes = np.rint(fact.value / scale)
    elif maker is not None and maker.op_type == "DequantizeLinear":
      scale = self.known[maker.input[1]].array
      zero = self.known[maker.input[2]].array if len(maker.input) > 2 else 0
      codes = self.known[maker.input[0]].array.astype(np.int64)
      if scale.ndim == 1 and scale.size > 1:
        where = attributes(maker).get("axis", 1)
        scale = scale.reshape([-1 if i == where else 1
                               for i in range(codes.ndim)])  # fmt: skip
      if np.any(zero):
        fail(maker, "has a zero point, expected 0 for weights")
      codes, scale = _in_lowest_terms(codes, scale)
    elif maker is not None and (found := self._integers(maker)) is not None:
      codes, scale = found
    else:
      return self._floats(node, fact, maker, axis)
    features = codes.shape[axis]
    if scale.size > 1 and scale.shape[axis - codes.ndim] != scale.size:
      fail(maker, "has scales that are not by output channel")
    scale = np.broadcast_to(np.float64(scale).reshape(-1), features)
    bits = _bits_of(codes, maker, self.known)
    if bits[0] > 8:
      fail(maker, f"holds weights to {bits[0]} bits, expected 8 or fewer")
    return {"codes": codes.astype(np.int8), "scale": scale}, bits

  def _integers(self, maker: onnx.NodeProto):
    """A kernel's integers and scale, where it is a product of the two."""
    if maker.op_type != "Mul":
      return None
    cast = self.maker.get(maker.input[0])
    if cast is None or cast.op_type != "Cast":
      return None
    codes = self.known[cast.input[0]]
    if codes.value is None or codes.bits > 8:
      return None
    return codes.array.astype(np.int64), self.known[maker.input[1]].array

  def _floats(self, node, fact: Fact, maker, axis: int):
    """A kernel in 16 or 32 bits; one in 16 may be scaled behind its cast."""
    value = fact.array
    if maker is not None and maker.op_type == "Mul":
      half, scale = (self.known[x] for x in maker.input)
      if half.bits == HALF_BITS and scale.array.size in (1, value.shape[axis]):
        scale = np.broadcast_to(scale.array.reshape(-1), value.shape[axis])
        numbers = {"kernel": np.float16(half.array), "scale": scale}
        return numbers, (HALF_BITS, False)
    if fact.bits < HALF_BITS:
      fail(node, "has a kernel of integers whose scales were not found")
    dtype = np.float16 if fact.bits == HALF_BITS else np.float32
    kernel = value.astype(dtype)
    if not np.array_equal(kernel, value.astype(np.float32)):
      fail(node, "has a kernel of bfloat16, expected float16 or float32")
    return {"kernel": kernel}, (fact.bits, False)

  def grid(self, x: str, operand: bool = False) -> tuple[Grid, str]:
    """What holds a tensor to levels, if anything, and the tensor before it.

    Args:
      x: the tensor.
      operand: whether it goes into a sum with a ReLU behind it, where levels
        that are too low are none.
    """
    x = self.reshaped(x)
    node, fact = self.maker.get(x), self.known[x]
    source = None if node is None else self.rounded(node)
    if node is None or source is None:
      return Grid(), x
    source = self._unchanged(source)
    if fact.levels is None and fact.bits == HALF_BITS:
      return Grid(HALF_BITS), source
    if fact.levels is None or not 0 < fact.high < np.inf:
      fail(node, "has no constant step")
    (low, high), signed = fact.levels, fact.levels[0] < 0
    low = max(low, -high) if operand else low
    bits = min(fact.bits, bits_of(low, high))
    levels = int(input_levels(bits, signed))
    times = high // levels
    if high != times * levels or low < -high - times:
      fail(node, f"has levels from {low} to {high}, which are not those of"
            f" {bits} bits")  # fmt: skip
    if low < -high:
      logging.warning(
        "%s has levels from %d to %d; %d becomes %d here", named(node), low,
        high, low, -high,
      )  # fmt: skip
    grid = Grid(bits, fact.high, signed)
    if times > 1:  # of integers that were on the same grid before
      inner, before = self.grid(source)
      if inner.bits == bits and np.isclose(inner.bound, grid.bound):
        return inner, before
    return grid, source

  def rounded(self, node: onnx.NodeProto) -> str | None:
    """What enters the nodes that round, of which this is the last."""
    first = self.maker.get(node.input[0])
    if node.domain in QONNX:
      if node.op_type == "BipolarQuant":
        fail(node, "holds an input to 1 bit, expected 2 or more")
      return node.input[0]
    if first is None:
      return None
    if node.op_type == "DequantizeLinear":
      return self.dequantized(node, node.input[1])
    if node.op_type == "Mul" and first.op_type == "DequantizeLinear":
      one = self.known[first.input[1]].value
      if one is None or np.any(one != 1):
        fail(node, f"multiplies {named(first)}, whose scale is not 1")
      return self.dequantized(first, node.input[1])
    if node.op_type == "Mul" and first.op_type == "Round":
      return self.divided(node, first)
    if node.op_type == "Cast" and first.op_type == "Cast":
      half = attributes(first)["to"] == onnx.TensorProto.FLOAT16
      return first.input[0] if half else None
    return None

  def dequantized(self, node: onnx.NodeProto, step: str) -> str | None:
    """What enters QuantizeLinear, from DequantizeLinear and their step."""
    x = self.reshaped(node.input[0])
    if (cut := self.maker.get(x)) is not None and cut.op_type == "Clip":
      x = cut.input[0]
    first = self.maker.get(x)
    if first is None or first.op_type != "QuantizeLinear":
      return None
    if not self.equal(step, first.input[1]):
      fail(node, f"has another scale than {named(first)}")
    return first.input[0]

  def _unchanged(self, x: str) -> str:
    """What a Clip, or a sum with 0, before a grid starts from."""
    node = self.maker.get(x)
    if node is not None and node.op_type == "Clip":
      return node.input[0]
    if node is not None and node.op_type == "Add" and not self.is_sum(node):
      values = [self.known[name].value for name in node.input]
      if any(v is not None and not np.any(v) for v in values):
        return node.input[0 if values[0] is None else 1]
    return x

  def divided(self, node: onnx.NodeProto, rounding: onnx.NodeProto) -> str:
    """What is divided before a Round, and multiplied again behind it."""
    inner = self.made(rounding.input[0], "a division by the step")
    if inner.op_type == "Clip":
      inner = self.made(inner.input[0], "a division by the step")
    step, by = (self.known[n.input[1]].value for n in (node, inner))
    if step is None or by is None or inner.op_type not in ("Mul", "Div"):
      fail(node, "has no constant step")
    by = 1 / np.float64(by) if inner.op_type == "Mul" else by
    if not np.allclose(step, by, rtol=1e-6):
      fail(node, f"has another step than {named(inner)}")
    return inner.input[0]

  def relu(self, x: str) -> str:
    """What enters the ReLU that makes a tensor."""
    node = self.made(x, "Relu")
    if node.op_type != "Relu":
      fail(node, "stands where Relu is expected")
    return node.input[0]

  def reshaped(self, x: str) -> str:
    """What enters nodes that only give a tensor another shape."""
    while (node := self.maker.get(x)) and node.op_type in _RESHAPES:
      x = node.input[0]
    return x

  def is_sum(self, node: onnx.NodeProto) -> bool:
    """Whether a node adds two tensors of which neither is a constant."""
    values = [self.known[x].value for x in node.input]
    return node.op_type == "Add" and all(v is None for v in values)

  def made(self, x: str, expected: str) -> onnx.NodeProto:
    """The node that makes a tensor."""
    if x not in self.maker:
      raise ValueError(f"{x!r} is made by no node, expected {expected}")
    return self.maker[x]

  def equal(self, one: str, other: str) -> bool:
    a, b = self.known[one].value, self.known[other].value
    return a is not None and b is not None and np.array_equal(a, b)


def _bits_of(codes, maker, known: dict[str, Fact]) -> tuple[int, bool]:
  """Bits of a kernel's codes, and whether 2 of them are four levels.

  As many as the node says that holds them, or as few as number the integers.
  """
  largest = int(np.abs(codes).max(initial=0))
  if largest <= 3 and np.all(codes % 2 == 1):
    return (1, False) if largest == 1 else (2, True)
  needed = max(2, bits_of(-largest, largest))
  if maker.op_type not in ("Quant", "IntQuant"):
    return needed, False
  said = int(known[maker.input[3]].array.flat[0])
  if needed > said:
    fail(maker, f"holds weights to {said} bits with a level of {-largest},"
          " expected as many levels below 0 as above")  # fmt: skip
  return said, False


def _in_lowest_terms(codes: np.ndarray, scale: np.ndarray):
  """Integers without a common factor, which their scale takes."""
  factor = max(1, int(np.gcd.reduce(codes, axis=None)))
  return codes // factor, scale.astype(np.float64) * factor


def _by_channel(node: onnx.NodeProto, value, axis: int) -> Any:
  """A constant operand, one number or one by channel, float64."""
  value = np.float64(value)
  if value.size == 1:
    return value.reshape(())
  if value.ndim < -axis or value.shape[axis] != value.size:
    fail(node, f"has a constant of shape {value.shape}, expected one number by"
          " channel")  # fmt: skip
  return value.reshape(-1)


def _check_conv(node: onnx.NodeProto, shape: tuple[int, ...]) -> None:
  how = attributes(node)
  side, ones = shape[2], {1}
  strides = how.get("strides", [1, 1])
  square = shape[2:] == (side, side) and len(set(strides)) == 1
  padded = set(how.get("pads", [0])) == {side // 2}
  if (
    not square
    or not padded
    or side % 2 == 0
    or set(how.get("dilations", [1])) != ones
    or how.get("auto_pad", b"NOTSET") != b"NOTSET"
  ):
    fail(node, "is no square convolution of odd side that is padded by half of"
          " it all around")  # fmt: skip


def fail(node: onnx.NodeProto, what: str) -> NoReturn:
  raise ValueError(f"{named(node)} {what}")
