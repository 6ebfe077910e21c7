"""The static description of a network: what it is, without its numbers.

A `NetSpec` is frozen and hashable, so it can be a static argument of jit, and
it goes through JSON and back, so a checkpoint can carry it. Everything about
a network that is not an array is here: widths, depths, strides, groups, bits.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

FLOAT_BITS = 32  # means: not quantized
HALF_BITS = 16  # means: rounded to float16, which needs no scale
BITS = (2, 3, 4, 5, 6, 7, 8, HALF_BITS, FLOAT_BITS)
W_BITS = (1, *BITS)  # 1 of a weight is its sign
SUM_BITS = (*range(4, 17), FLOAT_BITS)  # of a residual sum

# How a quantized input comes to its largest value; see nn/quantize.py.
SCALES = ("lsq", "lsq_paper", "pact", "fixed", "dynamic")
# How a quantized kernel comes to its scales.
W_SCALES = ("least_error", "learned", "learned_channel")
# What the 2 bits of a weight say: -1, 0, 1; or -3, -1, 1, 3, without a zero.
TWO_BITS = ("ternary", "four_levels")
# A sign has no end to learn. At 8 bits there is little to gain, and LSQ's
# factor of the gradient is a thousand times that of 2 bits: the end of a head
# ran to 4,000 root mean squares within three epochs.
LEARNED_BITS = range(2, 8)


# The parameters in which a layer, or a block, keeps the ends of its grids.
BOUNDS = ("input_bound", "kernel_bound", "sum_bound")
# What a layer's quantization is described by.
_BITS = ("w_bits", "a_bits", "scales", "w_scales", "two_bits")


@dataclasses.dataclass(frozen=True)
class ConvSpec:
  """A square convolution with padding kernel // 2.

  Attributes:
    features: output channels.
    kernel: side of the kernel, in taps.
    stride: in both directions.
    groups: channel groups; input and output channels are divisible by it.
    depthwise: a depthwise kernel x kernel convolution, then a pointwise 1x1,
      with no activation between; then `groups` is 1.
    ranks: (r_in, r_out) of a low-rank convolution: a 1x1 to r_in channels,
      kernel x kernel from r_in to r_out, a 1x1 to `features`, with no
      activation between; 0 leaves that 1x1 out. (0, 0) is full rank.
    w_bits: bits of a weight, 32 for unquantized.
    a_bits: bits of an input activation, 32 for unquantized.
    scales: how a quantized input comes to its largest value.
    w_scales: how a quantized kernel comes to the ends of its grid.
    two_bits: the levels of a weight of 2 bits.
  """

  features: int
  kernel: int = 3
  stride: int = 1
  groups: int = 1
  depthwise: bool = False
  w_bits: int = FLOAT_BITS
  a_bits: int = FLOAT_BITS
  ranks: tuple[int, int] = (0, 0)
  scales: str = SCALES[0]
  w_scales: str = W_SCALES[0]
  two_bits: str = TWO_BITS[0]

  def parts(self, in_features: int) -> tuple[tuple[str, ConvSpec], ...]:
    """Lists the primitive convolutions in order, with their names in the tree.

    A convolution that is not factorized is its own only part, named ''.
    """
    bits = {name: getattr(self, name) for name in _BITS}
    if self.depthwise:
      inner = ConvSpec(
        in_features, self.kernel, self.stride, in_features, **bits
      )
      return (
        ("depthwise", inner),
        ("pointwise", ConvSpec(self.features, 1, **bits)),
      )
    if not any(self.ranks):
      return (("", self),)
    r_in, r_out = self.ranks
    inner = ConvSpec(r_out or self.features, self.kernel, self.stride, **bits)
    parts = [("core", inner)]
    if r_in:
      parts.insert(0, ("reduce", ConvSpec(r_in, 1, **bits)))
    if r_out:
      parts.append(("expand", ConvSpec(self.features, 1, **bits)))
    return tuple(parts)


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """A basic block: conv1, conv2 and the shortcut.

  `proj` is the 1x1 convolution of a projection shortcut, None for the
  identity. It is stated and not derived by comparing shapes: after pruning,
  widths can coincide where a projection still stands.
  """

  conv1: ConvSpec
  conv2: ConvSpec
  proj: ConvSpec | None = None


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """The classifier: a dense layer with bias on the pooled features."""

  classes: int = 10
  w_bits: int = FLOAT_BITS
  a_bits: int = FLOAT_BITS
  scales: str = SCALES[0]
  w_scales: str = W_SCALES[0]
  two_bits: str = TWO_BITS[0]


def has_bound(layer: ConvSpec | HeadSpec | Layer) -> bool:
  """Returns whether a layer has a parameter for the bound of its input."""
  return layer.a_bits < HALF_BITS and layer.scales != "dynamic"


def has_kernel_bound(layer: ConvSpec | HeadSpec | Layer) -> bool:
  """Returns whether a layer has a parameter for the bound of its kernel."""
  return layer.w_bits in LEARNED_BITS and layer.w_scales != W_SCALES[0]


def has_four_levels(layer: ConvSpec | HeadSpec | Layer) -> bool:
  """Returns whether the weights are -3, -1, 1 or 3 times a scale, never 0."""
  return layer.w_bits == 2 and layer.two_bits == "four_levels"


@dataclasses.dataclass(frozen=True)
class Layer:
  """One convolution or dense layer, as `NetSpec.layers` lists them.

  `path` is the layer's path in the parameter tree, `unit` the path of the
  `ConvSpec` it belongs to: a depthwise-separable convolution has two layers, a
  low-rank one up to three, and batch norm follows the one that `ends_unit`.
  `in_size` and `out_size` are sides of the feature map in pixels.
  `signed_input` is False where the input comes straight from a ReLU.
  """

  path: str
  unit: str
  kind: str  # 'conv' or 'dense'
  in_features: int
  features: int
  kernel: int
  stride: int
  groups: int
  in_size: int
  out_size: int
  w_bits: int
  a_bits: int
  signed_input: bool
  ends_unit: bool = True
  scales: str = SCALES[0]
  w_scales: str = W_SCALES[0]
  two_bits: str = TWO_BITS[0]

  @property
  def kernel_shape(self) -> tuple[int, ...]:
    """Shape of the kernel: HWIO, or [in, out] of a dense layer."""
    if self.kind == "dense":
      return self.in_features, self.features
    inputs = self.in_features // self.groups
    return self.kernel, self.kernel, inputs, self.features

  @property
  def macs(self) -> int:
    """Multiply-accumulates for one image, padding taps included."""
    return math.prod(self.kernel_shape) * self.out_size**2


@dataclasses.dataclass(frozen=True)
class NetSpec:
  """A ResNet: stem, stages of basic blocks, average pooling, head.

  Attributes:
    stem: the first convolution.
    stages: blocks by stage.
    head: the classifier.
    resolution: side of the input image in pixels.
    channels: channels of the input image.
    sum_bits: bits of a residual sum and of its two operands, which lie on one
      grid of each block; 32 for unquantized.
  """

  stem: ConvSpec
  stages: tuple[tuple[BlockSpec, ...], ...]
  head: HeadSpec = HeadSpec()
  resolution: int = 32
  channels: int = 3
  sum_bits: int = FLOAT_BITS

  def blocks(self) -> Iterator[tuple[str, BlockSpec]]:
    """Lists the blocks in order, with names such as 'stage1_block2'."""
    for i, stage in enumerate(self.stages, 1):
      for j, block in enumerate(stage, 1):
        yield f"stage{i}_block{j}", block

  def units(self) -> Iterator[tuple[str, ConvSpec | HeadSpec]]:
    """Lists what has bits of its own, in forward order, with its path."""
    yield "stem", self.stem
    for name, block in self.blocks():
      yield f"{name}/conv1", block.conv1
      yield f"{name}/conv2", block.conv2
      if block.proj is not None:
        yield f"{name}/proj", block.proj
    yield "head", self.head

  def layers(self) -> tuple[Layer, ...]:
    """Lists every convolution and dense layer, in forward order."""
    out: list[Layer] = []
    size = self.resolution
    features = self.channels

    def conv(unit, spec, in_features, size, signed):
      parts = spec.parts(in_features)
      for i, (name, part) in enumerate(parts):
        out_size = (size - 1) // part.stride + 1
        out.append(
          Layer(
            path=f"{unit}/{name}" if name else unit,
            unit=unit,
            kind="conv",
            in_features=in_features,
            features=part.features,
            kernel=part.kernel,
            stride=part.stride,
            groups=part.groups,
            in_size=size,
            out_size=out_size,
            signed_input=signed or i > 0,
            ends_unit=i == len(parts) - 1,
            **{name: getattr(part, name) for name in _BITS},
          )
        )
        in_features, size = part.features, out_size
      return in_features, size

    features, size = conv("stem", self.stem, features, size, True)
    for name, block in self.blocks():
      inner, inner_size = conv(
        f"{name}/conv1", block.conv1, features, size, False
      )
      stream, out_size = conv(
        f"{name}/conv2", block.conv2, inner, inner_size, False
      )
      if block.proj is not None:
        conv(f"{name}/proj", block.proj, features, size, False)
      features, size = stream, out_size
    out.append(
      Layer(
        path="head",
        unit="head",
        kind="dense",
        in_features=features,
        features=self.head.classes,
        kernel=1,
        stride=1,
        groups=1,
        in_size=1,
        out_size=1,
        signed_input=False,
        **{name: getattr(self.head, name) for name in _BITS},
      )
    )
    return tuple(out)

  def to_json(self) -> str:
    values = dataclasses.asdict(self)
    if self.sum_bits == FLOAT_BITS:  # as files of older versions have it
      del values["sum_bits"]
    return json.dumps(values, indent=1)

  @staticmethod
  def from_json(text: str) -> NetSpec:
    """Reads what `to_json` wrote; raises ValueError on anything else."""
    try:
      spec = _net_from_dict(json.loads(text))
      check(spec)
      return spec
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as e:
      raise ValueError(f"not a network's description in JSON: {e!r}") from e


def _net_from_dict(d: dict[str, Any]) -> NetSpec:
  def conv(c) -> Any:
    if c is None:
      return None
    conv = ConvSpec(**c)
    return dataclasses.replace(conv, ranks=tuple(conv.ranks))

  stages = tuple(
    tuple(BlockSpec(**{k: conv(v) for k, v in b.items()}) for b in stage)
    for stage in d["stages"]
  )
  return NetSpec(
    stem=conv(d["stem"]),
    stages=stages,
    head=HeadSpec(**d["head"]),
    resolution=d["resolution"],
    channels=d["channels"],
    sum_bits=d.get("sum_bits", FLOAT_BITS),
  )


def resnet(
  widths: Sequence[int] = (64, 128, 256, 512),
  blocks: Sequence[int] = (2, 2, 2, 2),
  strides: Sequence[int] = (1, 2, 2, 2),
  groups: Sequence[int] = (1, 1, 1, 1),
  depthwise: Sequence[bool] = (False, False, False, False),
  stem_features: int | None = None,
  classes: int = 10,
  resolution: int = 32,
) -> NetSpec:
  """Describes a ResNet of basic blocks for small images (He et al., 2015).

  The five sequences are by stage and equally long.

  Args:
    widths: features of each stage's blocks.
    blocks: in each stage.
    strides: of each stage's first block.
    groups, depthwise: of the 3x3 convolutions of a stage's blocks; the stem and
      the 1x1 projections stay dense.
    stem_features: the first width by default.
    classes: outputs of the head.
    resolution: pixels a side.

  Raises:
    ValueError: a width not divisible by its groups, unequal lengths, or
      whatever else `check` finds.
  """
  lengths = {
    name: len(v)
    for name, v in dict(
      widths=widths,
      blocks=blocks,
      strides=strides,
      groups=groups,
      depthwise=depthwise,
    ).items()
  }
  if len(set(lengths.values())) != 1 or not widths:
    raise ValueError(
      "one entry a stage and at least one stage are needed in each sequence,"
      f" got lengths {lengths}"
    )
  stem = ConvSpec(stem_features or widths[0])
  features = stem.features
  stages = []
  for i in range(len(widths)):
    stage = []
    for j in range(blocks[i]):
      stride = strides[i] if j == 0 else 1
      conv1, conv2 = (
        ConvSpec(widths[i], stride=s, groups=groups[i], depthwise=depthwise[i])
        for s in (stride, 1)
      )
      proj = None
      if stride != 1 or features != widths[i]:
        proj = ConvSpec(widths[i], kernel=1, stride=stride)
      stage.append(BlockSpec(conv1, conv2, proj))
      features = widths[i]
    stages.append(tuple(stage))
  spec = NetSpec(stem, tuple(stages), HeadSpec(classes), resolution)
  check(spec)
  return spec


def with_input(spec: NetSpec, channels: int, stem_stride: int = 1) -> NetSpec:
  """The spec for images of so many channels, seen by so large a first step.

  Raises:
    ValueError: as `check`.
  """
  stem = dataclasses.replace(spec.stem, stride=stem_stride)
  spec = dataclasses.replace(spec, stem=stem, channels=channels)
  check(spec)
  return spec


def resnet18() -> NetSpec:
  """Describes ResNet-18 for CIFAR: 11,173,962 parameters, 555,422,720 MACs."""
  return resnet()


def check(spec: NetSpec) -> None:
  """Raises ValueError, naming the layer, where a spec is not a network."""
  _check_ints("the network", spec, ("resolution", "channels", "sum_bits"))
  for path, unit in spec.units():
    names = [f.name for f in dataclasses.fields(unit) if f.type == "int"]
    _check_ints(path, unit, names)
    for name, allowed in (("w_bits", W_BITS), ("a_bits", BITS)):
      if getattr(unit, name) not in allowed:
        raise ValueError(
          f"{path}: {name} (={getattr(unit, name)}) must be one of {allowed}"
        )
    for name, allowed in (
      ("scales", SCALES),
      ("w_scales", W_SCALES),
      ("two_bits", TWO_BITS),
    ):
      if getattr(unit, name) not in allowed:
        raise ValueError(
          f"{path}: {name} (={getattr(unit, name)!r}) must be one of {allowed}"
        )
    if isinstance(unit, ConvSpec):
      _check_conv(path, unit)
  for layer in spec.layers():
    for name in ("in_features", "features"):
      if getattr(layer, name) % layer.groups:
        raise ValueError(
          f"{layer.path}: {name} (={getattr(layer, name)}) must be divisible"
          f" by groups (={layer.groups})"
        )
  _check_blocks(spec)


def _check_conv(path: str, unit: ConvSpec) -> None:
  if unit.kernel % 2 != 1:
    raise ValueError(f"{path}: kernel (={unit.kernel}) must be odd")
  if not isinstance(unit.depthwise, bool):
    raise ValueError(f"{path}: depthwise (={unit.depthwise!r}) must be a bool")
  if unit.depthwise and unit.groups != 1:
    raise ValueError(
      f"{path}: a depthwise convolution has groups=1 in its spec, got"
      f" groups={unit.groups}"
    )
  _check_ranks(path, unit)


def _check_blocks(spec: NetSpec) -> None:
  if spec.sum_bits not in SUM_BITS:
    raise ValueError(
      f"the network: sum_bits (={spec.sum_bits}) must be one of {SUM_BITS}"
    )
  features = spec.stem.features
  for name, block in spec.blocks():
    if block.conv2.stride != 1:
      raise ValueError(
        f"{name}/conv2: stride (={block.conv2.stride}) must be 1; a block's"
        " stride is conv1's"
      )
    if block.proj is None:
      if block.conv1.stride != 1 or block.conv2.features != features:
        raise ValueError(
          f"{name}: an identity shortcut needs stride 1 and {features}"
          f" features, got stride {block.conv1.stride} and"
          f" {block.conv2.features}; give the block a proj"
        )
    elif (block.proj.features, block.proj.stride) != (
      block.conv2.features,
      block.conv1.stride,
    ):
      raise ValueError(
        f"{name}: proj must have conv2's features and conv1's stride, got"
        f" {block.proj}"
      )
    features = block.conv2.features


def _check_ranks(path: str, unit: ConvSpec) -> None:
  r = unit.ranks
  if (
    not isinstance(r, tuple)
    or len(r) != 2
    or any(type(n) is not int or n < 0 for n in r)
  ):
    raise ValueError(
      f"{path}: ranks (={r!r}) must be two ints, such as (16, 16); 0 leaves a"
      " side at full rank"
    )
  if any(r) and (unit.depthwise or unit.groups != 1):
    raise ValueError(
      f"{path}: a low-rank convolution is neither grouped nor depthwise, got"
      f" {unit}"
    )


def _check_ints(path: str, holder: Any, names: Sequence[str]) -> None:
  # NumPy's integers do not go through JSON, and True is not a width.
  for name in names:
    value = getattr(holder, name)
    if type(value) is not int or value < 1:
      raise ValueError(f"{path}: {name} (={value!r}) must be an int above 0")


def decide(
  rules: Sequence[tuple],
  paths: Sequence[str],
  what: str = "rule",
  end: tuple | None = None,
) -> dict[str, Any]:
  """Finds the first rule whose regex, its first entry, matches a whole path.

  Args:
    rules: in their order.
    paths: of the layers.
    what: names a rule in an error.
    end: where each layer needs a rule, one to end with.

  Returns:
    By path; None where no rule matches and none is needed.

  Raises:
    ValueError: a layer without a rule that it needs, or a rule that decides no
      layer.
  """
  first = {}
  for path in paths:
    matching = (i for i, r in enumerate(rules) if re.fullmatch(r[0], path))
    first[path] = next(matching, None)
    if first[path] is None and end is not None:
      raise ValueError(
        f"no {what} matches layer {path!r}; the rules are"
        f" {[r[0] for r in rules]}; end them with {end}"
      )
  for i, rule in enumerate(rules):
    if i not in first.values():
      raise ValueError(
        f"{what} {tuple(rule)} decides no layer (an earlier rule may take them"
        f" all); the layers are {list(paths)}"
      )
  return {path: None if i is None else rules[i] for path, i in first.items()}


def with_bits(
  spec: NetSpec,
  rules: Sequence[tuple[str, int, int]],
  scales: str = SCALES[0],
  w_scales: str = W_SCALES[0],
  two_bits: str = TWO_BITS[0],
) -> NetSpec:
  """Sets bits by ordered rules `(regex, w_bits, a_bits)` on layer paths.

  The first rule whose regex matches a whole path ('stem',
  'stage1_block2/conv1', 'head') decides it.

  Args:
    spec: of any bits.
    rules: in their order.
    scales: of all inputs that are quantized, one of `SCALES`.
    w_scales: of all kernels of 2 to 7 bits, one of `W_SCALES`.
    two_bits: of the kernels of 2 bits, one of `TWO_BITS`.

  Raises:
    ValueError: a layer that no rule matches, or a rule that decides no layer.
  """
  paths = [path for path, _ in spec.units()]
  first = decide(rules, paths, "bits rule", end=(".*", 32, 32))
  bits = {}
  for path, (_, w_bits, a_bits) in first.items():
    bits[path] = {
      "w_bits": w_bits,
      "a_bits": a_bits,
      "scales": scales if a_bits < HALF_BITS else SCALES[0],
      "w_scales": w_scales if w_bits in LEARNED_BITS else W_SCALES[0],
      "two_bits": two_bits if w_bits == 2 else TWO_BITS[0],
    }
  spec = dataclasses.replace(
    spec,
    stem=dataclasses.replace(spec.stem, **bits["stem"]),
    head=dataclasses.replace(spec.head, **bits["head"]),
    stages=tuple(
      tuple(
        dataclasses.replace(
          block,
          **{
            field: dataclasses.replace(
              conv, **bits[f"stage{i}_block{j}/{field}"]
            )
            for field, conv in vars(block).items()
            if conv is not None
          },
        )
        for j, block in enumerate(stage, 1)
      )
      for i, stage in enumerate(spec.stages, 1)
    ),
  )
  check(spec)
  return spec


def compound_scale(
  coefficient: float,
  widths: Sequence[int],
  blocks: Sequence[int],
  resolution: int,
  *,
  alpha: float = 1.2,
  beta: float = 1.1,
  gamma: float = 1.15,
  multiple: int = 8,
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
  """Scales depth, width and resolution together (EfficientNet, Tan 2019).

  Depths grow by alpha**coefficient (rounded up), widths by beta**coefficient
  (to the nearest `multiple`, at least one, never below 0.9 of the exact
  value), the resolution by gamma**coefficient (rounded). MACs grow by about
  (alpha * beta**2 * gamma**2)**coefficient, 1.92**coefficient by default.

  Args:
    coefficient: 0 changes nothing; it may be negative.
    widths, blocks: by stage.
    resolution: pixels a side.
    alpha, beta, gamma: bases of depth, width and resolution.
    multiple: that each width is of.

  Returns:
    (widths, blocks, resolution), the arguments of `resnet`.
  """

  def width(w):
    exact = w * beta**coefficient
    rounded = max(multiple, int(exact + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * exact else rounded

  return (
    tuple(width(w) for w in widths),
    tuple(max(1, math.ceil(b * alpha**coefficient - 1e-9)) for b in blocks),
    max(1, round(resolution * gamma**coefficient)),
  )


def batch_norm_of(layer: Layer) -> str | None:
  """Returns the path of the batch norm that follows a layer, or None."""
  if layer.kind == "dense" or not layer.ends_unit:
    return None  # it comes after the last convolution of a factorization
  block, _, name = layer.unit.rpartition("/")
  norm = {"stem": "stem_bn", "conv1": "bn1", "conv2": "bn2", "proj": "proj_bn"}[
    name
  ]
  return f"{block}/{norm}" if block else norm
