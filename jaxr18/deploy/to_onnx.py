"""The folded network as an ONNX model, for ONNX Runtime and others.

uint8 images [n, size, size, channels] -> logits [n, classes], normalization
included. Quantized inputs pass QuantizeLinear and DequantizeLinear; quantized
kernels are stored as integers, int4 up to 4 bits and int8 above, with one scale
for each output channel in a DequantizeLinear. An input of fewer levels than
its integer type has is clipped to its bound before.

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
from onnx import TensorProto, helper, numpy_helper

from jaxr18.deploy import packed
from jaxr18.deploy.fold import fold
from jaxr18.deploy.integer import units
from jaxr18.nn.network import Network
from jaxr18.nn.quantize import SMALLEST_BOUND, input_levels
from jaxr18.nn.spec import FLOAT_BITS, HALF_BITS, Layer

OPSET = 21  # the first with int4
IR_VERSION = 10


class _Graph:
  """Nodes and constants; each method returns the name of its output."""

  def __init__(self):
    self.nodes, self.constants, self.names = [], {}, set()

  def constant(self, name: str, value: np.ndarray) -> str:
    self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
    return name

  def int4(self, name: str, value: np.ndarray) -> str:
    self.constants[name] = helper.make_tensor(
      name, TensorProto.INT4, value.shape, value.reshape(-1).astype(int)
    )
    return name

  def __call__(self, op: str, *inputs: str, name: str, **attributes) -> str:
    assert name not in self.names, name
    self.names.add(name)
    self.nodes.append(
      helper.make_node(op, inputs, [name], name=name, **attributes)
    )
    return name


def to_onnx(
  net: Network,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  size: int,
  provenance: dict[str, Any],
) -> bytes:
  """Makes the serialized model.

  Args:
    net: not stacked.
    mean, std: what images are normalized with, see `augment.normalize`.
    size: of an image's side.
    provenance: strings, kept as the model's metadata.

  Raises:
    ValueError: stacked networks.
  """
  graph, folded, spec = _Graph(), fold(net), net.spec
  count = iter(range(10**6))
  logits = packed.walk(
    units(spec),
    _normalized(graph, mean, std, size, spec.resolution),
    lambda layer, x: _layer(graph, layer, folded[layer.path], x),
    relu=lambda x: graph("Relu", x, name=f"relu{next(count)}"),
    add=lambda y, x, block: _add(graph, spec, folded, block, (y, x)),
    mean=lambda x: graph(
      "ReduceMean",
      x,
      graph.constant("sides", np.array([2, 3])),
      name="pooled",
      keepdims=1,
    ),
    enter=lambda x, block: _of_sum(graph, spec, folded, block, x, "first"),
  )
  graph("Flatten", logits, name="logits")
  shape = ["n", size, size, spec.channels]
  model = helper.make_model(
    helper.make_graph(
      graph.nodes,
      "jaxr18",
      [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
      [
        helper.make_tensor_value_info(
          "logits", TensorProto.FLOAT, ["n", spec.head.classes]
        )
      ],
      list(graph.constants.values()),
    ),
    opset_imports=[helper.make_opsetid("", OPSET)],
    producer_name="jaxr18",
    ir_version=IR_VERSION,
  )
  helper.set_model_props(model, {k: str(v) for k, v in provenance.items()})
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


def _normalized(graph, mean, std, size, resolution) -> str:
  """As `augment.normalize` does it; then NCHW.

  From a table of all values: a runtime that divides where XLA multiplies is off
  by a last digit, and where one value of a channel lies in the middle of two
  of the stem's codes, every image that has it would get other logits.
  """
  channels = len(mean)
  values = np.tile(np.arange(256, dtype=np.uint8)[:, None], channels)
  how = {"mean": mean, "std": std, "resolution": 1}
  table = packed.normalize(values[:, None, None], how)
  table = graph.constant("normalized values", table.T.reshape(-1))
  first = graph.constant("channels", 256 * np.arange(channels, dtype=np.int32))
  x = graph("Cast", "images", name="integers", to=TensorProto.INT32)
  x = graph("Add", x, first, name="places")
  x = graph("Gather", table, x, name="normalized")
  x = graph("Transpose", x, name="nchw", perm=[0, 3, 1, 2])
  if size != resolution:
    weights = packed.resizing(size, resolution)
    x = graph("MatMul", x, graph.constant("to width", weights), name="width")
    to_height = graph.constant("to height", weights.T)
    x = graph("MatMul", to_height, x, name="resized")
  return x


def _layer(graph: _Graph, layer: Layer, numbers: dict, x: str) -> str:
  x, name = _input(graph, layer, numbers, x), layer.path
  inputs = [x, _kernel(graph, layer, numbers)]
  side, pad = layer.kernel, layer.kernel // 2
  how = dict(
    group=layer.groups,
    kernel_shape=[side, side],
    pads=[pad] * 4,
    strides=[layer.stride] * 2,
  )
  if "bias" not in numbers:
    return graph("Conv", *inputs, name=name, **how)
  if "codes" not in numbers:
    bias = graph.constant(f"{name}/bias", numbers["bias"])
    return graph("Conv", *inputs, bias, name=name, **how)
  # In a Conv of integers ONNX Runtime rounds the bias to their grid, to 0 or
  # worse where a channel's scale is 0.
  sums = graph("Conv", *inputs, name=f"{name}/sums", **how)
  bias = numbers["bias"].reshape(-1, 1, 1)
  return graph("Add", sums, graph.constant(f"{name}/bias", bias), name=name)


def _input(graph: _Graph, layer: Layer, numbers: dict, x: str) -> str:
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
  step = graph.constant(f"{name}/step", bound * (1 / levels))
  if "codes" not in numbers:
    return _rounded(graph, name, x, step, -levels if signed else 0, levels)
  if signed or layer.a_bits < 8:
    x = _clipped(graph, name, x, -bound if signed else None, bound)
  zero = np.zeros((), np.int8 if signed else np.uint8)
  zero = graph.constant(f"{name}/zero", zero)
  x = graph("QuantizeLinear", x, step, zero, name=f"{name}/codes")
  return graph("DequantizeLinear", x, step, zero, name=f"{name}/values")


def _add(graph, spec, folded, block: str, operands: tuple[str, str]) -> str:
  """A block's sum; where it is quantized, both operands are on its grid."""
  on_grid = (
    _of_sum(graph, spec, folded, block, x, f"operand{i}")
    for i, x in enumerate(operands)
  )
  return graph("Add", *on_grid, name=f"{block}/sum")


def _of_sum(graph, spec, folded, block: str, x: str, name: str) -> str:
  """What goes into sums, on their grid; `first` is the stem's output."""
  if spec.sum_bits == FLOAT_BITS:
    return x
  signed, name = name != "first", f"{block}/{name}"
  levels = np.float32(input_levels(spec.sum_bits, signed))
  part = np.float32(1 / input_levels(spec.sum_bits, True))
  step = graph.constant(f"{name}/step", folded[block]["sum_bound"] * part)
  return _rounded(graph, name, x, step, -levels if signed else 0, levels)


def _dynamic_step(graph: _Graph, name: str, x: str, levels) -> str:
  """The step of each image's own grid, beyond which no value is."""
  size = graph("Abs", x, name=f"{name}/abs")
  axes = graph.constant(f"{name}/axes", np.array([1, 2, 3]))
  size = graph("ReduceMax", size, axes, name=f"{name}/largest", keepdims=1)
  least = graph.constant(f"{name}/least", np.array(SMALLEST_BOUND, np.float32))
  size = graph("Max", size, least, name=f"{name}/bound")
  part = graph.constant(f"{name}/part", 1 / levels)
  return graph("Mul", size, part, name=f"{name}/step")


def _rounded(
  graph: _Graph, name: str, x: str, step, low=None, high=None
) -> str:
  """Floats on a grid; low and high are its ends, in steps."""
  inverse = graph("Reciprocal", step, name=f"{name}/inverse")
  x = graph("Mul", x, inverse, name=f"{name}/ratio")  # as XLA divides
  if high is not None:
    x = _clipped(graph, name, x, low, high)
  x = graph("Round", x, name=f"{name}/codes")  # halves to even
  return graph("Mul", x, step, name=f"{name}/values")


def _clipped(graph: _Graph, name: str, x: str, low, high) -> str:
  bounds = []
  for end, value in (("low", low), ("high", high)):
    if value is None:
      bounds.append("")
    else:
      at = graph.constant(f"{name}/{end}", np.array(value, np.float32))
      bounds.append(at)
  return graph("Clip", x, *bounds, name=f"{name}/clipped")


def _kernel(graph: _Graph, layer: Layer, numbers: dict) -> str:
  name = f"{layer.path}/kernel"
  oihw = lambda k: np.ascontiguousarray(k.transpose(3, 2, 0, 1))
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
  scale, codes = numbers["scale"], numbers["codes"]
  codes = np.where(scale == 0, 0, codes).astype(np.int8)  # 0 / 0 is not 0
  codes = make(f"{name}/codes", oihw(codes))
  scale = np.where(scale == 0, 1, scale).astype(np.float32)
  scale = graph.constant(f"{layer.path}/scale", scale)
  return graph("DequantizeLinear", codes, scale, name=name, axis=0)
