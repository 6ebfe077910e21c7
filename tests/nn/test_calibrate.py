"""Bounds of quantized inputs from images, by each method."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.config.schema import CALIBRATIONS
from jaxr18.nn.calibrate import METHODS, initial_bound
from jaxr18.nn.quantize import input_levels, quantize_input


def activations(seed=0, size=20_003):
  """As after a ReLU: half zeros, a long tail."""
  x = np.random.default_rng(seed).laplace(size=size)
  return np.maximum(x, 0).astype(np.float32)


def test_configs_know_the_same_names():
  assert tuple(METHODS) == CALIBRATIONS


@pytest.mark.parametrize("method", METHODS)
def test_zeros_give_a_bound_above_zero(method):
  bound = initial_bound(jnp.zeros((4, 3)), 15, False, method)
  assert bound.dtype == jnp.float32 and 0 < bound < 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [False, True])
def test_is_at_most_the_largest(method, signed):
  x = np.array([-1.0, 2.0, -3.0] if signed else [0.0, 1.0, 3.0], np.float32)
  bound = initial_bound(jnp.asarray(x), 127, signed, method)
  assert 1 <= bound <= 3


def test_lsq_by_hand():
  # 2 mean|x| sqrt(n): LSQ's step 2 mean|x| / sqrt(n), n times.
  x = jnp.array([-1.0, 2.0, 0.5, 100.0])
  expected = 2 * 25.875 * np.sqrt(3)
  assert initial_bound(x, 3, False, "lsq") == pytest.approx(expected, rel=1e-6)
  assert initial_bound(x, 1, True, "lsq") == pytest.approx(51.75, rel=1e-6)
  assert initial_bound(jnp.array([1.0, 3.0]), 127, True, "lsq") == 3


def test_absmax():
  assert initial_bound(jnp.array([-4.0, 3.0]), 7, True, "absmax") == 4


def test_percentile_is_numpys():
  x = activations()
  expected = np.percentile(x, 99.9, method="inverted_cdf")
  got = initial_bound(jnp.asarray(x), 15, False, "percentile")
  assert got == pytest.approx(expected, rel=1e-5)
  assert got < 0.8 * x.max()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_is_the_least_of_many(bits, signed):
  x = activations() - (0.5 if signed else 0)
  n = input_levels(bits, signed)

  def error(bound):
    q = quantize_input(jnp.asarray(x), bound, bits, signed)
    return float(np.mean((np.asarray(q) - x) ** 2))

  largest = np.abs(x).max()
  found = float(initial_bound(jnp.asarray(x), n, signed, "mse"))
  others = [error(b) for b in np.linspace(0.02, 1, 50) * largest]
  assert error(found) <= min(others) * 1.02
  others = [initial_bound(jnp.asarray(x), n, signed, m) for m in METHODS]
  assert error(found) <= min(map(error, others)) * (1 + 1e-6)


def test_fewer_bits_end_earlier():
  x = jnp.asarray(activations())
  two, four, eight = (initial_bound(x, n, False, "mse") for n in (3, 15, 255))
  assert two < four < eight
