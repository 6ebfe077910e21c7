"""A ResNet in an ONNX or QONNX file, as a `Network` that trains on.

The graph is read from its logits to its images, since each tensor has one node
that makes it. It must be what `nn/resnet.py` computes: a stem, basic blocks,
average pooling and a dense layer, each as `onnx_layers` reads it. What
normalizes images is walked over, since whoever evaluates normalizes too.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import onnx

from jaxr18.deploy import judge, saved
from jaxr18.deploy.fold import hwio
from jaxr18.deploy.onnx_facts import (
  WEIGHTED,
  Fact,
  JudgeError,
  attributes,
  facts,
)
from jaxr18.deploy.onnx_layers import DENSE, Grid, Layers, Unit, fail
from jaxr18.deploy.state_dict import WeightsError
from jaxr18.nn.network import Network
from jaxr18.nn.spec import (
  FLOAT_BITS,
  HALF_BITS,
  TWO_BITS,
  BlockSpec,
  ConvSpec,
  HeadSpec,
  NetSpec,
  check,
)

_NORMALIZING = frozenset("Cast Div Mul Sub Add Transpose MatMul".split())


def load(path: str | os.PathLike) -> Network:
  """Reads a network from a file that `judge.load` opens.

  Zeros of integer kernels are a level of their grid and train on. Those of
  kernels in 16 and 32 bits were pruned, and are masked. An input's level of
  -2**(bits - 1) is given up, with a warning, for the one beside it.

  Returns:
    The network as `saved.unfold` makes it: `network.unfold_batch_norm` gives
    batch norm its statistics back.

  Raises:
    WeightsError: the file cannot be read, or a node of it does not fit: the
      first one, seen from the logits, is named.
  """
  try:
    model = judge.load(path)
    _merge(model.graph)
    reader = _Reader(model, facts(model))
    spec = reader.spec()
    check(spec)
    return saved.unfold(spec, *reader.numbers(spec))
  except JudgeError as e:
    raise WeightsError(str(e)) from e
  except Exception as e:  # whatever a damaged graph may cause
    raise WeightsError(
      f"{path} cannot be read as a ResNet: {e or repr(e)}"
    ) from e


@dataclasses.dataclass(frozen=True)
class _Block:
  conv1: Unit
  conv2: Unit
  proj: Unit | None
  grid: Grid  # of its sum's operands


class _Reader(Layers):
  """Walks a graph from its logits to its images."""

  def __init__(self, model: onnx.ModelProto, known: dict[str, Fact]):
    super().__init__(model.graph, known)
    self.graph = model.graph
    self.depth: dict[str, int] = {}  # convolutions before a tensor
    for node in model.graph.node:
      before = max((self.depth.get(x, 0) for x in node.input), default=0)
      after = before + (node.op_type in WEIGHTED)
      self.depth |= dict.fromkeys(node.output, after)
    self.units: dict[str, Unit] = {}
    self.sums: dict[str, Grid] = {}

  def spec(self) -> NetSpec:
    """Reads the layers, and describes them."""
    logits = self.reshaped(self.graph.output[0].name)
    head, x = self.unit(logits, DENSE | {"Conv"})
    blocks, x = self.blocks(self.pooled(self.reshaped(x)))
    stem, x = self.unit(self.relu(x))
    self.units["stem"] = stem
    spec_of_stem, stages = _conv_spec(stem), []
    width = spec_of_stem.features
    for block in blocks:
      conv1, conv2 = _conv_spec(block.conv1), _conv_spec(block.conv2)
      proj = None if block.proj is None else _conv_spec(block.proj)
      if not stages or conv1.stride != 1 or conv2.features != width:
        stages.append([])
      width = conv2.features
      stages[-1].append(BlockSpec(conv1, conv2, proj))
      name = f"stage{len(stages)}_block{len(stages[-1])}"
      self.sums[name] = block.grid
      for part in ("conv1", "conv2", "proj"):
        if (unit := getattr(block, part)) is not None:
          self.units[f"{name}/{part}"] = unit
    self.units["head"] = head
    last = _conv_spec(head)
    sum_bits = {g.bits for g in self.sums.values()} or {FLOAT_BITS}
    if len(sum_bits) > 1:
      raise ValueError(
        f"its sums have {sorted(sum_bits)} bits, expected as many"
      )
    return NetSpec(
      spec_of_stem,
      tuple(map(tuple, stages)),
      HeadSpec(last.features, last.w_bits, last.a_bits, two_bits=last.two_bits),
      self.resolution(x),
      stem[0].kernel.shape[2] * stem[0].groups,
      *sum_bits,
    )

  def numbers(self, spec: NetSpec) -> tuple[dict[str, Any], dict]:
    """What `saved.unfold` takes beside the spec: numbers, and kept weights."""
    folded: dict[str, Any] = {}
    kept, rest = {}, {unit: list(parts) for unit, parts in self.units.items()}
    for layer in spec.layers():
      part = rest[layer.unit].pop(0)
      if part.kernel.shape != hwio(layer):
        fail(
          part.node,
          f"has a kernel of {part.kernel.shape} (height, width, inputs,"
          f" outputs), expected {hwio(layer)} of what is before it",
        )
      if layer.a_bits < HALF_BITS and part.grid.signed != layer.signed_input:
        sides = "on both sides of" if layer.signed_input else "from"
        fail(part.node, "has an input whose levels are not " + sides + " 0")
      folded[layer.path] = dict(part.numbers)
      if layer.a_bits < HALF_BITS:
        folded[layer.path]["input_bound"] = np.float32(part.grid.bound)
      integers = "codes" in part.numbers
      kept[layer.path] = (part.kernel != 0) | integers
    for name, grid in self.sums.items():
      folded[name] = {"sum_bound": np.float32(grid.bound)}
    return folded, kept

  def blocks(self, x: str) -> tuple[list[_Block], str]:
    """Reads the blocks that end at a tensor, and what enters the first."""
    blocks: list[_Block] = []
    while True:
      _, x = self.grid(x)  # of a sum, which its operands' grid holds already
      add = self.maker.get(self.relu(x))
      if add is None or not self.is_sum(add):
        return blocks, x
      long, short = sorted(add.input, key=self.depth.__getitem__)[::-1]
      grid, long = self.grid(long, operand=True)
      other, short = self.grid(short, operand=True)
      # Of what comes from a ReLU the levels above 0 alone are in use.
      above = dataclasses.replace(grid, bits=grid.bits - 1, signed=False)
      if other not in (grid, above):
        fail(add, "has operands on two grids, expected one grid or none")
      conv2, inner = self.unit(long)
      conv1, x = self.unit(self.relu(inner))
      proj, entry = None, short
      if short != x and self.affine(short)[2].op_type == "Conv":
        proj, entry = self.unit(short)
      if entry != x:
        fail(add, f"sums what comes from {x!r} and from {entry!r}, expected a"
              " block's two convolutions and its input")  # fmt: skip
      blocks.insert(0, _Block(conv1, conv2, proj, grid))

  def pooled(self, x: str) -> str:
    """What enters average pooling over whole feature maps."""
    node = self.made(x, "average pooling")
    how, op = attributes(node), node.op_type
    axes = how.get("axes", ())
    if op == "ReduceMean" and len(node.input) > 1:
      axes = self.known[node.input[1]].array
    if op != "GlobalAveragePool" and {int(a) % 4 for a in axes} != {2, 3}:
      fail(node, "stands where GlobalAveragePool, or ReduceMean over height and"
            " width, is expected")  # fmt: skip
    return node.input[0]

  def resolution(self, x: str) -> int:
    """The side of the images that the stem sees."""
    inputs, side, turns = {i.name: i for i in self.graph.input}, 0, []
    while x not in inputs:
      node = self.made(x, "an input of the graph")
      variable = [n for n in node.input if self.known[n].value is None]
      if node.op_type not in _NORMALIZING or len(variable) != 1:
        fail(node, "stands where an image's normalization is expected")
      if node.op_type == "MatMul" and variable[0] == node.input[0]:
        side = self.known[node.input[1]].array.shape[-1]  # a resize to width
      if node.op_type == "Transpose":
        turns.insert(0, attributes(node)["perm"])
      x = variable[0]
    shape = [d.dim_value for d in inputs[x].type.tensor_type.shape.dim]
    for perm in turns:
      shape = [shape[i] for i in perm]
    if not side and (len(shape) != 4 or shape[2] != shape[3] or not shape[2]):
      raise ValueError(
        f"its input {x!r} has shape {shape}, expected square images of a size"
        " that it states"
      )
    return side or shape[2]


def _merge(graph: onnx.GraphProto) -> None:
  """Lets what reads one of several equal nodes read the first of them."""
  first: dict[tuple, onnx.NodeProto] = {}
  instead: dict[str, str] = {}
  for node in graph.node:
    node.input[:] = [instead.get(x, x) for x in node.input]
    how = sorted(a.SerializeToString() for a in node.attribute)
    key = (node.domain, node.op_type, *node.input, *how)
    one = first.setdefault(key, node)
    if one is not node:
      instead |= zip(node.output, one.output, strict=True)


def _conv_spec(unit: Unit) -> ConvSpec:
  """Describes the convolutions of a unit, which share their bits."""
  bits = {(*p.bits, p.grid.bits) for p in unit}
  if len(bits) > 1:
    fail(unit[-1].node, "has other bits than the convolution before it, without"
          " a ReLU between; expected the same")  # fmt: skip
  ((w_bits, four, a_bits),) = bits
  sides = [p.kernel.shape[0] for p in unit]
  core = int(np.argmax(sides))
  one = unit[core]
  how: dict[str, Any] = dict(
    w_bits=w_bits, a_bits=a_bits, two_bits=TWO_BITS[four]
  )
  inputs, features = one.kernel.shape[2] * one.groups, one.kernel.shape[3]
  shape = (unit[-1].kernel.shape[3], sides[core], one.stride)
  if len(unit) == 1:
    return ConvSpec(*shape, one.groups, **how)
  others = [p for i, p in enumerate(unit) if i != core]
  if any(p.kernel.shape[0] != 1 or p.stride != 1 or p.groups != 1
         for p in others):  # fmt: skip
    fail(unit[-1].node, "follows another convolution without a ReLU between,"
          " expected a depthwise-separable or a low-rank pair")  # fmt: skip
  if core == 0 and one.groups == inputs == features > 1 and len(unit) == 2:
    return ConvSpec(*shape, depthwise=True, **how)
  ranks = (inputs if core else 0, features if core < len(unit) - 1 else 0)
  return ConvSpec(*shape, one.groups, ranks=ranks, **how)
