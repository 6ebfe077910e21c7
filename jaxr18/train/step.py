"""One training step, pure and jitted, over all devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxr18.compress import channels, dampen, distill
from jaxr18.data.augment import augment, normalize
from jaxr18.nn.network import (
  Network,
  apply_masks,
  forward,
  forward_stages,
  forward_train,
  kernels,
)
from jaxr18.train.state import TrainState


@struct.dataclass
class Batch:
  """images uint8 [n, 32, 32, 3], labels int32 [n], index int32 [n].

  teacher_logits [n, classes] are there where they come from a table. Of a
  population every array has a leading member axis.
  """

  images: jax.Array
  labels: jax.Array
  index: jax.Array
  teacher_logits: jax.Array | None = None


class Teachers(NamedTuple):
  """Networks that teach by their mean, and `others`.

  The others are members of an ensemble that the student is to differ from.
  """

  nets: tuple[Network, ...] = ()
  others: tuple[Network, ...] = ()


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


def shard(tree, mesh: Mesh, axis: int = 0):
  """Host arrays [batch, ...], the same in every process, split over 'data'.

  Args:
    axis: of the batch; 1 where members come first.
  """
  sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
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
  dampening: float = 0.0,
  epochs: int = 1,
  loss: str = "kd",
  dkd_beta: float = 8.0,
  dkd_warmup: float = 20.0,
  features: str = "none",
  feature_weight: float = 0.0,
  diversity: str = "cosine",
  diversity_weight: float = 0.0,
  mixup: float = 0.0,
  self_teach: bool = False,
  mean_from: int | None = None,
  mean_every: int = 1,
  rates: tuple[float, ...] | None = None,
  temperatures: tuple[float, ...] | None = None,
  only_gradients: bool = False,
) -> Callable:
  """Makes the jitted step.

  Args:
    dampening: weight of `dampen.dampening_loss`, which grows over `epochs`.
    loss, dkd_beta: as `distill.distillation_loss` takes them.
    dkd_warmup: epochs in which the loss 'dkd' grows to its whole size.
    features: 'none', 'fitnets' or 'attention', with the only teacher.
    diversity, diversity_weight: the likeness to `Teachers.others`, one of
      `distill.DIVERSITIES`, and its weight.
    mixup: alpha of Beta(alpha, alpha) (Zhang et al., 2018); 0 is off.
    self_teach: the state's own average is the teacher.
    mean_from: the step from which the average is the plain mean of the weights
      after it and every `mean_every` steps since, whatever `ema_decay`; None
      is never.
    rates: makes it a population's step, vmapped over state, batch and key:
      factors of the learning rate by member.
    temperatures: of a population, factors of the temperature by member.
    only_gradients: makes, of the same arguments, what tells which masked
      weights would help: (state, teacher, batch, key, epoch) -> the step's own
      gradients of all kernels by layer path, as if what is masked were there
      and 0. The state stays.

  Returns:
    (state, teacher or None, batch, key, epoch) -> (state, loss). The teacher
    is a `Network` or `Teachers`. The state is donated; the key is the run's,
    the same at every step.
  """

  def loss_fn(params, net, taught, images, labels, heat, dkd_share, epoch):
    teacher_logits, hints, others = taught
    trained = {k: v for k, v in params.items() if k in net.params}
    net = net.replace(params=trained)
    if hints:
      logits, stages, batch_stats = forward_stages(net, images, dtype, True)
    else:
      logits, batch_stats = forward_train(net, images, dtype)
    if teacher_logits is None:
      value = distill.cross_entropy(logits, labels, label_smoothing)
    else:
      value = distill.distillation_loss(
        logits,
        teacher_logits,
        labels,
        temperature=temperature * heat,
        kd_weight=kd_weight,
        label_smoothing=label_smoothing,
        loss=loss,
        dkd_beta=dkd_beta,
        dkd_share=dkd_share,
      )
    if group_lasso:
      value += group_lasso * channels.group_lasso(trained, net.spec)
    if dampening:
      pull = dampening * dampen.dampening_share(epoch, epochs)
      value += pull * dampen.dampening_loss(trained, net.spec)
    if features == "fitnets" and hints:
      projections = params["projections"]
      value += feature_weight * distill.fitnets_loss(stages, hints, projections)
    elif features == "attention" and hints:
      value += feature_weight * distill.attention_loss(stages, hints)
    if others is not None:
      likeness = distill.DIVERSITIES[diversity]
      value += diversity_weight * likeness(logits, others, labels)
    return value, (logits, batch_stats)

  def teach(teacher: Teachers, average, batch: Batch, inputs):
    """(logits or None, stage outputs, logits of the others or None)."""
    nets = (average,) if self_teach else teacher.nets
    hints, logits = (), batch.teacher_logits
    if nets and features != "none":
      (net,) = nets
      logits, hints = forward_stages(net, inputs(net), dtype)
    elif nets:
      logits = [forward(net, inputs(net), dtype) for net in nets]
      logits = distill.mean_teacher(jnp.stack(logits), loss)
    others = [forward(net, inputs(net), dtype) for net in teacher.others]
    return logits, hints, jnp.stack(others) if others else None

  def one(
    state: TrainState, teacher: Teachers, batch: Batch, key, epoch, rate, heat
  ):
    images = augment(
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

    share, partner, labels = 1.0, None, batch.labels
    if mixup:
      share, partner = _draw_mixup(key, state.step, mixup, len(batch.labels))
      labels = jax.nn.one_hot(labels, state.net.spec.head.classes)
      labels = share * labels + (1 - share) * labels[partner]

    def inputs(net):
      x = normalize(images, mean, std, net.spec.resolution)
      # Teacher and student see the same mixture: resizing is linear.
      return x if partner is None else share * x + (1 - share) * x[partner]

    net = state.net
    if only_gradients:
      every = jax.tree.map(jnp.ones_like, net.masks)
      net = net.replace(params=apply_masks(net.params, net.masks), masks=every)
    taught = teach(teacher, state.average, batch, inputs)
    params = net.params
    if state.projections is not None:
      params = params | {"projections": state.projections}
    # Epochs count from 0 here.
    dkd_share = jnp.minimum((epoch + 1) / dkd_warmup, 1) if dkd_warmup else 1.0
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats)), grads = grad_fn(
      params, net, taught, inputs(net), labels, heat, dkd_share, epoch
    )
    if only_gradients:
      return kernels({k: v for k, v in grads.items() if k in net.params})
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    if rates is not None:
      updates = jax.tree.map(lambda u: u * rate, updates)
    params = optax.apply_updates(params, updates)
    projections = params.pop("projections", None)
    # Projected after the update: momentum and decay revive pruned weights.
    params = apply_masks(params, net.masks)
    net = net.replace(params=params, batch_stats=batch_stats)
    average = state.average
    if average is not None:
      average = _move(
        average, net, ema_decay, state.step, mean_from, mean_every
      )
    correct = jnp.sum(jnp.argmax(logits, -1) == batch.labels)
    totals = {
      "loss": state.totals["loss"] + loss * len(batch.labels),
      "correct": state.totals["correct"] + correct.astype(jnp.int32),
      "count": state.totals["count"] + len(batch.labels),
    }
    return state.replace(
      step=state.step + 1,
      net=net,
      opt_state=opt_state,
      average=average,
      totals=totals,
      projections=projections,
    ), loss

  def step(state, teacher, batch, key, epoch):
    if not isinstance(teacher, Teachers):
      teacher = Teachers((teacher,) if teacher is not None else ())
    if rates is None:
      return one(state, teacher, batch, key, epoch, 1.0, 1.0)
    factors = jnp.array(rates), jnp.array(temperatures)
    axes = (0, None, 0, 0, None, 0, 0)
    return jax.vmap(one, axes)(state, teacher, batch, key, epoch, *factors)

  whole = NamedSharding(mesh, PartitionSpec())
  axes = ("data",) if rates is None else (None, "data")
  split = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.jit(
    step,
    in_shardings=(whole, whole, split, whole, whole),
    out_shardings=whole,
    donate_argnums=() if only_gradients else 0,
  )


def _draw_mixup(key, step, alpha: float, n: int):
  """The first image's share, and each one's partner, by a step's key."""
  key = jax.random.fold_in(jax.random.fold_in(key, 2**31 - 1), step)
  share_key, order_key = jax.random.split(key)
  share = jax.random.beta(share_key, alpha, alpha)
  return share, jax.random.permutation(order_key, n)


def _move(
  average: Network,
  net: Network,
  decay: float,
  step,
  mean_from: int | None,
  mean_every: int,
) -> Network:
  """The average moved towards net; faster at first, to forget the start."""
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  if mean_from is not None:
    n = (step - mean_from) // mean_every  # networks in the mean so far
    due = (step - mean_from) % mean_every == 0
    decay = jnp.where(n >= 0, jnp.where(due, n / (n + 1), 1), decay)
  move = lambda a, b: decay * a + (1 - decay) * b
  params = jax.tree.map(move, average.params, net.params)
  return net.replace(
    # What is masked from now on is 0 in the average too.
    params=apply_masks(params, net.masks),
    batch_stats=jax.tree.map(move, average.batch_stats, net.batch_stats),
  )
