"""Weights are drawn to their own levels, and stop to oscillate."""

import jax
import jax.numpy as jnp
import numpy as np
import odd_nets
import pytest

from jaxr18.compress.dampen import dampening_loss, dampening_share
from jaxr18.nn.network import at
from jaxr18.nn.quantize import (
  distance_to_grid,
  kernel_codes,
  quantize_kernel,
)

GRIDS = [(2, "ternary"), (2, "four_levels"), (4, "ternary")]


def kernel_of(seed=0):
  x = np.random.default_rng(seed).normal(size=(3, 3, 4, 6))
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(
  "bits, two_bits, learned",
  [(1, "ternary", False)]  # a sign has no end to learn
  + [(*grid, learned) for grid in GRIDS for learned in (False, True)],
)
def test_draws_each_weight_to_its_level(bits, two_bits, learned):
  kernel, bound = kernel_of(), jnp.float32(1.2) if learned else None
  q = np.asarray(quantize_kernel(kernel, bits, bound, two_bits))
  codes, scale = kernel_codes(kernel, bits, bound, two_bits)
  end = np.asarray(scale) * np.abs(codes).max()
  inside = np.abs(kernel) < end
  assert 0.1 < inside.mean() < 1
  value, gradient = jax.value_and_grad(distance_to_grid)(
    kernel, bits, bound, two_bits
  )
  off = np.where(inside, kernel - q, 0)
  assert value == pytest.approx(float(np.sum(off**2)), rel=1e-4)
  np.testing.assert_allclose(gradient, 2 * off, rtol=1e-4, atol=1e-6)
  if learned:
    of_bound = jax.grad(distance_to_grid, 2)(kernel, bits, bound, two_bits)
    assert of_bound == 0


@pytest.mark.parametrize("bits", ["binary", "learned", "four_levels", "mixed"])
def test_is_the_sum_over_kernels_of_integers(bits):
  net = odd_nets.net(bits, 0.5)
  params = jax.tree.map(lambda p, m: jnp.where(m, p, 0), net.params, net.masks)
  value, gradient = odd_nets.fast_jit(
    jax.value_and_grad(dampening_loss), static_argnums=1
  )(params, net.spec)
  layers = [x for x in net.spec.layers() if x.w_bits < 16]
  expected = sum(
    distance_to_grid(
      at(params, x.path)["kernel"],
      x.w_bits,
      at(params, x.path).get("kernel_bound"),
      x.two_bits,
    )
    for x in layers
  )
  assert value == pytest.approx(float(expected), rel=1e-5) and value > 0.1
  drawn = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, g in jax.tree_util.tree_leaves_with_path(gradient)
    if np.any(g)
  }
  # In the smallest of 1 bit a channel's one weight left is its own level.
  assert drawn <= {f"{x.path}/kernel" for x in layers}
  assert len(drawn) >= len(layers) - 1
  for x in layers:  # what is masked is 0 and stays so
    mask = np.broadcast_to(
      at(net.masks, x.path)["kernel"], at(params, x.path)["kernel"].shape
    )
    assert not np.any(np.asarray(at(gradient, x.path)["kernel"])[~mask])


@pytest.mark.parametrize("two_bits", ["ternary", "four_levels"])
def test_ends_an_oscillation(two_bits):
  # As in the paper's toy example, what is best lies between two levels.
  start = kernel_of(1)
  wanted = 0.9 * start

  @jax.jit
  def step(kernel, weight):
    def loss(kernel):
      q = quantize_kernel(kernel, 2, jnp.float32(1.4), two_bits)
      pull = distance_to_grid(kernel, 2, jnp.float32(1.4), two_bits)
      return jnp.sum((q - wanted) ** 2) + weight * pull

    return kernel - 0.01 * jax.grad(loss)(kernel)

  def changes(weight):
    kernel, last, count = start, None, 0
    for i in range(400):
      kernel = step(kernel, weight)
      codes, _ = kernel_codes(kernel, 2, jnp.float32(1.4), two_bits)
      if i >= 300:
        count += int(np.sum(np.asarray(codes) != last))
      last = np.asarray(codes)
    return count

  assert changes(0.0) > 100
  assert changes(1.0) < changes(0.0) / 10


def test_grows_along_a_cosine():
  shares = [float(dampening_share(jnp.int32(e), 4)) for e in range(4)]
  expected = [(1 - np.cos(np.pi * i / 4)) / 2 for i in (1, 2, 3, 4)]
  assert shares == pytest.approx(expected) and shares[-1] == 1
