"""What new kernels begin with, other than He's normal numbers."""

import numpy as np

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
