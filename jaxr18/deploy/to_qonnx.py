"""The folded network as a QONNX model, for FINN, hls4ml and their kin.

QONNX (Pappalardo et al., 2022, arXiv 2206.07527) says of any tensor that it has
so many bits: a Quant node holds floats to a grid of a scale and of any width,
where ONNX itself has integers of 4, 8 and 16 bits alone. Kernels are their
codes before a Quant node, or a BipolarQuant for weights of 1 bit; each output
channel's scale and bias follow the sums, as batch norm or for the head as Mul
and Add. A convolution that another one follows at once has the scales in its
Quant. Grids are symmetric (`narrow`), halves are rounded to the even integer.
The number of images is fixed, as those tools want it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from jaxr18.deploy.onnx_graph import (
  Graph,
  build,
  codes_and_scale,
  conv,
  float_bias,
  input_step,
  oihw,
)
from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import read_bytes
from jaxr18.nn.network import Network
from jaxr18.nn.spec import FLOAT_BITS, HALF_BITS, Layer, has_four_levels

DOMAIN = "qonnx.custom_op.general"


class QonnxError(ToldError, ValueError):
  """A layer that QONNX has no node for."""


def to_qonnx(
  net: Network,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  size: int,
  provenance: dict[str, Any],
) -> bytes:
  """Makes the serialized model, for one image at once.

  Args:
    net: not stacked.
    mean, std, size, provenance: as `onnx_graph.build` takes them.

  Raises:
    QonnxError: names a layer of four levels, of 16 bits, with a bound of each
      image's own, or with masked weights of 1 bit.
    ValueError: stacked networks.
  """
  model = build(
    net,
    lambda *_: _Quants(),
    mean=mean,
    std=std,
    size=size,
    batch=1,
    provenance=provenance,
  )
  return model.SerializeToString()


def load_qonnx(
  path: str | os.PathLike,
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from images to logits by QONNX's own executor.

  It runs node by node, and takes whatever number of images it is given.
  """
  from qonnx.core.modelwrapper import ModelWrapper
  from qonnx.core.onnx_exec import execute_onnx
  from qonnx.transformation.infer_shapes import InferShapes

  data = read_bytes(path)

  @functools.cache
  def of(count: int) -> ModelWrapper:
    return ModelWrapper(_of_batch(data, count)).transform(InferShapes())

  def run(images: np.ndarray) -> Any:
    return execute_onnx(of(len(images)), {"images": images})["logits"]

  return run


def _of_batch(data: bytes, count: int) -> ModelProto:
  """The model for another number of images; no node of it knows how many."""
  model = ModelProto.FromString(data)
  for value in (*model.graph.input, *model.graph.output):
    value.type.tensor_type.shape.dim[0].dim_value = count
  return model


class _Quants:
  """Quant nodes of a scale, a zero point of 0 and a number of bits."""

  domains = (DOMAIN,)

  def __init__(self):
    self.read: set[str] = set()  # by inputs' Quants

  def input(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    if layer.a_bits == FLOAT_BITS:
      return x
    if layer.a_bits == HALF_BITS:
      raise _not_held(layer, "inputs of 16 bits")
    if "input_bound" not in numbers:
      raise _not_held(layer, "a bound of each image's own (scales='dynamic')")
    name = f"{layer.path}/input"
    if x in self.read:
      x = _again(graph, x)
    self.read.add(x)
    step = input_step(layer, numbers["input_bound"])
    step = graph.floats(f"{name}/step", step)
    return _quant(graph, name, x, step, layer.a_bits, layer.signed_input)

  def kernel(self, graph: Graph, layer: Layer, numbers: dict) -> str:
    name = f"{layer.path}/kernel"
    place = (lambda kernel: kernel[0, 0]) if layer.kind == "dense" else oihw
    if layer.w_bits == HALF_BITS:
      raise _not_held(layer, "weights of 16 bits")
    if layer.w_bits == FLOAT_BITS:
      return graph.floats(name, place(numbers["kernel"]))
    if has_four_levels(layer):
      raise _not_held(layer, "four levels of 2 bits, none of which is 0")
    codes, scale = codes_and_scale(numbers)
    if layer.w_bits == 1 and not codes.all():
      raise _not_held(layer, "weights of 1 bit that are masked")
    # Scales by channel follow the sums, where anything does.
    step = 1 if "bias" in numbers else scale.reshape(-1, 1, 1, 1)
    values = graph.floats(f"{name}/values", place(codes) * step)
    step = graph.floats(f"{name}/step", step)
    return _quant(graph, name, values, step, layer.w_bits, signed=True)

  def head(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    # A matrix product and what follows it, which hls4ml and FINN take.
    x = graph("Flatten", x, name="features")
    x = self.input(graph, layer, numbers, x)
    kernel = self.kernel(graph, layer, numbers)
    x = graph("MatMul", x, kernel, name=f"{layer.path}/sums")
    if "codes" in numbers:
      scale = graph.floats(f"{layer.path}/scale", numbers["scale"])
      x = graph("Mul", x, scale, name=f"{layer.path}/scaled")
    bias = graph.constant(f"{layer.path}/bias", numbers["bias"])
    return graph("Add", x, bias, name="logits")

  def convolution(
    self, graph: Graph, layer: Layer, numbers: dict, x: str, name: str
  ) -> str:
    inputs = x, self.kernel(graph, layer, numbers)
    if not {"bias", "codes"} <= set(numbers):
      return conv(
        graph, layer, name, *inputs, *float_bias(graph, layer, numbers)
      )
    sums = conv(graph, layer, f"{name}/sums", *inputs)
    scale, bias = numbers["scale"], numbers["bias"]
    # As the batch norm that it was: hls4ml takes no sum with a constant, and
    # of scales by channel none in the kernel beside the input's step.
    ones, zeros = np.ones_like(bias), np.zeros_like(bias)
    norm = dict(scale=scale, bias=bias, mean=zeros, var=ones)
    inputs = (graph.floats(f"{name}/norm/{k}", v) for k, v in norm.items())
    return graph("BatchNormalization", sums, *inputs, name=name, epsilon=0.0)

  def sum(
    self, graph: Graph, name: str, x: str, step: str, bits: int, signed: bool
  ) -> str:
    return _quant(graph, name, x, step, bits, signed)

  def relu(self, graph: Graph, x: str, name: str) -> str:
    return graph("Relu", x, name=name)


def _again(graph: Graph, x: str) -> str:
  """Copies the node that makes a tensor; returns the copy's output.

  hls4ml 1.3.0 puts the scale of a tensor's second Quant before its first.
  """
  (node,) = (n for n in graph.nodes if x in n.output)
  copy = graph(node.op_type, *node.input, name=f"{x}/again")
  how = onnx.NodeProto(domain=node.domain, attribute=node.attribute)
  graph.nodes[-1].MergeFrom(how)
  return copy


def _quant(
  graph: Graph, name: str, x: str, step: str, bits: int, signed: bool
) -> str:
  name = f"{name}/quantized"
  if bits == 1:
    return graph("BipolarQuant", x, step, name=name, domain=DOMAIN)
  return graph(
    "Quant",
    x,
    step,
    graph.floats("zero", 0),
    graph.floats(f"{bits} bits", bits),
    name=name,
    domain=DOMAIN,
    signed=int(signed),
    narrow=int(signed),
    rounding_mode="ROUND",
  )


def _not_held(layer: Layer, what: str) -> QonnxError:
  return QonnxError(
    f"QONNX has no node for what {layer.path} has: {what}; give --format=onnx"
    " or packed"
  )
