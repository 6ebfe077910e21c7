"""The folded network as an ONNX graph, in whatever form its integers take.

uint8 images [n, size, size, channels] -> logits [n, classes], normalization
included. How an input, a kernel and a residual sum are held to their levels is
a `Form`: `to_onnx` has ONNX Runtime's and `to_qonnx` QONNX's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jaxr18.deploy import packed
from jaxr18.deploy.fold import Folded, fold
from jaxr18.deploy.integer import units
from jaxr18.nn.network import Network
from jaxr18.nn.quantize import input_ends, input_levels
from jaxr18.nn.spec import FLOAT_BITS, Layer, NetSpec

OPSET = 21  # the first with int4
IR_VERSION = 10


class Graph:
  """Nodes and constants; each method returns the name of its output."""

  def __init__(self):
    self.nodes, self.constants = [], {}
    self.makers: dict[str, str] = {}  # operations, by what they make

  def constant(self, name: str, value: np.ndarray) -> str:
    self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
    return name

  def floats(self, name: str, value) -> str:
    return self.constant(name, np.asarray(value, np.float32))

  def int4(self, name: str, value: np.ndarray) -> str:
    self.constants[name] = helper.make_tensor(
      name, TensorProto.INT4, value.shape, value.reshape(-1).astype(int)
    )
    return name

  def __call__(self, op: str, *inputs: str, name: str, **attributes) -> str:
    assert name not in self.makers, name
    self.makers[name] = op
    self.nodes.append(
      helper.make_node(op, inputs, [name], name=name, **attributes)
    )
    return name


class Form(Protocol):
  """What stands for quantized values; each returns the name of its output."""

  @property
  def domains(self) -> tuple[str, ...]:
    """Of its nodes, beside ONNX's own."""
    ...

  def input(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    """Puts a layer's input on its grid.

    Args:
      graph: takes the nodes.
      layer: whose input it is.
      numbers: the layer's of `fold`.
      x: the input's name.
    """
    ...

  def convolution(
    self, graph: Graph, layer: Layer, numbers: dict, x: str, name: str
  ) -> str:
    """Adds a convolution and its bias, if it has one.

    Args:
      graph: takes the nodes.
      layer: which it is.
      numbers: the layer's of `fold`.
      x: its input on its grid, by name.
      name: of its output.
    """
    ...

  def head(self, graph: Graph, layer: Layer, numbers: dict, x: str) -> str:
    """Adds the last layer, whose output is called logits, [n, classes].

    Args:
      graph: takes the nodes.
      layer: the head.
      numbers: the layer's of `fold`.
      x: pooled features [n, features, 1, 1], by name.
    """
    ...

  def sum(
    self, graph: Graph, name: str, x: str, step: str, bits: int, signed: bool
  ) -> str:
    """Puts an operand of a quantized residual sum on its grid.

    Args:
      graph: takes the nodes.
      name: of the operand.
      x: what becomes the operand, by name.
      step: the name of the grid's step.
      bits: of the sum.
      signed: whether levels are on both sides of 0.
    """
    ...

  def relu(self, graph: Graph, x: str, name: str) -> str:
    """Adds what is behind the stem, a convolution or a residual sum."""
    ...


def build(
  net: Network,
  make: Callable[[NetSpec, Folded], Form],
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  size: int,
  batch: int | str,
  provenance: dict[str, Any],
) -> onnx.ModelProto:
  """Makes the model.

  Args:
    net: not stacked.
    make: makes the form of its quantized values.
    mean, std: what images are normalized with, see `augment.normalize`.
    size: of an image's side.
    batch: how many images at once; a name for any number.
    provenance: strings, kept as the model's metadata.

  Raises:
    ValueError: stacked networks, or what the form cannot hold.
  """
  graph, folded, spec = Graph(), fold(net), net.spec
  first = spec.layers()[0]
  if "input_bound" in folded[first.path] and size == spec.resolution:
    numbers = folded[first.path]
    numbers["input_bound"] = _same_codes(first, numbers, mean, std)
  form, count = make(spec, folded), iter(range(10**6))
  packed.walk(
    units(spec),
    _normalized(graph, mean, std, size, spec.resolution),
    lambda layer, x: _layer(graph, form, layer, folded[layer.path], x),
    relu=lambda x: form.relu(graph, x, f"relu{next(count)}"),
    add=lambda y, x, block: _add(graph, form, spec, folded, block, (y, x)),
    mean=lambda x: graph("GlobalAveragePool", x, name="pooled"),
    enter=lambda x, block: _of_sum(
      graph, form, spec, folded, block, x, "first"
    ),
  )
  shape = [batch, size, size, spec.channels]
  classes = [batch, spec.head.classes]
  model = helper.make_model(
    helper.make_graph(
      graph.nodes,
      "jaxr18",
      [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
      [helper.make_tensor_value_info("logits", TensorProto.FLOAT, classes)],
      list(graph.constants.values()),
    ),
    opset_imports=[
      helper.make_opsetid("", OPSET),
      *(helper.make_opsetid(domain, 1) for domain in form.domains),
    ],
    producer_name="jaxr18",
    ir_version=IR_VERSION,
  )
  helper.set_model_props(model, {k: str(v) for k, v in provenance.items()})
  return model


def input_step(layer: Layer, bound) -> Any:
  """Returns the step of a layer's input, float32, rounded as XLA does."""
  return bound * (
    1 / np.float32(input_levels(layer.a_bits, layer.signed_input))
  )


def sum_step(spec: NetSpec, bound) -> Any:
  """Returns the step of a block's residual sum, float32, as `input_step`."""
  return bound * np.float32(1 / input_levels(spec.sum_bits, True))


def oihw(kernel: np.ndarray) -> np.ndarray:
  """Returns a kernel HWIO in ONNX's order."""
  return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def codes_and_scale(numbers: dict) -> tuple[np.ndarray, np.ndarray]:
  """Returns a kernel's integers, int8 HWIO, and scales above 0, float32 [out].

  A channel whose scale is 0 has codes of 0 and a scale of 1: 0 / 0 is not 0.
  """
  scale, codes = numbers["scale"], numbers["codes"]
  codes = np.where(scale == 0, 0, codes).astype(np.int8)
  return codes, np.where(scale == 0, 1, scale).astype(np.float32)


def _same_codes(
  layer: Layer, numbers: dict, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
  """The first layer's bound, moved in its last digits if need be.

  XLA rounds otherwise in normalization than these nodes do. Where one of a
  pixel's 256 values lies in the middle of two codes, nearly all images have
  some that go to the other code, and half of their logits are then off.
  """
  bits, signed = layer.a_bits, layer.signed_input
  pixels = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
  pixels = np.repeat(pixels, len(mean), axis=-1)
  network = {"mean": mean, "std": std, "resolution": 1}
  images, bound = packed.normalize(pixels, network), numbers["input_bound"]
  wanted, _ = packed.quantize(images, bound, bits, signed)
  own = np.float32(pixels) / np.float32(255) - np.array(mean, np.float32)
  own = own / np.array(std, np.float32)
  low, high = input_ends(bits, signed)
  for away in sorted(range(-64, 65), key=abs):
    moved = np.float32(bound * (1 + away * 2.0**-23))
    step = input_step(layer, moved)
    # Forms divide by the step, or multiply by what is 1 over it.
    if all(
      np.array_equal(np.rint(np.clip(x, low, high)), wanted)
      for x in (own / step, own * (1 / step))
    ):
      return np.asarray(moved)
  return numbers["input_bound"]


def _normalized(graph, mean, std, size, resolution) -> str:
  """As `augment.normalize` does it, in NCHW.

  ONNX Runtime subtracts from a whole map at once six times as fast as from
  three channels at a time.
  """
  by_channel = lambda value: np.reshape(value, (-1, 1, 1))
  x = graph("Transpose", "images", name="nchw", perm=[0, 3, 1, 2])
  x = graph("Cast", x, name="floats", to=TensorProto.FLOAT)
  x = graph("Div", x, graph.floats("255", 255), name="from 0 to 1")
  x = graph("Sub", x, graph.floats("mean", by_channel(mean)), name="centred")
  x = graph("Div", x, graph.floats("std", by_channel(std)), name="normalized")
  if size != resolution:
    weights = packed.resizing(size, resolution)
    x = graph("MatMul", x, graph.floats("to width", weights), name="width")
    x = graph("MatMul", graph.floats("to height", weights.T), x, name="resized")
  return x


def _layer(
  graph: Graph, form: Form, layer: Layer, numbers: dict, x: str
) -> str:
  if layer.kind == "dense":
    return form.head(graph, layer, numbers, x)
  x = form.input(graph, layer, numbers, x)
  return form.convolution(graph, layer, numbers, x, layer.path)


def conv(graph: Graph, layer: Layer, name: str, *inputs: str) -> str:
  """Adds a layer's Conv.

  Args:
    graph: takes the node.
    layer: whose it is.
    name: of its output.
    inputs: x, kernel and maybe bias, by name.
  """
  return graph(
    "Conv",
    *inputs,
    name=name,
    dilations=[1, 1],  # the default, but hls4ml wants it said
    group=layer.groups,
    kernel_shape=[layer.kernel] * 2,
    pads=[layer.kernel // 2] * 4,
    strides=[layer.stride] * 2,
  )


def float_bias(graph: Graph, layer: Layer, numbers: dict) -> tuple[str, ...]:
  """Adds the bias that a Conv of floats takes; () where there is none."""
  if "bias" not in numbers:
    return ()
  return (graph.constant(f"{layer.path}/bias", numbers["bias"]),)


def _add(
  graph, form, spec, folded, block: str, operands: tuple[str, str]
) -> str:
  """A block's sum; where it is quantized, both operands are on its grid."""
  on_grid = (
    _of_sum(graph, form, spec, folded, block, x, f"operand{i}")
    for i, x in enumerate(operands)
  )
  return graph("Add", *on_grid, name=f"{block}/sum")


def _of_sum(
  graph: Graph, form: Form, spec: NetSpec, folded, block: str, x: str, name: str
) -> str:
  """What goes into sums, on their grid; `first` is the stem's output."""
  if spec.sum_bits == FLOAT_BITS:
    return x
  signed, name = name != "first", f"{block}/{name}"
  step = sum_step(spec, folded[block]["sum_bound"])
  step = graph.constant(f"{name}/step", step)
  return form.sum(graph, name, x, step, spec.sum_bits, signed)
