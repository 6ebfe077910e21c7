"""Ways to write one convolution in JAX; transposing one gives its gradients.

Images are NHWC, kernels HWIO, stride and padding the same on all sides.
"""

import numpy as np
from jax import lax
from jax import numpy as jnp


def out_shape(x, kernel, *, stride, padding, groups) -> tuple[int, ...]:
  """The shape of the convolution of `x` with `kernel`."""
  del groups
  height, width = (
    (n + 2 * padding - k) // stride + 1
    for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
  )
  return x.shape[0], height, width, kernel.shape[3]


def xla(x, kernel, *, stride, padding, groups):
  """As XLA's own convolution."""
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def merge(kernel, groups, by):
  """The kernel with `by` groups in one, zero between what was two groups."""
  height, width, inputs, features = kernel.shape
  split = (height, width, 1, inputs, groups // by, by, features // groups)
  eye = jnp.eye(by, dtype=kernel.dtype)[:, None, None, :, None]
  return (kernel.reshape(split) * eye).reshape(height, width, -1, features)


def blocks(x, kernel, *, stride, padding, groups):
  """As one dense convolution with a block-diagonal kernel."""
  kernel = merge(kernel, groups, groups)
  return xla(x, kernel, stride=stride, padding=padding, groups=1)


def shifted(x, kernel, *, stride, padding, groups):
  """As one product with a shifted image for each tap of a depthwise kernel."""
  batch, out_height, out_width, _ = out_shape(
    x, kernel, stride=stride, padding=padding, groups=groups
  )
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  y = 0
  for i, j in np.ndindex(kernel.shape[:2]):
    end = (i + (out_height - 1) * stride + 1, j + (out_width - 1) * stride + 1)
    tap = lax.slice(
      x, (0, i, j, 0), (batch, *end, groups), (1, stride, stride, 1)
    )
    y += tap * kernel[i, j, 0]
  return y
