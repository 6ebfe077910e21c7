"""Batch norm and the quantizer of inputs equal XLA's, by either path."""

import functools
import os

import flax.linen as nn
import jax
import numpy as np
import pytest
from command import run_python
from jax import numpy as jnp
from jax.test_util import check_grads

from jaxr18.cost.macs import count_macs
from jaxr18.nn import onednn
from jaxr18.nn.batch_norm import batch_norm
from jaxr18.nn.passes import fork
from jaxr18.nn.quantize import (
  input_levels,
  input_step,
  quantize_input,
  quantize_p,
)

PATHS = [
  "xla",
  pytest.param(
    "auto",
    marks=pytest.mark.skipif(
      not onednn.ready(), reason=f"oneDNN: {onednn.reason()}"
    ),
  ),
]
EPSILON = 1e-5


def versions_if(chosen):
  """The mark of what other versions of the libraries are tested by."""
  return [pytest.mark.versions] if chosen else []


# batch, side, channels: whole vectors, joined rows, rows that are left over,
# several blocks, more vectors than registers
SHAPES = [
  (4, 8, 16),
  (3, 5, 12),
  (5, 7, 24),
  (32, 16, 48),
  (2, 3, 1),
  (7, 5, 37),
  (8, 16, 5),
  (4, 4, 512),
  (1, 1, 3),
]
TYPES = ["float32", "bfloat16"]


def normal(shape, seed, dtype="float32"):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)


def operands(shape, dtype, residual):
  batch, side, channels = shape
  whole = (batch, side, side, channels)
  x = normal(whole, 0, dtype) * 2 + jnp.asarray(0.5, dtype)
  scale, bias = 1 + 0.5 * normal(channels, 1), normal(channels, 2)
  more = normal(whole, 3, dtype) if residual else None
  return x, scale, bias, more, normal(whole, 4, dtype)


def flax_batch_norm(x, scale, bias, residual, relu):
  """Flax's own, with its statistics, the residual's sum and ReLU."""
  y, updated = nn.BatchNorm(
    use_running_average=False, momentum=0.0, epsilon=EPSILON, dtype=x.dtype
  ).apply(
    {
      "params": {"scale": scale, "bias": bias},
      "batch_stats": {"mean": jnp.zeros_like(bias), "var": bias * 0},
    },
    x,
    mutable=["batch_stats"],
  )
  if residual is not None:
    y = y + residual
  found = updated["batch_stats"]
  return nn.relu(y) if relu else y, found["mean"], found["var"]


def with_gradients(function, x, scale, bias, residual, dy):
  def run(*given):
    y, mean, var = function(*given)
    return y, (mean, var)

  y, grad, statistics = jax.vjp(run, x, scale, bias, residual, has_aux=True)
  gradients = grad(dy)
  return y, statistics, [g for g in gradients if g is not None]


def close(got, want, tolerance, dtype=None):
  assert got.shape == want.shape and got.dtype == (dtype or want.dtype)
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  atol = tolerance * max(np.abs(want).max(), 1e-2)
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


ADDITIONS = [(True, True), (False, True), (True, False), (False, False)]
# Each shape with one of residual and ReLU, which change no loop's bounds, and
# rows that are left over with all; of XLA, which has no code for a shape, four.
BATCH_NORMS = [(s, *ADDITIONS[i % 4]) for i, s in enumerate(SHAPES)]
LEFT_OVER = [(SHAPES[5], *how) for how in ADDITIONS]
BY_PATH = [
  pytest.param(*how, path, marks=[*marks, *versions_if(how is BATCH_NORMS[4])])
  for path, marks, cases in (
    ("xla", (), BATCH_NORMS[3:7]),
    ("auto", PATHS[1].marks, dict.fromkeys(BATCH_NORMS + LEFT_OVER)),
  )
  for how in cases
]


@functools.partial(jax.jit, static_argnames="relu")
def of_flax(relu, *arrays):
  """Flax's outputs and gradients."""
  function = functools.partial(flax_batch_norm, relu=relu)
  return with_gradients(function, *arrays)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape, residual, relu, path", BY_PATH)
def test_batch_norm_equals_flax(
  monkeypatch, shape, residual, relu, dtype, path
):
  monkeypatch.setenv("JAXR18_CONV", path)
  arrays = operands(shape, dtype, residual)
  function = functools.partial(batch_norm, relu=relu, epsilon=EPSILON)
  y, statistics, gradients = jax.jit(
    functools.partial(with_gradients, function)
  )(*arrays)
  # The reference computes in float32 from the same values. Its own statistics
  # are off by 1.1e-5 with jax 0.10.0, so ours are held by float64's.
  exact = [a if a is None else a.astype(np.float32) for a in arrays]
  want, _, want_gradients = of_flax(relu, *exact)
  tolerance = 2e-5 if dtype == "float32" else 2**-7
  close(y, want, tolerance, dtype)
  values = np.asarray(arrays[0], np.float64)
  for got, exactly in zip(statistics, (np.mean, np.var), strict=True):
    close(got, exactly(values, (0, 1, 2)).astype(np.float32), 1e-5)
  if shape == (1, 1, 3):  # a variance of zero has gradients of zero
    return
  types = [dtype, "float32", "float32", dtype]
  for got, expected, of in zip(gradients, want_gradients, types, strict=False):
    close(got, expected, 1e-4 if dtype == "float32" else 2**-5, of)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("residual", [True, False])
def test_batch_norm_gradients_numerically(monkeypatch, residual, path):
  monkeypatch.setenv("JAXR18_CONV", path)
  x, scale, bias, more, _ = operands((2, 3, 5), "float32", residual)

  def function(x, scale, bias, *more):
    y, *_ = batch_norm(x, scale, bias, *more, relu=False, epsilon=EPSILON)
    return jnp.tanh(y)

  given = [x, scale, bias] + ([more] if residual else [])
  check_grads(function, given, order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_statistics_of_values_far_from_zero():
  x, scale, bias, *_ = operands((64, 16, 12), "float32", False)
  x = x + 10
  _, mean, var = batch_norm(x, scale, bias, relu=True, epsilon=EPSILON)
  exact = np.asarray(x, np.float64).reshape(-1, 12)
  np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-5)
  np.testing.assert_allclose(var, exact.var(0), rtol=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_not_a_number_stays_one(monkeypatch, path):
  monkeypatch.setenv("JAXR18_CONV", path)
  x, scale, bias, *_ = operands((2, 4, 16), "float32", False)
  y, mean, _ = batch_norm(
    x.at[0, 0, 0, 3].set(jnp.nan), scale, bias, relu=True, epsilon=EPSILON
  )
  assert np.isnan(y[..., 3]).all() and np.isnan(mean[3])
  assert np.isfinite(y[..., 4]).all()
  q = quantize_input(jnp.array([jnp.nan, 1.0]), jnp.float32(1), 4, False)
  assert np.isnan(q[0]) and q[1] == 1
  half = jnp.array([jnp.nan, -jnp.nan], jnp.bfloat16)
  assert np.isnan(quantize_input(half, jnp.float32(1), 4, True)).all()


@pytest.mark.versions
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES)
def test_members_equal_a_loop(monkeypatch, dtype, path):
  monkeypatch.setenv("JAXR18_CONV", path)
  x, scale, bias, more, dy = operands((3, 6, 12), dtype, True)
  function = functools.partial(batch_norm, relu=True, epsilon=EPSILON)
  run = functools.partial(with_gradients, function)
  stack = lambda a: jnp.stack([jnp.stack([a, 2 * a, a + a[..., :1]])] * 2)
  x, scale = stack(x), stack(scale)
  axes = (0, 0, None, None, None)
  got = jax.jit(jax.vmap(jax.vmap(run, axes), axes))(x, scale, bias, more, dy)
  for index in np.ndindex(2, 3):
    want = run(x[index], scale[index], bias, more, dy)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      close(a[index], b, 1e-5 if dtype == "float32" else 2**-8)


def quantizer(x, bound, bits, signed, scales):
  """As docs/quantization.md has it, in plain JAX: value and gradients' rule."""
  n = input_levels(bits, signed)
  low = -n if signed else 0
  step = input_step(bound, bits, signed)
  v = x.astype(jnp.float32) * (1 / step)
  q = (jnp.round(jnp.clip(v, low, n)) * step).astype(x.dtype)
  inside = (v > low) & (v < n)
  error = 0 if scales == "pact" else jnp.round(v) - v
  return q, inside, jnp.where(inside, error, jnp.where(v >= n, n, low)) / n


# All pairs of a rule, a shape and a grid.
QUANTIZERS = [
  pytest.param(scales, shape, *grid, marks=versions_if(i == j == 0))
  for i, scales in enumerate(("lsq", "pact", "fixed"))
  for j, shape in enumerate([(3, 5), (16, 32, 32, 12), (1,)])
  for grid in [[(3, False), (8, False), (4, True)][(i + j) % 3]]
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scales, shape, bits, signed", QUANTIZERS)
def test_quantizer(monkeypatch, shape, bits, signed, scales, dtype, path):
  monkeypatch.setenv("JAXR18_CONV", path)
  x, g = normal(shape, 0, dtype), normal(shape, 1, dtype)
  bound = jnp.float32(1.37)

  @jax.jit
  def run(x, bound, g):
    function = lambda x, b: quantize_input(x, b, bits, signed, scales)
    y, grad = jax.vjp(function, x, bound)
    return y, *grad(g)

  y, dx, dbound = run(x, bound, g)
  q, inside, of_bound = jax.jit(quantizer, static_argnums=(2, 3, 4))(
    x, bound, bits, signed, scales
  )
  np.testing.assert_array_equal(y, q)  # to the bit
  np.testing.assert_array_equal(dx, jnp.where(inside, g, 0))
  assert (y.dtype, dx.dtype, dbound.dtype) == (dtype, dtype, jnp.float32)
  want = np.vdot(np.asarray(g, np.float64), np.asarray(of_bound, np.float64))
  if scales == "fixed":
    want = 0
  size = np.abs(np.asarray(g, np.float64)).sum()
  np.testing.assert_allclose(dbound, want, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3, 5), (16, 32, 32, 12)], ids=str)
def test_fork_adds_the_gradients(monkeypatch, shape, dtype, path):
  monkeypatch.setenv("JAXR18_CONV", path)
  x, a, b = (normal(shape, seed, dtype) for seed in range(3))
  (one, two), grad = jax.vjp(fork, x)
  np.testing.assert_array_equal(one, x)
  np.testing.assert_array_equal(two, x)
  (total,) = grad((a, b))
  assert total.dtype == dtype
  np.testing.assert_array_equal(total, a + b)


def test_ties_round_to_the_even_level():
  x = jnp.arange(-20, 20) * 0.5
  y = quantize_input(x, jnp.float32(7), 4, True)
  np.testing.assert_array_equal(y, np.round(np.clip(x, -7, 7)))


def test_the_counter_charges_nothing():
  x, scale, bias, more, dy = operands((2, 4, 6), "float32", True)

  def step(x):
    function = functools.partial(batch_norm, relu=True, epsilon=EPSILON)
    y, _, gradients = with_gradients(function, x, scale, bias, more, dy)
    q = lambda v: quantize_input(v, jnp.float32(1), 4, False).sum()
    return y, gradients, jax.grad(q)(x)

  assert count_macs(step, x).total == 0


TRAINING = """
  import hashlib, jax, numpy as np
  from jax import numpy as jnp
  from jaxr18.nn import conv, quantize
  from jaxr18.nn.batch_norm import batch_norm
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((64, 16, 16, 12)), jnp.bfloat16)
  kernel = jnp.asarray(rng.standard_normal((3, 3, 12, 12)), jnp.float32)
  scale, bound = jnp.ones(12), jnp.float32(2)
  @jax.jit
  def step(kernel, scale, bound):
    def loss(kernel, scale, bound):
      y = x
      for _ in range(2):
        q = quantize.quantize_input(y, bound, 3, True)
        y, *_ = batch_norm(conv.conv(q, kernel), scale, 0 * scale, y,
                           relu=True, epsilon=1e-5)
      return (y.astype(jnp.float32) ** 2).mean()
    grads = jax.grad(loss, (0, 1, 2))(kernel, scale, bound)
    return [p - 0.1 * g for p, g in zip((kernel, scale, bound), grads)]
  digests = set()
  for _ in range(3):
    state = kernel, scale, bound
    for _ in range(4):
      state = step(*state)
    data = b''.join(np.asarray(p).tobytes() for p in state)
    digests.add(hashlib.sha256(data).hexdigest())
  print(*digests)
  """


@pytest.mark.slow
def test_same_bits_in_every_process_and_run():
  first, second = run_python(TRAINING), run_python(TRAINING)
  assert first == second and len(first.split()) == 1


ONE = """
  import hashlib, jax, numpy as np
  from jax import numpy as jnp
  from jaxr18.nn.batch_norm import batch_norm
  from jaxr18.nn.quantize import quantize_input
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((64, 16, 16, 12)), jnp.float32)
  def loss(x, bound):
    y, *_ = batch_norm(x, jnp.ones(12), jnp.zeros(12), relu=True, epsilon=1e-5)
    return jnp.vdot(quantize_input(y, bound, 3, False), x)
  _, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, jnp.float32(2))
  data = b''.join(np.asarray(g).tobytes() for g in grads)
  print(hashlib.sha256(data).hexdigest())
  """


@pytest.mark.slow
@pytest.mark.skipif(not onednn.ready(), reason=f"oneDNN: {onednn.reason()}")
@pytest.mark.skipif(os.cpu_count() < 2, reason="it needs two cores")
def test_sums_do_not_depend_on_threads():
  one, two = (run_python(ONE, OMP_NUM_THREADS=n) for n in "12")
  assert one == two


def test_over_a_mesh_xla_serves():
  out = run_python(
    """
    import jax, numpy as np
    from jax import numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jaxr18.nn.batch_norm import batch_norm
    from jaxr18.nn.quantize import quantize_input
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 6, 6, 4)), jnp.float32)
    one = jnp.ones(4)
    def loss(x, scale, bound):
      y, *_ = batch_norm(x, scale, scale, relu=True, epsilon=1e-5)
      return (quantize_input(y, bound, 4, False) ** 2).mean()
    def mapped(x, scale, bound):
      return jax.lax.pmean(loss(x, scale, bound), 'batch')
    bound = jnp.float32(1.5)
    expected = jax.grad(loss, (0, 1, 2))(x, one, bound)
    x = jax.device_put(x, NamedSharding(mesh, P('batch')))
    scale, bound = jax.device_put((one, bound), NamedSharding(mesh, P()))
    got = jax.jit(jax.grad(loss, (0, 1, 2)))(x, scale, bound)
    for a, b in zip(got, expected):
      assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
    shard = jax.shard_map(
      mapped, mesh=mesh, in_specs=(P('batch'), P(), P()), out_specs=P())
    jax.block_until_ready(jax.jit(jax.grad(shard, (0, 1, 2)))(x, scale, bound))
    text = jax.jit(jax.grad(loss)).lower(x, scale, bound).as_text()
    print('custom_call @jaxr18' in text)
    """,
    XLA_FLAGS="--xla_force_host_platform_device_count=2",
  )
  assert out.split()[-1] == "False"


@pytest.mark.parametrize("path", PATHS)
def test_values_beside_a_half_are_rounded_as_a_product_with_1_by_the_step(
  monkeypatch, path
):
  monkeypatch.setenv("JAXR18_CONV", path)
  rng = np.random.default_rng(0)
  step = np.exp(rng.uniform(-12, 3, 256)).astype(np.float32)
  half = np.arange(-260, 260).astype(np.float32) + np.float32(0.5)
  x = half * step[:, None]
  ulps = [x]
  for _ in range(3):
    ulps += [np.nextafter(ulps[-1], np.float32(np.inf))]
  for _ in range(3):
    x = np.nextafter(x, np.float32(-np.inf))
    ulps += [x]
  x = np.concatenate(ulps, axis=1)
  (y,) = quantize_p.bind(x, step, low=-255.0, high=255.0)
  # As packed.py and the ONNX file compute it, to the bit.
  q = np.round(np.clip(x * (np.float32(1) / step[:, None]), -255, 255))
  np.testing.assert_array_equal(y, q * step[:, None])


def test_a_gpu_gets_no_call_of_the_cpu():
  x, scale, bias, more, dy = operands((2, 4, 6), "bfloat16", True)

  def step(x, bound):
    function = functools.partial(batch_norm, relu=True, epsilon=EPSILON)
    y, _, gradients = with_gradients(function, x, scale, bias, more, dy)
    q = lambda v, b: quantize_input(v, b, 4, False).sum()
    return y, gradients, jax.grad(q, (0, 1))(x, bound)

  traced = jax.jit(step).trace(x, jnp.float32(1))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "jaxr18_" not in text
