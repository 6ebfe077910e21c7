"""Fake quantization with straight-through gradients, on AQT's numerics.

The only file that imports aqt. A quantized convolution is a plain convolution
of quantized values: AQT's own convolution has a gradient of exactly zero.
Values stay float32 on the integers' grid, so bits are a matter of the score
and of the stored network, not of the simulation's speed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from aqt.jax.v2 import utils
from aqt.jax.v2.numerics import int_numerics

from jaxr18.nn import passes
from jaxr18.nn.conv import by_device, is_split, varying_alike
from jaxr18.nn.spec import FLOAT_BITS, HALF_BITS, SCALES, TWO_BITS

# AQT's decorator of dataclasses hides their parameters from type checkers.
_IntSymmetric: Any = int_numerics.IntSymmetric
_Context: Any = utils.Context
_CONTEXT = _Context(key=None, train_step=None)  # no stochastic rounding
SMALLEST_BOUND = 1e-5  # 0 would give zeros silently; far below any in use
_SMALLEST_KERNEL_BOUND = 0.01  # root mean squares; in use are 1 to 4

# Shares of a channel's largest weight where its grid may end.
_SHARES = tuple(round(1 - 0.05 * i, 2) for i in range(13))  # 1 down to 0.4
# Root mean squares from which on the larger two of four levels may begin.
_THRESHOLDS = tuple(round(0.6 + 0.1 * i, 1) for i in range(9))  # up to 1.4


@jax.custom_jvp
def straight_through(x, q):
  """Returns q; its gradient is the identity in x (Bengio et al., 2013)."""
  del x
  return q


@straight_through.defjvp
def _(primals, tangents):
  return primals[1], tangents[0]


def _rounded(x: jax.Array, bits: int, signed: bool) -> jax.Array:
  """Rounds to the nearest integer of a grid, halves to the even one; float32.

  Signed levels are -(2**(bits-1) - 1) .. 2**(bits-1) - 1, zero among them;
  others 0 .. 2**bits - 1, since signed ones after a ReLU waste half of them.
  """
  if not signed:  # AQT has no grid of unsigned integers
    return jnp.round(jnp.clip(x, 0, 2.0**bits - 1))
  grid = _IntSymmetric(
    bits=bits,
    preserve_zero=True,
    preserve_max_val=True,
    clip=True,
    clip_gradient=True,
    round=True,
    noise_fn=None,
  )
  return grid.vjp_fwd(x, _CONTEXT)[0]


# Kernels.


def quantize_kernel(
  kernel: jax.Array,
  bits: int,
  bound: jax.Array | None = None,
  two_bits: str = TWO_BITS[0],
) -> jax.Array:
  """Quantizes a kernel symmetrically, by output channel.

  The gradient in the kernel is the identity. That in the bound is LSQ's (Esser
  et al., 2020), of a bound that is measured in each channel's root mean square:
  weights are standardized before they are clipped, without which learned ends
  of grids run away (APoT, Li et al., 2020). With n the largest code, v the
  weight in units of the bound, and r the root mean square, it is the sum of
  r (round(n v) / n - v) inside and of r sign(v) outside, times LSQ's factor
  1 / sqrt(weights n), which is n**2 / (r**2 sqrt(weights n)) in these units; of
  four levels, which are two apart in codes, this n is 1.5.

  Args:
    kernel: [..., out], float32; the last axis is the output channel.
    bits: of a weight: 1 to 8 as `kernel_codes` has them, 16 for float16, 32
      returns the kernel untouched.
    bound: where the grid ends, learned; as in `kernel_codes`.
    two_bits: one of `spec.TWO_BITS`.

  Returns:
    The kernel on its grid. Zeros stay zero, but on four levels; a channel of
    zeros stays zero.
  """
  if bits == FLOAT_BITS:
    return kernel
  if bound is not None:
    return _learned(kernel, bound, bits, two_bits)
  fixed = jax.lax.stop_gradient(kernel)
  if bits == HALF_BITS:
    q = _half(fixed)
  else:
    codes, scale = _codes(fixed, bits, two_bits=two_bits)
    q = codes * scale
  return straight_through(kernel, q.astype(kernel.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _learned(kernel, bound, bits: int, two_bits: str):
  codes, scale = _codes(kernel, bits, bound, two_bits)
  return codes * scale


def _learned_forward(kernel, bound, bits, two_bits):
  return _learned(kernel, bound, bits, two_bits), (kernel, bound)


def _learned_backward(bits, two_bits, saved, g):
  kernel, bound = saved
  n = _largest_code(bits, two_bits)
  codes, scale = _codes(kernel, bits, bound, two_bits)
  outside = jnp.abs(kernel) >= scale * n
  error = codes / n - kernel / jnp.where(scale > 0, scale * n, 1)
  of_bound = jnp.where(outside, jnp.sign(codes), error)
  size = root_mean_square(kernel)
  total = jnp.sum(g * of_bound, range(kernel.ndim - 1)) * size
  count = kernel.size
  if bound.ndim:
    count /= kernel.shape[-1]
    square = size**2
  else:
    total, square = jnp.sum(total), jnp.mean(size**2)
  steps = n / 2 if _four(bits, two_bits) else n
  factor = steps**2 / (count * steps) ** 0.5
  total = factor * total / jnp.where(square > 0, square, 1)
  return g, total.astype(bound.dtype)


_learned.defvjp(_learned_forward, _learned_backward)


def root_mean_square(kernel: jax.Array) -> jax.Array:
  """Returns the root mean square of each output channel's nonzero weights.

  Returns [out], float32; 0 for a channel of zeros.
  """
  axes = range(kernel.ndim - 1)
  count = jnp.maximum(jnp.sum(kernel != 0, axes), 1)
  return jnp.sqrt(jnp.sum(jnp.square(kernel), axes) / count)


def least_error_bound(
  kernel: jax.Array,
  bits: int,
  by_channel: bool,
  two_bits: str = TWO_BITS[0],
) -> jax.Array:
  """Returns the bound of the smallest squared error, where learning begins.

  Of 64, evenly up to 4 root mean squares.

  Args:
    kernel: [..., out].
    bits: 2 to 8.
    by_channel: a bound for each output channel, or one for all.
    two_bits: one of `spec.TWO_BITS`.

  Returns:
    [out] or a scalar, float32, in root mean squares.
  """
  bounds = jnp.arange(1, 65, dtype=jnp.float32) / 16

  def error(bound):
    codes, scale = _codes(kernel, bits, bound, two_bits)
    off = jnp.square(codes * scale - kernel)
    return jnp.sum(off, range(kernel.ndim - 1) if by_channel else None)

  return bounds[jnp.argmin(jax.lax.map(error, bounds), axis=0)]


def kernel_codes(
  kernel: jax.Array,
  bits: int,
  bound: jax.Array | None = None,
  two_bits: str = TWO_BITS[0],
) -> tuple[jax.Array, jax.Array]:
  """Returns a kernel's integers and scales; their product is what runs.

  | bits   | codes                                | scale                     |
  | ------ | ------------------------------------ | ------------------------- |
  | 1      | the sign, -1 or 1; 0 for a weight of | the mean of abs(w)        |
  |        | exactly 0, as a mask leaves it       | (XNOR-Net, 2016)          |
  | 2      | ternary: -1, 0, 1; 0 up to 0.7 times | the mean of abs(w) of     |
  |        | the mean of abs(w)                   | those that are not 0      |
  |        |                                      | (TWN, 2016)               |
  | 2, of  | -3, -1, 1, 3: to the nearest, which   | of the least squared      |
  | four   | of 0 is 1                            | error                     |
  | 3 to 8 | -(2**(bits-1) - 1) .. 2**(bits-1)-1, | of the least squared      |
  |        | to the nearest, halves to the even   | error                     |

  Means are over weights that are not 0, so masks do not move them. From 3 bits
  on the grid ends at the largest weight or at 0.95, 0.9, ... 0.4 of it. A grid
  of 2 bits that is symmetric and has a zero is ternary. Four symmetric levels
  have no zero, so masks cannot be on them; their codes are half steps, of the
  best scale for a larger pair that begins at 0.6, 0.7, ... 1.4 root mean
  squares.

  With a bound, from 2 bits on, the grid ends at so many root mean squares of
  the channel's weights that are not 0, and codes are to the nearest.

  Args:
    kernel: [..., out], float32; HWIO, or [in, out].
    bits: 1 to 8.
    bound: scalar or [out], in root mean squares; below 0.01 it counts as that.
    two_bits: what 2 bits are, one of `spec.TWO_BITS`; no others hear of it.

  Returns:
    (codes, int8, of the kernel's shape; scale, float32 [out], 0 for a channel
    of zeros).

  Raises:
    ValueError: bits that have no integers.
  """
  if not 1 <= bits <= 8:
    raise ValueError(
      f"bits (={bits}) must be from 1 to 8; a kernel of 16 or 32 bits has no"
      " integers"
    )
  codes, scale = _codes(kernel, bits, bound, two_bits)
  return codes.astype(jnp.int8), scale


def distance_to_grid(
  kernel: jax.Array,
  bits: int,
  bound: jax.Array | None = None,
  two_bits: str = TWO_BITS[0],
) -> jax.Array:
  """Sums the squared distances of weights to the levels that they round to.

  A weight beyond the end of its grid counts as on it. The gradient is in the
  kernel alone, and draws each weight inside to its level.

  Args:
    kernel, bits, bound, two_bits: as `kernel_codes` takes them.

  Returns:
    A scalar, float32.
  """
  ends = [
    None if x is None else jax.lax.stop_gradient(x) for x in (kernel, bound)
  ]
  codes, scale = _codes(ends[0], bits, ends[1], two_bits)
  end = scale * max(1, _largest_code(bits, two_bits))
  return jnp.sum(jnp.square(codes * scale - jnp.clip(kernel, -end, end)))


def _four(bits: int, two_bits: str) -> bool:
  return bits == 2 and two_bits == "four_levels"


def _largest_code(bits: int, two_bits: str = TWO_BITS[0]) -> int:
  return 3 if _four(bits, two_bits) else 2 ** (bits - 1) - 1


@functools.partial(jax.jit, static_argnames=("bits", "two_bits"))
def _codes(kernel, bits: int, bound=None, two_bits: str = TWO_BITS[0]):
  to_grid = _to_four if _four(bits, two_bits) else _to_grid
  if bound is not None:
    end = jnp.maximum(bound, _SMALLEST_KERNEL_BOUND) * root_mean_square(kernel)
    scale = end * (1 / _largest_code(bits, two_bits))
    return to_grid(kernel, scale, bits), scale
  axes = tuple(range(kernel.ndim - 1))
  size = jnp.abs(kernel)

  def mean(x, of):
    return jnp.sum(x * of, axes) / jnp.maximum(jnp.sum(of, axes), 1)

  if bits == 1:
    return jnp.sign(kernel), mean(size, size > 0)
  if to_grid is _to_four:
    scale = _four_scale(kernel)
    return _to_four(kernel, scale), scale
  if bits == 2:
    large = size > 0.7 * mean(size, size > 0)
    return jnp.sign(kernel) * large, mean(size, large)
  largest = jnp.max(size, axes) / _largest_code(bits)

  def error(share):  # twice as fast in a loop as side by side
    scale = largest * share
    off = _to_grid(kernel, scale, bits) * scale - kernel
    return jnp.sum(jnp.square(off), axes)

  shares = jnp.array(_SHARES)
  best = jnp.argmin(jax.lax.map(error, shares), axis=0)
  scale = largest * shares[best]
  return _to_grid(kernel, scale, bits), scale


def _four_scale(kernel):
  """The scale [out] of four levels that errs least, of the thresholds tried.

  Once it is decided which weights have the larger code, the best scale is
  sum(abs(w) code) / sum(code**2), and the error is the less the larger
  sum(abs(w) code)**2 / sum(code**2) is.
  """
  axes = tuple(range(kernel.ndim - 1))
  size = jnp.abs(kernel)
  count = kernel.size // kernel.shape[-1]
  total, spread = jnp.sum(size, axes), jnp.sqrt(jnp.mean(size**2, axes))

  def found(threshold):
    larger = size >= threshold * spread
    product = total + 2 * jnp.sum(size * larger, axes)
    square = count + 8 * jnp.sum(larger, axes)
    return product**2 / square, product / square

  explained, scales = jax.lax.map(found, jnp.array(_THRESHOLDS))
  best = jnp.argmax(explained, axis=0)
  return jnp.take_along_axis(scales, best[None], axis=0)[0]


def _to_four(kernel, scale, bits: int = 2):
  """To the nearest of -3, -1, 1 and 3, halves up; float32."""
  del bits
  halves = _over(kernel, scale) * 0.5
  return 2 * jnp.clip(jnp.floor(halves), -2, 1) + 1


def _to_grid(kernel, scale, bits: int):
  return _rounded(_over(kernel, scale), bits, signed=True)


def _over(kernel, scale):
  return kernel / jnp.where(scale > 0, scale, 1)


def _half(x):
  largest = float(jnp.finfo(jnp.float16).max)  # beyond it is infinity
  return jnp.clip(x, -largest, largest).astype(jnp.float16).astype(x.dtype)


# Inputs.


def input_levels(bits: int, signed: bool) -> int:
  """Returns the largest integer of a quantized input."""
  return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def input_ends(bits: int, signed: bool) -> tuple[float, float]:
  """Returns the smallest and the largest integer of a quantized input."""
  n = float(input_levels(bits, signed))
  return (-n if signed else 0.0), n


def input_step(bound: jax.Array, bits: int, signed: bool) -> jax.Array:
  """Returns the step of a quantized input's grid: bound / levels, float32.

  Written as the product that XLA makes of it, so that others can round alike.
  """
  bound = jnp.maximum(jnp.asarray(bound, jnp.float32), SMALLEST_BOUND)
  return bound * (1 / input_levels(bits, signed))


def input_codes(
  x: jax.Array, bound: jax.Array, bits: int, signed: bool
) -> jax.Array:
  """Computes an input's integers; times `input_step` they are `quantize_input`.

  They are x times 1 / step, clipped to the levels and rounded to the nearest
  integer, halves to the even one, all in float32.

  Args:
    x: of any shape.
    bound: of the largest level.
    bits: 2 to 8.
    signed: whether the levels are symmetric around 0.

  Returns:
    int8 of the shape of x if signed, otherwise uint8.
  """
  return codes_by_step(x, input_step(bound, bits, signed), bits, signed)


def codes_by_step(
  x: jax.Array, step: jax.Array, bits: int, signed: bool
) -> jax.Array:
  """Computes `input_codes` of what `input_step` gives.

  Args:
    x, bits, signed: as `input_codes` takes them.
    step: of a shape that broadcasts with x.
  """
  v = _in_steps(x, step)
  return _rounded(v, bits, signed).astype(jnp.int8 if signed else jnp.uint8)


def _in_steps(x, step):
  """x / step, as the product that XLA makes of it wherever it may."""
  return x.astype(jnp.float32) * (1 / step)


def dynamic_bound(x: jax.Array) -> jax.Array:
  """Returns the largest abs(x) of each image, float32 [batch, 1, ...].

  Of each by itself, so that its logits do not depend on what else is in the
  batch, be it other images, the filling of a last batch or none.
  """
  axes = tuple(range(1, x.ndim))
  return jnp.max(jnp.abs(x), axes, keepdims=True).astype(jnp.float32)


def to_levels(x, bound, n: int | jax.Array, signed: bool) -> jax.Array:
  """Rounds an input to levels as `quantize_input` does.

  Args:
    x: of any shape.
    bound: of the largest level.
    n: how many levels stand above 0; may be traced.
    signed: whether as many stand below.
  """
  step = jnp.maximum(bound, SMALLEST_BOUND) / n
  low = -n if signed else 0
  return (jnp.round(jnp.clip(x / step, low, n)) * step).astype(x.dtype)


def quantize_input(
  x: jax.Array,
  bound: jax.Array | None,
  bits: int,
  signed: bool,
  scales: str = "lsq",
) -> jax.Array:
  """Quantizes x to one grid, from 0 or -bound to the bound.

  The gradient in x is the identity inside the bound and zero outside. That in
  the bound B, with n levels, step s = B / n and y what is returned, is one of

  - 'lsq' (Esser et al., 2020): (y - x) / B inside, 1 beyond, -1 below: LSQ's
    for s, by the chain rule. What is trained is the bound, since it keeps its
    meaning when bits change, and at the plain learning rate.
  - 'lsq_paper': the same times n**2 g, with LSQ's g = 1 / sqrt(features n): an
    SGD that then moves B moves s as the paper's does. The factor is 1,000 in a
    head of 16 features at 8 bits, so clip the gradient's norm or use AdamW.
  - 'pact' (Choi et al., 2018): 1 beyond, -1 below, 0 inside.
  - 'fixed': 0; the bound stays as it was calibrated.
  - 'dynamic': there is no bound to learn; it is `dynamic_bound`.

  Args:
    x: [batch, ...], a layer's input; it is quantized in float32 whatever its
      type, since bfloat16 would round the bound's gradient, a sum over all x.
    bound: scalar > 0, the largest value that can be represented; not used for
      'dynamic'. One that a large step made negative counts as 1e-5, and its
      gradient brings it back.
    bits: of an activation, 2 to 8; 16 for float16; 32 returns x untouched.
    signed: whether x can be negative.
    scales: one of `spec.SCALES`.
  """
  if bits == FLOAT_BITS:
    return x
  if bits == HALF_BITS:
    return straight_through(x, _half(x))
  if scales == "dynamic":
    bound = dynamic_bound(jax.lax.stop_gradient(x))
  return _by_device(x, jnp.asarray(bound), bits, signed, scales)


def sum_codes(
  x: jax.Array, bound: jax.Array, bits: int, signed: bool = True
) -> jax.Array:
  """Computes the integers of `quantize_sum` without a gradient, as float32.

  Args:
    x, bound, bits, signed: as `quantize_sum` takes them.
  """
  v = _in_steps(x, input_step(bound, bits, True))
  return _rounded(v, bits, signed)


def quantize_sum(
  x: jax.Array, bound: jax.Array, bits: int, signed: bool = True
) -> jax.Array:
  """Quantizes to a block's grid of residual sums, with LSQ's gradients.

  The step is bound / (2**(bits-1) - 1). An operand goes from -bound to bound.
  Without a sign, as the stem's output is, levels are 0 .. 2**bits - 1, among
  which the sum of two operands always is after its ReLU.

  Args:
    x: [batch, ...].
    bound: scalar > 0, of the largest operand.
    bits: of a sum, 4 to 16.
    signed: whether x is an operand of a sum.
  """
  if not signed:
    bound = bound * (input_levels(bits, False) / input_levels(bits, True))
  return _by_device(x, jnp.asarray(bound), bits, signed, SCALES[0])


def _by_device(x, bound, *how) -> jax.Array:
  """`_quantize_input`, by each device where devices share the batch."""
  run = lambda *operands: _quantize_input(*varying_alike(*operands), *how)
  if is_split(x.shape[0]):
    run = by_device(run, "bb" if bound.ndim else "bw", "b")
  return run(x, bound)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _quantize_input(x, bound, bits, signed, scales):
  step = input_step(bound, bits, signed)
  low, high = input_ends(bits, signed)
  if bound.ndim:  # of each image
    q = _rounded(_in_steps(x, step), bits, signed)
    return (q * step).astype(x.dtype)
  (y,) = quantize_p.bind(x.reshape(1, -1), step[None], low=low, high=high)
  return y.reshape(x.shape)


def _forward(x, bound, bits, signed, scales):
  return _quantize_input(x, bound, bits, signed, scales), (x, bound)


def _backward(bits, signed, scales, saved, g):
  x, bound = saved
  if scales == "dynamic":
    return g, jnp.zeros_like(bound)
  n, (low, high) = input_levels(bits, signed), input_ends(bits, signed)
  dx, total = quantize_grad_p.bind(
    x.reshape(1, -1),
    g.reshape(1, -1),
    input_step(bound, bits, signed)[None],
    low=low,
    high=high,
    rounding=scales != "pact",
  )
  dx, total = dx.reshape(x.shape), total[0] / n
  if scales == "fixed":
    return dx, jnp.zeros_like(bound)
  if scales == "lsq_paper":
    features = x.size / x.shape[0]
    total *= n**2 / (features * n) ** 0.5
  return dx, total.astype(bound.dtype)


_quantize_input.defvjp(_forward, _backward)


# In one pass each: x is [members, elements], step is [members].


def _grid(x, step, *, low, high):
  step = step[:, None]
  v = _in_steps(x, step)
  return [(jnp.round(jnp.clip(v, low, high)) * step).astype(x.dtype)]


def _grid_grad(x, g, step, *, low, high, rounding):
  """The gradient of x, and the sum of g times that of the step."""
  v = _in_steps(x, step[:, None])
  inside = (v > low) & (v < high)
  error = jnp.round(v) - v if rounding else 0
  of_step = jnp.where(inside, error, jnp.where(v >= high, high, low))
  return [
    jnp.where(inside, g, 0),
    jnp.sum(g.astype(jnp.float32) * of_step, axis=1),
  ]


quantize_p = passes.define("quantize", _grid)
quantize_grad_p = passes.define("quantize_grad", _grid_grad)
