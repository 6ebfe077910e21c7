"""Fake quantization: its grids, its gradients, and nothing at 32 bits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.compress.distill import cross_entropy
from jaxr18.nn import conv as fast_conv
from jaxr18.nn import network
from jaxr18.nn.quantize import (
  input_codes,
  input_levels,
  input_step,
  kernel_codes,
  least_error_bound,
  quantize_input,
  quantize_kernel,
  straight_through,
)
from jaxr18.nn.resnet import Conv
from jaxr18.nn.spec import SCALES, ConvSpec, resnet, with_bits

QUANTIZED = tuple(range(2, 9))
WEIGHTS = tuple(range(1, 9))
SHAPES = {
  "dense": (3, 3, 8, 16),
  "depthwise": (3, 3, 1, 16),
  "head": (64, 16),
}


# Compiled unoptimized, since these run once or twice.
fast_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def normal(seed, shape):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, jnp.float32)


def make_spec():
  spec = resnet((4, 8), (1, 1), (1, 2), (2, 1), (False, True), resolution=8)
  block = spec.stages[0][0]
  conv2 = ConvSpec(4, ranks=(2, 3))
  block = dataclasses.replace(block, conv2=conv2)
  return dataclasses.replace(spec, stages=((block,), *spec.stages[1:]))


SPEC = make_spec()  # dense, grouped, depthwise-separable and low-rank


@functools.cache
def quantized_net():
  spec = with_bits(SPEC, [(".*", 4, 4)])
  net = network.init(jax.random.key(0), spec)
  return network.calibrate(net, normal(1, (8, 8, 8, 3)))


def leaves(tree, name):
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    "/".join(k.key for k in path): np.asarray(leaf)
    for path, leaf in flat
    if path[-1].key == name
  }


@fast_jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def gradients(net, images, labels):
  def loss(params):
    logits, _ = network.forward_train(net.replace(params=params), images)
    return cross_entropy(logits, labels)

  return jax.grad(loss)(net.params)


def error(kernel, q):
  return float(np.mean((np.asarray(q, np.float64) - kernel) ** 2))


class TestKernel:
  # Bits and shapes meet no code together: each bits has one of the shapes.
  @pytest.mark.versions
  @pytest.mark.parametrize(
    "bits, shape", [*zip(WEIGHTS, itertools.cycle(SHAPES.values()))]
  )
  def test_is_codes_times_scale_bit_for_bit(self, bits, shape):
    kernel = normal(0, shape) * jnp.linspace(0.01, 5, shape[-1])
    codes, scale = kernel_codes(kernel, bits)
    assert codes.dtype == jnp.int8 and scale.dtype == jnp.float32
    assert codes.shape == shape and scale.shape == shape[-1:]
    product = np.asarray(codes).astype(np.float32) * np.asarray(scale)
    np.testing.assert_array_equal(product, quantize_kernel(kernel, bits))

  @pytest.mark.parametrize("bits", range(3, 9))
  def test_is_the_best_of_thirteen_grids(self, bits):
    kernel = np.asarray(normal(0, SHAPES["dense"]), np.float64)
    n = 2 ** (bits - 1) - 1
    codes, scale = kernel_codes(jnp.asarray(kernel, jnp.float32), bits)
    for i, channel in enumerate(np.moveaxis(kernel, -1, 0)):
      steps = np.abs(channel).max() * np.linspace(1, 0.4, 13) / n
      grids = [np.clip(np.rint(channel / s), -n, n) for s in steps]
      pairs = zip(grids, steps, strict=True)
      errors = [np.sum((q * s - channel) ** 2) for q, s in pairs]
      best = np.argmin(errors)
      assert scale[i] == pytest.approx(steps[best], rel=1e-6)
      np.testing.assert_array_equal(codes[..., i], grids[best])

  @pytest.mark.parametrize("bits", range(3, 8))
  @pytest.mark.parametrize("shape", ["normal", "laplace", "uniform"])
  def test_errs_no_more_than_a_grid_to_the_largest_weight(self, bits, shape):
    rng = np.random.default_rng(0)
    kernel = getattr(rng, shape)(size=(3, 3, 16, 8))
    n = 2 ** (bits - 1) - 1
    step = np.abs(kernel).max((0, 1, 2)) / n
    largest = error(kernel, np.rint(kernel / step) * step)
    found = error(kernel, quantize_kernel(jnp.asarray(kernel), bits))
    # Few levels and a long tail are where an early end pays; a uniform
    # channel's best grid ends at its largest weight.
    gains = shape != "uniform" and bits == 3 or shape == "laplace" and bits == 4
    assert found <= largest * (0.9 if gains else 1.0001)

  def test_ternary_is_twn(self):
    # Li et al., 2016, equations 5 and 6: the threshold is 0.7 E|w|, the scale
    # the mean of what is above.
    kernel = np.array([0.1, -0.2, 0.5, -1.0, 0.7, 0.0])  # E|w| = 0.5
    codes, scale = kernel_codes(jnp.asarray(kernel, jnp.float32)[:, None], 2)
    assert codes[:, 0].tolist() == [0, 0, 1, -1, 1, 0]
    assert scale[0] == pytest.approx((0.5 + 1.0 + 0.7) / 3)

  def test_binary_is_xnor_nets(self):
    # Rastegari et al., 2016, equations 5 and 6: the sign and the mean of |w|,
    # here without the one that is masked.
    kernel = jnp.array([0.1, -0.2, 0.5, -1.2, 0.0])[:, None]
    codes, scale = kernel_codes(kernel, 1)
    assert codes[:, 0].tolist() == [1, -1, 1, -1, 0]
    assert scale[0] == pytest.approx(0.5)

  @pytest.mark.parametrize("bits", WEIGHTS)
  def test_uses_all_levels(self, bits):
    kernel = jnp.linspace(-1, 1, 1000)[:, None] * jnp.array([1.0, 3.0])
    q = np.asarray(quantize_kernel(kernel, bits))
    for channel in q.T:
      assert len(np.unique(channel)) == max(2, 2**bits - 1)

  @pytest.mark.parametrize("bits", [0, 9, 16, 32])
  def test_bits_without_integers(self, bits):
    with pytest.raises(ValueError, match=rf"bits \(={bits}\) must be from 1"):
      kernel_codes(normal(0, (4, 4)), bits)

  @pytest.mark.parametrize("bits", (*WEIGHTS, 16))
  def test_zeros_stay_zero_and_move_nothing(self, bits):
    kernel = normal(0, SHAPES["dense"])
    mask = np.asarray(normal(1, kernel.shape)) > 0
    q = quantize_kernel(kernel * mask, bits)
    assert not np.any(np.where(mask, 0, q))
    assert np.any(np.where(mask, q, 0))
    channel = np.asarray(kernel)[..., 0][mask[..., 0]]
    alone = quantize_kernel(jnp.asarray(channel)[:, None], bits)[:, 0]
    np.testing.assert_allclose(q[..., 0][mask[..., 0]], alone, rtol=1e-5)

  @pytest.mark.parametrize("bits", (*WEIGHTS, 16))
  def test_a_zero_channel_stays_zero(self, bits):
    kernel = normal(0, SHAPES["dense"]).at[..., 3].set(0)
    q, vjp = jax.vjp(lambda k: quantize_kernel(k, bits), kernel)
    assert np.all(np.isfinite(q))
    assert not np.any(q[..., 3])
    assert np.all(np.any(np.delete(q, 3, -1), (0, 1, 2)))
    (gradient,) = vjp(jnp.ones_like(q))
    assert np.all(np.asarray(gradient) == 1)
    assert not np.any(quantize_kernel(jnp.zeros_like(kernel), bits))

  @pytest.mark.parametrize("bits", (*WEIGHTS, 16))
  def test_gradient_is_the_identity(self, bits):
    kernel, c = normal(0, SHAPES["dense"]), normal(1, SHAPES["dense"])
    gradient = jax.grad(lambda k: jnp.sum(quantize_kernel(k, bits) * c))(kernel)
    np.testing.assert_array_equal(gradient, c)

  def test_16_bits_are_float16(self):
    kernel = jnp.array([1 / 3, 1e-9, -1e6, 1.0])
    expected = [np.float16(1 / 3), 0, -65504, 1]
    assert quantize_kernel(kernel, 16).tolist() == expected
    assert quantize_input(kernel, None, 16, signed=True).tolist() == expected


class TestFourLevels:
  """-3, -1, 1, 3 times a scale: 2 bits without a zero."""

  @pytest.mark.parametrize("bound", [None, 1.4])
  def test_codes_are_the_nearest_of_four(self, bound):
    kernel = normal(0, SHAPES["dense"]) * jnp.linspace(0.01, 5, 16)
    bound = bound and jnp.float32(bound)
    codes, scale = kernel_codes(kernel, 2, bound, "four_levels")
    levels = np.array([-3.0, -1, 1, 3])
    ratio = np.asarray(kernel, np.float64) / np.asarray(scale)
    nearest = np.abs(ratio[..., None] - levels).argmin(-1)
    np.testing.assert_array_equal(codes, levels[nearest])
    assert codes.dtype == jnp.int8
    q = quantize_kernel(kernel, 2, bound, "four_levels")
    product = np.asarray(codes).astype(np.float32) * np.asarray(scale)
    np.testing.assert_array_equal(product, q)
    if bound is not None:
      spread = np.sqrt(np.mean(np.square(kernel), (0, 1, 2)))
      np.testing.assert_allclose(3 * scale, 1.4 * spread, rtol=1e-6)

  @pytest.mark.parametrize("shape", ["normal", "laplace", "uniform"])
  @pytest.mark.parametrize("size", [(3, 3, 1), (3, 3, 3), (3, 3, 48)])
  def test_errs_little_more_than_the_best_of_all_scales(self, shape, size):
    # The best one has the k largest weights at 3 and the others at 1, for some
    # k: the scale is then sum(|w| c) / sum(c^2).
    rng = np.random.default_rng(0)
    kernel = getattr(rng, shape)(size=(*size, 64))
    found, ternary = (
      np.asarray(quantize_kernel(jnp.asarray(kernel, jnp.float32), 2, None, t))
      for t in ("four_levels", "ternary")
    )
    errors, best = np.sum((found - kernel) ** 2, (0, 1, 2)), []
    for w in np.abs(kernel.reshape(-1, 64)).T:
      ordered = np.sort(w)[::-1]
      k = np.arange(len(w) + 1)
      product = w.sum() + 2 * np.concatenate([[0], np.cumsum(ordered)])
      best.append(np.sum(w**2) - np.max(product**2 / (len(w) + 8 * k)))
    assert np.all(errors >= np.array(best) * (1 - 1e-4))
    assert errors.sum() <= 1.005 * np.sum(best)
    # A laplacian's many small weights are better at 0.
    assert errors.sum() < np.sum((ternary - kernel) ** 2)

  def test_a_weight_of_0_is_not_0(self):
    kernel = jnp.array([1.0, -1.0, 0.0, 3.0, -3.0])[:, None]
    codes, scale = kernel_codes(kernel, 2, None, "four_levels")
    assert codes[:, 0].tolist() == [1, -1, 1, 3, -3]
    assert scale[0] == pytest.approx(20 / 21)

  @pytest.mark.parametrize("bound", [None, 1.4])
  def test_a_zero_channel_stays_zero(self, bound):
    kernel = normal(0, SHAPES["dense"]).at[..., 3].set(0)
    bound = bound and jnp.float32(bound)
    q = quantize_kernel(kernel, 2, bound, "four_levels")
    assert not np.any(q[..., 3]) and np.all(np.isfinite(q))
    assert np.all(np.delete(q, 3, -1) != 0)

  def test_is_of_2_bits_alone(self):
    kernel = normal(0, SHAPES["dense"])
    for bits in (1, 3, 8, 16):
      expected = quantize_kernel(kernel, bits)
      got = quantize_kernel(kernel, bits, None, "four_levels")
      np.testing.assert_array_equal(got, expected)

  @pytest.mark.parametrize("by_channel", [False, True])
  def test_gradients_are_lsqs(self, by_channel):
    # As of the other grids, with steps of 2 scales and ends 1.5 of them away.
    kernel = np.asarray(normal(0, (3, 3, 4, 5)), np.float64) * 0.1
    c = np.asarray(normal(1, kernel.shape), np.float64)
    bound = np.linspace(0.8, 1.6, 5) if by_channel else np.float64(1.1)
    spread = np.sqrt(np.mean(kernel**2, (0, 1, 2)))
    ratio = kernel / (bound * spread / 1.5)
    level = np.clip(np.floor(ratio) + 0.5, -1.5, 1.5)
    ds = level - np.where(np.abs(ratio) >= 1.5, 0, ratio)
    of_step = np.sum(c * ds, (0, 1, 2))
    if by_channel:
      expected = of_step * 1.5 / spread / np.sqrt(36 * 1.5)
    else:
      square = np.mean(spread**2)
      expected = np.sum(of_step * spread) * 1.5 / square / np.sqrt(180 * 1.5)

    def f(kernel, bound):
      return jnp.sum(c * quantize_kernel(kernel, 2, bound, "four_levels"))

    of_kernel, of_bound = jax.grad(f, (0, 1))(
      jnp.asarray(kernel, jnp.float32), jnp.asarray(bound, jnp.float32)
    )
    np.testing.assert_allclose(of_kernel, c, rtol=1e-6)
    np.testing.assert_allclose(of_bound, expected, rtol=2e-4)

  def test_begins_where_the_error_is_least(self):
    kernel = normal(0, (3, 3, 8, 6)) * jnp.linspace(0.1, 2, 6)
    bound = least_error_bound(kernel, 2, True, "four_levels")
    assert np.all((bound > 1.2) & (bound < 1.8))  # a normal's is 1.49
    off = lambda b: error(kernel, quantize_kernel(kernel, 2, b, "four_levels"))
    assert off(bound) <= min(off(bound + d) for d in (-0.1, 0.1))

  def test_a_layer_has_the_levels_of_its_spec(self):
    spec = ConvSpec(4, w_bits=2, two_bits="four_levels")
    layer = Conv(spec, signed=True)
    x = normal(0, (2, 4, 4, 3))
    params = layer.init(jax.random.key(0), x)["params"]
    kernel = quantize_kernel(params["kernel"], 2, None, "four_levels")
    expected = fast_conv.conv(x, kernel)
    got = layer.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


class TestLearnedKernel:
  """Grids whose ends are parameters, in units of a channel's spread."""

  @pytest.mark.parametrize("by_channel", [False, True])
  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_is_codes_times_scale_bit_for_bit(self, bits, by_channel):
    kernel = normal(0, SHAPES["dense"]) * jnp.linspace(0.01, 5, 16)
    bound = jnp.linspace(0.8, 1.6, 16) if by_channel else jnp.float32(1.5)
    codes, scale = kernel_codes(kernel, bits, bound)
    product = np.asarray(codes).astype(np.float32) * np.asarray(scale)
    q = np.asarray(quantize_kernel(kernel, bits, bound))
    np.testing.assert_array_equal(product, q)
    spread = np.sqrt(np.mean(np.square(kernel), (0, 1, 2)))
    ends = np.broadcast_to(bound, 16) * spread
    np.testing.assert_allclose(np.abs(q).max((0, 1, 2)), ends, rtol=1e-6)
    inside = np.abs(kernel) < ends
    step = ends / (2 ** (bits - 1) - 1)
    assert np.all((np.abs(q - kernel) <= step / 2 * 1.001)[inside])

  @pytest.mark.parametrize("by_channel", [False, True])
  @pytest.mark.parametrize("bits", [2, 3, 4])
  def test_gradients_are_lsqs(self, bits, by_channel):
    # Esser et al., 2020, equations 3 and 5 for a step s, by the chain rule for
    # s = bound * spread / n, and 1 / sqrt(N n) as its factor of the gradient:
    # a bound moves by n / spread as much as the step does, twice over.
    n = 2 ** (bits - 1) - 1
    kernel = np.asarray(normal(0, (3, 3, 4, 5)), np.float64) * 0.1
    c = np.asarray(normal(1, kernel.shape), np.float64)
    bound = np.linspace(0.8, 1.6, 5) if by_channel else np.float64(1.1)
    spread = np.sqrt(np.mean(kernel**2, (0, 1, 2)))
    ratio = kernel / (bound * spread / n)
    ds = np.where(
      np.abs(ratio) >= n, np.sign(ratio) * n, np.rint(ratio) - ratio
    )
    of_step = np.sum(c * ds, (0, 1, 2))
    if by_channel:
      expected = of_step * spread / n * n**2 / spread**2 / np.sqrt(36 * n)
    else:
      square = np.mean(spread**2)
      expected = np.sum(of_step * spread / n) * n**2 / square / np.sqrt(180 * n)

    def f(kernel, bound):
      return jnp.sum(c * quantize_kernel(kernel, bits, bound))

    of_kernel, of_bound = jax.grad(f, (0, 1))(
      jnp.asarray(kernel, jnp.float32), jnp.asarray(bound, jnp.float32)
    )
    np.testing.assert_allclose(of_kernel, c, rtol=1e-6)
    np.testing.assert_allclose(of_bound, expected, rtol=2e-4)

  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_masks_move_nothing(self, bits):
    kernel, bound = normal(0, SHAPES["dense"]), jnp.float32(2.0)
    mask = np.asarray(normal(1, kernel.shape)) > 0
    q = quantize_kernel(kernel * mask, bits, bound)
    assert not np.any(np.where(mask, 0, q)) and np.any(q)
    channel = np.asarray(kernel)[..., 0][mask[..., 0]]
    alone = quantize_kernel(jnp.asarray(channel)[:, None], bits, bound)[:, 0]
    np.testing.assert_allclose(q[..., 0][mask[..., 0]], alone, rtol=1e-5)

  def test_a_zero_channel_stays_zero(self):
    kernel = normal(0, SHAPES["dense"]).at[..., 3].set(0)
    for bound in (jnp.float32(2), jnp.full(16, 2.0)):
      f = lambda k, b: quantize_kernel(k, 3, b)
      q, vjp = jax.vjp(f, kernel, bound)
      assert not np.any(q[..., 3]) and np.all(np.isfinite(q))
      assert all(np.all(np.isfinite(g)) for g in vjp(jnp.ones_like(q)))

  @pytest.mark.parametrize("bound", [0.0, -1.0])
  def test_a_bound_that_is_not_positive_can_come_back(self, bound):
    kernel = normal(0, (3, 3, 4, 5))
    f = lambda b: (
      error(kernel, 0) - jnp.sum(quantize_kernel(kernel, 3, b) * kernel)
    )
    gradient = jax.grad(f)(jnp.float32(bound))
    assert np.isfinite(gradient) and gradient < 0  # descent raises the bound

  @pytest.mark.parametrize("by_channel", [False, True])
  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_begins_where_the_error_is_least(self, bits, by_channel):
    kernel = normal(0, (3, 3, 8, 6)) * jnp.linspace(0.1, 2, 6)
    bound = least_error_bound(kernel, bits, by_channel)
    assert bound.shape == ((6,) if by_channel else ())
    axes = (0, 1, 2) if by_channel else None

    def off(bound):
      q = quantize_kernel(kernel, bits, bound)
      return np.sum(np.square(q - kernel), axes)

    for other in np.arange(1, 65) / 16:
      assert np.all(off(bound) <= off(jnp.full(bound.shape, other)) * 1.0001)
    # Of a normal distribution, the known ends of uniform grids (Max, 1960).
    ends = {2: 1.22, 3: 1.93, 4: 2.5}
    if bits in ends:
      assert np.mean(bound) == pytest.approx(ends[bits], rel=0.15)

  def test_a_learned_layer_of_a_network_learns(self):
    spec = with_bits(SPEC, [(".*", 3, 3)], w_scales="learned")
    net = network.init(jax.random.key(0), spec)
    net = network.calibrate(net, normal(1, (8, 8, 8, 3)))
    bounds = leaves(net.params, "kernel_bound")
    assert len(bounds) == len(spec.layers())
    assert all(0.5 < b < 3 for b in bounds.values())
    members = jax.tree.map(lambda x: x[None], net)
    grads = gradients(members, normal(2, (8, 8, 8, 3)), jnp.arange(8))
    for path, gradient in leaves(grads, "kernel_bound").items():
      assert np.all(np.isfinite(gradient)) and np.all(gradient != 0), path


@pytest.mark.versions
class TestInput:
  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_unsigned_uses_all_levels(self, bits):
    x = jnp.linspace(-1, 3, 40001)
    q = np.asarray(quantize_input(x, 2.0, bits, signed=False))
    np.testing.assert_allclose(
      np.unique(q), np.linspace(0, 2, 2**bits), atol=1e-6
    )

  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_signed_is_symmetric(self, bits):
    x = jnp.linspace(-3, 3, 60001)
    q = np.asarray(quantize_input(x, 2.0, bits, signed=True))
    np.testing.assert_allclose(
      np.unique(q), np.linspace(-2, 2, 2**bits - 1), atol=1e-6
    )

  @pytest.mark.parametrize("signed", [False, True])
  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_rounds_to_the_nearest(self, bits, signed):
    x = np.asarray(normal(0, (1000,)))
    low = -1.5 if signed else 0.0
    step = 1.5 / input_levels(bits, signed)
    q = quantize_input(x, 1.5, bits, signed)
    error = np.abs(q - np.clip(x, low, 1.5))
    assert step / 2 * 0.9 < error.max() <= step / 2 + 1e-6

  @pytest.mark.parametrize("signed", [False, True])
  def test_zero_stays_zero(self, signed):
    assert not np.any(quantize_input(jnp.zeros(5), 0.7, 3, signed))

  # Esser et al., 2020, equations 3 and 5: for a step s, with v / s between -Q_n
  # and Q_p, ds = round(v / s) - v / s, otherwise -Q_n or Q_p; dv = 1 or 0. The
  # bound is Q_p steps.
  @pytest.mark.parametrize(
    "bits, signed, q_n, q_p", [(2, False, 0, 3), (3, True, 3, 3)]
  )
  def test_gradients_are_lsq(self, bits, signed, q_n, q_p):
    v = np.array([-5.0, -1.6, -0.4, 0.1, 0.6, 1.3, 2.2, 2.9, 3.3, 40.0])
    c = np.arange(1.0, 11.0)  # a different weight for each
    s = 0.9
    ratio = v / s
    ds = np.where(
      ratio <= -q_n,
      -q_n,
      np.where(ratio >= q_p, q_p, np.round(ratio) - ratio),
    )
    dv = (ratio > -q_n) & (ratio < q_p)

    def f(v, bound):
      return jnp.sum(c * quantize_input(v, bound, bits, signed))

    got_v, got_bound = jax.grad(f, argnums=(0, 1))(jnp.asarray(v), s * q_p)
    np.testing.assert_allclose(got_v, c * dv, rtol=1e-6)
    assert got_bound == pytest.approx(np.sum(c * ds) / q_p, rel=1e-5)

  @pytest.mark.parametrize("bound", [0.0, -1.0])
  def test_a_bound_that_is_not_positive_can_come_back(self, bound):
    x = jnp.array([0.0, 1.0, 2.0])

    def f(bound):
      q = quantize_input(x, bound, 4, signed=False)
      return -jnp.sum(q), q

    gradient, q = jax.grad(f, has_aux=True)(bound)
    assert np.all(np.isfinite(q))
    assert gradient == pytest.approx(-2)  # descent raises the bound

  def test_bfloat16_keeps_the_gradient_of_the_bound(self):
    x = jnp.abs(normal(0, (10_000,))).astype(jnp.bfloat16)

    def gradient(x):
      f = lambda b: jnp.sum(quantize_input(x, b, 4, False).astype(jnp.float32))
      return jax.grad(f)(jnp.float32(1.5))

    assert quantize_input(x, 1.5, 4, False).dtype == jnp.bfloat16
    expected = gradient(x.astype(jnp.float32))
    assert gradient(x) == pytest.approx(float(expected), rel=1e-3)

  @pytest.mark.parametrize("signed", [False, True])
  @pytest.mark.parametrize("bits", QUANTIZED)
  def test_numpy_gives_the_same_integers(self, bits, signed):
    x = np.asarray(normal(0, (1000,)))
    n, bound = input_levels(bits, signed), np.float32(1.3)
    codes = input_codes(x, bound, bits, signed)
    step = bound * np.float32(1 / n)  # as XLA divides by a constant
    low = -n if signed else 0
    np.testing.assert_array_equal(codes, np.rint(np.clip(x / step, low, n)))
    assert codes.dtype == (jnp.int8 if signed else jnp.uint8)
    assert input_step(bound, bits, signed) == step
    product = np.asarray(codes).astype(np.float32) * step
    np.testing.assert_array_equal(
      product, quantize_input(x, bound, bits, signed)
    )

  V = np.array([-5.0, -1.6, -0.4, 0.1, 0.6, 1.3, 2.2, 2.9, 3.3, 40.0])
  C = np.arange(1.0, 11.0)  # a different weight for each

  def gradients_of(self, bits, signed, scales, bound=2.5):
    def f(v, bound):
      return jnp.sum(self.C * quantize_input(v, bound, bits, signed, scales))

    return jax.grad(f, argnums=(0, 1))(jnp.asarray(self.V), bound)

  def test_the_papers_factor_is_lsqs(self):
    # g = 1 / sqrt(N Q_p) for the step; the step moves by n times less than the
    # bound, and its gradient is n times the bound's.
    v = jnp.asarray(self.V).reshape(2, 5)  # 2 images of 5 features

    def gradient(scales):
      f = lambda b: jnp.sum(quantize_input(v, b, 4, False, scales))
      return jax.grad(f)(2.5)

    g = 1 / np.sqrt(5 * 15)
    expected = gradient("lsq") * 15**2 * g
    assert gradient("lsq_paper") == pytest.approx(float(expected), rel=1e-6)

  @pytest.mark.parametrize("signed", [False, True])
  def test_gradients_are_pacts(self, signed):
    # Choi et al., 2018, equation 3: d/d alpha is 0 for x < alpha, else 1.
    of_v, of_bound = self.gradients_of(4, signed, "pact")
    beyond = self.V >= 2.5
    below = self.V <= (-2.5 if signed else 0)
    np.testing.assert_allclose(of_v, self.C * ~(beyond | below))
    expected = np.sum(self.C[beyond]) - signed * np.sum(self.C[below])
    assert of_bound == pytest.approx(expected)

  def test_fixed_does_not_move(self):
    of_v, of_bound = self.gradients_of(4, False, "fixed")
    assert of_bound == 0
    np.testing.assert_allclose(of_v, self.C * ((self.V > 0) & (self.V < 2.5)))

  @pytest.mark.parametrize("signed", [False, True])
  def test_dynamic_ends_at_the_largest(self, signed):
    v = jnp.abs(self.V) if not signed else jnp.asarray(self.V)
    x = jnp.stack([v, v / 8])  # of each image, whatever the other one has
    f = lambda x: quantize_input(x, None, 4, signed, "dynamic")
    q = f(x)
    for one, bound, image in zip(q, (40.0, 5.0), x, strict=True):
      assert one.max() == pytest.approx(bound)
      expected = quantize_input(image, bound, 4, signed)
      np.testing.assert_array_equal(one, expected)
    c = np.stack([self.C, -self.C])
    np.testing.assert_array_equal(jax.vjp(f, x)[1](c)[0], c)
    assert not np.any(f(jnp.zeros((2, 3))))


@pytest.mark.versions
class TestStraightThrough:
  def test_forward_and_both_derivatives(self):
    x, q = jnp.array([1.2, -0.7]), jnp.array([1.0, -1.0])
    np.testing.assert_array_equal(straight_through(x, q), q)
    _, tangent = jax.jvp(straight_through, (x, q), (3 * x, 5 * q))
    np.testing.assert_array_equal(tangent, 3 * x)


@pytest.mark.versions
class Test32Bits:
  def test_untouched(self):
    kernel, x = normal(0, SHAPES["dense"]), normal(1, (2, 4, 4, 8))
    assert quantize_kernel(kernel, 32) is kernel
    assert quantize_input(x, 1.0, 32, True) is x

  @pytest.mark.parametrize("groups", [1, 2, 8])
  def test_layer_is_the_convolution_bit_for_bit(self, groups):
    x = normal(0, (2, 8, 8, 8))
    layer = Conv(ConvSpec(16, stride=2, groups=groups), signed=True)
    variables = layer.init(jax.random.key(1), x)
    assert set(variables["params"]) == {"kernel"}
    kernel = variables["params"]["kernel"]
    expected = fast_conv.conv(x, kernel, stride=2, groups=groups)
    np.testing.assert_array_equal(layer.apply(variables, x), expected)

  def test_a_network_rounds_nothing(self):
    def rounds(w_bits, a_bits):
      spec = with_bits(SPEC, [(".*", w_bits, a_bits)])
      net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
      images = jnp.zeros((1, 8, 8, 3))
      text = str(jax.make_jaxpr(network.forward)(net, images))
      return "round" in text or "quantize[" in text

    assert not rounds(32, 32)
    assert rounds(4, 32)
    assert rounds(32, 4)

  def test_jit_equals_eager(self):
    kernel, x = normal(0, SHAPES["dense"]), normal(1, (2, 4, 4, 8))
    jitted = jax.jit(quantize_kernel, static_argnums=1)(kernel, 3)
    np.testing.assert_allclose(jitted, quantize_kernel(kernel, 3), atol=1e-6)
    jitted = jax.jit(quantize_input, static_argnums=(2, 3))(x, 2.0, 3, True)
    np.testing.assert_allclose(
      jitted, quantize_input(x, 2.0, 3, True), atol=1e-6
    )


class TestNetwork:
  # AQT's own convolution has a gradient of exactly zero, and the loss still
  # falls, through batch norm and the head. Dense, grouped, depthwise and
  # low-rank layers, each in other bits, so that two networks have every number
  # of them; two members at once, a fifth of the weights masked.
  @pytest.mark.parametrize(
    "first", [pytest.param(0, marks=pytest.mark.versions), 7]
  )
  def test_every_gradient_of_stacked_masked_members(self, first):
    every = (*WEIGHTS, 16)
    rules = [
      (unit, b, max(2, b))
      for i, (unit, _) in enumerate(SPEC.units())
      for b in every[(first + i) % 9 :][:1]
    ]
    spec = with_bits(SPEC, rules)
    net = network.init(jax.random.key(0), spec)
    net = network.calibrate(net, normal(1, (8, 8, 8, 3)), "lsq")
    keep = lambda p: np.arange(p.size).reshape(p.shape) % 5 > 0
    masks = jax.tree.map(
      lambda p: jnp.asarray(keep(p) if p.ndim > 1 else True), net.params
    )
    net = net.replace(masks=masks)
    other = net.replace(params=jax.tree.map(lambda p: 1.3 * p, net.params))
    members = jax.tree.map(lambda *x: jnp.stack(x), net, other)
    grads = gradients(members, normal(2, (8, 8, 8, 3)), jnp.arange(8))
    kernels = leaves(grads, "kernel")
    layers = {layer.path: layer for layer in spec.layers()}
    assert {p.removesuffix("/kernel") for p in kernels} == set(layers)
    for path, gradient in kernels.items():
      for member in gradient:
        kept = keep(member)
        assert np.all(np.isfinite(member)) and not np.any(member[~kept]), path
        # What ends in a dead ReLU or beyond a bound has none.
        assert np.mean(member[kept] != 0) > 0.3, path
    bounds = leaves(grads, "input_bound")
    assert len(bounds) == sum(x.a_bits < 16 for x in layers.values())
    for path, gradient in bounds.items():
      assert np.all(np.isfinite(gradient)) and np.all(gradient != 0), path

  @pytest.mark.parametrize("scales", SCALES)
  def test_a_layer_has_the_scales_of_its_spec(self, scales):
    spec = ConvSpec(4, kernel=1, w_bits=4, a_bits=3, scales=scales)
    layer = Conv(spec, signed=False)
    x = jnp.abs(normal(0, (2, 2, 2, 3)))
    params = layer.init(jax.random.key(0), x)["params"]
    assert ("input_bound" in params) == (scales != "dynamic")
    bound = params.get("input_bound")
    kernel = quantize_kernel(params["kernel"], 4)
    expected = quantize_input(x, bound, 3, False, scales) @ kernel[0, 0]
    got = layer.apply({"params": params}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

  @pytest.mark.parametrize("groups", [2, 8])
  def test_gradient_is_that_of_the_quantized_convolution(self, groups):
    spec = ConvSpec(8, groups=groups, w_bits=3, a_bits=4)
    x, c = jnp.abs(normal(0, (2, 6, 6, 8))), normal(1, (2, 6, 6, 8))
    kernel = normal(2, (3, 3, 8 // groups, 8))
    layer = Conv(spec, signed=False)

    def quantized(kernel):
      params = {"kernel": kernel, "input_bound": jnp.array(2.0)}
      return jnp.sum(c * layer.apply({"params": params}, x))

    def plain(kernel):
      qx = quantize_input(x, 2.0, 4, signed=False)
      return jnp.sum(c * fast_conv.conv(qx, kernel, groups=groups))

    got = jax.grad(quantized)(kernel)
    np.testing.assert_array_equal(got, jax.grad(plain)(kernel))
    assert np.std(got) > 0.1

  def test_vmap_equals_loop(self):
    net = quantized_net()
    other = jax.tree.map(
      lambda p: p * 1.1 if p.dtype == jnp.float32 else p, net
    )
    images = normal(1, (2, 8, 8, 3))
    single = fast_jit(network.forward)
    loop = [single(n, images) for n in (net, other)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), net, other)
    forward = fast_jit(jax.vmap(network.forward, in_axes=(0, None)))
    np.testing.assert_allclose(forward(stacked, images), loop, atol=1e-4)
    assert np.abs(loop[0] - loop[1]).max() > 1e-2

  def test_vmap_keeps_the_scale_of_each_member(self):
    kernels = normal(0, (3, *SHAPES["depthwise"])) * jnp.array(
      [1.0, 10.0, 100.0]
    ).reshape(3, 1, 1, 1, 1)
    got = jax.vmap(lambda k: quantize_kernel(k, 3))(kernels)
    expected = [quantize_kernel(k, 3) for k in kernels]
    np.testing.assert_array_equal(got, expected)
