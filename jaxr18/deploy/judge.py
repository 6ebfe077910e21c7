"""Scores anybody's network from its ONNX or QONNX file.

Weights, zeros, MACs and the bits that its nodes really apply are read from the
graph, layer by layer; no claim of the file's maker enters. A layer is what
multiplies: Conv, ConvTranspose, Gemm, MatMul and their integer forms. An
operation that is not understood ends the count with its name, since a guess
would be worth nothing.

Integers are charged by the range of their codes: weights stored in int8 that
use -7 to 7 are of 4 bits. Floats that happen to lie on a grid of few levels are
of 32 bits, since no node applies them, and a remark says so. Zeros of a float
kernel count as removed. Those of integers are a level of their grid, and count
as removed only where the caller says that they were pruned: the file cannot
tell the two apart, and they must not be charged for twice.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import shape_inference

from jaxr18.cost.figures import (
  BIAS_BITS,
  PARAMS_REFERENCE,
  Figure,
  LayerScore,
  Score,
)
from jaxr18.cost.kept import encodings
from jaxr18.cost.score import SCALE_BITS, per_layer_figure, per_network_score
from jaxr18.deploy.onnx_facts import (
  FLOAT_BITS,
  HALF_BITS,
  QONNX,
  WEIGHTED,
  Fact,
  JudgeError,
  attributes,
  facts,
  named,
)
from jaxr18.host.inputs import check_file

FEW = 256  # levels of a float kernel that a remark is made of


@dataclasses.dataclass(frozen=True)
class Judged:
  """What a file's network costs.

  Attributes:
    score: the three figures and a row for each layer.
    remarks: what a reader should know, a sentence each.
    zeros: weights that are 0, removed or not.
    producer: who wrote the file, as it says itself.
  """

  score: Score
  remarks: tuple[str, ...]
  zeros: int
  producer: str


def judge(
  path: str | os.PathLike,
  *,
  shape: Sequence[int] | None = None,
  zeros_removed: bool = False,
) -> Judged:
  """Counts the network in a file for one image.

  Args:
    path: of an ONNX or QONNX model with one input that is no constant.
    shape: of that input, where the file leaves sizes open; the first, which
      counts images, is 1 where the file does not fix it.
    zeros_removed: whether zeros of integer kernels were pruned.

  Returns:
    A `Judged`. per-network figures take w and the largest bits over all layers.

  Raises:
    JudgeError: no file, no ONNX, an operation that is not understood, or sizes
      that the file leaves open.
  """
  model = load(path)
  try:
    return _judged(model, path, shape, zeros_removed)
  except JudgeError:
    raise
  except Exception as e:  # whatever a damaged graph may cause
    raise JudgeError(
      f"{path} holds no graph that can be counted ({e!r}); onnx.checker"
      ".check_model may tell what is wrong with it"
    ) from e


def _judged(model, path, shape, zeros_removed: bool) -> Judged:
  model, images = _prepared(model, shape)
  known, shapes = facts(model), _shapes(model)
  graph = _Graph(model, known, shapes, images, zeros_removed)
  for node in model.graph.node:
    if node.op_type in WEIGHTED:
      graph.add_layer(node)
    elif node.op_type == "BatchNormalization":
      graph.add_norm(node)
  if not graph.rows:
    raise JudgeError(f"{path} has no layer that multiplies by weights")
  by = " ".join((model.producer_name, model.producer_version)).strip()
  return Judged(graph.score(), tuple(graph.remarks), graph.zeros, by)


def load(path: str | os.PathLike) -> onnx.ModelProto:
  """Loads a model with its local functions written out.

  Raises:
    JudgeError: it cannot be read.
  """
  try:
    check_file(path)
    model = onnx.load(os.fspath(path))
    if not model.graph.node:
      raise ValueError("it has no graph")
    return onnx.inliner.inline_local_functions(model)
  except Exception as e:  # protobuf's errors have no common base
    raise JudgeError(
      f"{path} cannot be read as ONNX: {e}; give a file that onnx.checker"
      " accepts"
    ) from e


class _Graph:
  """The rows found so far, and what is looked up for them."""

  def __init__(self, model, known, shapes, images, zeros_removed):
    self.known: dict[str, Fact] = known
    self.shapes: dict[str, tuple[int, ...]] = shapes
    self.images, self.zeros_removed = images, zeros_removed
    self.users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
      for name in node.input:
        self.users.setdefault(name, []).append(node)
    self.rows: list[LayerScore] = []
    self.remarks: list[str] = []
    self.params = self.removed = self.zeros = 0
    self.charged: set[str] = set()
    self.folds: set[str] = set()  # batch norms that follow a convolution

  def add_layer(self, node: onnx.NodeProto) -> None:
    """Adds the row of a node that multiplies."""
    x, w = _operands(node)
    a, b = self.known[x], self.known[w]
    if b.value is None and a.value is not None and "Gemm" not in node.op_type:
      (x, w), (a, b) = (w, x), (b, a)  # a MatMul by a constant from the left
    name = node.name or node.output[0]
    macs = self._macs(node, x, w)
    if b.value is None:  # of activations, such as attention's
      kernel, weights, zeros = self._shape(node, w), 0, 0
    else:
      kernel, weights = b.value.shape, b.value.size
      zeros = _zeros(node, b, self.known)
      if b.root in self.charged:
        self.remarks.append(f"{name} shares its weights: they are charged once")
        weights = zeros = 0
      self.charged.add(b.root)
      self._remark_grid(name, b)
    self.zeros += zeros
    gone = zeros if b.bits >= HALF_BITS or self.zeros_removed else 0
    scales, biases, biases_kept = self._behind(node)
    if b.bits < HALF_BITS:  # by channel, once they are folded
      b = dataclasses.replace(b, scales=max(b.scales, scales))
    self.params += weights + biases
    self.removed += gone + biases - biases_kept
    self._add(
      name, kernel, attributes(node).get("group", 1), b, a,
      (weights, weights - gone), (biases, biases_kept), macs,
    )  # fmt: skip

  def add_norm(self, node: onnx.NodeProto) -> None:
    """Adds the numbers of a batch norm that folds into no convolution."""
    size = self.known[node.input[1]].value
    if size is None:
      raise JudgeError(f"{named(node)} has a scale that is no constant")
    if node.output[0] in self.folds:
      self.params += size.size  # its bias is the convolution's
      return
    self.params += 2 * size.size
    self._add(node.name or node.output[0], (size.size,), 1, Fact(), Fact(),
              (size.size, size.size), (size.size, size.size), 0)  # fmt: skip

  def score(self) -> Score:
    rows = tuple(self.rows)
    per_layer = per_layer_figure(rows)
    bits = sum(row.stored_bits for row in rows)
    layers = [row for row in rows if row.macs]
    per_network = per_network_score(
      self.params,
      sum(row.macs for row in rows),
      p_u=self.removed / max(self.params, 1),
      q_w=max(row.w_bits for row in layers),
      q_a=max(row.a_bits for row in layers),
    )
    return Score(per_network, per_layer, Figure(bits / 32 / PARAMS_REFERENCE,
                                       per_layer.ops_term), rows)  # fmt: skip

  def _add(self, name, kernel, groups, b, a, weights, biases, macs) -> None:
    size, kept = weights
    forms = encodings((size,), kept, b.bits) if size else {"dense": 0}
    form = min(forms, key=forms.__getitem__)
    scales = b.scales if b.bits < HALF_BITS and size else 0
    scales += int(a.bits < HALF_BITS and a.scales > 0)
    self.rows.append(LayerScore(
      path=name, kernel_shape=tuple(kernel), groups=groups, w_bits=b.bits,
      a_bits=a.bits, weights=size, kept=kept, biases=biases[0],
      biases_kept=biases[1], macs=macs, encoding=form,
      stored_bits=forms[form] + biases[0] * BIAS_BITS + scales * SCALE_BITS,
    ))  # fmt: skip

  def _macs(self, node, x: str, w: str) -> int:
    """Products for one image; taps on the padding are among them."""
    op, out = node.op_type, self._shape(node, node.output[0])
    kernel = self._shape(node, w)
    if op == "ConvTranspose":  # each pixel of the input meets the whole kernel
      one = math.prod(self._shape(node, x)) * math.prod(kernel[1:])
    elif "Conv" in op:
      one = math.prod(out) * math.prod(kernel[1:])
    elif op in ("Gemm", "QGemm"):
      how = attributes(node)
      inner = self._shape(node, x)[0 if how.get("transA", 0) else 1]
      one = math.prod(out) * inner
    else:
      left = self._shape(node, _operands(node)[0])
      one = math.prod(out) * left[-1]
    if one % self.images:
      raise JudgeError(
        f"{named(node)} takes {one} products for {self.images} images, which"
        " is no whole number for one; export with a batch of 1"
      )
    return one // self.images

  def _shape(self, node, name: str) -> tuple[int, ...]:
    value = self.known[name].value
    if value is not None:
      return value.shape
    if name not in self.shapes:
      raise JudgeError(
        f"{named(node)} has a tensor {name!r} whose size the file leaves open;"
        " give the input's shape, such as --shape=1,3,32,32"
      )
    return self.shapes[name]

  def _behind(self, node) -> tuple[int, int, int]:
    """Scales by output channel, biases, and those of them that are not 0.

    Biases stand at the node, or right behind it after a multiplication. A batch
    norm that follows folds into one scale and one bias for each channel.
    """
    at = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8,
          "QGemm": 6}.get(node.op_type, len(node.input))  # fmt: skip
    values = self._constants(node.input[at : at + 1])
    behind, scales = self._user(node), 0
    if behind is not None and behind.op_type == "Mul":
      factors = self._constants(behind.input)
      scales = max(map(np.size, factors), default=0)
      behind = self._user(behind) if factors else None
    if behind is not None and behind.op_type == "BatchNormalization":
      self.folds.add(behind.output[0])
      scale = self.known[behind.input[1]].value
      if scale is not None:
        return scale.size, scale.size, scale.size
    if behind is not None and behind.op_type in ("Add", "Sub"):
      values += self._constants(behind.input)
    value = max(values, key=np.size, default=np.zeros(0))
    return scales, value.size, int(np.count_nonzero(value))

  def _user(self, node) -> onnx.NodeProto | None:
    """The only node that takes a node's output."""
    users = self.users.get(node.output[0], [])
    return users[0] if len(users) == 1 else None

  def _constants(self, names) -> list[np.ndarray]:
    values = (self.known[name].value for name in names)
    return [v for v in values if v is not None]

  def _remark_grid(self, name: str, b: Fact) -> None:
    if b.bits < FLOAT_BITS:
      return
    levels = len(np.unique(b.array))
    if levels <= min(FEW, b.array.size // 2):
      self.remarks.append(
        f"the weights of {name} have {levels} levels only, but are stored and"
        " multiplied as floats: they are charged with 32 bits"
      )


def _operands(node) -> tuple[str, str]:
  """The names of what is multiplied: input, weights."""
  if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):
    return node.input[0], node.input[3]
  return node.input[0], node.input[1]


def _zeros(node, b: Fact, known) -> int:
  """Weights that are 0 in real numbers."""
  at = {"QLinearConv": 5, "QLinearMatMul": 5, "QGemm": 5, "ConvInteger": 3,
        "MatMulInteger": 3}.get(node.op_type)  # fmt: skip
  zero = 0
  if at is not None and len(node.input) > at and node.input[at]:
    value = known[node.input[at]].value
    if value is not None:
      zero = (
        value.reshape(-1, *[1] * (b.array.ndim - 1))
        if value.size > 1
        else (value.reshape(()))
      )
  return int((b.array == zero).sum())


def _prepared(
  model: onnx.ModelProto, shape: Sequence[int] | None
) -> tuple[onnx.ModelProto, int]:
  """The model with a known input, and how many images that is."""
  constants = {t.name for t in model.graph.initializer}
  inputs = [i for i in model.graph.input if i.name not in constants]
  if len(inputs) != 1:
    raise JudgeError(
      f"the model has {len(inputs)} inputs"
      f" ({', '.join(i.name for i in inputs)}), expected one of images"
    )
  dims = inputs[0].type.tensor_type.shape.dim
  given = list(shape or ())
  if given and len(given) != len(dims):
    raise JudgeError(
      f"shape (={tuple(given)}) has {len(given)} sizes, the model's input"
      f" {inputs[0].name!r} has {len(dims)}"
    )
  for i, dim in enumerate(dims):
    fixed = dim.dim_value if dim.HasField("dim_value") else 0
    if given and fixed and fixed != given[i]:
      raise JudgeError(
        f"shape (={tuple(given)}) has {given[i]} at {i}, where the model's"
        f" input {inputs[0].name!r} has {fixed}"
      )
    size = fixed or (given[i] if given else int(i == 0))
    if not size:
      raise JudgeError(
        f"the model's input {inputs[0].name!r} leaves its size {i} open; give"
        " its shape, such as --shape=1,3,32,32"
      )
    dim.dim_value = size
  return model, dims[0].dim_value if dims else 1


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
  """Sizes of all tensors, as far as ONNX's own inference tells them."""
  plain = copy.deepcopy(model)
  for node in plain.graph.node:
    if node.domain in QONNX:  # which keep their input's shape
      node.op_type, node.domain = "Identity", ""
      del node.input[1:]
      del node.attribute[:]
  del plain.graph.value_info[:]  # may hold another batch's
  inferred = shape_inference.infer_shapes(plain, data_prop=True).graph
  out = {}
  for one in (*inferred.input, *inferred.value_info, *inferred.output):
    dims = one.type.tensor_type.shape.dim
    if all(d.HasField("dim_value") for d in dims):
      out[one.name] = tuple(d.dim_value for d in dims)
  return out


def accuracy(
  path: str | os.PathLike,
  split,
  mean: Sequence[float],
  std: Sequence[float],
  progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
  """Counts right answers by ONNX Runtime; returns them and all images.

  A uint8 input gets the images as they are; a float input gets them divided by
  255 and normalized by mean and std. The layout follows from the channels.

  Args:
    path: of the model; one output of [n, classes] logits.
    split: with `images`, uint8 [n, size, size, channels], and `labels` [n].
    mean, std: by channel.
    progress: is told how many images are done.

  Raises:
    JudgeError: ONNX Runtime refuses the file, its input fits no image, or an
      answer is not finite.
  """
  import onnxruntime

  try:
    session = onnxruntime.InferenceSession(
      os.fspath(path), providers=["CPUExecutionProvider"]
    )
  except Exception as e:
    raise JudgeError(
      f"{path} is refused by ONNX Runtime, so it has no accuracy here: {e}"
    ) from e
  one, correct, total = session.get_inputs()[0], 0, len(split.labels)
  form = _feeding(one, split.images.shape[1:], mean, std)
  fixed = isinstance(one.shape[0], int)
  size = one.shape[0] if fixed else 200
  for start in range(0, total, size):
    part = split.images[start : start + size]
    short = size - len(part) if fixed else 0
    padded = np.concatenate([part, np.repeat(part[-1:], short, 0)])
    outputs: Any = session.run(None, {one.name: form(padded)})
    logits = outputs[0][: len(part)]
    if not np.isfinite(logits).all():
      raise JudgeError(f"{path} gives logits that are not finite")
    labels = split.labels[start : start + size]
    correct += int((logits.reshape(len(part), -1).argmax(-1) == labels).sum())
    progress(start + len(part))
  return correct, total


def _feeding(one, image: Sequence[int], mean, std) -> Callable:
  """A function from uint8 images [n, h, w, c] to a model's input."""
  height, width, channels = image
  shape = tuple(one.shape[1:])
  fits = lambda want: (
    len(shape) == 3
    and all(
      got == size or not isinstance(got, int)
      for got, size in zip(shape, want, strict=True)
    )
  )
  if fits((channels, height, width)):
    axes = (0, 3, 1, 2)
  elif fits((height, width, channels)):
    axes = (0, 1, 2, 3)
  else:
    raise JudgeError(
      f"the model's input {one.name!r} has the shape {one.shape}, and the"
      f" images are [n, {height}, {width}, {channels}] or, channels first,"
      f" [n, {channels}, {height}, {width}]; give images that fit"
    )
  if one.type == "tensor(uint8)":
    return lambda x: np.ascontiguousarray(x.transpose(axes))
  types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
  if one.type not in types:
    raise JudgeError(
      f"the model's input {one.name!r} is a {one.type}, expected uint8 or float"
    )
  center, spread = (np.asarray(v, np.float32) for v in (mean, std))

  def form(x):
    x = (x.astype(np.float32) / 255 - center) / spread
    return np.ascontiguousarray(x.transpose(axes).astype(types[one.type]))

  return form
