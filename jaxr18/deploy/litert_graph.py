"""Tensors and operators of a LiteRT (TFLite) file, and its bytes.

The tables are those of TFLite's schema, as ai-edge-litert's generated code has
them; TensorFlow is not needed.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

PADDING = schema.Padding
ACTIVATION = schema.ActivationFunctionType
TYPES = {
  "uint8": schema.TensorType.UINT8,
  "int4": schema.TensorType.INT4,
  "int8": schema.TensorType.INT8,
  "int16": schema.TensorType.INT16,
  "int32": schema.TensorType.INT32,
  "int64": schema.TensorType.INT64,
  "float32": schema.TensorType.FLOAT32,
}
# Each operator's table of options, and its version for these types.
_OPERATORS = {
  "ADD": ("AddOptions", 2),
  "ADD_N": ("AddNOptions", 1),
  "ARG_MAX": ("ArgMaxOptions", 2),
  "CAST": ("CastOptions", 1),
  "CONV_2D": ("Conv2DOptions", 7),
  "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", 7),
  "DEQUANTIZE": ("DequantizeOptions", 3),
  "FULLY_CONNECTED": ("FullyConnectedOptions", 12),
  "GATHER": ("GatherOptions", 2),
  "LOG": ("", 1),
  "LOG_SOFTMAX": ("LogSoftmaxOptions", 1),
  "MEAN": ("ReducerOptions", 2),
  "MUL": ("MulOptions", 2),
  "ONE_HOT": ("OneHotOptions", 1),
  "PAD": ("PadOptions", 2),
  "QUANTIZE": ("QuantizeOptions", 3),
  "SOFTMAX": ("SoftmaxOptions", 1),
  "TRANSPOSE": ("TransposeOptions", 1),
}


class Tensor(NamedTuple):
  """A tensor's number, its shape by image, its step and its zero point."""

  index: int
  shape: tuple[int, ...]
  step: float
  zero: int


class Graph:
  """Tensors and operators in the order in which they are made.

  Attributes:
    prefix: of the names of what is made next.
  """

  def __init__(self):
    self.prefix = ""
    self.tensors, self.operators, self.codes = [], [], []
    self.buffers = [schema.BufferT()]  # the first is that of no data
    self.constants: dict[str, int] = {}

  def tensor(
    self,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    step: float | None = None,
    zero: int = 0,
  ) -> Tensor:
    """Makes a tensor of any number of images.

    Args:
      name: in the file.
      shape: of one image.
      dtype: one of TYPES.
      step: between two integers; None where they mean themselves.
      zero: the integer that means 0.
    """
    index = self._tensor(name, (1, *shape), dtype, step, zero)
    self.tensors[index].shapeSignature = [-1, *shape]
    return Tensor(index, shape, 1.0 if step is None else step, zero)

  def constant(
    self, name: str, value: np.ndarray, step=None, axis: int = 0, bits: int = 0
  ) -> int:
    """Keeps an array, once for each name; returns its tensor's number.

    Args:
      name: in the file.
      value: of a type of TYPES.
      step: between two integers, or one for each place on an axis.
      axis: that axis.
      bits: 4 packs int8 of -8 to 7 in half as many bytes.
    """
    key = self.prefix + name
    if key not in self.constants:
      dtype = "int4" if bits == 4 else str(value.dtype)
      index = self._tensor(name, value.shape, dtype, step, 0, axis)
      data = _halved(value) if bits == 4 else value.tobytes()
      self.tensors[index].buffer = self._buffer(data)
      self.constants[key] = index
    return self.constants[key]

  def _buffer(self, data: bytes) -> int:
    made: Any = schema.BufferT()
    made.data = np.frombuffer(data, np.uint8)
    self.buffers.append(made)
    return len(self.buffers) - 1

  def _tensor(self, name, shape, dtype, step, zero, axis=0) -> int:
    made: Any = schema.TensorT()
    made.name, made.shape = self.prefix + name, list(shape)
    made.type = TYPES[dtype]
    made.buffer = 0
    if step is not None:
      by: Any = schema.QuantizationParametersT()
      by.scale = np.atleast_1d(step).astype(np.float32)
      by.zeroPoint = np.full(len(by.scale), zero, np.int64)
      by.quantizedDimension = axis
      made.quantization = by
    self.tensors.append(made)
    return len(self.tensors) - 1

  def __call__(
    self, op: str, inputs: list[int], output: Tensor, **options: Any
  ) -> Tensor:
    """Adds an operator by its name in the schema; returns its output."""
    if op not in self.codes:
      self.codes.append(op)
    made: Any = schema.OperatorT()
    made.opcodeIndex = self.codes.index(op)
    made.inputs, made.outputs = inputs, [output.index]
    kind, _ = _OPERATORS[op]
    if kind:
      made.builtinOptions = getattr(schema, f"{kind}T")()
      made.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    for name, value in options.items():
      assert hasattr(made.builtinOptions, name), name
      setattr(made.builtinOptions, name, value)
    self.operators.append(made)
    return output

  def file(self, given: Tensor, made: Tensor, about: dict[str, Any]) -> bytes:
    """Returns the file's bytes; `about` is kept as JSON beside the graph."""
    graph: Any = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators = (
      "main", self.tensors, self.operators)  # fmt: skip
    graph.inputs, graph.outputs = [given.index], [made.index]
    kept: Any = schema.MetadataT()
    kept.name, kept.buffer = "jaxr18", self._buffer(json.dumps(about).encode())
    model: Any = schema.ModelT()
    model.version, model.description = 3, "jaxr18"
    model.subgraphs, model.buffers, model.metadata = (
      [graph], self.buffers, [kept])  # fmt: skip
    model.operatorCodes = [_code(op) for op in self.codes]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(op: str) -> Any:
  code: Any = schema.OperatorCodeT()
  code.builtinCode = getattr(schema.BuiltinOperator, op)
  code.deprecatedBuiltinCode = min(code.builtinCode, 127)
  code.version = _OPERATORS[op][1]
  return code


def _halved(value: np.ndarray) -> bytes:
  """Two integers a byte, the first in the lower half."""
  flat = value.reshape(-1).astype(np.uint8) & 15
  flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
  return (flat[0::2] | flat[1::2] << 4).tobytes()
