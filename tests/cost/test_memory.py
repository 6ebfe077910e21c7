"""The closed form of activations' memory, against what runs the packed file."""

import dataclasses
import weakref

import numpy as np
import pytest

from jaxr18.cost import memory
from jaxr18.deploy import packed
from jaxr18.deploy.fold import hwio
from jaxr18.deploy.integer import units
from jaxr18.nn.forms import with_forms
from jaxr18.nn.spec import resnet, resnet18, with_bits, with_input


class Held:
  """An array of the executor, and a weak reference to it while it lives."""

  def __init__(self, array, alive):
    self.array = array
    alive.add(self)


def executed(spec):
  """Elements of the arrays that are there while each layer runs, by path."""
  alive, found = weakref.WeakSet(), {}

  def apply(layer, x):
    row = dataclasses.asdict(layer)
    kernel = np.zeros(hwio(layer), np.float32)
    out = Held(packed.layer_output(row, kernel, {}, x.array), alive)
    found[layer.path] = sum(held.array.size for held in alive)
    return out

  def add(y, x, block):
    del block
    np.add(y.array, x.array, out=y.array)
    return y

  side = spec.resolution
  image = np.zeros((1, side, side, spec.channels), np.float32)
  images = [Held(image, alive)]
  packed.walk(
    units(spec),
    images.pop(),
    apply,
    relu=lambda x: x,
    add=add,
    mean=lambda x: Held(x.array.mean((1, 2), keepdims=True), alive),
    enter=lambda x, block: x,
  )
  return found


SMALL = resnet((4, 8), (2, 1), (1, 2), (1, 1), (False, False), resolution=8)


@pytest.mark.parametrize(
  "spec",
  [
    SMALL,
    with_input(SMALL, 1, 2),
    with_forms(SMALL, [("stage2.*conv.", "depthwise")]),
    with_forms(SMALL, [("stage2.*conv.", "ranks=2,2")]),
  ],
  ids=["dense", "gray, a stem of stride 2", "depthwise", "low rank"],
)
def test_the_executor_holds_as_many_values(spec):
  found = executed(spec)
  assert found == {m.path: m.elements for m in memory.moments(spec)}


def test_a_resnet_18():
  # The stage of 64 channels at 32x32: input, output and shortcut in float32.
  found = memory.peak(resnet18())
  assert found.path == "stage1_block1/conv2"
  assert found.bytes == 3 * 64 * 32 * 32 * 4


def test_bits_of_the_readers():
  spec = with_bits(SMALL, [("stem|head", 8, 8), (".*", 4, 4)])
  by_path = {m.path: m for m in memory.moments(spec)}
  stem = by_path["stem"]
  assert stem.input == (3 * 64, 8) and stem.input.bytes == 192
  assert stem.output.bits == 32  # an identity shortcut adds it
  inner = by_path["stage1_block1/conv2"]
  assert inner.input == (4 * 64, 4) and inner.input.bytes == 128
  assert inner.held == (stem.output,) and inner.output.bits == 32
  strided = by_path["stage2_block1/conv1"]
  assert strided.input.bits == 4  # a convolution and a projection read it
  assert by_path["stage2_block1/proj"].held == (
    by_path["stage2_block1/conv2"].output,
  )
  assert by_path["head"].output == (10, 32)


def test_quantized_sums_leave_no_floats_but_the_logits():
  spec = with_bits(SMALL, [(".*", 4, 4)])
  *found, head = memory.moments(dataclasses.replace(spec, sum_bits=8))
  for moment in found:
    kept = (moment.input, moment.output, *moment.held)
    assert {t.bits for t in kept} <= {4, 8}, moment.path
  assert found[0].output.bits == 8 and head.output.bits == 32
  assert max(m.bytes for m in found) < memory.peak(spec).bytes / 2


def test_half_of_the_bits_need_less():
  four, eight = (
    memory.peak(with_bits(SMALL, [(".*", b, b)])).bytes for b in (4, 8)
  )
  assert four < eight < memory.peak(SMALL).bytes
