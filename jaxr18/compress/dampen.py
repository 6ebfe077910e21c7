"""Kernels drawn to their own grids, against weights that oscillate.

Between two levels a straight-through gradient changes its sign at the middle,
and a weight that would be best in between jumps from one to the other for ever;
at few bits, and most of all in depthwise kernels, batch norm's statistics then
belong to no network (Nagel et al., 2022, arXiv:2203.11086).
"""

import jax
import jax.numpy as jnp

from jaxr18.nn.network import at
from jaxr18.nn.quantize import distance_to_grid
from jaxr18.nn.spec import HALF_BITS, NetSpec


def dampening_loss(params, spec: NetSpec) -> jax.Array:
  """Sums the squared distances of all weights to their levels.

  It is the paper's dampening over the layers whose weights have 1 to 8 bits;
  a weight beyond the end of its grid, and a masked one, costs nothing. It is a
  term of a loss, times a weight.

  Args:
    params: of a network, 0 where it is masked.
    spec: of the same network.

  Returns:
    A scalar, float32. Its gradient is of the kernels alone.
  """
  total = jnp.zeros(())
  for layer in spec.layers():
    if layer.w_bits < HALF_BITS:
      node = at(params, layer.path)
      total += distance_to_grid(
        node["kernel"],
        layer.w_bits,
        node.get("kernel_bound"),
        layer.two_bits,
      )
  return total


def dampening_share(epoch: jax.Array, epochs: int) -> jax.Array:
  """Returns the share of the weight in an epoch: half a cosine, up to 1.

  Weights move freely at first and settle at the end.

  Args:
    epoch: from 0.
    epochs: of the phase.
  """
  return (1 - jnp.cos(jnp.pi * (epoch + 1) / epochs)) / 2
