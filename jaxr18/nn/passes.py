"""Operations that are one pass over memory each way, where XLA makes several.

Each is a primitive with leading members on all operands and results. It lowers
to loops of our own (nn/passes.cc) on one CPU device, elsewhere to its form in
JAX, which XLA can partition.
"""

import functools
import os
from collections.abc import Callable

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxr18.nn import onednn
from jaxr18.nn.conv import partitions

_TYPES = (jnp.dtype("float32"), jnp.dtype("bfloat16"))


def define(name: str, form: Callable) -> Primitive:
  """Makes a primitive; `name` is that of the call too.

  Args:
    form: (*arrays, **parameters) -> a list of arrays, in JAX. Every array has a
      leading axis of members; the first one's type decides whether the call
      serves.

  Returns:
    The primitive. It has no derivative: wrap it in a `custom_vjp`.
  """
  primitive = Primitive(name)
  primitive.multiple_results = True

  @primitive.def_abstract_eval
  def _(x, *rest, **params):
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, *rest)]
    results = jax.eval_shape(functools.partial(form, **params), *shapes)
    return [
      x.update(shape=y.shape, dtype=y.dtype, weak_type=False) for y in results
    ]

  @primitive.def_impl
  def _(*args, **params):
    return _compiled(primitive, tuple(params.items()))(*args)

  for platform in ("cpu", None):
    mlir.register_lowering(
      primitive,
      functools.partial(_lower, name, platform == "cpu", form),
      platform=platform,
    )
  batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
  return primitive


@functools.cache
def _compiled(primitive, params):
  return jax.jit(functools.partial(primitive.bind, **dict(params)))


def _lower(name, cpu, form, ctx, *args, **params):
  avals = ctx.avals_in
  fast = (
    cpu
    and os.environ.get("JAXR18_CONV", "") in ("", "auto", "onednn")
    and avals[0].dtype in _TYPES
    and all(a.size for a in avals)
    and partitions(ctx.module_context.axis_context) == 1
    and onednn.ready()
  )
  if fast:
    results = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in ctx.avals_out]
    form = jax.ffi.ffi_call(f"jaxr18_{name}", results)
    params = {k: _attribute(v) for k, v in params.items()}
  rule = functools.partial(form, **params)
  return mlir.lower_fun(rule, multiple_results=True)(ctx, *args)


def _attribute(value):
  return np.bool_(value) if isinstance(value, bool) else np.float32(value)


def _batch(primitive, args, axes, **params):
  """Members of members are members."""
  size = next(
    x.shape[axis]
    for x, axis in zip(args, axes, strict=True)
    if axis is not None
  )

  def joined(x, axis):
    if axis is None:
      x = jnp.broadcast_to(x, (size, *x.shape))
    else:
      x = jnp.moveaxis(x, axis, 0)
    return x.reshape(-1, *x.shape[2:])

  results = primitive.bind(*map(joined, args, axes), **params)
  return [y.reshape(size, -1, *y.shape[1:]) for y in results], [0] * len(
    results
  )


@jax.custom_vjp
def fork(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Copies x for two uses, whose gradients are added in one pass."""
  return x, x


def _add(_, gradients):
  a, b = gradients
  (total,) = add_gradients_p.bind(a.reshape(1, -1), b.reshape(1, -1))
  return (total.reshape(a.shape),)


fork.defvjp(lambda x: ((x, x), None), _add)
add_gradients_p = define("add_gradients", lambda a, b: [a + b])
