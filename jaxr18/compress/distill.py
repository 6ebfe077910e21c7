"""Losses on logits: labels, and a teacher's soft targets."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """Mean cross entropy in nats.

  Args:
    logits: [batch, classes].
    labels: [batch], ints.
    label_smoothing: mass that goes to all classes evenly (Szegedy, 2016).
  """
  targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, label_smoothing)
  return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def soft_loss(
  logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the batch's mean.

  T^2 keeps its gradient's size whatever the temperature (Hinton et al., 2015,
  section 2). No gradient flows into the teacher.
  """
  teacher = jax.nn.log_softmax(
    jax.lax.stop_gradient(teacher_logits) / temperature
  )
  student = jax.nn.log_softmax(logits / temperature)
  kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
  return temperature**2 * jnp.mean(kl)


def distillation_loss(
  logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  temperature: float,
  kd_weight: float,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """(1 - kd_weight) * cross entropy + kd_weight * soft loss."""
  hard = cross_entropy(logits, labels, label_smoothing)
  soft = soft_loss(logits, teacher_logits, temperature)
  return (1 - kd_weight) * hard + kd_weight * soft
