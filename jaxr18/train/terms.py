"""The terms of a loss: each is one function of what a step knows.

A phase's loss is the sum of its terms, in their order. A new loss is one more
function here that returns a `Term`, and a line where a phase's terms are
listed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxr18.compress import channels, dampen, distill


class TeacherOutputs(NamedTuple):
  """What the teachers say of a batch; no gradient flows into it.

  Attributes:
    logits: [batch, classes], of the teachers' mean; None where nobody
      teaches.
    stages: the only teacher's stage outputs, [batch, height, width, channels]
      each; () where no term needs them.
    others: [others, batch, classes], logits of the networks that the student
      is to differ from; None where there are none.
  """

  logits: Any = None
  stages: tuple[jax.Array, ...] = ()
  others: Any = None


class Context(NamedTuple):
  """What a term may look at.

  Attributes:
    logits: [batch, classes], the student's.
    labels: [batch] ints, or [batch, classes] probabilities of a mixture.
    teacher: what the teachers say of the same images.
    net: the student, with the parameters that are differentiated.
    projections: FitNets' regressors, differentiated too; None without.
    stages: the student's stage outputs; () where no term needs them.
    epoch: from 0, int32.
    temperature_factor: a population member's.
  """

  logits: jax.Array
  labels: jax.Array
  teacher: TeacherOutputs = TeacherOutputs()
  net: Any = None
  projections: Any = None
  stages: tuple[jax.Array, ...] = ()
  epoch: Any = 0
  temperature_factor: Any = 1.0


@dataclasses.dataclass(frozen=True)
class Term:
  """One part of a loss.

  Attributes:
    name: for people.
    fn: from a `Context` to a scalar, the batch's mean.
    weight: what it is multiplied by; None is not multiplied, which is another
      program than a weight of 1.
    stages: whether it reads stage outputs.
    loss: one of `distill.LOSSES` where it reads the teachers' logits: it
      decides what the mean of several is.
  """

  name: str
  fn: Callable[[Context], jax.Array]
  weight: float | None = None
  stages: bool = False
  loss: str = ""


def total(
  terms: Sequence[Term], c: Context
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sums the weighted terms from the first to the last, which decides bits.

  Returns:
    The loss, and each weighted term by its name.
  """

  def value(term: Term) -> jax.Array:
    unweighted = term.fn(c)
    return unweighted if term.weight is None else term.weight * unweighted

  first, *rest = terms
  each = {first.name: value(first)}
  out = each[first.name]
  for term in rest:
    each[term.name] = value(term)
    out = out + each[term.name]
  return out, each


def cross_entropy(
  label_smoothing: float = 0.0, weight: float | None = None
) -> Term:
  """Returns the term of the labels, as `distill.cross_entropy`."""

  def fn(c: Context) -> jax.Array:
    return distill.cross_entropy(c.logits, c.labels, label_smoothing)

  return Term("cross_entropy", fn, weight)


def soft(temperature: float, weight: float | None = None) -> Term:
  """Returns the term of a teacher's probabilities, as `distill.soft_loss`."""

  def fn(c: Context) -> jax.Array:
    t = temperature * c.temperature_factor
    return distill.soft_loss(c.logits, c.teacher.logits, t)

  return Term("distillation", fn, weight, loss="kd")


def squared(weight: float | None = None) -> Term:
  """Returns the term of a teacher's logits, as `distill.logit_loss`."""

  def fn(c: Context) -> jax.Array:
    return distill.logit_loss(c.logits, c.teacher.logits)

  return Term("distillation", fn, weight, loss="mse")


def decoupled(
  temperature: float,
  beta: float,
  warmup: float = 0.0,
  weight: float | None = None,
) -> Term:
  """Returns the term of a teacher by `distill.decoupled_loss`.

  Args:
    temperature: of both softmaxes.
    beta: weight of the classes that are not the right one.
    warmup: epochs in which the term grows to its whole size; 0 is none.
    weight: of the term.
  """

  def fn(c: Context) -> jax.Array:
    t = temperature * c.temperature_factor
    args = c.logits, c.teacher.logits, c.labels
    loss = distill.decoupled_loss(*args, t, beta)
    # Epochs count from 0 here.
    return jnp.minimum((c.epoch + 1) / warmup, 1) * loss if warmup else loss

  return Term("distillation", fn, weight, loss="dkd")


def answers(
  loss: str,
  *,
  temperature: float,
  weight: float,
  label_smoothing: float = 0.0,
  beta: float = 8.0,
  warmup: float = 0.0,
) -> list[Term]:
  """Lists the terms of the labels and of a teacher, the labels' first.

  - 'kd' (Hinton et al., 2015): (1 - weight) * cross entropy + weight * `soft`.
  - 'mse': the same with `squared`; the temperature is not used.
  - 'dkd_mixed': the same with `decoupled`.
  - 'dkd', as its authors' mdistiller has it: cross entropy + `decoupled`.

  With a weight of 1 the teacher's term stands alone, but for 'dkd'.

  Args:
    loss: one of `distill.LOSSES`.
    temperature: of both softmaxes.
    weight: the teacher's share, in [0, 1].
    label_smoothing: as in `distill.cross_entropy`.
    beta, warmup: as `decoupled` takes them; 'dkd' alone has a warmup.
  """
  if loss == "dkd":
    hard = cross_entropy(label_smoothing)
    return [hard, decoupled(temperature, beta, warmup)]
  alone = weight == 1
  share = None if alone else weight
  if loss == "kd":
    teacher = soft(temperature, share)
  elif loss == "mse":
    teacher = squared(share)
  else:
    teacher = decoupled(temperature, beta, weight=share)
  return (
    [teacher]
    if alone
    else [cross_entropy(label_smoothing, 1 - weight), teacher]
  )


def group_lasso(weight: float) -> Term:
  """Returns the term that draws whole channels towards 0."""
  return Term(
    "group_lasso", lambda c: channels.group_lasso(c.net.params, c.net.spec),
    weight,
  )  # fmt: skip


def dampening(weight: float, epochs: int) -> Term:
  """Returns the term that draws weights to their grids.

  Args:
    weight: at the end of so many epochs; it grows to it along a cosine.
    epochs: of the phase.
  """

  def fn(c: Context) -> jax.Array:
    pull = weight * dampen.dampening_share(c.epoch, epochs)
    return pull * dampen.dampening_loss(c.net.params, c.net.spec)

  return Term("dampening", fn)


def fitnets(weight: float) -> Term:
  """Returns the term of projected stage outputs, `distill.fitnets_loss`."""

  def fn(c: Context) -> jax.Array:
    return distill.fitnets_loss(c.stages, c.teacher.stages, c.projections)

  return Term("features", fn, weight, stages=True)


def attention(weight: float) -> Term:
  """Returns the term of attention maps, as `distill.attention_loss`."""

  def fn(c: Context) -> jax.Array:
    return distill.attention_loss(c.stages, c.teacher.stages)

  return Term("features", fn, weight, stages=True)


def diversity(kind: str, weight: float) -> Term:
  """Returns the term of the likeness to other networks.

  Args:
    kind: one of `distill.DIVERSITIES`.
    weight: of the likeness; the more, the more the student differs.
  """
  likeness = distill.DIVERSITIES[kind]
  return Term(
    "diversity", lambda c: likeness(c.logits, c.teacher.others, c.labels),
    weight,
  )  # fmt: skip
