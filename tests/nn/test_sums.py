"""Residual sums of few bits, as they are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import odd_nets
import pytest
import tiny_run

from jaxr18.nn import network
from jaxr18.nn.quantize import quantize_sum
from jaxr18.nn.spec import NetSpec

BITS = 5


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def net(images):
  spec = dataclasses.replace(tiny_run.tiny_network().spec, sum_bits=BITS)
  net = network.init(jax.random.key(0), spec)
  return network.calibrate(net, images, "absmax")


def test_outputs_of_blocks_are_integers_of_their_bits(net, images):
  forward = odd_nets.fast_jit(network.forward_stages)
  _, stages, _ = forward(net, images)
  for (name, _), x in zip(net.spec.blocks(), stages, strict=True):
    step = float(net.params[name]["sum_bound"]) / (2 ** (BITS - 1) - 1)
    codes = np.asarray(x) / step
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    assert 0 <= codes.min() and 3 < codes.max() <= 2**BITS - 1


def test_calibration_covers_the_operands(net):
  for name, _ in net.spec.blocks():
    # Batch norm's outputs are of a deviation of 1, their largest a few of it.
    assert 2 < float(net.params[name]["sum_bound"]) < 20


def test_bounds_learn(net, images):
  def loss(params):
    return jnp.sum(network.forward(net.replace(params=params), images) ** 2)

  gradients = odd_nets.fast_jit(jax.grad(loss))(net.params)
  for name, _ in net.spec.blocks():
    assert abs(float(gradients[name]["sum_bound"])) > 1e-6


def test_without_a_sign_the_step_is_the_same():
  x = jnp.asarray([-1.0, 0.26, 0.49, 2.2, 9.0])
  bound, bits = jnp.float32(7 * 0.5), 4
  assert quantize_sum(x, bound, bits).tolist() == [-1, 0.5, 0.5, 2, 3.5]
  found = quantize_sum(x, bound, bits, signed=False)
  np.testing.assert_allclose(found, [0, 0.5, 0.5, 2, 7.5], rtol=1e-6)


def test_the_description_keeps_them(net):
  assert NetSpec.from_json(net.spec.to_json()) == net.spec
  plain = dataclasses.replace(net.spec, sum_bits=32)
  assert "sum_bits" not in plain.to_json()
  wrong = net.spec.to_json().replace('"sum_bits": 5', '"sum_bits": 17')
  with pytest.raises(ValueError, match=r"sum_bits \(=17\) must be one of"):
    NetSpec.from_json(wrong)
