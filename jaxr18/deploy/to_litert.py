"""A program of integers as a LiteRT (TFLite) file, for phones and others.

All is int8 from the image's codes to the head. The file is what `program.py`
defines, with biases that are rounded to the unit of their layer's sums (`held`
rounds them so): a kernel's codes are multiplied by what int8 or int4 has room
for, which makes that unit finer. LiteRT saturates at the ends of int8 alone, so

- codes from 0 to n have the zero point 127 - n: n is the largest int8;
- operands of residual sums have it too. One that should end at -n may go on
  below, where the ReLU behind the sum makes 0 of it as well;
- other codes on both sides of 0 have the step 1 / n, and are cut at 1 and -1.

XNNPACK, with which LiteRT runs int8, then rounds as the program does, but for
a value that is within float32 of the middle of two integers. LiteRT's own
kernels, which run int4, round twice.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from jaxr18.deploy.litert_graph import ACTIVATION, PADDING, TYPES, Graph, Tensor
from jaxr18.deploy.litert_vote import voted
from jaxr18.deploy.program import Program, Rescale, Step, reach
from jaxr18.host.errors import ToldError

SUM_BITS = 8  # of residual sums, at most
_TOP = 127  # the largest int8
_TOP_4 = 7  # the largest int4
_BIAS_BITS = 30  # and a sign


class LitertError(ToldError, ValueError):
  """A program that LiteRT cannot hold."""


def to_litert(
  *programs: Program,
  int4: bool = False,
  vote: str = "",
  weights: Sequence[float] | None = None,
) -> bytes:
  """Makes the file: uint8 [n, size, size, channels] -> float32 logits.

  Args:
    programs: one, or the members of an ensemble, for the same images; with
      residual sums of at most 8 bits.
    int4: whether convolutions of 4 bits or fewer have int4 kernels.
    vote: of several, one of `ensemble.VOTES`; logits are then logarithms of
      its probabilities.
    weights: of the members; used by 'weighted' alone.

  Raises:
    LitertError: sums of more bits.
  """
  graph, first = Graph(), programs[0]
  shape = (first.size, first.size, first.channels)
  image, each = graph.tensor("images", shape, "uint8"), []
  for i, program in enumerate(programs):
    graph.prefix = f"member{i}/" if vote else ""
    each.append(_logits(graph, program, image, int4))
  graph.prefix = ""
  logits = voted(graph, each, vote, weights) if vote else each[0]
  return graph.file(image, logits, first.provenance)


def held(program: Program, int4: bool = False) -> Program:
  """Returns the program with the biases that the file has."""

  def rounded(step: Step) -> Step:
    _, unit, bias = _numbers(step, int4)
    offset = np.rint(bias * unit * 2.0**step.write.shift).astype(np.int64)
    offset += 2 ** (step.write.shift - 1)
    by = dataclasses.replace(step.write, offset=offset)
    return dataclasses.replace(step, write=by)

  return dataclasses.replace(program, steps=tuple(map(rounded, program.steps)))


def load_litert(
  path: str | os.PathLike, threads: int | None = None, **how: Any
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from images to logits by LiteRT on the CPU.

  Args:
    path: of the file.
    threads: None is LiteRT's own choice.
    how: what `ai_edge_litert.interpreter.Interpreter` takes.
  """
  model = Interpreter(str(path), num_threads=threads, **how)
  (given,), (made,) = model.get_input_details(), model.get_output_details()
  shape = None

  def run(images: np.ndarray) -> Any:
    nonlocal shape
    if images.shape != shape:
      shape = images.shape
      model.resize_tensor_input(given["index"], shape)
      model.allocate_tensors()
    model.set_tensor(given["index"], images)
    model.invoke()
    return model.get_tensor(made["index"])

  return run


def _logits(
  graph: Graph, program: Program, image: Tensor, int4: bool
) -> Tensor:
  """Adds a program's operators; returns its logits."""
  if program.sum_bits > SUM_BITS:
    raise LitertError(
      f"residual sums have {program.sum_bits} bits, expected at most {SUM_BITS}"
    )
  tensors = {"image": image}
  for step in program.steps[:-1]:
    x = _read(graph, step, tensors[step.source])
    tensors[step.target] = _layer(graph, step, x, tensors, int4)
  head = program.steps[-1]
  return _head(graph, head, _read(graph, head, tensors[head.source]))


def _read(graph: Graph, step: Step, x: Tensor) -> Tensor:
  """The codes of a layer's input."""
  name = f"{step.path}/input"
  if step.table is not None:
    return _looked_up(graph, step, x, name)
  if step.resize is not None:
    return _resized(graph, step, x, name)
  if step.read is None:
    return x
  unit, zero = x.step / float(_factor(step.read)[0]), _TOP - step.high
  if not step.pooled:
    return _requantized(
      graph, x, graph.tensor(name, x.shape, "int8", unit, zero)
    )
  unit /= step.size**2  # of a sum over the pixels, where LiteRT has the mean
  shape = x.shape[-1:]
  y = graph.tensor(name, shape, "int8", unit, zero)
  sides = graph.constant(f"{name}/sides", np.array([1, 2], np.int32))
  graph("MEAN", [x.index, sides], y)
  # Of 8 bits, logits would often be equal; 16 bits need such an input.
  wide = graph.tensor(f"{name}/wide", shape, "int16", unit)
  return graph("QUANTIZE", [y.index], wide)


def _requantized(graph: Graph, x: Tensor, y: Tensor) -> Tensor:
  """Brings a tensor to another grid, as its product with 1.

  QUANTIZE has a factor of 8 binary places in XNNPACK, and LiteRT's own kernel
  of it rounds to some 1/32 first. A product with 127 / 127 does neither.
  """
  one = graph.constant("one", np.array([_TOP], np.int8), 1 / _TOP)
  return graph("MUL", [x.index, one], y)


def _looked_up(graph: Graph, step: Step, x: Tensor, name: str) -> Tensor:
  """The codes of an image's bytes, each in its channel's row of the table."""
  assert step.table is not None
  wide = graph.tensor(f"{name}/wide", x.shape, "int32")
  types = {"inDataType": TYPES["uint8"], "outDataType": TYPES["int32"]}
  graph("CAST", [x.index], wide, **types)
  rows = (256 * np.arange(len(step.table), dtype=np.int32)).reshape(1, 1, 1, -1)
  place = graph.tensor(f"{name}/place", x.shape, "int32")
  rows = graph.constant(f"{name}/rows", rows)
  graph("ADD", [wide.index, rows], place)
  table = step.table.reshape(-1).astype(np.int8)
  table = graph.constant(f"{name}/table", table, 1.0)
  y = graph.tensor(name, x.shape, "int8", 1.0)
  return graph("GATHER", [table, place.index], y)


def _resized(graph: Graph, step: Step, x: Tensor, name: str) -> Tensor:
  """The codes of an image of another size, by way of floats."""
  assert step.resize is not None and step.read is not None
  size, one = step.size, step.resize.sum(0)[0]  # what weights add up to
  weights = (step.resize.T / one).astype(np.float32)
  factor = _factor(step.read) * one**2 / step.high
  bias = _bias(step.read) / step.high
  made = iter(range(10))

  def floats(op: str, x: Tensor, shape, by=None, **how) -> Tensor:
    y = graph.tensor(f"{name}/{next(made)}", shape, "float32")
    by = [] if by is None else [graph.constant(f"{name}/by{y.index}", by)]
    return graph(op, [x.index, *by], y, **how)

  def turned(x: Tensor, *axes: int) -> Tensor:
    order = np.array([0, *axes], np.int32)
    return floats("TRANSPOSE", x, tuple(x.shape[i - 1] for i in axes), order)

  def summed(x: Tensor) -> Tensor:
    shape = (*x.shape[:2], size)
    return floats("FULLY_CONNECTED", x, shape, weights, keepNumDims=True)

  types = {"inDataType": TYPES["uint8"], "outDataType": TYPES["float32"]}
  x = turned(floats("CAST", x, x.shape, **types), 3, 1, 2)
  x = turned(summed(turned(summed(x), 1, 3, 2)), 3, 2, 1)
  x = floats("MUL", x, x.shape, factor.astype(np.float32))
  how = {"fusedActivationFunction": ACTIVATION.RELU_N1_TO_1}
  x = floats("ADD", x, x.shape, bias.astype(np.float32), **how)
  y = graph.tensor(name, x.shape, "int8", 1 / step.high)
  return graph("QUANTIZE", [x.index], y)


def _layer(graph: Graph, step: Step, x: Tensor, tensors, int4: bool) -> Tensor:
  """A convolution, and the sum behind it where there is one."""
  shape, high = (step.out_size, step.out_size, step.features), step.write.high
  unit, activation, zero = step.unit, ACTIVATION.NONE, _TOP - high
  if step.write.low == 0:
    activation = ACTIVATION.RELU
  elif not step.to_sums:
    unit, activation, zero = 1 / high, ACTIVATION.RELU_N1_TO_1, 0
  y = graph.tensor(step.path, shape, "int8", unit, zero)
  _convolve(graph, step, x, y, activation, int4)
  if not step.plus:
    return y
  other = tensors[step.plus]
  if step.shortcut is not None:
    name = f"{step.path}/shortcut"
    on_grid = graph.tensor(name, shape, "int8", unit, zero)
    other = _requantized(graph, other, on_grid)
  name, zero = f"{step.path}/sum", _TOP - (2 * high + 1)
  total = graph.tensor(name, shape, "int8", unit, zero)
  how = {"fusedActivationFunction": ACTIVATION.RELU}
  return graph("ADD", [y.index, other.index], total, **how)


def _convolve(
  graph: Graph, step: Step, x: Tensor, y: Tensor, activation, int4: bool
) -> None:
  side, pad = step.kernel.shape[0], step.kernel.shape[0] // 2
  path, own = step.path, (step.out_size - 1) * step.stride + side - step.size
  is_own = max(own, 0) == 2 * pad
  if not is_own:  # LiteRT's own padding is on one side alone
    shape = (*(s + 2 * pad for s in x.shape[:2]), x.shape[2])
    padded = graph.tensor(f"{path}/padded", shape, "int8", x.step, x.zero)
    pads = np.array([[0, 0], [pad, pad], [pad, pad], [0, 0]], np.int32)
    x = graph("PAD", [x.index, graph.constant(f"{path}/pads", pads)], padded)
  kernel, unit, bias = _numbers(step, int4)
  depthwise = step.groups > 1 and step.kernel.shape[2] == 1
  order, axis = ((2, 0, 1, 3), 3) if depthwise else ((3, 0, 1, 2), 0)
  kernel = np.ascontiguousarray(kernel.transpose(order))
  steps, bits = unit * y.step / x.step, 4 if _is_int4(step, int4) else 8
  inputs = [
    x.index,
    graph.constant(f"{path}/kernel", kernel, steps, axis, bits),
    graph.constant(f"{path}/bias", bias.astype(np.int32), steps * x.step),
  ]
  more = {"depthMultiplier": step.features // step.groups} if depthwise else {}
  graph(
    "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
    inputs,
    y,
    padding=PADDING.SAME if is_own else PADDING.VALID,
    strideH=step.stride,
    strideW=step.stride,
    fusedActivationFunction=activation,
    **more,
  )


def _head(graph: Graph, step: Step, x: Tensor) -> Tensor:
  """Logits of 16 bits, as floats."""
  kernel, unit, bias = _numbers(step, False)
  sums = np.maximum(*reach(kernel, step.low, step.high)) + np.abs(bias)
  out = step.unit * float((sums * unit).max()) / (2**15 - 1)
  codes = graph.tensor("codes", (step.features,), "int16", out)
  unit = unit * step.unit
  inputs = [
    x.index,
    graph.constant("head/kernel", kernel[0, 0].T.copy(), unit / x.step),
    graph.constant("head/bias", bias.astype(np.int64), unit),
  ]
  graph("FULLY_CONNECTED", inputs, codes)
  logits = graph.tensor("logits", (step.features,), "float32")
  return graph("DEQUANTIZE", [codes.index], logits)


def _is_int4(step: Step, int4: bool) -> bool:
  return int4 and step.w_bits <= 4 and step.target != "logits"


def _numbers(
  step: Step, int4: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A kernel, its sums' unit by channel in results, and biases in that unit."""
  largest = np.maximum(np.abs(step.kernel.astype(int)).max((0, 1, 2)), 1)
  times = (_TOP_4 if _is_int4(step, int4) else _TOP) // largest
  factor, bias = _factor(step.write), _bias(step.write)
  unit = np.abs(factor) / times
  # The products are nothing beside such a bias, and it would not fit.
  idle = np.abs(bias) >= unit * 2.0**_BIAS_BITS
  unit = np.where(idle, np.maximum(np.abs(bias), 1) / 2**20, unit)
  times = np.where(idle, 0, times * np.sign(factor)).astype(int)
  return (step.kernel * times).astype(np.int8), unit, np.rint(bias / unit)


def _factor(by: Rescale) -> np.ndarray:
  """By what a rescaling multiplies, float64 [channels]."""
  return by.multiplier / 2.0**by.shift


def _bias(by: Rescale) -> np.ndarray:
  """What a rescaling adds, in units of its result."""
  return (by.offset - 2 ** (by.shift - 1)) / 2.0**by.shift
