"""The memory that activations need at most, in closed form from the spec.

One image goes through the layers in the order of `deploy.packed.walk`. While a
layer runs, its input, its output and what is held for later have to be there: a
block's input until its shortcut is added, its second convolution's output until
the projection is done. ReLU and the sum work in place.

A tensor is kept in the bits of the reader that takes most: a layer reads its
input in `a_bits`; an addition and the mean before the head read float32, or
`sum_bits` where residual sums are quantized, and then that is what is kept.
Weights are apart: the on-disk figure charges them.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from jaxr18.nn.spec import FLOAT_BITS, Layer, NetSpec


class Tensor(NamedTuple):
  """Values of one image between two layers.

  Attributes:
    elements: how many.
    bits: of each.
  """

  elements: int
  bits: int

  @property
  def bytes(self) -> int:
    """Whole ones."""
    return -(-self.elements * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class Moment:
  """What is in memory while one layer runs.

  Attributes:
    path: of the layer.
    input, output: of it.
    held: what a later layer or addition reads.
  """

  path: str
  input: Tensor
  output: Tensor
  held: tuple[Tensor, ...] = ()

  @property
  def elements(self) -> int:
    """Values of all tensors."""
    return sum(t.elements for t in (self.input, self.output, *self.held))

  @property
  def bytes(self) -> int:
    """Bytes of all tensors."""
    return sum(t.bytes for t in (self.input, self.output, *self.held))


def peak(spec: NetSpec) -> Moment:
  """Finds the moment that needs the most bytes; the first of equal ones."""
  return max(moments(spec), key=lambda m: m.bytes)


def moments(spec: NetSpec) -> Iterator[Moment]:
  """Yields what is in memory while each layer runs, in their order.

  Args:
    spec: of one network; of an ensemble the largest peak of a member counts,
      since one runs after another.
  """
  units: dict[str, list[Layer]] = {}
  for layer in spec.layers():
    units.setdefault(layer.unit, []).append(layer)
  blocks, sums = list(spec.blocks()), spec.sum_bits
  # Who reads the stem's output and each block's.
  read = [
    max(units[f"{name}/{unit}"][0].a_bits for unit in ("conv1", "proj"))
    if block.proj and sums == FLOAT_BITS
    else sums
    for name, block in blocks
  ]
  read.append(sums)
  first, head = units["stem"][0], units["head"][0]
  x = Tensor(first.in_features * first.in_size**2, first.a_bits)
  x = yield from _run(units["stem"], x, read[0])
  for (name, block), bits in zip(blocks, read[1:], strict=True):
    conv1, conv2 = units[f"{name}/conv1"], units[f"{name}/conv2"]
    y = yield from _run(conv1, x, conv2[0].a_bits)
    y = yield from _run(conv2, y, sums, x)
    if block.proj:
      yield from _run(units[f"{name}/proj"], x, sums, y)
    x = Tensor(y.elements, bits)  # the sum, in the place of one addend
  yield from _run([head], Tensor(head.in_features, head.a_bits), FLOAT_BITS)


def _run(layers: list[Layer], x: Tensor, bits: int, *held: Tensor):
  """Yields the moments of a unit's layers; returns its output.

  A block's or the network's own input stays until the unit is done.
  """
  given, *more = x, *held
  for i, layer in enumerate(layers):
    last = i == len(layers) - 1
    out = Tensor(
      layer.features * layer.out_size**2,
      bits if last else layers[i + 1].a_bits,
    )
    yield Moment(layer.path, x, out, tuple(more))
    if not i and not _is_second(layer):
      more.append(given)
    x = out
  return x


def _is_second(layer: Layer) -> bool:
  """Returns whether nothing but this layer reads what the unit gets."""
  return layer.unit.endswith("/conv2") or layer.kind == "dense"
