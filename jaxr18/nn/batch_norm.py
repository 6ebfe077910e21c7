"""Batch norm in training, with the sum of a residual and ReLU in its passes."""

import functools
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from jaxr18.nn import passes
from jaxr18.nn.conv import BATCH_AXIS, by_device, is_split, varying_alike


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
  scale, bias = scale.astype(wide), bias.astype(wide)
  if is_split(x.shape[0]):
    run = lambda x, scale, bias, *rest: _batch_norm_of_parts(
      x, scale, bias, rest, relu, epsilon
    )
    out: Any = by_device(run, "bww" + "b" * len(rest), "bww")(
      x, scale, bias, *rest
    )
  else:
    x, scale, bias, *rest = varying_alike(x, scale, bias, *rest)
    out = _batch_norm(x, scale, bias, tuple(rest), relu, epsilon)
  y, mean, var = out
  return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def _rows(x):
  """One member's rows, [1, rows, channels]."""
  return x.reshape(1, -1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(x, scale, bias, rest, relu, epsilon) -> Any:
  name = batch_norm_add_p if rest else batch_norm_p
  y, mean, var = name.bind(
    _rows(x),
    scale[None],
    bias[None],
    *map(_rows, rest),
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
  operands = [_rows(x), _rows(dy)]
  operands += [v[None] for v in (scale, bias, mean, var)]
  if after:
    dx, dscale, dbias, dresidual = batch_norm_add_grad_p.bind(
      *operands, _rows(after[0]), epsilon=epsilon
    )
  else:
    dx, dscale, dbias = batch_norm_grad_p.bind(
      *operands, relu=relu, epsilon=epsilon
    )
    dresidual = dy
  more = (dresidual.reshape(x.shape),) if adds else ()
  return dx.reshape(x.shape), dscale[0], dbias[0], more


_batch_norm.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm_of_parts(x, scale, bias, rest, relu, epsilon) -> Any:
  """The same of a batch that devices share, each with a part of equal size.

  x, rest and the result vary over the devices, all else is alike on each.
  """
  return _forward_of_parts(x, scale, bias, rest, relu, epsilon)[0]


def _forward_of_parts(x, scale, bias, rest, relu, epsilon):
  mean, var = batch_norm_moments_p.bind(_rows(x))
  mean, square = lax.pmean((mean, var + jnp.square(mean)), BATCH_AXIS)
  var = jnp.maximum(square - jnp.square(mean), 0)
  name = batch_norm_apply_add_p if rest else batch_norm_apply_p
  operands = varying_alike(_rows(x), scale[None], bias[None], mean, var)
  (y,) = name.bind(*operands, *map(_rows, rest), relu=relu, epsilon=epsilon)
  y = y.reshape(x.shape)
  after = (y,) if rest and relu else ()
  saved = x, scale, bias, mean[0], var[0], after, (None,) * len(rest)
  return (y, mean[0], var[0]), saved


def _backward_of_parts(relu, epsilon, saved, gradients):
  x, scale, bias, mean, var, after, adds = saved
  dy = gradients[0]
  each = varying_alike(_rows(x), *(v[None] for v in (scale, bias, mean, var)))
  x_rows, *by_channel = each
  if after:
    *sums, dresidual = batch_norm_sums_add_p.bind(
      x_rows, _rows(dy), *by_channel, _rows(after[0]), epsilon=epsilon
    )
    passed, relu = dresidual, False
  else:
    sums = batch_norm_sums_p.bind(
      x_rows, _rows(dy), *by_channel, relu=relu, epsilon=epsilon
    )
    passed = dresidual = _rows(dy)
  means = lax.pmean(tuple(sums), BATCH_AXIS)
  operands = varying_alike(x_rows, passed, *by_channel, *means)
  (dx,) = batch_norm_input_p.bind(*operands, relu=relu, epsilon=epsilon)
  more = (dresidual.reshape(x.shape),) if adds else ()
  devices = lax.axis_size(BATCH_AXIS)
  dscale, dbias = (devices * v[0] for v in means)
  return dx.reshape(x.shape), dscale, dbias, more


_batch_norm_of_parts.defvjp(_forward_of_parts, _backward_of_parts)


# In JAX; x is [members, rows, channels], what is by channel is [members,
# channels].


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _moments_form(x):
  v = x.astype(_wide(x))
  mean = v.mean(1)
  return [mean, jnp.maximum(jnp.square(v).mean(1) - jnp.square(mean), 0)]


def _apply_form(x, scale, bias, mean, var, *residual, relu, epsilon):
  factor = lax.rsqrt(var + epsilon) * scale
  y = (x.astype(_wide(x)) - mean[:, None]) * factor[:, None] + bias[:, None]
  for more in residual:
    y = y + more.astype(y.dtype)
  return [(jnp.maximum(y, 0) if relu else y).astype(x.dtype)]


def _form(x, scale, bias, *residual, relu, epsilon):
  moments = _moments_form(x)
  how = dict(relu=relu, epsilon=epsilon)
  return [*_apply_form(x, scale, bias, *moments, *residual, **how), *moments]


def _sums_form(x, dy, scale, bias, mean, var, *, relu, epsilon):
  g, value = _passed(x, dy, scale, bias, mean, var, relu, epsilon)
  return [(g * value).sum(1) * lax.rsqrt(var + epsilon), g.sum(1)]


def _sums_add_form(x, dy, scale, bias, mean, var, y, *, epsilon):
  dy = jnp.where(y > 0, dy, 0)
  how = dict(relu=False, epsilon=epsilon)
  return [*_sums_form(x, dy, scale, bias, mean, var, **how), dy]


def _input_form(x, dy, *by_channel, relu, epsilon):
  scale, bias, mean, var, dscale, dbias = by_channel
  g, value = _passed(x, dy, scale, bias, mean, var, relu, epsilon)
  inverse, rows = lax.rsqrt(var + epsilon), x.shape[1]
  off = g - dbias[:, None] / rows
  off -= value * (dscale * inverse / rows)[:, None]
  return [(off * (inverse * scale)[:, None]).astype(x.dtype)]


def _passed(x, dy, scale, bias, mean, var, relu, epsilon):
  """y's gradient where ReLU let through, and x less its mean."""
  g, value = dy.astype(_wide(x)), x.astype(_wide(x)) - mean[:, None]
  if relu:
    factor = lax.rsqrt(var + epsilon) * scale
    y = value * factor[:, None] + bias[:, None]
    g = jnp.where(y > 0, g, 0)
  return g, value


def _grad_form(x, dy, scale, bias, mean, var, *, relu, epsilon):
  operands, how = (scale, bias, mean, var), dict(relu=relu, epsilon=epsilon)
  sums = _sums_form(x, dy, *operands, **how)
  return [*_input_form(x, dy, *operands, *sums, **how), *sums]


def _add_grad_form(x, dy, scale, bias, mean, var, y, *, epsilon):
  dy = jnp.where(y > 0, dy, 0)
  of_x = _grad_form(x, dy, scale, bias, mean, var, relu=False, epsilon=epsilon)
  return [*of_x, dy]


batch_norm_p = passes.define("batch_norm", _form)
batch_norm_add_p = passes.define("batch_norm_add", _form)
batch_norm_grad_p = passes.define("batch_norm_grad", _grad_form)
batch_norm_add_grad_p = passes.define("batch_norm_add_grad", _add_grad_form)
batch_norm_moments_p = passes.define("batch_norm_moments", _moments_form)
batch_norm_apply_p = passes.define("batch_norm_apply", _apply_form)
batch_norm_apply_add_p = passes.define("batch_norm_apply_add", _apply_form)
batch_norm_sums_p = passes.define("batch_norm_sums", _sums_form)
batch_norm_sums_add_p = passes.define("batch_norm_sums_add", _sums_add_form)
batch_norm_input_p = passes.define("batch_norm_input", _input_form)
