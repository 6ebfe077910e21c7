"""One two-dimensional convolution: dense, grouped or depthwise."""

import jax
from jax import lax


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  padding: int = 1,
  groups: int = 1,
) -> jax.Array:
  """Convolves images with a kernel.

  Args:
    x: images, [batch, height, width, in_features].
    kernel: [kernel, kernel, in_features / groups, features].
    stride: pixels between two outputs, the same along height and width.
    padding: zeros added on each of the four sides, in pixels.
    groups: how many blocks the channels are split into; `in_features` of them
      with one input channel each is a depthwise convolution.

  Returns:
    [batch, out_height, out_width, features], with
    `out = (size + 2 * padding - kernel) // stride + 1`.
  """
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )
