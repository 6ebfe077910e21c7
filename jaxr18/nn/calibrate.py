"""The largest value that a layer's quantized input needs, from images."""

import math

import jax
import jax.numpy as jnp

from jaxr18.nn.quantize import to_levels

_CANDIDATES = 64  # bounds that 'mse' tries, evenly up to max|x|
_BISECTIONS = 24  # of 'percentile': max|x| / 2**24 is float32's own precision


def lsq(x: jax.Array, n: jax.Array, signed: bool) -> jax.Array:
  """LSQ's starting step, 2 mean|x| / sqrt(n), as a bound; at most max|x|."""
  del signed
  size = jnp.abs(x)
  return jnp.minimum(2 * jnp.mean(size) * jnp.sqrt(n), jnp.max(size))


def absmax(x: jax.Array, n: jax.Array, signed: bool) -> jax.Array:
  """Returns the largest |x|."""
  del n, signed
  return jnp.max(jnp.abs(x))


def percentile(
  x: jax.Array, n: jax.Array, signed: bool, percent: float = 99.9
) -> jax.Array:
  """Finds the smallest bound that covers a percentage of all |x|.

  Args:
    x: of any shape.
    n, signed: not used; the other methods need them.
    percent: of the values that must not exceed the bound.
  """
  del n, signed
  size = jnp.abs(x).astype(jnp.float32)
  count = math.ceil(x.size * percent / 100)

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    enough = jnp.sum(size <= middle) >= count
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  ends = jnp.zeros(()), jnp.max(size)
  return jax.lax.fori_loop(0, _BISECTIONS, halve, ends)[1]


def mse(x: jax.Array, n: jax.Array, signed: bool) -> jax.Array:
  """Returns the best of 64 bounds up to max|x|, by squared error."""
  x = x.astype(jnp.float32)
  bounds = jnp.max(jnp.abs(x)) * jnp.arange(1, _CANDIDATES + 1) / _CANDIDATES

  def error(bound):
    return jnp.mean(jnp.square(to_levels(x, bound, n, signed) - x))

  return bounds[jnp.argmin(jax.lax.map(error, bounds))]


METHODS = {
  "mse": mse,
  "percentile": percentile,
  "absmax": absmax,
  "lsq": lsq,
}


def initial_bound(
  x: jax.Array, n: int | jax.Array, signed: bool, method: str
) -> jax.Array:
  """Returns a bound for an input by one of METHODS, float32, above 0.

  Args:
    x: what goes into the layer, of all images that are looked at.
    n: `input_levels`.
    signed: whether x can be negative.
    method: 'mse' (least squared error), 'percentile' (99.9), 'absmax', or
      'lsq' (Esser et al., 2020, where training begins).
  """
  bound = METHODS[method](x, n, signed)
  return jnp.maximum(bound, 1e-5).astype(jnp.float32)
