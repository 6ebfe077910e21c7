"""Quantized values in ONNX that are multiplied as floats.

Inputs are rounded to bytes, cut to their levels, and multiplied by their step;
kernels are integers times a scale. Where each image has a bound of its own, and
before kernels of floats, floats are rounded in their place: ONNX Runtime's
WeightBiasQuantization rounds such a kernel to int8 where it finds a
DequantizeLinear before the convolution.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from jaxr18.deploy.onnx_bias import MIDDLE, TOP
from jaxr18.deploy.onnx_graph import (
  Graph,
  codes_and_scale,
  conv,
  float_bias,
  input_step,
  oihw,
)
from jaxr18.nn.quantize import SMALLEST_BOUND, input_ends, input_levels
from jaxr18.nn.spec import HALF_BITS, Layer

INT4_BITS = 4


class Values:
  """A `Form` of ONNX's own nodes.

  Args:
    int4: whether kernels of up to 4 bits are int4, and not int8.
  """

  domains = ()

  def __init__(self, int4: bool = False):
    self.int4 = int4

  def input(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    """Adds what puts an input on its grid; Args: see `Form`."""
    name = f"{layer.path}/input"
    if layer.a_bits == HALF_BITS:
      x = _clipped(graph, name, x, -65504.0, 65504.0)
      x = graph("Cast", x, name=f"{name}/half", to=TensorProto.FLOAT16)
      return graph("Cast", x, name=f"{name}/float", to=TensorProto.FLOAT)
    if layer.a_bits >= HALF_BITS:
      return x
    signed = layer.signed_input
    levels = np.float32(input_levels(layer.a_bits, signed))
    if "input_bound" not in numbers:
      return _rounded(graph, name, x, _dynamic_step(graph, name, x, levels))
    bound = numbers["input_bound"]
    step = graph.constant(f"{name}/step", input_step(layer, bound))
    if "codes" not in numbers:
      ends = input_ends(layer.a_bits, signed)
      return _rounded(graph, name, x, step, *ends)
    if graph.makers[x] == "DequantizeLinear":
      x = moved(graph, name, x)
    zero = MIDDLE if signed else 0
    ends = int(zero - signed * levels), int(zero + levels)
    codes, zero = in_bytes(graph, name, x, step, zero, ends)
    return self.values(graph, layer, codes, zero, step)

  def values(
    self, graph: Graph, layer: Layer, codes: str, zero: str, step: str
  ) -> str:
    """Makes numbers of a layer's input again.

    Args:
      graph: takes the nodes.
      layer: whose input it is.
      codes, zero, step: bytes, their zero point and their step, by name.
    """
    # Right before a convolution, a DequantizeLinear has ONNX Runtime's
    # WeightBiasQuantization round float32 kernels once more.
    name, one = f"{layer.path}/input", graph.floats("one", 1)
    x = graph("DequantizeLinear", codes, one, zero, name=f"{name}/whole")
    return graph("Mul", x, step, name=f"{name}/values")

  def kernel(self, graph: Graph, layer: Layer, numbers: dict) -> str:
    """Adds a convolution's kernel, OIHW; returns its name."""
    name = f"{layer.path}/kernel"
    if "codes" not in numbers:
      kernel = graph.constant(f"{name}/stored", oihw(numbers["kernel"]))
      if layer.w_bits == HALF_BITS:
        kernel = graph("Cast", kernel, name=name, to=TensorProto.FLOAT)
      if "scale" in numbers:
        scale = numbers["scale"].reshape(-1, 1, 1, 1)
        scale = graph.constant(f"{layer.path}/scale", scale)
        kernel = graph("Mul", kernel, scale, name=f"{name}/scaled")
      return kernel
    codes, scale = codes_and_scale(numbers)
    return self.integers(graph, layer, oihw(codes), scale.reshape(-1, 1, 1, 1))

  def integers(
    self, graph: Graph, layer: Layer, codes: np.ndarray, scale: np.ndarray
  ) -> str:
    """Adds a kernel that is integers times a scale; returns its name.

    Args:
      graph: takes the nodes.
      layer: whose kernel it is.
      codes: int8, in the order that the layer's node takes.
      scale: float32, of a shape that broadcasts with them.
    """
    name = f"{layer.path}/kernel"
    int4 = self.int4 and layer.w_bits <= INT4_BITS
    store = graph.int4 if int4 else graph.constant
    stored = store(f"{name}/codes", codes)
    # Computed once, when it is loaded, as DequantizeLinear would not be: a
    # convolution whose kernel is no constant takes twice the time.
    kernel = graph("Cast", stored, name=f"{name}/whole", to=TensorProto.FLOAT)
    by = graph.constant(f"{layer.path}/scale", scale)
    return graph("Mul", kernel, by, name=name)

  def convolution(
    self, graph: Graph, layer: Layer, numbers: dict, x: str, name: str
  ) -> str:
    """Adds a convolution; Args: see `Form`."""
    inputs = x, self.kernel(graph, layer, numbers)
    if not {"bias", "codes"} <= set(numbers):
      return conv(
        graph, layer, name, *inputs, *float_bias(graph, layer, numbers)
      )
    # Within a Conv of integers ONNX Runtime puts it on the sums' grid, to 0 or
    # worse where a channel's scale is 0.
    sums = conv(graph, layer, f"{name}/sums", *inputs)
    bias = numbers["bias"].reshape(-1, 1, 1)
    bias = graph.constant(f"{layer.path}/bias", bias)
    return graph("Add", sums, bias, name=name)

  def head(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    """Adds the last layer; Args: see `Form`."""
    # A MatMul's integers ONNX Runtime multiplies in another way, with logits
    # off by 0.01 where each image has a bound of its own.
    x = self.input(graph, layer, numbers, x)
    x = self.convolution(graph, layer, numbers, x, layer.path)
    return graph("Flatten", x, name="logits")

  def sum(
    self, graph: Graph, name: str, x: str, step: str, bits: int, signed: bool
  ) -> str:
    """Adds what puts an operand on its grid; Args: see `Form`."""
    return _rounded(graph, name, x, step, *input_ends(bits, signed))

  def relu(self, graph: Graph, x: str, name: str) -> str:
    return graph("Relu", x, name=name)


def moved(graph: Graph, name: str, x: str, how: str = "moved") -> str:
  """Adds 0 to what has been bytes and becomes bytes of another grid.

  QLinearAdd takes a quarter of the time that DequantizeLinear and
  QuantizeLinear take.

  Args:
    graph: takes the nodes.
    name: begins theirs.
    x: the tensor's.
    how: ends theirs.
  """
  zero = graph.constant("nothing", np.zeros((), np.uint8))
  one, name = graph.floats("one", 1), f"{name}/{how}"
  nothing = graph("DequantizeLinear", zero, one, name=f"{name}/nothing")
  return graph("Add", x, nothing, name=name)


def in_bytes(
  graph: Graph, name: str, x: str, step: str, zero: int, ends: tuple[int, int]
) -> tuple[str, str]:
  """Rounds to uint8 between two ends.

  Args:
    graph: takes the nodes.
    name: begins theirs.
    x, step: what is rounded, and the step, by name.
    zero: the zero point.
    ends: the lowest and the highest byte.

  Returns:
    The names of the bytes and of the zero point.
  """
  zero_point = graph.constant(f"{name}/zero", np.array(zero, np.uint8))
  x = graph("QuantizeLinear", x, step, zero_point, name=f"{name}/codes")
  if ends == (0, TOP):
    return x, zero_point
  low, high = (
    ""
    if value == free
    else graph.constant(f"{name}/{end}", np.array(value, np.uint8))
    for end, value, free in (("low", ends[0], 0), ("high", ends[1], TOP))
  )
  return graph("Clip", x, low, high, name=f"{name}/cut"), zero_point


def _dynamic_step(graph: Graph, name: str, x: str, levels) -> str:
  """The step of each image's own grid, beyond which no value is."""
  size = graph("Abs", x, name=f"{name}/abs")
  axes = graph.constant(f"{name}/axes", np.array([1, 2, 3]))
  size = graph("ReduceMax", size, axes, name=f"{name}/largest", keepdims=1)
  least = graph.floats(f"{name}/least", SMALLEST_BOUND)
  size = graph("Max", size, least, name=f"{name}/bound")
  part = graph.constant(f"{name}/part", 1 / levels)
  return graph("Mul", size, part, name=f"{name}/step")


def _rounded(graph: Graph, name: str, x: str, step, low=None, high=None) -> str:
  """Floats on a grid; low and high are its ends, in steps."""
  inverse = graph("Reciprocal", step, name=f"{name}/inverse")
  x = graph("Mul", x, inverse, name=f"{name}/ratio")  # as XLA divides
  if high is not None:
    x = _clipped(graph, name, x, low, high)
  x = graph("Round", x, name=f"{name}/codes")  # halves to even
  return graph("Mul", x, step, name=f"{name}/values")


def _clipped(graph: Graph, name: str, x: str, low, high) -> str:
  bounds = [
    "" if value is None else graph.floats(f"{name}/{end}", value)
    for end, value in (("low", low), ("high", high))
  ]
  return graph("Clip", x, *bounds, name=f"{name}/clipped")
