"""One training step, pure and jitted, over all devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxr18 import data
from jaxr18.compress import channels, distill
from jaxr18.network import Network, apply_masks, forward, forward_train
from jaxr18.train.state import TrainState


@struct.dataclass
class Batch:
  """images uint8 [n, 32, 32, 3], labels int32 [n], index int32 [n]."""

  images: jax.Array
  labels: jax.Array
  index: jax.Array


def make_mesh() -> Mesh:
  """All devices of all processes on one axis, 'data'."""
  return jax.make_mesh(
    (jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)
  )


def replicate(tree, mesh: Mesh):
  """A copy of the tree on every device of the mesh.

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


def shard(tree, mesh: Mesh):
  """Host arrays [batch, ...], the same in every process, split over 'data'."""
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(
      np.shape(x), sharding, lambda i: np.asarray(x)[i]
    ),
    tree,
  )


def make_train_step(
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  pad: int,
  flip: str,
  cutout: int,
  temperature: float,
  kd_weight: float,
  label_smoothing: float,
  ema_decay: float,
  dtype,
  group_lasso: float = 0.0,
) -> Callable:
  """Makes the jitted step.

  Returns:
    (state, teacher or None, batch, key, epoch) -> (state, loss). The state is
    donated; the key is the run's, the same at every step.
  """

  def loss_fn(params, net, teacher_logits, images, labels):
    logits, batch_stats = forward_train(
      net.replace(params=params), images, dtype
    )
    if teacher_logits is None:
      loss = distill.cross_entropy(logits, labels, label_smoothing)
    else:
      loss = distill.distillation_loss(
        logits,
        teacher_logits,
        labels,
        temperature=temperature,
        kd_weight=kd_weight,
        label_smoothing=label_smoothing,
      )
    if group_lasso:
      loss += group_lasso * channels.group_lasso(params, net.spec)
    return loss, (logits, batch_stats)

  def step(
    state: TrainState, teacher: Network | None, batch: Batch, key, epoch
  ):
    images = data.augment(
      key,
      batch.images,
      state.step,
      index=batch.index,
      epoch=epoch,
      pad=pad,
      flip=flip,
      cutout=cutout,
      mean=mean,
    )

    def inputs(net):
      return data.normalize(images, mean, std, net.spec.resolution)

    teacher_logits = None
    if teacher is not None:
      teacher_logits = forward(teacher, inputs(teacher), dtype)
    net = state.net
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats)), grads = grad_fn(
      net.params, net, teacher_logits, inputs(net), batch.labels
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, net.params)
    # Projected after the update: momentum and decay revive pruned weights.
    params = apply_masks(optax.apply_updates(net.params, updates), net.masks)
    net = net.replace(params=params, batch_stats=batch_stats)
    average = state.average
    if average is not None:
      average = _move(average, net, ema_decay, state.step)
    correct = jnp.sum(jnp.argmax(logits, -1) == batch.labels)
    totals = {
      "loss": state.totals["loss"] + loss * len(batch.labels),
      "correct": state.totals["correct"] + correct.astype(jnp.int32),
      "count": state.totals["count"] + len(batch.labels),
    }
    return TrainState(state.step + 1, net, opt_state, average, totals), loss

  whole = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(
    step,
    in_shardings=(whole, whole, split, whole, whole),
    out_shardings=(whole, whole),
    donate_argnums=0,
  )


def _move(average: Network, net: Network, decay: float, step) -> Network:
  """The average moved towards net; faster at first, to forget the start."""
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  move = lambda a, b: decay * a + (1 - decay) * b
  params = jax.tree.map(move, average.params, net.params)
  return net.replace(
    # What is masked from now on is 0 in the average too.
    params=apply_masks(params, net.masks),
    batch_stats=jax.tree.map(move, average.batch_stats, net.batch_stats),
  )
