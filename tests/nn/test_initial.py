"""What new kernels begin with."""

import jax
import numpy as np

from jaxr18.nn import forms, initial, network
from jaxr18.nn.conv import conv
from jaxr18.nn.spec import resnet

# Kernels with fewer filters than inputs, as many and more; grouped, depthwise
# and of low rank ones; 1x1 ones of the projections.
WIDTHS, ONES = (8, 4, 12), (1, 1, 1)
SPEC = resnet(WIDTHS, ONES, (1, 2, 1), (1, 2, 1), (False,) * 3, resolution=8)
SPEC = forms.with_forms(
  SPEC,
  (
    ("stage3_block1/conv1", "depthwise"),
    ("stage3_block1/conv2", "ranks=1/2,1/4"),
  ),
)


def airbenchs(kernel: np.ndarray) -> np.ndarray:
  """Returns what airbench94's `Conv.reset_parameters` makes of a kernel.

  It calls PyTorch's `nn.init.dirac_(w[: w.size(1)])` on w, [out, in, 3, 3]:
  zeros, then a 1 in the middle for each i of min(out, in).
  """
  w = np.array(kernel).transpose(3, 2, 0, 1)
  first = w[: w.shape[1]]
  first[...] = 0
  for i in range(min(first.shape[:2])):
    first[i, i, 1, 1] = 1
  return w.transpose(2, 3, 1, 0)


class TestDirac:
  def test_is_airbenchs(self):
    net = network.init(jax.random.key(0), SPEC)
    before, after = (
      network.kernels(n.params) for n in (net, initial.dirac(net))
    )
    changed = set()
    for layer in SPEC.layers():
      expected = np.array(before[layer.path])
      if layer.unit != "stem" and layer.kernel_shape[:2] == (3, 3):
        parts = np.split(expected, layer.groups, -1)
        expected = np.concatenate([*map(airbenchs, parts)], -1)
        changed.add(layer.kernel_shape)
      np.testing.assert_array_equal(after[layer.path], expected)
    assert changed == {
      (3, 3, 8, 8), (3, 3, 4, 4), (3, 3, 2, 4), (3, 3, 1, 4), (3, 3, 6, 3),
    }  # fmt: skip

  def test_passes_its_input_on(self):
    net = initial.dirac(network.init(jax.random.key(0), SPEC))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 8))
    kernel = net.params["stage1_block1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(conv(x, kernel, padding=1), x)
