"""What an ONNX graph says of each of its tensors: levels, range, constants.

The nodes are read once, in order. A tensor is in few bits only where a node
holds it to few levels: QuantizeLinear, QONNX's Quant, a rounding between two
ends, a cast to half precision. Values that merely happen to lie on a grid are
of 32 bits.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, reference

from jaxr18.host.errors import ToldError

FLOAT_BITS, HALF_BITS = 32, 16
QONNX = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
MICROSOFT = "com.microsoft"

# Of the same values, elsewhere or fewer of them: bits and levels go on.
_KEEP = frozenset(
  "Identity Dropout Reshape Transpose Flatten Squeeze Unsqueeze MaxPool"
  " GlobalMaxPool ReduceMax Slice Gather Split Expand Tile DepthToSpace"
  " SpaceToDepth Pad".split()
)
# Arithmetic between layers, which the score does not charge; floats come out.
_FLOAT = frozenset(
  "Sub Pow Sqrt Exp Log Erf Neg Reciprocal Sum Mean Max Min Where Sigmoid"
  " HardSigmoid HardSwish Tanh Softmax LogSoftmax LeakyRelu PRelu Elu Selu Celu"
  " Gelu Mish Softplus Softsign ThresholdedRelu AveragePool GlobalAveragePool"
  " LpPool GlobalLpPool ReduceMean ReduceSum ReduceMin ReduceProd ReduceL1"
  " ReduceL2 ReduceSumSquare ReduceLogSumExp BatchNormalization"
  " InstanceNormalization LayerNormalization GroupNormalization"
  " LpNormalization LRN Resize Upsample Shape Size Equal Less Greater"
  " LessOrEqual GreaterOrEqual And Or Not Xor ArgMax ArgMin TopK Sign Mod Range"
  " ConstantOfShape OneHot CumSum IsNaN IsInf NonZero Trilu Sin Cos"
  " ScatterND ScatterElements GatherElements GatherND".split()
)
_MICROSOFT_8 = frozenset(
  "QLinearAdd QLinearMul QLinearConcat QLinearSigmoid QLinearLeakyRelu"
  " QLinearAveragePool QLinearGlobalAveragePool QLinearSoftmax".split()
)
WEIGHTED = frozenset(
  "Conv ConvTranspose Gemm MatMul ConvInteger MatMulInteger QLinearConv"
  " QLinearMatMul QGemm".split()
)


class JudgeError(ToldError):
  """An ONNX file that cannot be judged."""


@dataclasses.dataclass(frozen=True)
class Fact:
  """What is known of one tensor.

  Attributes:
    bits: that hold each of its values, by the nodes before it.
    levels: its lowest and highest integer code, relative to the code of zero;
      None where no node holds it to integers.
    low, high: its range in real numbers, as far as it is known.
    value: a constant's array, else None.
    scales: numbers that turn its codes into values.
    root: the initializer that a constant comes from.
    zero: of integers, the code of zero.
  """

  bits: int = FLOAT_BITS
  levels: tuple[int, int] | None = None
  low: float = -math.inf
  high: float = math.inf
  value: np.ndarray | None = None
  scales: int = 0
  root: str = ""
  zero: int = 0

  @property
  def array(self) -> np.ndarray:
    """The value of what is a constant."""
    assert self.value is not None
    return self.value


def facts(model: onnx.ModelProto) -> dict[str, Fact]:
  """Finds a `Fact` for every tensor of a graph, by name.

  Args:
    model: without local functions, its nodes in order.

  Raises:
    JudgeError: a node of which it is not known what it computes.
  """
  graph, known = model.graph, {"": Fact()}
  for tensor in graph.initializer:
    known[tensor.name] = _constant(numpy_helper.to_array(tensor), tensor.name,
                                   tensor.data_type)  # fmt: skip
  for one in graph.input:
    if one.name not in known:
      known[one.name] = _of_type(one.type.tensor_type.elem_type)
  opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
  for node in graph.node:
    inputs = [known[name] for name in node.input]
    out = _folded(node, inputs, opsets) or _rule(node)(node, inputs)
    for i, name in enumerate(node.output):
      known[name] = out if i == 0 or node.op_type == "Split" else Fact()
  return known


def bits_of(low: int, high: int) -> int:
  """Counts the bits that number the integers from low to high: 4 for -7..7."""
  return max(1, math.ceil(math.log2(high - low + 1)))


def attributes(node: onnx.NodeProto) -> dict:
  return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def named(node: onnx.NodeProto) -> str:
  """Names a node as a person finds it in the file."""
  domain = f"{node.domain}." if node.domain else ""
  return f"{domain}{node.op_type} {node.name or node.output[0]!r}"


def _rule(node: onnx.NodeProto) -> Callable:
  """What a node makes of the facts of its inputs."""
  op = node.op_type
  if node.domain in QONNX and op in _QONNX:
    return _QONNX[op]
  if node.domain == MICROSOFT and op in _MICROSOFT_8 | {"QGemm"}:
    return lambda node, inputs: Fact(8, (-128, 255), scales=1)
  if node.domain in ("", "ai.onnx"):
    if op in _RULES:
      return _RULES[op]
    if op in WEIGHTED:
      return _weighted
    if op in _KEEP:
      return lambda node, inputs: _without_value(inputs[0])
    if op in _FLOAT:
      return lambda node, inputs: Fact()
  raise JudgeError(
    f"{named(node)} is no operation that is understood, so its network is not"
    " counted; export without it, or with its parts as standard operations"
  )


def _folded(node, inputs: Sequence[Fact], opsets) -> Fact | None:
  """The fact of a node whose inputs are all constants, with its value."""
  by_name = {n: f for f, n in zip(inputs, node.input, strict=True) if n}
  if any(f.value is None for f in by_name.values()):
    return None
  given = {n: f.array for n, f in by_name.items()}
  if node.op_type in WEIGHTED or node.op_type == "If":
    return None
  if node.domain in QONNX:
    return (
      _QONNX[node.op_type](node, inputs) if node.op_type in _QONNX else None
    )
  if node.domain not in ("", "ai.onnx"):
    return None
  graph = helper.make_graph(
    [node], "one node",
    [helper.make_tensor_value_info(
      n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
     for n, v in given.items()],
    [helper.make_empty_tensor_value_info(node.output[0])],
  )  # fmt: skip
  imports = [helper.make_opsetid("", opsets.get("ai.onnx", 21))]
  one = helper.make_model(graph, opset_imports=imports)
  results: Any = reference.ReferenceEvaluator(one).run(None, given)
  value = np.asarray(results[0])
  roots = [f.root for f in inputs if f.root and f.array.size > 1]
  root = roots[0] if roots else node.output[0]
  if node.op_type in ("Constant", "ConstantOfShape"):
    return _constant(value, root)
  if node.op_type == "QuantizeLinear":
    zero = inputs[2].value if len(inputs) > 2 else 0
    return _codes(value, zero, inputs[1].array.size, root)
  if node.op_type == "DequantizeLinear":
    zero = inputs[2].value if len(inputs) > 2 else 0
    codes = _codes(inputs[0].array, zero, inputs[1].array.size, root)
    return dataclasses.replace(codes, value=value)
  first = inputs[0]
  keeps = node.op_type in _KEEP or (
    node.op_type in ("Mul", "Div") and first.array.size >= value.size
  )
  if keeps and first.bits < FLOAT_BITS:
    scales = max([first.scales, *(f.array.size for f in inputs[1:])])
    scales = scales if node.op_type in ("Mul", "Div") else first.scales
    return dataclasses.replace(first, value=value, scales=scales, root=root)
  if node.op_type == "Cast" and first.bits < FLOAT_BITS:
    return dataclasses.replace(first, value=value, root=root)
  return _constant(value, root)


def _constant(value: np.ndarray, root: str, kind: int | None = None) -> Fact:
  """A constant by its type: floats, or integers that are codes of a grid."""
  out = Fact(value=value, root=root)
  if kind == TensorProto.BFLOAT16 or value.dtype == np.float16:
    return dataclasses.replace(out, bits=HALF_BITS)
  if value.dtype.kind in "iu" and value.dtype.itemsize <= 2 and value.size:
    return _codes(value, 0, 0, root)
  if kind is not None and _ends(kind) and value.size:  # of 4 bits or fewer
    return _codes(value.astype(np.int8), 0, 0, root)
  return out


def _codes(value: np.ndarray, zero, scales: int, root: str) -> Fact:
  """Integer codes: the bits that their range needs, relative to zero's."""
  codes = value.astype(np.int64)
  zero = np.asarray(zero).astype(np.int64)
  if zero.size > 1 and (zero == zero.flat[0]).all():
    zero = zero.flat[0]
  if np.size(zero) == 1:
    codes = codes - np.asarray(zero).reshape(())
  low, high = int(codes.min()), int(codes.max())
  # Codes of -1 and 1 are one bit, and of -3, -1, 1 and 3 two.
  step = int(np.gcd.reduce((codes - low).ravel())) or 1
  bits = bits_of(0, (high - low) // step)
  return Fact(bits, (low, high), value=value, scales=scales, root=root)


def _of_type(kind: int) -> Fact:
  """An input of the graph, by its type."""
  if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
    return Fact(HALF_BITS)
  ends = _ends(kind)
  return Fact() if ends is None else _between(*ends)


def _ends(kind: int) -> tuple[int, int] | None:
  """The lowest and highest integer of a small type; None for other types."""
  name = TensorProto.DataType.Name(kind)
  match = re.fullmatch(r"(U?)INT(2|4|8|16)", name)
  if match is None:
    return None
  bits = int(match[2])
  if match[1]:
    return 0, 2**bits - 1
  return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _between(low: int, high: int, scale: float = 1.0, scales: int = 0) -> Fact:
  return Fact(bits_of(low, high), (low, high), low * scale, high * scale,
              scales=scales)  # fmt: skip


def _without_value(fact: Fact) -> Fact:
  return dataclasses.replace(fact, value=None, root="")


def _quantize(node, inputs: Sequence[Fact]) -> Fact:
  """QuantizeLinear: its type's codes, or those that its input's range hits."""
  x, scale, *zero = inputs
  kind = attributes(node).get("output_dtype", 0)
  offset = 0
  if zero and zero[0].value is not None:
    kind = kind or helper.np_dtype_to_tensor_dtype(zero[0].value.dtype)
    offset = int(zero[0].value.flat[0])
  ends = _ends(kind or TensorProto.UINT8)
  if ends is None:
    raise JudgeError(
      f"{named(node)} quantizes to {TensorProto.DataType.Name(kind)}, whose"
      " levels are no integers; they are not counted"
    )
  low, high = ends[0] - offset, ends[1] - offset
  if scale.value is None or scale.value.size != 1:
    return Fact(bits_of(low, high), (low, high), scales=1, zero=offset)
  held = _held(x, float(scale.value.flat[0]), low, high)
  # No more values come out than go in.
  return dataclasses.replace(held, bits=min(held.bits, x.bits), zero=offset)


def _held(x: Fact, step: float, low: int, high: int) -> Fact:
  """A grid of one step between two codes, as far as the input's range hits."""
  if math.isfinite(x.low):
    low = min(max(low, round(x.low / step)), high)
  if math.isfinite(x.high):
    high = max(min(high, round(x.high / step)), low)
  return _between(low, high, step, 1)


def _dequantize(node, inputs: Sequence[Fact]) -> Fact:
  codes, scale = inputs[:2]
  if codes.levels is None:  # sums of integers: as floats from here on
    return Fact()
  if scale.value is None or scale.value.size != 1:
    return dataclasses.replace(_without_value(codes), low=-math.inf,
                               high=math.inf)  # fmt: skip
  out = _between(*codes.levels, float(scale.value.flat[0]), codes.scales)
  return dataclasses.replace(out, bits=min(out.bits, codes.bits))


def _clip(node, inputs: Sequence[Fact]) -> Fact:
  x, old = inputs[0], attributes(node)
  ends = [f.value for f in inputs[1:] if f.value is not None]
  if x.levels is not None and ends and ends[0].dtype.kind in "iu":
    return _cut(x, inputs[1:])
  low, high = old.get("min", -math.inf), old.get("max", math.inf)
  for i, f in enumerate(inputs[1:]):
    if f.value is not None:
      low, high = (f.value.item(), high) if i == 0 else (low, f.value.item())
  low, high = max(low, x.low), min(high, x.high)
  return dataclasses.replace(_without_value(x), low=low, high=high)


def _cut(x: Fact, ends: Sequence[Fact]) -> Fact:
  """Integers between two of their own; the step between two stays."""
  assert x.levels is not None
  (low, high), step = x.levels, (x.high - x.low) / max(1, np.ptp(x.levels))
  by = [None if f.value is None else int(f.value.flat[0]) - x.zero
        for f in (*ends, Fact())[:2]]  # fmt: skip
  low = low if by[0] is None else min(max(low, by[0]), high)
  high = high if by[1] is None else max(min(high, by[1]), low)
  out = _between(low, high, step, x.scales)
  return dataclasses.replace(out, bits=min(out.bits, x.bits), zero=x.zero)


def _added(node, inputs: Sequence[Fact]) -> Fact:
  """Add: a 0 changes nothing."""
  for x, other in (inputs, inputs[::-1]):
    if other.value is not None and not other.value.any():
      return _without_value(x)
  return Fact()


def _relu(node, inputs: Sequence[Fact]) -> Fact:
  x = _without_value(inputs[0])
  if x.levels is None:
    return dataclasses.replace(x, low=max(0.0, x.low))
  low, high = max(0, x.levels[0]), max(0, x.levels[1])
  return dataclasses.replace(
    x, bits=min(x.bits, bits_of(low, high)), levels=(low, high),
    low=max(0.0, x.low),
  )  # fmt: skip


def _round(node, inputs: Sequence[Fact]) -> Fact:
  """Integers; few of them where the range is known."""
  x = inputs[0]
  if not (math.isfinite(x.low) and math.isfinite(x.high)):
    return Fact()
  return dataclasses.replace(_between(round(x.low), round(x.high)), scales=1)


def _scaled(node, inputs: Sequence[Fact]) -> Fact:
  """Mul and Div: a constant moves the grid and its range, and keeps levels."""
  x, by = inputs
  if node.op_type == "Mul" and x.value is not None:
    x, by = by, x
  if by.value is None:
    return Fact()
  out = _without_value(x)
  if by.value.size != 1:
    return dataclasses.replace(out, low=-math.inf, high=math.inf)
  c = float(by.value.flat[0])
  if not c:
    return Fact()
  ends = sorted((x.low / c, x.high / c) if node.op_type == "Div"
                else (x.low * c, x.high * c))  # fmt: skip
  return dataclasses.replace(out, low=ends[0], high=ends[1])


def _cast(node, inputs: Sequence[Fact]) -> Fact:
  x, kind = _without_value(inputs[0]), attributes(node)["to"]
  if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
    return dataclasses.replace(x, bits=min(x.bits, HALF_BITS))
  if (ends := _ends(kind)) is not None and x.levels is None:
    return _between(*ends)
  return x


def _concat(node, inputs: Sequence[Fact]) -> Fact:
  levels = [f.levels for f in inputs if f.levels is not None]
  bits = max(f.bits for f in inputs)
  if len(levels) < len(inputs):
    return Fact(bits)
  low, high = min(a for a, _ in levels), max(b for _, b in levels)
  return Fact(bits, (low, high), scales=len(inputs))


def _weighted(node, inputs: Sequence[Fact]) -> Fact:
  """Sums of products; they are as wide as their accumulator."""
  if node.op_type in ("QLinearConv", "QLinearMatMul"):
    zero = inputs[7].value if len(inputs) > 7 else None
    signed = zero is not None and zero.dtype.kind == "i"
    return _between(*((-128, 127) if signed else (0, 255)), scales=1)
  return Fact()


def _dynamic(node, inputs: Sequence[Fact]) -> Fact:
  return Fact(8, (-255, 255), scales=1)


def _quant(node, inputs: Sequence[Fact]) -> Fact:
  """QONNX's Quant and IntQuant (Pappalardo et al., 2022, arXiv 2206.07527)."""
  x, scale, zero, width = inputs[:4]
  how = attributes(node)
  if width.value is None or scale.value is None or zero.value is None:
    raise JudgeError(
      f"{named(node)} has a scale, zero point or bit width that is no constant,"
      " so its levels are not known; export them as constants"
    )
  bits, narrow = int(width.value.flat[0]), bool(how.get("narrow", 0))
  signed, offset = bool(how.get("signed", 1)), int(zero.value.flat[0])
  if not 1 <= bits <= FLOAT_BITS:
    raise JudgeError(f"{named(node)} has {bits} bits, expected 1 to 32")
  low = -(2 ** (bits - 1)) + narrow if signed else 0
  high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
  if x.value is not None:
    mode = how.get("rounding_mode", b"ROUND").decode().upper()
    around = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil,
              "ROUND_TO_ZERO": np.trunc}[mode]  # fmt: skip
    codes = np.clip(around(x.value / scale.value + offset), low, high) - offset
    out = _codes(codes, 0, scale.value.size, x.root)
    value = (codes * scale.value).astype(np.float32)
    return dataclasses.replace(out, bits=min(out.bits, bits), value=value)
  if scale.value.size != 1:
    return Fact(bits, (low - offset, high - offset), scales=scale.value.size)
  held = _held(x, float(scale.value.flat[0]), low - offset, high - offset)
  return dataclasses.replace(held, bits=min(bits, held.bits))


def _bipolar(node, inputs: Sequence[Fact]) -> Fact:
  x, scale = inputs[:2]
  size = 1 if scale.value is None else scale.value.size
  value = None
  if x.value is not None and scale.value is not None:
    signs = np.where(x.value >= 0, 1.0, -1.0)
    value = (signs * scale.value).astype(np.float32)
  return Fact(1, (-1, 1), value=value, scales=size, root=x.root)


def _trunc(node, inputs: Sequence[Fact]) -> Fact:
  """QONNX's Trunc, which keeps the upper bits of codes, as after pooling.

  It has the scale and bits of its input, then its own bits; since version 2 its
  own scale stands before them.
  """
  x, scale, zero, _, *own = inputs
  return _quant(node, (x, own[0] if len(own) > 1 else scale, zero, own[-1]))


_QONNX = {
  "Quant": _quant,
  "IntQuant": _quant,
  "BipolarQuant": _bipolar,
  "Trunc": _trunc,
}
_RULES = {
  "QuantizeLinear": _quantize,
  "DequantizeLinear": _dequantize,
  "DynamicQuantizeLinear": _dynamic,
  "Add": _added,
  "Clip": _clip,
  "Relu": _relu,
  "Abs": lambda node, inputs: Fact(low=0.0),
  "Round": _round,
  "Mul": _scaled,
  "Div": _scaled,
  "Cast": _cast,
  "Concat": _concat,
}
