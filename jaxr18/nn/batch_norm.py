"""Batch norm in training, with the sum of a residual and ReLU in its passes."""

import functools
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from jaxr18.nn import passes
from jaxr18.nn.conv import varying_alike


def batch_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  residual: jax.Array | None = None,
  *,
  relu: bool,
  epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalizes by the batch's own statistics (Ioffe & Szegedy, 2015).

  Args:
    x: [..., channels].
    scale: [channels].
    bias: [channels].
    residual: of the shape and type of x; it is added before ReLU.
    relu: whether the result is what is positive of it.
    epsilon: is added to the variance.

  Returns:
    (the result, of the type of x; the mean and the variance by channel, at
    least float32). Statistics and sums are at least float32. No gradient goes
    through the statistics that are returned.
  """
  wide = _wide(x)
  rest = () if residual is None else (residual.astype(x.dtype),)
  x, scale, bias, *rest = varying_alike(
    x, scale.astype(wide), bias.astype(wide), *rest
  )
  out: Any = _batch_norm(x, scale, bias, tuple(rest), relu, epsilon)
  y, mean, var = out
  return y, lax.stop_gradient(mean), lax.stop_gradient(var)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(x, scale, bias, rest, relu, epsilon) -> Any:
  name = batch_norm_add_p if rest else batch_norm_p
  rows = lambda v: v.reshape(1, -1, v.shape[-1])
  y, mean, var = name.bind(
    rows(x),
    scale[None],
    bias[None],
    *map(rows, rest),
    relu=relu,
    epsilon=epsilon,
  )
  return y.reshape(x.shape), mean[0], var[0]


def _forward(x, scale, bias, rest, relu, epsilon):
  out: Any = _batch_norm(x, scale, bias, rest, relu, epsilon)
  y, mean, var = out
  # Where ReLU let through is computed again, but with a residual it is read.
  after = (y,) if rest and relu else ()
  return (y, mean, var), (x, scale, bias, mean, var, after, (None,) * len(rest))


def _backward(relu, epsilon, saved, gradients):
  x, scale, bias, mean, var, after, adds = saved
  dy = gradients[0]
  rows = lambda v: v.reshape(1, -1, v.shape[-1])
  operands = [rows(x), rows(dy)]
  operands += [v[None] for v in (scale, bias, mean, var)]
  if after:
    dx, dscale, dbias, dresidual = batch_norm_add_grad_p.bind(
      *operands, rows(after[0]), epsilon=epsilon
    )
  else:
    dx, dscale, dbias = batch_norm_grad_p.bind(
      *operands, relu=relu, epsilon=epsilon
    )
    dresidual = dy
  more = (dresidual.reshape(x.shape),) if adds else ()
  return dx.reshape(x.shape), dscale[0], dbias[0], more


_batch_norm.defvjp(_forward, _backward)


# In JAX; x is [members, rows, channels], what is by channel is [members,
# channels].


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _form(x, scale, bias, *residual, relu, epsilon):
  v = x.astype(_wide(x))
  mean = v.mean(1)
  var = jnp.maximum(jnp.square(v).mean(1) - jnp.square(mean), 0)
  factor = lax.rsqrt(var + epsilon) * scale
  y = (v - mean[:, None]) * factor[:, None] + bias[:, None]
  for more in residual:
    y = y + more.astype(y.dtype)
  return [(jnp.maximum(y, 0) if relu else y).astype(x.dtype), mean, var]


def _grad_form(x, dy, scale, bias, mean, var, *, relu, epsilon):
  g, value = dy.astype(_wide(x)), x.astype(_wide(x)) - mean[:, None]
  inverse = lax.rsqrt(var + epsilon)
  if relu:
    y = value * (inverse * scale)[:, None] + bias[:, None]
    g = jnp.where(y > 0, g, 0)
  dbias, dscale = g.sum(1), (g * value).sum(1) * inverse
  rows = x.shape[1]
  off = g - dbias[:, None] / rows
  off -= value * (dscale * inverse / rows)[:, None]
  return [(off * (inverse * scale)[:, None]).astype(x.dtype), dscale, dbias]


def _add_grad_form(x, dy, scale, bias, mean, var, y, *, epsilon):
  dy = jnp.where(y > 0, dy, 0)
  of_x = _grad_form(x, dy, scale, bias, mean, var, relu=False, epsilon=epsilon)
  return [*of_x, dy]


batch_norm_p = passes.define("batch_norm", _form)
batch_norm_add_p = passes.define("batch_norm_add", _form)
batch_norm_grad_p = passes.define("batch_norm_grad", _grad_form)
batch_norm_add_grad_p = passes.define("batch_norm_add_grad", _add_grad_form)
