"""Losses on logits and on features: labels, and what a teacher says."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

LOSSES = ("kd", "mse", "dkd", "dkd_mixed")


def cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """Computes the mean cross entropy in nats.

  Args:
    logits: [batch, classes].
    labels: [batch], ints; or [batch, classes], probabilities.
    label_smoothing: mass that goes to all classes evenly (Szegedy, 2016).
  """
  targets = labels
  if labels.ndim == 1:
    targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, label_smoothing)
  return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def soft_loss(
  logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """Computes the mean T^2 KL(softmax(teacher / T) || softmax(student / T)).

  T^2 keeps its gradient's size whatever the temperature (Hinton et al., 2015,
  section 2). No gradient flows into the teacher.

  Args:
    logits, teacher_logits: [batch, classes].
    temperature: of both softmaxes.
  """
  chex.assert_rank(logits, 2)
  chex.assert_equal_shape([logits, teacher_logits])
  teacher = jax.nn.log_softmax(
    jax.lax.stop_gradient(teacher_logits) / temperature
  )
  student = jax.nn.log_softmax(logits / temperature)
  kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
  return temperature**2 * jnp.mean(kl)


def logit_loss(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """Computes half the mean squared difference of logits.

  `soft_loss` becomes this as the temperature grows, but for what is common to
  an image's logits, which a softmax does not see (Hinton et al., 2015, section
  2.1; Kim et al., 2021, arXiv:2105.08919). No gradient flows into the teacher.

  Args:
    logits, teacher_logits: [batch, classes].
  """
  chex.assert_equal_shape([logits, teacher_logits])
  teacher = jax.lax.stop_gradient(teacher_logits)
  return jnp.mean(jnp.square(logits - teacher)) / 2


def decoupled_loss(
  logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  temperature: float,
  beta: float,
) -> jax.Array:
  """Computes DKD's mean T^2 (TCKD + beta * NCKD) (Zhao et al., 2022).

  TCKD is the KL of (right class, all others), NCKD that of the others among
  themselves; Hinton's loss is TCKD + (1 - p) NCKD with p the teacher's
  probability of the right class, which silences what a sure teacher knows.

  Args:
    logits, teacher_logits: [batch, classes].
    labels: [batch], ints.
    temperature: of both softmaxes.
    beta: weight of NCKD (the paper's alpha is 1).
  """
  chex.assert_equal_shape([logits, teacher_logits])
  chex.assert_shape(labels, logits.shape[:1])
  right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)

  def split(z):
    """Returns log (p right, p others), [batch, 2], and log p among others."""
    z = z / temperature
    others = jnp.where(right, -jnp.inf, z)
    among = jax.nn.logsumexp(others, -1)
    two = jnp.stack([jnp.sum(jnp.where(right, z, 0), -1), among], -1)
    # Finite where the class is right, since 0 * inf has no gradient.
    return jax.nn.log_softmax(two), jnp.where(right, 0.0, z - among[:, None])

  teacher_two, teacher_rest = split(jax.lax.stop_gradient(teacher_logits))
  two, rest = split(logits)
  tckd = jnp.sum(jnp.exp(teacher_two) * (teacher_two - two), -1)
  p = jnp.where(right, 0.0, jnp.exp(teacher_rest))
  nckd = jnp.sum(p * (teacher_rest - rest), -1)
  return temperature**2 * jnp.mean(tckd + beta * nckd)


def cosine_loss(
  logits: jax.Array, others_logits: jax.Array, labels: jax.Array
) -> jax.Array:
  """Measures how alike answers are among the wrong classes, from 0 to 1.

  The cosine of the two probability vectors without the right class, the
  batch's mean: members that err alike do not correct each other. It is this
  project's own, of the vectors of Pang et al., 2019, and of bounded size. No
  gradient flows into the others.

  Args:
    logits: [batch, classes], of a member.
    others_logits: [others, batch, classes], of those that it is to differ
      from; their mean probability counts.
    labels: [batch], ints.
  """
  others = jax.lax.stop_gradient(mean_probability(others_logits))
  product = _errors(logits, labels) * _errors(others, labels)
  return jnp.mean(jnp.sum(product, -1))


def log_det_loss(
  logits: jax.Array, others_logits: jax.Array, labels: jax.Array
) -> jax.Array:
  """Minus the logarithm of the ensemble diversity of Pang et al., 2019.

  The diversity is the determinant of the members' cosines with each other,
  those of `cosine_loss`: 1 - cos^2 for two members. 1e-6 on the diagonal keeps
  it above 0 where members are equal. The batch's mean; no gradient flows into
  the others.

  Args:
    logits, others_logits, labels: as `cosine_loss` takes them; each of the
      others is a member.
  """
  others = jax.lax.stop_gradient(others_logits)
  members = jnp.concatenate([logits[None], others])
  units = jax.vmap(_errors, (0, None))(members, labels)
  cosines = jnp.einsum("mbc,nbc->bmn", units, units)
  _, log_det = jnp.linalg.slogdet(cosines + 1e-6 * jnp.eye(len(members)))
  return -jnp.mean(log_det)


def _errors(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Probabilities without the right class, 0 there, of length 1."""
  wrong = ~jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  p = jnp.where(wrong, jax.nn.softmax(logits), 0)
  return p / jnp.sqrt(jnp.sum(p**2, -1, keepdims=True) + 1e-12)


DIVERSITIES = {"cosine": cosine_loss, "log_det": log_det_loss}


def mean_probability(logits: jax.Array) -> jax.Array:
  """Returns the logits of several networks' mean probability.

  Args:
    logits: [members, batch, classes].

  Returns:
    [batch, classes], the mean's logarithm; of one member, its own logits.
  """
  if logits.shape[0] == 1:
    return logits[0]
  log_p = jax.nn.log_softmax(logits)
  return jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(logits.shape[0]))


def mean_teacher(logits: jax.Array, loss: str) -> jax.Array:
  """Returns the joint logits of several teachers, for one of LOSSES.

  Args:
    logits: [teachers, batch, classes].
    loss: 'mse' compares logits, and so takes their mean; all others take
      `mean_probability`.

  Returns:
    [batch, classes], logits.
  """
  return jnp.mean(logits, 0) if loss == "mse" else mean_probability(logits)


def init_projections(
  key: jax.Array, features: tuple[int, ...], teacher_features: tuple[int, ...]
) -> dict[str, dict[str, jax.Array]]:
  """Makes FitNets' regressors: 1x1 convolutions to the teacher's stages.

  Args:
    features, teacher_features: channels of each stage's output.
  """
  init = jax.nn.initializers.lecun_normal()
  pairs = zip(features, teacher_features, strict=True)
  return {
    f"stage{i}": {"kernel": init(jax.random.fold_in(key, i), pair)}
    for i, pair in enumerate(pairs, 1)
  }


def fitnets_loss(
  stages: tuple[jax.Array, ...],
  teacher_stages: tuple[jax.Array, ...],
  projections: dict[str, dict[str, jax.Array]],
) -> jax.Array:
  """Computes FitNets' loss on stage outputs (Romero et al., 2015, eq. 3).

  Half the squared difference of the teacher's output and the student's
  projected one; the mean over the batch, pixels, channels and stages, so that
  its size depends on no shape.

  Args:
    stages, teacher_stages: [batch, height, width, channels] each; the larger
      picture is averaged down to the smaller.
    projections: of `init_projections`.
  """
  losses = []
  for i, pair in enumerate(zip(stages, teacher_stages, strict=True), 1):
    x, hint = same_size(*pair)
    hint = jax.lax.stop_gradient(hint)
    projected = x @ projections[f"stage{i}"]["kernel"].astype(x.dtype)
    losses.append(jnp.mean((hint - projected).astype(jnp.float32) ** 2) / 2)
  return jnp.mean(jnp.stack(losses))


def attention_loss(
  stages: tuple[jax.Array, ...], teacher_stages: tuple[jax.Array, ...]
) -> jax.Array:
  """Computes attention transfer (Zagoruyko, Komodakis, 2017, eq. 2, p = 2).

  Half the sum over stages of || Q / |Q| - Q_teacher / |Q_teacher| ||, with Q
  the sum over channels of the squared output; the batch's mean.

  Args:
    stages, teacher_stages: [batch, height, width, channels] each; channels may
      differ, the larger picture is averaged down to the smaller.
  """

  def attention(x):
    q = jnp.sum(x.astype(jnp.float32) ** 2, -1).reshape(x.shape[0], -1)
    return q / _norm(q)[:, None]

  total: Any = 0.0
  for pair in zip(stages, teacher_stages, strict=True):
    x, hint = same_size(*pair)
    difference = attention(x) - attention(jax.lax.stop_gradient(hint))
    total += jnp.mean(_norm(difference)) / 2
  return total


def _norm(x):
  # A norm has no gradient at 0: a student that is its teacher would be nan.
  return jnp.sqrt(jnp.sum(x**2, -1) + 1e-12)


def check_stages(sides: tuple[int, ...], teacher_sides: tuple[int, ...]):
  """Raises ValueError where stage outputs of these sides cannot be compared."""
  pairs = list(zip(sides, teacher_sides, strict=False))
  if len(sides) != len(teacher_sides) or any(max(p) % min(p) for p in pairs):
    raise ValueError(
      f"the stage outputs of student and teacher (={list(sides)} and"
      f" {list(teacher_sides)} pixels a side) must be equally many, and"
      " multiples of each other; give both networks as many stages and the"
      " same resolution and strides"
    )


def same_size(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Averages the larger of two pictures down to the size of the smaller.

  Raises:
    ValueError: the larger side is no multiple of the smaller.
  """
  small = min(a.shape[1], b.shape[1])

  def down(x):
    n, side, _, channels = x.shape
    if side % small:
      raise ValueError(
        f"the stage outputs of student and teacher (={a.shape[1]} and"
        f" {b.shape[1]} pixels a side) must be multiples of each other; give"
        " both networks the same resolution and strides"
      )
    if side == small:
      return x
    k = side // small
    return x.reshape(n, small, k, small, k, channels).mean((2, 4))

  return down(a), down(b)
