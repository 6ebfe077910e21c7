"""Losses against PyTorch's values, and by their relations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.compress.distill import (
  cross_entropy,
  decoupled_loss,
  logit_loss,
  soft_loss,
)
from jaxr18.train import terms

LOGITS = jnp.array([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0]])
TEACHER = jnp.array([[1.0, 3.0, -2.0], [0.0, 0.0, 4.0]])
LABELS = jnp.array([0, 1])


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def total(weight, temperature=4.0, *, loss="kd", teacher=TEACHER,
          labels=LABELS, **more):  # fmt: skip
  """The sum of the labels' and the teacher's terms."""
  context = terms.Context(LOGITS, labels, terms.TeacherOutputs(teacher))
  parts = terms.answers(loss, temperature=temperature, weight=weight, **more)
  return terms.total(parts, context)[0]


class TestCrossEntropy:
  # torch.nn.functional.cross_entropy(LOGITS, LABELS, label_smoothing=...)
  @pytest.mark.parametrize(
    "smoothing, expected",
    [(0.0, 1.5016401469293814), (0.1, 1.5349734802627149)],
  )
  def test_equals_pytorch(self, smoothing, expected):
    loss = cross_entropy(LOGITS, LABELS, smoothing)
    assert loss == pytest.approx(expected, rel=1e-6)

  def test_by_hand(self):
    probabilities = softmax(np.asarray(LOGITS))
    expected = -np.mean(np.log([probabilities[0, 0], probabilities[1, 1]]))
    assert cross_entropy(LOGITS, LABELS) == pytest.approx(expected, rel=1e-6)

  def test_smoothing_mixes_in_the_mean_over_classes(self):
    every = [cross_entropy(LOGITS, jnp.full(2, c)) for c in range(3)]
    expected = 0.7 * cross_entropy(LOGITS, LABELS) + 0.3 * np.mean(every)
    got = cross_entropy(LOGITS, LABELS, 0.3)
    assert got == pytest.approx(float(expected), rel=1e-6)

  def test_large_logits_stay_finite(self):
    loss = cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    assert loss == pytest.approx(2e4)


class TestSoftLoss:
  @pytest.mark.parametrize("teacher", [TEACHER[:1], TEACHER[0], TEACHER[:, :1]])
  def test_a_teacher_of_another_shape_is_no_broadcast(self, teacher):
    with pytest.raises(AssertionError, match=r"\(2, 3\)"):
      soft_loss(LOGITS, teacher, 2.0)
    with pytest.raises(AssertionError, match=r"\(2, 3\)"):
      decoupled_loss(LOGITS, teacher, LABELS, 2.0, 8.0)

  # T**2 * kl_div(log_softmax(LOGITS / T, -1), softmax(TEACHER / T, -1),
  # reduction="batchmean") in PyTorch.
  @pytest.mark.parametrize(
    "temperature, expected",
    [
      (1.0, 0.464429081074641),
      (2.0, 0.6949195304941758),
      (4.0, 0.8167335636354209),
    ],
  )
  def test_equals_pytorch(self, temperature, expected):
    loss = soft_loss(LOGITS, TEACHER, temperature)
    assert loss == pytest.approx(expected, rel=1e-5)

  def test_zero_for_the_teacher_itself(self):
    assert soft_loss(TEACHER, TEACHER, 3.0) == pytest.approx(0, abs=1e-6)
    assert soft_loss(TEACHER + 5, TEACHER, 3.0) == pytest.approx(0, abs=1e-6)

  def test_gradient_by_hand(self):
    # d/dz of T^2 KL is T (softmax(z / T) - softmax(teacher / T)).
    t = 2.5
    gradient = jax.grad(soft_loss)(LOGITS, TEACHER, t)
    student, teacher = (softmax(np.asarray(x) / t) for x in (LOGITS, TEACHER))
    expected = t * (student - teacher) / len(LABELS)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)

  def test_t_squared_keeps_the_gradient(self):
    # At high temperatures: (z - z_mean - (v - v_mean)) / classes.
    center = lambda x: x - x.mean(-1, keepdims=True)
    gradient = jax.grad(soft_loss)(LOGITS, TEACHER, 1000.0)
    expected = (center(LOGITS) - center(TEACHER)) / 3 / len(LABELS)
    np.testing.assert_allclose(gradient, expected, rtol=1e-2)

  def test_no_gradient_into_the_teacher(self):
    gradient = jax.grad(soft_loss, argnums=1)(LOGITS, TEACHER, 2.0)
    assert not np.any(gradient)


class TestLogitLoss:
  def test_by_hand(self):
    squares = [1, 4, 4, 1, 0.25, 1]
    loss = logit_loss(LOGITS, TEACHER)
    assert loss == pytest.approx(sum(squares) / 6 / 2)

  def test_is_the_soft_loss_at_high_temperatures(self):
    center = lambda x: x - x.mean(-1, keepdims=True)
    expected = logit_loss(center(LOGITS), center(TEACHER))
    # In float64 by hand: T^2 times a KL of 1e-7 has no digits in float32.
    t = 1e3
    p, q = (softmax(np.asarray(x, np.float64) / t) for x in (TEACHER, LOGITS))
    limit = t**2 * np.mean(np.sum(p * np.log(p / q), -1))
    assert limit == pytest.approx(float(expected), rel=1e-2)
    gradients = [
      jax.grad(f)(LOGITS)
      for f in (
        lambda z: soft_loss(z, TEACHER, 1000.0),
        lambda z: logit_loss(center(z), center(TEACHER)),
      )
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-2)

  def test_sees_what_is_common_to_all_classes(self):
    assert logit_loss(TEACHER + 2, TEACHER) == pytest.approx(2)

  def test_no_gradient_into_the_teacher(self):
    assert not np.any(jax.grad(logit_loss, argnums=1)(LOGITS, TEACHER))


class TestAnswers:
  @pytest.mark.parametrize("smoothing", [0.0, 0.1])
  def test_weight_0_is_cross_entropy(self, smoothing):
    expected = cross_entropy(LOGITS, LABELS, smoothing)
    assert total(0.0, label_smoothing=smoothing) == expected

  def test_weight_1_is_the_soft_loss(self):
    assert total(1.0) == soft_loss(LOGITS, TEACHER, 4.0)

  @pytest.mark.parametrize("loss", ["kd", "mse", "dkd_mixed", "dkd"])
  def test_weight_1_does_not_look_at_the_labels(self, loss):
    def value(labels, smoothing):
      return total(1.0, loss=loss, labels=labels, label_smoothing=smoothing)

    # Whatever 0 times the hard loss would be.
    with_hard = loss == "dkd"
    assert (value(LABELS, 0.1) != value(LABELS, jnp.inf)) == with_hard

  def test_mse_in_the_place_of_kd(self):
    got = total(0.7, temperature=9.0, loss="mse")
    hard, soft = cross_entropy(LOGITS, LABELS), logit_loss(LOGITS, TEACHER)
    assert got == pytest.approx(0.3 * float(hard) + 0.7 * float(soft), rel=1e-6)

  def test_between(self):
    expected = 0.3 * float(cross_entropy(LOGITS, LABELS, 0.1)) + 0.7 * float(
      soft_loss(LOGITS, TEACHER, 2.0)
    )
    got = total(0.7, temperature=2.0, label_smoothing=0.1)
    assert got == pytest.approx(expected, rel=1e-6)

  def test_no_gradient_into_the_teacher(self):
    assert not np.any(jax.grad(lambda t: total(0.9, teacher=t))(TEACHER))

  def test_descends_to_the_teacher(self):
    step = jax.jit(lambda z: z - 5 * jax.grad(soft_loss)(z, TEACHER, 4.0))
    z = LOGITS
    for _ in range(300):
      z = step(z)
    np.testing.assert_allclose(
      jax.nn.softmax(z), jax.nn.softmax(TEACHER), atol=1e-3
    )
