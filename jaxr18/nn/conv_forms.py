"""Ways to write one convolution in JAX; transposing one gives its gradients.

Images are NHWC, kernels HWIO, stride and padding the same on all sides.
"""

import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.custom_derivatives import linear_call


def out_shape(x, kernel, *, stride, padding, groups) -> tuple[int, ...]:
  """Computes the shape of a convolution's result.

  Args:
    x: [batch, height, width, inputs].
    kernel: [height, width, inputs / groups, features].
    stride, padding: in pixels, the same in both directions.
    groups: of channels.

  Returns:
    (batch, height, width, features).
  """
  del groups
  height, width = (
    (n + 2 * padding - k) // stride + 1
    for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
  )
  return x.shape[0], height, width, kernel.shape[3]


def xla(x, kernel, *, stride, padding, groups):
  """Computes the convolution by XLA's own operation.

  Args:
    x: [batch, height, width, inputs].
    kernel: [height, width, inputs / groups, features].
    stride, padding: in pixels, the same in both directions.
    groups: of channels.
  """
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def merge(kernel, groups, by):
  """Merges each `by` groups of a kernel into one, with zeros between them."""
  height, width, inputs, features = kernel.shape
  split = (height, width, 1, inputs, groups // by, by, features // groups)
  eye = jnp.eye(by, dtype=kernel.dtype)[:, None, None, :, None]
  return (kernel.reshape(split) * eye).reshape(height, width, -1, features)


def unmerge(kernel, groups, by):
  """Takes the blocks of a merged kernel out again: the transpose of `merge`.

  As JAX derives it, a product and a sum over 7 axes, jaxlib 0.10.2 dies of it
  on a CPU with AVX2: 3x3, 32 to 32 channels in 8 groups, 4 in one.
  """
  height, width, _, features = kernel.shape
  split = (height, width, by, -1, groups // by, by, features // groups)
  blocks = jnp.diagonal(kernel.reshape(split), axis1=2, axis2=5)
  return jnp.swapaxes(blocks, 4, 5).reshape(height, width, -1, features)


def blocks(x, kernel, *, stride, padding, groups):
  """Computes the convolution as a dense one with a block-diagonal kernel.

  Args:
    x: [batch, height, width, inputs].
    kernel: [height, width, inputs / groups, features].
    stride, padding: in pixels, the same in both directions.
    groups: of channels.
  """
  kernel = linear_call(
    lambda _, k: merge(k, groups, groups),
    lambda _, k: unmerge(k, groups, groups),
    (),
    kernel,
  )
  return xla(x, kernel, stride=stride, padding=padding, groups=1)


def shifted(x, kernel, *, stride, padding, groups):
  """Computes a depthwise convolution as a sum of shifted products, one a tap.

  Args:
    x: [batch, height, width, inputs].
    kernel: [height, width, inputs / groups, features].
    stride, padding: in pixels, the same in both directions.
    groups: of channels, as many as inputs and features.
  """
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
