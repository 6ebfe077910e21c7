"""Quantized values in ONNX as ONNX Runtime fuses them: bytes and integers.

QuantizeLinear and DequantizeLinear stand where its optimizer makes one
QLinearConv of a convolution with its ReLU, QLinearAdd of a residual sum, and
QLinearGlobalAveragePool of pooling:

- codes from 0 to n are uint8 as they are, cut at n by a Clip of bytes, since a
  ReLU is fused into what ends at the zero point of 0;
- codes on both sides of 0 have the zero point 128;
- an operand of a residual sum with levels up to n has the zero point 255 - n,
  so the end of uint8 cuts it. One that should end at -n may go on below, where
  the ReLU behind the sum makes 0 of it as well;
- what goes from one grid to another is added to 0, see `moved`;
- kernels are int8, biases int32, see `onnx_bias`.

All else is as `onnx_values` has it: layers of floats, bounds of each image's
own, results that nothing rounds to bytes, such as operands of a sum of floats,
and layers of 8 bits among others of floats or of fewer bits, since their bias
has no finer unit, and a code that is another would move all logits. So is the
stem, whose three channels take 1.6 to 2.7 times the time in QLinearConv that
they take in a convolution of floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxr18.deploy.fold import Folded
from jaxr18.deploy.integer import units
from jaxr18.deploy.onnx_bias import TOP, Grid, Held, hold
from jaxr18.deploy.onnx_graph import (
  Graph,
  codes_and_scale,
  conv,
  input_step,
  oihw,
  sum_step,
)
from jaxr18.deploy.onnx_values import Values, in_bytes, moved
from jaxr18.nn.quantize import input_ends, input_levels
from jaxr18.nn.spec import HALF_BITS, Layer, NetSpec, has_four_levels

SUM_BITS = 8  # of residual sums, at most
_FINE_BITS = 8  # of inputs, where one code that is another moves little
_APART = 1e-5  # of a layer's results, where it moves all logits


class Fused(Values):
  """A `Form` of bytes.

  Args:
    spec: of the network.
    folded: its numbers.
  """

  def __init__(self, spec: NetSpec, folded: Folded):
    super().__init__()
    self.sums = spec.sum_bits <= SUM_BITS
    held = {
      layer.path: _hold(layer, folded[layer.path], grid)
      for layer, grid in results(spec, folded)
    }
    fine = self.sums and all(x.a_bits >= _FINE_BITS for x in spec.layers())
    self.held = {
      path: x for path, x in held.items() if fine or x.apart.mean() <= _APART
    }

  def values(
    self, graph: Graph, layer: Layer, codes: str, zero: str, step: str
  ) -> str:
    """Makes numbers again; Args: see `Values`."""
    if layer.path not in self.held:
      return super().values(graph, layer, codes, zero, step)
    name, held = f"{layer.path}/input", self.held[layer.path]
    if held.times > 1:
      x = graph(
        "DequantizeLinear", codes, step, zero, name=f"{name}/cut values"
      )
      x = moved(graph, name, x, "finer")
      step = graph.constant(f"{name}/finer/step", held.step)
      codes = graph("QuantizeLinear", x, step, zero, name=f"{name}/finer/codes")
    return graph("DequantizeLinear", codes, step, zero, name=f"{name}/values")

  def convolution(
    self, graph: Graph, layer: Layer, numbers: dict, x: str, name: str
  ) -> str:
    """Adds a convolution; Args: see `Form`."""
    if layer.path not in self.held:
      return super().convolution(graph, layer, numbers, x, name)
    held = self.held[layer.path]
    inputs = [x, _kernel(graph, layer, held)]
    if "bias" in numbers:
      name_of = f"{layer.path}/bias"
      unit = graph.constant(f"{name_of}/unit", held.scale * held.step)
      bias = graph.constant(f"{name_of}/codes", held.bias)
      inputs.append(graph("DequantizeLinear", bias, unit, name=name_of, axis=0))
    return conv(graph, layer, name, *inputs)

  def head(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    """Adds the last layer; Args: see `Form`."""
    if not _is_integer(layer, numbers):
      return super().head(graph, layer, numbers, x)
    x = self.input(graph, layer, numbers, x)
    x = graph("Flatten", x, name=f"{layer.path}/features")
    codes, scale = codes_and_scale(numbers)
    kernel = self.integers(graph, layer, codes[0, 0], scale)
    x = graph("MatMul", x, kernel, name=f"{layer.path}/sums")
    bias = graph.constant(f"{layer.path}/bias", numbers["bias"])
    return graph("Add", x, bias, name="logits")

  def sum(
    self, graph: Graph, name: str, x: str, step: str, bits: int, signed: bool
  ) -> str:
    """Adds what puts an operand on its grid; Args: see `Form`."""
    if not self.sums:
      return super().sum(graph, name, x, step, bits, signed)
    if graph.makers[x] == "DequantizeLinear":
      x = moved(graph, name, x)
    high = int(input_levels(bits, signed))
    zero = TOP - high if signed else 0
    codes, zero = in_bytes(graph, name, x, step, zero, (0, zero + high))
    return graph("DequantizeLinear", codes, step, zero, name=f"{name}/values")

  def relu(self, graph: Graph, x: str, name: str) -> str:
    out = super().relu(graph, x, name)
    if not (self.sums and graph.makers[x] == "Add" and x.endswith("/sum")):
      return out
    # The sum of two integers is one on the same grid.
    step = f"{x.removesuffix('/sum')}/operand0/step"
    codes, zero = in_bytes(graph, x, out, step, 0, (0, TOP))
    return graph("DequantizeLinear", codes, step, zero, name=f"{x}/values")


def results(spec: NetSpec, folded: Folded) -> Iterator[tuple[Layer, Grid]]:
  """Yields layers of integers whose result becomes bytes, and its grid."""
  of = units(spec)
  for unit, layers in of.items():
    block, _, part = unit.rpartition("/")
    conv2 = of[f"{block}/conv2"][:1] if part == "conv1" else []
    for layer, following in zip(layers, [*layers[1:], *conv2], strict=False):
      both = (layer, following)
      if all(_is_integer(x, folded[x.path]) for x in both):
        yield layer, _grid(following, folded[following.path])
    summed = part in ("conv2", "proj") and spec.sum_bits <= SUM_BITS
    if summed and _is_integer(layers[-1], folded[layers[-1].path]):
      high = int(input_levels(spec.sum_bits, True))
      step = sum_step(spec, folded[block]["sum_bound"])
      yield layers[-1], Grid(step, -high, high)


def _is_integer(layer: Layer, numbers: dict) -> bool:
  bounded = layer.a_bits < HALF_BITS and "input_bound" in numbers
  return bounded and "codes" in numbers


def _grid(layer: Layer, numbers: dict) -> Grid:
  """Of a layer's input."""
  low, high = input_ends(layer.a_bits, layer.signed_input)
  step = input_step(layer, numbers["input_bound"])
  return Grid(step, int(low), int(high))


def _hold(layer: Layer, numbers: dict, y: Grid) -> Held:
  levels = 3 if has_four_levels(layer) else max(1, 2 ** (layer.w_bits - 1) - 1)
  return hold(numbers, levels, _grid(layer, numbers), y)


def _kernel(graph: Graph, layer: Layer, held: Held) -> str:
  # Without zero points, ONNX Runtime's x64quantprecision makes a uint8 kernel
  # of it with one zero point for all channels, which then fails.
  name = f"{layer.path}/kernel"
  codes = graph.constant(f"{name}/codes", oihw(held.kernel))
  scale = graph.constant(f"{layer.path}/scale", held.scale)
  zeros = np.zeros(len(held.scale), np.int8)
  zeros = graph.constant(f"{name}/zero", zeros)
  return graph("DequantizeLinear", codes, scale, zeros, name=name, axis=0)
