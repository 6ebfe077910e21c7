"""DKD, FitNets, attention transfer and diversity against PyTorch's values.

The literals are PyTorch's in float64, from the papers' formulas: kl_div over
(right, others) and over the others for DKD; 0.5 * mse_loss(x @ w, hint);
0.5 * (normalize(x.pow(2).sum(-1)) - same of hint).norm(dim=1).mean().
"""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxr18.compress import distill
from jaxr18.config import schema as config
from jaxr18.nn import network
from jaxr18.train import terms

LOGITS = jnp.array([[2.0, 1.0, 0.0], [-1.0, 0.5, 3.0]])
TEACHER = jnp.array([[1.0, 3.0, -2.0], [0.0, 0.0, 4.0]])
LABELS = jnp.array([0, 1])
X = jnp.sin(0.37 * jnp.arange(16.0)).reshape(2, 2, 2, 2)
HINT = jnp.cos(0.53 * jnp.arange(24.0)).reshape(2, 2, 2, 3)
KERNEL = jnp.sin(0.71 * jnp.arange(6.0)).reshape(2, 3)


@pytest.mark.parametrize(
  "temperature, beta, expected",
  [
    (1.0, 1.0, 0.4810056976668373),
    (4.0, 8.0, 6.749783950030106),
    (2.0, 0.0, 0.3315227598255814),
  ],
)
def test_dkd_equals_pytorch(temperature, beta, expected):
  loss = distill.decoupled_loss(LOGITS, TEACHER, LABELS, temperature, beta)
  assert loss == pytest.approx(expected, rel=1e-5)


def test_dkd_of_weight_one_minus_p_is_hintons_loss():
  # Eq. 6 of the paper: KD = TCKD + (1 - p) NCKD, for each image.
  for i in range(2):
    one = (LOGITS[i : i + 1], TEACHER[i : i + 1], LABELS[i : i + 1])
    rest = 1 - float(jax.nn.softmax(TEACHER[i] / 3)[LABELS[i]])
    expected = distill.soft_loss(one[0], one[1], 3.0)
    got = distill.decoupled_loss(*one, 3.0, rest)
    assert got == pytest.approx(float(expected), rel=1e-5)


def test_dkd_has_a_finite_gradient_for_sure_networks():
  sure = jnp.array([[200.0, -200.0, 0.0], [0.0, -90.0, 90.0]])
  gradient = jax.grad(distill.decoupled_loss)(sure, TEACHER, LABELS, 1.0, 8.0)
  assert np.isfinite(gradient).all() and np.any(gradient)


def test_the_cosine_equals_pytorch():
  loss = distill.cosine_loss(LOGITS, TEACHER[None], LABELS)
  assert loss == pytest.approx(0.9704064360589036, rel=1e-5)
  same = distill.cosine_loss(LOGITS, LOGITS[None], LABELS)
  assert same == pytest.approx(1, rel=1e-5)


def test_the_log_determinant_is_pangs():
  # Adaptive diversity promoting's log_det, in NumPy's float64: probabilities
  # without the right class, of length 1; the determinant of their products.
  def term(*logits):
    each = []
    for row, label in enumerate((1, 3)):
      p = np.stack([np.exp(np.float64(z[row])) for z in logits])
      p = np.delete(p / p.sum(-1, keepdims=True), label, 1)
      p /= np.linalg.norm(p, axis=1, keepdims=True)
      each.append(np.log(np.linalg.det(p @ p.T + 1e-6 * np.eye(len(p)))))
    return np.mean(each)

  z = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
  labels = jnp.array([1, 3])
  for n in (2, 3):
    got = distill.log_det_loss(z[0], z[1:n], labels)
    assert got == pytest.approx(-term(*z[:n]), rel=1e-4)
  # Of two members it is log(1 - cos^2), which the cosine is not.
  cos = [
    float(distill.cosine_loss(z[0, i : i + 1], z[1:2, i : i + 1], labels[i]))
    for i in range(2)
  ]
  got = distill.log_det_loss(z[0], z[1:2], labels)
  assert got == pytest.approx(-np.mean(np.log(1 - np.square(cos))), rel=1e-3)


@pytest.mark.parametrize("name", distill.DIVERSITIES)
def test_a_likeness_leaves_the_others_alone(name):
  loss = distill.DIVERSITIES[name]
  gradients = jax.grad(loss, (0, 1))(LOGITS, TEACHER[None], LABELS)
  assert np.any(gradients[0]) and not np.any(gradients[1])
  same = jax.grad(loss)(LOGITS, jnp.stack([LOGITS] * 2), LABELS)
  assert np.all(np.isfinite(same))


def test_dkd_is_mdistillers():
  # ce_weight 1, alpha 1, beta 8, temperature 4, and a share that grows.
  how = dict(temperature=4.0, weight=0.9)
  teacher = terms.TeacherOutputs(TEACHER)
  hard = distill.cross_entropy(LOGITS, LABELS)
  soft = 6.749783950030106  # PyTorch's, as above
  for epoch, share in ((0, 0.05), (19, 1.0), (40, 1.0)):
    context = terms.Context(LOGITS, LABELS, teacher, epoch=epoch)
    got, _ = terms.total(terms.answers("dkd", **how, warmup=20), context)
    assert got == pytest.approx(float(hard) + share * soft, rel=1e-5)
  got, _ = terms.total(terms.answers("dkd_mixed", **how), context)
  assert got == pytest.approx(0.1 * float(hard) + 0.9 * soft, rel=1e-5)


def test_the_names_that_a_config_knows():
  assert (
    get_args(config.Teacher.model_fields["loss"].annotation) == distill.LOSSES
  )
  assert get_args(config.Loss.model_fields["likeness"].annotation) == tuple(
    distill.DIVERSITIES
  )


def test_fitnets_equals_pytorch():
  projections = {"stage1": {"kernel": KERNEL}}
  loss = distill.fitnets_loss((X,), (HINT,), projections)
  assert loss == pytest.approx(0.42728296389136133, rel=1e-5)
  gradient = jax.grad(distill.fitnets_loss, 2)((X,), (HINT,), projections)
  assert np.any(gradient["stage1"]["kernel"])


def test_attention_equals_pytorch():
  loss = distill.attention_loss((X,), (HINT,))
  assert loss == pytest.approx(0.3095000079686468, rel=1e-5)
  twice = distill.attention_loss((X, 3 * X), (HINT, 2 * HINT))
  assert twice == pytest.approx(2 * float(loss), rel=1e-5)


def test_a_student_that_is_its_teacher_has_a_finite_gradient():
  loss, gradient = jax.value_and_grad(distill.attention_loss)((X,), (X,))
  assert loss < 1e-5 and np.isfinite(gradient[0]).all()


def test_larger_pictures_are_averaged_down():
  large = jnp.repeat(jnp.repeat(HINT, 2, 1), 2, 2)
  got = distill.attention_loss((X,), (large,))
  assert got == pytest.approx(0.3095000079686468, rel=1e-5)
  with pytest.raises(ValueError, match="3 and 2 pixels a side"):
    distill.attention_loss((jnp.ones((1, 3, 3, 1)),), (HINT[:1],))


def test_mean_probability():
  both = distill.mean_probability(jnp.stack([LOGITS, TEACHER]))
  expected = (jax.nn.softmax(LOGITS) + jax.nn.softmax(TEACHER)) / 2
  np.testing.assert_allclose(jnp.exp(both), expected, rtol=1e-6)
  np.testing.assert_array_equal(distill.mean_probability(LOGITS[None]), LOGITS)


def test_stage_outputs_leave_logits_as_they_are():
  net = tiny_run.tiny_network()
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  logits, stages, _ = network.forward_stages(net, images)
  np.testing.assert_array_equal(logits, network.forward(net, images))
  assert [s.shape for s in stages] == [(2, 8, 8, 4), (2, 4, 4, 12)]
  head = net.params["head"]
  again = stages[-1].mean((1, 2)) @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)
