"""Convolutions of integer codes, with the same sums whatever computes them.

On one CPU device oneDNN's int8 kernels do (nn/int8.cc), where they are exact.
The processor's 8-bit dot product (VNNI, AMX) always is. Without it pairs of
products saturate at 16 bits, so codes must be small enough that none does;
others are multiplied as floats, whose sums are exact below 2**24. Everywhere
else XLA multiplies int8 by int8.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxr18.nn import conv_forms, onednn
from jaxr18.nn.conv import conv as float_conv
from jaxr18.nn.conv import partitions


class Codes(NamedTuple):
  """How large the factors of a convolution are.

  Attributes:
    signed: whether the input is int8; otherwise it is uint8.
    inputs: the largest size of an input's code.
    weights: the largest size of a weight's.
  """

  signed: bool
  inputs: int
  weights: int


def conv(
  x: jax.Array,
  kernel: jax.Array | np.ndarray,
  *,
  stride: int,
  groups: int,
  codes: Codes,
  path: str | None = None,
) -> jax.Array:
  """Convolves codes with a kernel of codes, with padding kernel // 2.

  Args:
    x: uint8 or int8 [batch, height, width, in_features].
    kernel: int8 [kernel, kernel, in_features / groups, features].
    stride: pixels between two outputs.
    groups: how many blocks the channels are split into.
    codes: how large x and the kernel may be; sums must be below 2**31.
    path: 'auto' or 'xla'; by default as `conv.conv`. Other paths of that are
      'auto' here.

  Returns:
    int32 sums [batch, out_height, out_width, features].
  """
  how = stride, kernel.shape[0] // 2, groups
  form = functools.partial(_by_xla, how=how)
  return call("int8_conv", form, (x, kernel), codes, path, how=how)


def call(
  name: str,
  form: Callable[..., jax.Array],
  arrays: Sequence[Any],
  codes: Codes,
  path: str | None = None,
  **attributes: Any,
) -> jax.Array:
  """Computes a convolution of codes by our own code, or else by its form.

  Args:
    name: 'int8_conv', 'int8_layer' or 'int8_float', of nn/int8.cc.
    form: the same in JAX, a function of `arrays`; a jaxpr shows it.
    arrays: what the code is given, images and kernel first.
    codes, path: as `conv` takes them.
    attributes: of the code: `how`, which is stride, padding and groups, and
      others, which are bool or tuples of int.

  Returns:
    What the form gives.
  """
  path = path or os.environ.get("JAXR18_CONV") or "auto"
  if path == "xla":
    return form(*arrays)
  arrays = [jnp.asarray(a) for a in arrays]
  jaxpr = jax.make_jaxpr(form)(*arrays)
  return own_call_p.bind(
    *arrays,
    call=name,
    jaxpr=jaxpr,
    codes=codes,
    attributes=tuple(sorted(attributes.items())),
  )


def _by_xla(x, kernel, *, how):
  """By XLA, which has no uint8 times int8: x is shifted by 128 then."""
  stride, padding, groups = how
  shift = 0 if x.dtype == jnp.int8 else 128
  pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  x = (x.astype(jnp.int16) - jnp.int16(shift)).astype(jnp.int8)
  sums = lax.conv_general_dilated(
    jnp.pad(x, pads, constant_values=-shift),
    kernel,
    window_strides=(stride, stride),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
    preferred_element_type=jnp.int32,
  )
  if not shift:
    return sums
  # XLA takes seconds to add up a large kernel that it knows.
  xp = np if isinstance(kernel, np.ndarray) else jnp
  return sums + shift * kernel.sum((0, 1, 2), xp.int32)


own_call_p = Primitive("own_call")


@own_call_p.def_abstract_eval
def _(x, *_, jaxpr, **params):
  (out,) = jaxpr.out_avals
  return x.update(shape=out.shape, dtype=out.dtype, weak_type=False)


@own_call_p.def_impl
def _(*arrays, **params):
  return jax.jit(functools.partial(own_call_p.bind, **params))(*arrays)


def _lower(cpu, ctx, *arrays, call, jaxpr, codes, attributes):
  attributes = dict(attributes)
  x, kernel, *_ = ctx.avals_in
  one = cpu and partitions(ctx.module_context.axis_context) == 1
  one = one and 0 not in (x.size, kernel.size) and onednn.ready()
  if one and onednn.int8_exact(*codes):
    rule = functools.partial(_by_onednn, call, ctx.avals_out[0], attributes)
  elif one and call == "int8_conv" and _fits_float32(codes, kernel):
    rule = functools.partial(_by_floats, attributes["how"])
  else:
    rule = lambda *arrays: jax.extend.core.jaxpr_as_fun(jaxpr)(*arrays)[0]
  return mlir.lower_fun(rule, multiple_results=False)(ctx, *arrays)


def _by_floats(how, x, kernel):
  stride, padding, groups = how
  x, kernel = x.astype(jnp.float32), kernel.astype(jnp.float32)
  sums = float_conv(x, kernel, stride=stride, padding=padding, groups=groups)
  return sums.astype(jnp.int32)


def _fits_float32(codes: Codes, kernel) -> bool:
  """Whether float32 holds every sum."""
  products = int(np.prod(kernel.shape[:3]))
  return products * codes.inputs * codes.weights < 2**24


def _by_onednn(name, out, attributes, x, kernel, *arrays):
  """The call itself; groups of fewer than 8 channels are merged.

  Milliseconds on a core with VNNI, batch 128, 16 to 16 channels at 32x32: in 8
  groups 15.7, in 4 groups 2.8, in 2 groups 2.4.
  """
  (stride, padding, groups), by = attributes["how"], 1
  size = min(kernel.shape[2], kernel.shape[3] // groups)
  while 1 < size * by < 8 and groups % (2 * by) == 0:
    by *= 2
  if by > 1:
    kernel = conv_forms.merge(kernel, groups=groups, by=by)
  attributes = attributes | {"how": (stride, padding, groups // by)}
  result = jax.ShapeDtypeStruct(out.shape, out.dtype)
  return jax.ffi.ffi_call(f"jaxr18_{name}", result)(
    x,
    kernel,
    *arrays,
    **{
      k: v if isinstance(v, bool) else np.asarray(v, np.int64)
      for k, v in attributes.items()
    },
  )


for _platform in ("cpu", None):
  mlir.register_lowering(
    own_call_p,
    functools.partial(_lower, _platform == "cpu"),
    platform=_platform,
  )


def _batch(arrays, axes, *, jaxpr, **_):
  form = jax.extend.core.jaxpr_as_fun(jaxpr)
  return jax.vmap(form, in_axes=tuple(axes))(*arrays)[0], 0


batching.primitive_batchers[own_call_p] = _batch
