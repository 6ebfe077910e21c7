"""The folded network as an ONNX model, for ONNX Runtime and others.

Quantized inputs pass QuantizeLinear and DequantizeLinear; quantized kernels are
stored as integers, int4 up to 4 bits and int8 above, with one scale for each
output channel in a DequantizeLinear. An input of fewer levels than its integer
type has is clipped to its bound before.

Floats are rounded in their place where each image has a bound of its own, and
before kernels of floats: ONNX Runtime's WeightBiasQuantization rounds such a
kernel to int8 where it finds a DequantizeLinear before the convolution.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from jaxr18.deploy.onnx_graph import (
  Graph,
  build,
  codes_and_scale,
  convolution,
  input_step,
  oihw,
)
from jaxr18.nn.network import Network
from jaxr18.nn.quantize import SMALLEST_BOUND, input_levels
from jaxr18.nn.spec import HALF_BITS, Layer


def to_onnx(
  net: Network,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  size: int,
  provenance: dict[str, Any],
) -> bytes:
  """Makes the serialized model, for any number of images at once.

  Args:
    net: not stacked.
    mean, std, size, provenance: as `onnx_graph.build` takes them.

  Raises:
    ValueError: stacked networks.
  """
  model = build(
    net,
    _Integers(),
    mean=mean,
    std=std,
    size=size,
    batch="n",
    provenance=provenance,
  )
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def load_onnx(
  path: str | os.PathLike, threads: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from images to logits by ONNX Runtime on the CPU.

  Its threads sleep when they wait: others on the machine are measured too.
  """
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  session = onnxruntime.InferenceSession(
    str(path), options, providers=["CPUExecutionProvider"]
  )

  def run(images: np.ndarray) -> Any:
    return session.run(None, {"images": images})[0]

  return run


class _Integers:
  """ONNX's own nodes, see above."""

  domains = ()

  def input(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
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
      return _rounded(graph, name, x, step, -levels if signed else 0, levels)
    if signed or layer.a_bits < 8:
      x = _clipped(graph, name, x, -bound if signed else None, bound)
    zero = np.zeros((), np.int8 if signed else np.uint8)
    zero = graph.constant(f"{name}/zero", zero)
    x = graph("QuantizeLinear", x, step, zero, name=f"{name}/codes")
    return graph("DequantizeLinear", x, step, zero, name=f"{name}/values")

  def kernel(self, graph: Graph, layer: Layer, numbers: dict) -> str:
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
    make = graph.int4 if layer.w_bits <= 4 else graph.constant
    codes, scale = codes_and_scale(numbers)
    codes = make(f"{name}/codes", oihw(codes))
    scale = graph.constant(f"{layer.path}/scale", scale)
    return graph("DequantizeLinear", codes, scale, name=name, axis=0)

  def head(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    # A MatMul's integers ONNX Runtime multiplies in another way, with logits
    # off by 0.01 where each image has a bound of its own.
    x = self.input(graph, layer, numbers, x)
    x = convolution(graph, self, layer, numbers, x, layer.path)
    return graph("Flatten", x, name="logits")

  def biased(
    self, graph: Graph, layer: Layer, bias: np.ndarray, sums: str, name: str
  ) -> str:
    # Within a Conv of integers ONNX Runtime puts it on the sums' grid, to 0 or
    # worse where a channel's scale is 0.
    bias = bias.reshape(-1, 1, 1)
    return graph(
      "Add", sums, graph.constant(f"{layer.path}/bias", bias), name=name
    )

  def sum(
    self, graph: Graph, name: str, x: str, step: str, bits: int, signed: bool
  ) -> str:
    levels = np.float32(input_levels(bits, signed))
    return _rounded(graph, name, x, step, -levels if signed else 0, levels)


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
