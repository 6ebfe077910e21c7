"""Where arrays lie: on all devices whole, or split by the batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxr18.nn.conv import BATCH_AXIS


def make_mesh() -> Mesh:
  """Makes a mesh of all devices of all processes on one axis, the batch's."""
  return jax.make_mesh(
    (jax.device_count(),), (BATCH_AXIS,), axis_types=(AxisType.Auto,)
  )


def replicate(tree, mesh: Mesh):
  """Copies a tree to every device of the mesh.

  The leaves are the same in every process, or there on all devices already.
  """
  sharding = NamedSharding(mesh, PartitionSpec())
  if jax.process_count() == 1:
    # A copy, since the step donates its state: the caller's arrays live on.
    return jax.device_put(tree, sharding, may_alias=False)

  def put(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      impl = jax.random.key_impl(x)
      return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=impl)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def shard(tree, mesh: Mesh, axis: int = 0):
  """Splits host arrays [batch, ...], the same in every process, over the mesh.

  Args:
    axis: of the batch; 1 where members come first.
  """
  sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda i: np.asarray(x)[i]
    ),
    tree,
  )
