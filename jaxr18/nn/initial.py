"""What new kernels begin with, other than He's normal numbers."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jaxr18.nn.network import Network, kernels, with_kernels


def dirac(net: Network) -> Network:
  """Makes the first filters of the blocks' 3x3 kernels pass on their input.

  Of each group of a convolution the first min(inputs, outputs) filters are
  zeros with a 1 in the middle of the input of the same number, as PyTorch's
  `nn.init.dirac_` on a kernel's first filters, which is how airbench94 begins
  (Jordan, 2024, arXiv:2404.00498). The other filters stay.

  Args:
    net: new; the stem and kernels of another size stay.
  """
  old, new = kernels(net.params), {}
  for layer in net.spec.layers():
    if layer.unit == "stem" or layer.kernel_shape[:2] != (3, 3):
      continue
    *window, inputs, features = layer.kernel_shape
    apart = (*window, inputs, layer.groups, features // layer.groups)
    n = np.arange(min(inputs, apart[-1]))
    kernel = old[layer.path].reshape(apart).at[..., n].set(0)
    kernel = kernel.at[1, 1, n, :, n].set(1)
    new[layer.path] = kernel.reshape(layer.kernel_shape)
  return net.replace(params=with_kernels(net.params, new))


def whiten(
  net: Network, batches: Iterable[jax.Array], epsilon: float = 5e-4
) -> Network:
  """Makes the stem's first filters whiten the patches that they look at.

  They are the eigenvectors of the patches' covariance by falling eigenvalue,
  each divided by the root of eigenvalue + `epsilon`, then the same negated:
  twice as many as a patch has values (Jordan, 2024, arXiv:2404.00498, after
  Page, 2018). More filters, if there are any, stay.

  Args:
    net: new; nothing else of it changes.
    batches: each [n, resolution, resolution, channels], normalized.
    epsilon: as airbench94's.

  Raises:
    ValueError: the stem has fewer filters than that.
  """
  kernel = net.params["stem"]["kernel"]
  *window, channels, features = kernel.shape
  size = window[0] * window[1] * channels
  if features < 2 * size:
    raise ValueError(
      f"the stem has {features} filters, expected at least {2 * size}: two for"
      f" each of the {size} values of a patch"
    )
  total, count = np.zeros((size, size)), 0
  for image in (x for images in batches for x in np.asarray(images)):
    patches = sliding_window_view(image, window, axis=(0, 1))
    patches = np.moveaxis(patches, 2, -1).reshape(-1, size)
    total, count = total + patches.T @ patches, count + len(patches)
  values, vectors = np.linalg.eigh(total / count)
  filters = (vectors / np.sqrt(values + epsilon))[:, ::-1]
  new = np.concatenate([filters, -filters], 1).astype(kernel.dtype)
  new = jnp.asarray(new.reshape(*window, channels, -1))
  kernel = jnp.concatenate([new, kernel[..., 2 * size :]], -1)
  return net.replace(params=with_kernels(net.params, {"stem": kernel}))
