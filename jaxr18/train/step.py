"""One training step, pure and jitted, over all devices.

`make_train_step` composes the step of one network, which is read from top to
bottom in `single_step`; of a population it is vmapped over the members.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxr18.compress import distill
from jaxr18.data.augment import (
  Augment,
  augment,
  draw_cutmix,
  draw_mixup,
  normalize,
)
from jaxr18.nn.conv import BATCH_AXIS, split_over
from jaxr18.nn.network import (
  Network,
  apply_masks,
  forward,
  forward_stages,
  forward_train,
  kernels,
)
from jaxr18.train import average as average_lib
from jaxr18.train import terms as terms_lib
from jaxr18.train.average import Average
from jaxr18.train.state import TrainState
from jaxr18.train.terms import Context, TeacherOutputs, Term


class Batch(struct.PyTreeNode):
  """images uint8 [n, 32, 32, 3], labels int32 [n], index int32 [n].

  teacher_logits [n, classes] are there where they come from a table. Of a
  population every array has a leading member axis.
  """

  images: Any
  labels: Any
  index: Any
  teacher_logits: Any = None


class Teachers(NamedTuple):
  """Networks that teach by their mean, and `others`.

  The others are members of an ensemble that the student is to differ from.
  """

  nets: tuple[Network, ...] = ()
  others: tuple[Network, ...] = ()


class Member(NamedTuple):
  """What a population's member has of its own; the defaults are one network's.

  Attributes:
    rate: factor of the learning rate; None does not multiply.
    temperature: factor of the soft loss's temperature.
  """

  rate: jax.Array | float | None = None
  temperature: jax.Array | float = 1.0


def observe(
  teachers: Teachers,
  batch: Batch,
  inputs: Callable[[Network], jax.Array],
  dtype,
  terms: Sequence[Term],
) -> TeacherOutputs:
  """Computes what the teachers say of a batch: no teacher runs elsewhere.

  Args:
    inputs: from a network to the images as it sees them.
    terms: decide whether stage outputs are wanted, of the only teacher, and
      what the mean of several is.
  """
  stages = any(term.stages for term in terms)
  logits = batch.teacher_logits
  outputs: tuple[jax.Array, ...] = ()
  if teachers.nets and stages:
    (net,) = teachers.nets
    logits, outputs, _ = forward_stages(net, inputs(net), dtype)
  elif teachers.nets:
    each = [forward(net, inputs(net), dtype) for net in teachers.nets]
    loss = next((term.loss for term in terms if term.loss), "kd")
    logits = distill.mean_teacher(jnp.stack(each), loss)
  others = [forward(net, inputs(net), dtype) for net in teachers.others]
  return TeacherOutputs(logits, outputs, jnp.stack(others) if others else None)


def _see(
  augmentation: Augment, state: TrainState, batch: Batch, key, epoch
) -> tuple[Callable[[Network], jax.Array], jax.Array]:
  """Returns the images as a network sees them, and their labels.

  The labels are ints [batch], or probabilities [batch, classes] of a mixture.
  """
  images = augment(
    key, batch.images, state.step, augmentation, index=batch.index, epoch=epoch
  )
  share, partner, labels = 1.0, None, batch.labels
  if augmentation.mixup:
    share, partner = draw_mixup(
      key, state.step, augmentation.mixup, len(labels)
    )
  elif augmentation.cutmix:
    n, height, width, _ = images.shape
    inside, share, partner = draw_cutmix(
      key, state.step, augmentation.cutmix, n, (height, width)
    )
    images = jnp.where(inside, images[partner], images)
  if partner is not None:
    labels = jax.nn.one_hot(labels, state.net.spec.head.classes)
    labels = share * labels + (1 - share) * labels[partner]

  def inputs(net: Network) -> jax.Array:
    x = normalize(
      images, augmentation.mean, augmentation.std, net.spec.resolution
    )
    # Teacher and student see the same mixture: resizing is linear.
    return share * x + (1 - share) * x[partner] if augmentation.mixup else x

  return inputs, labels


class _Differentiated(NamedTuple):
  """A loss, its gradient, and what the forward pass left.

  Attributes:
    params: that the gradient is of: the network's, and 'projections' if any.
    each: the loss's weighted terms by name.
  """

  loss: jax.Array
  grads: Any
  params: Any
  logits: jax.Array
  batch_stats: Any
  each: dict[str, jax.Array]


def _differentiate(
  terms: Sequence[Term],
  augmentation: Augment,
  average: Average | None,
  dtype,
  unmasked: bool = False,
) -> Callable[..., _Differentiated]:
  """Returns the function that augments, observes and differentiates.

  Args:
    unmasked: takes the gradient of what is masked too, as if it were there
      and 0.
  """

  def loss_fn(params, net, teacher: TeacherOutputs, images, rest):
    trained = {k: v for k, v in params.items() if k in net.params}
    net = net.replace(params=trained)
    outputs: tuple[jax.Array, ...] = ()
    if teacher.stages:
      logits, outputs, batch_stats = forward_stages(net, images, dtype, True)
    else:
      logits, batch_stats = forward_train(net, images, dtype)
    c = Context(
      logits=logits, teacher=teacher, net=net, stages=outputs,
      projections=params.get("projections"), **rest,
    )  # fmt: skip
    value, each = terms_lib.total(terms, c)
    return value, (logits, batch_stats, each)

  def differentiate(
    state: TrainState, teachers: Teachers, batch: Batch, key, epoch, member
  ) -> _Differentiated:
    inputs, labels = _see(augmentation, state, batch, key, epoch)
    net = state.net
    if unmasked:
      every = jax.tree.map(jnp.ones_like, net.masks)
      net = net.replace(params=apply_masks(net.params, net.masks), masks=every)
    if average is not None and average.teaches:
      teachers = teachers._replace(nets=(state.average,))
    teacher = observe(teachers, batch, inputs, dtype, terms)
    params = net.params
    if state.projections is not None:
      params = params | {"projections": state.projections}
    rest = dict(
      labels=labels, epoch=epoch, temperature_factor=member.temperature
    )
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats, each)), grads = grad_fn(
      params, net, teacher, inputs(net), rest
    )
    return _Differentiated(loss, grads, params, logits, batch_stats, each)

  return differentiate


def single_step(
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  augment: Augment,
  average: Average | None,
  dtype,
) -> Callable[..., tuple[TrainState, jax.Array]]:
  """Returns the pure step of one network.

  Args:
    terms, optimizer, augment, average, dtype: as `make_train_step`.

  Returns:
    (state, teachers, batch, key, epoch, member) -> (state, loss).
  """
  differentiate = _differentiate(terms, augment, average, dtype)

  def step(state, teachers, batch, key, epoch, member: Member):
    result = differentiate(state, teachers, batch, key, epoch, member)
    updates, opt_state = optimizer.update(
      result.grads, state.opt_state, result.params
    )
    if member.rate is not None:
      updates = jax.tree.map(lambda u: u * member.rate, updates)
    params: Any = optax.apply_updates(result.params, updates)
    projections = params.pop("projections", None)
    # Projected after the update: momentum and decay revive pruned weights.
    params = apply_masks(params, state.net.masks)
    net = state.net.replace(params=params, batch_stats=result.batch_stats)
    averaged = state.average
    if average is not None and averaged is not None:
      averaged = average_lib.move(average, averaged, net, state.step)
    correct = jnp.sum(jnp.argmax(result.logits, -1) == batch.labels)
    totals = {
      "loss": state.totals["loss"] + result.loss * len(batch.labels),
      "correct": state.totals["correct"] + correct.astype(jnp.int32),
      "count": state.totals["count"] + len(batch.labels),
    }
    if terms_so_far := state.totals.get("terms"):
      totals["terms"] = {
        name: so_far + result.each[name] * len(batch.labels)
        for name, so_far in terms_so_far.items()
      }
    return state.replace(
      step=state.step + 1,
      net=net,
      opt_state=opt_state,
      average=averaged,
      totals=totals,
      projections=projections,
    ), result.loss

  return step


def make_train_step(
  terms: Sequence[Term],
  optimizer: optax.GradientTransformation,
  augment: Augment,
  average: Average | None,
  mesh: Mesh,
  dtype=jnp.float32,
  members: Sequence[Member] = (),
) -> Callable:
  """Makes the jitted step.

  Args:
    terms: whose sum is the loss.
    augment: what is done to the images.
    average: what is done to the state's average; None if it has none.
    mesh: of `make_mesh`, over which a batch is split.
    dtype: of convolutions and activations.
    members: of a population, whose step is vmapped over state, batch and key;
      () is one network.

  Returns:
    (state, teachers, batch, key, epoch) -> (state, loss), of `Teachers`. The
    state is donated; the key is the run's, the same at every step.
  """
  single = single_step(terms, optimizer, augment, average, dtype)
  return _jitted(single, mesh, members, donate=True)


def make_gradients(
  terms: Sequence[Term],
  augment: Augment,
  average: Average | None,
  mesh: Mesh,
  dtype=jnp.float32,
  members: Sequence[Member] = (),
) -> Callable:
  """Makes what tells which masked weights would help.

  Args:
    terms, augment, average, mesh, dtype, members: as `make_train_step`.

  Returns:
    (state, teachers, batch, key, epoch) -> the step's own gradients of all
    kernels by layer path, as if what is masked were there and 0. The state
    stays.
  """
  differentiate = _differentiate(terms, augment, average, dtype, unmasked=True)

  def gradients(state, *args):
    grads = differentiate(state, *args).grads
    return kernels({k: v for k, v in grads.items() if k in state.net.params})

  return _jitted(gradients, mesh, members, donate=False)


def _jitted(
  single: Callable, mesh: Mesh, members: Sequence[Member], donate: bool
) -> Callable:
  """Jits a function of (state, teachers, batch, key, epoch, member)."""

  def step(state, teachers, batch, key, epoch):
    with split_over(mesh):
      if not members:
        return single(state, teachers, batch, key, epoch, Member())
      each = Member(*map(jnp.array, zip(*members, strict=True)))
      axes = (0, None, 0, 0, None, 0)
      return jax.vmap(single, axes)(state, teachers, batch, key, epoch, each)

  replicated = NamedSharding(mesh, PartitionSpec())
  axes = *[None] * bool(members), BATCH_AXIS
  split = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.jit(
    step,
    in_shardings=(replicated, replicated, split, replicated, replicated),
    out_shardings=replicated,
    donate_argnums=0 if donate else (),
  )
