"""What new kernels begin with."""

import jax
import numpy as np
import pytest

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


def airbenchs_whitening(images: np.ndarray, epsilon: float) -> np.ndarray:
  """Returns airbench94's `init_whitening_conv`, of NHWC images, as HWIO.

  It calls `x.unfold(2,h,1).unfold(3,w,1).transpose(1,3)`, [n, W, H, C, h, w],
  and flattens patches to [C * h * w].
  """
  x = images.transpose(0, 3, 1, 2)
  _, channels, height, width = x.shape
  patches = np.stack([
    x[:, :, i : i + 3, j : j + 3].reshape(len(x), -1)
    for j in range(width - 2)
    for i in range(height - 2)
  ]).reshape(-1, channels * 9).astype(np.float64)  # fmt: skip
  values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
  filters = vectors.T[::-1].reshape(-1, channels, 3, 3)
  filters = filters / np.sqrt(values[::-1, None, None, None] + epsilon)
  return np.concatenate([filters, -filters]).transpose(2, 3, 1, 0)


class TestWhiten:
  SPEC = resnet((60, 4), (1, 1), (1, 2), (1, 1), (False,) * 2, resolution=8)
  rng = np.random.default_rng(0)
  # Neighbours are alike, as in images.
  IMAGES = np.cumsum(rng.normal(size=(40, 8, 8, 3)), 1).astype(np.float32)

  @pytest.mark.parametrize("epsilon", [5e-4, 1.0])
  def test_is_airbenchs(self, epsilon):
    net = network.init(jax.random.key(0), self.SPEC)
    made = initial.whiten(net, (self.IMAGES[:30], self.IMAGES[30:]), epsilon)
    old, kernel = (np.asarray(n.params["stem"]["kernel"]) for n in (net, made))
    expected = airbenchs_whitening(self.IMAGES, epsilon)
    signs = np.sign(np.sum(kernel[..., :54] * expected, (0, 1, 2)))
    np.testing.assert_array_equal(np.abs(signs), 1)
    np.testing.assert_allclose(
      kernel[..., :54], signs * expected, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_array_equal(kernel[..., 27:54], -kernel[..., :27])
    np.testing.assert_array_equal(kernel[..., 54:], old[..., 54:])
    same = made.replace(params=net.params)
    jax.tree.map(np.testing.assert_array_equal, same, net)

  def test_its_outputs_are_white(self):
    net = network.init(jax.random.key(0), self.SPEC)
    made = initial.whiten(net, [self.IMAGES], 1e-9)
    y = conv(self.IMAGES, made.params["stem"]["kernel"])[..., :27]
    y = np.asarray(y)[:, 1:-1, 1:-1].reshape(-1, 27)  # without padding
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(27), atol=1e-3)

  def test_a_stem_that_is_too_narrow(self):
    net = network.init(jax.random.key(0), SPEC)
    with pytest.raises(ValueError, match="has 8 filters, expected at least 54"):
      initial.whiten(net, [self.IMAGES])
