"""Fake quantization with straight-through gradients, on AQT's numerics.

The only file that imports aqt. A quantized convolution is a plain convolution
of quantized values: AQT's own convolution has a gradient of exactly zero.
Values stay float32 on the integers' grid, so bits are a matter of the score
and of the stored network, not of the simulation's speed.
"""

import math

import jax
import jax.numpy as jnp
from aqt.jax.v2 import aqt_quantizer, calibration, utils
from aqt.jax.v2.numerics import int_numerics, numerics

from jaxr18.spec import FLOAT_BITS

_CONTEXT = utils.Context(key=None, train_step=None)  # no stochastic rounding


@jax.custom_jvp
def straight_through(x, q):
  """q forward, the identity in x backward (Bengio et al., 2013)."""
  del x
  return q


@straight_through.defjvp
def _(primals, tangents):
  return primals[1], tangents[0]


@utils.flax_slots_kw_only_dataclass
class IntUnsigned(numerics.AqtNumerics):
  """Levels 0 .. 2**bits - 1: signed ones after a ReLU waste half of them.

  The values stay floats (`get_dtype` is None): AQT's integer cast is signed.
  """

  bits: int

  def get_quant_bound(self):
    return 2.0**self.bits - 1

  def get_dtype(self):
    return None

  def vjp_fwd(self, x, context):
    del context
    return jnp.round(jnp.clip(x, 0, self.get_quant_bound())), (x,)

  def vjp_bwd(self, res, grad):
    (x,) = res
    return grad * (x >= 0) * (x <= self.get_quant_bound()), None


def _signed(bits: int) -> int_numerics.IntSymmetric:
  """Levels -(2**(bits-1) - 1) .. 2**(bits-1) - 1, zero on the grid."""
  return int_numerics.IntSymmetric(
    bits=bits,
    preserve_zero=True,
    preserve_max_val=True,
    clip=True,
    clip_gradient=True,
    round=True,
    noise_fn=None,
  )


def quantize_kernel(kernel: jax.Array, bits: int) -> jax.Array:
  """Symmetric quantization by output channel, scaled by the largest weight.

  Args:
    kernel: [..., out], float32; the last axis is the output channel.
    bits: of a weight, 2 to 8; 32 returns the kernel untouched.

  Returns:
    The kernel on its grid; its gradient is the identity. Zeros stay zero, and
    a channel of zeros stays zero.
  """
  if bits == FLOAT_BITS:
    return kernel
  quantizer = aqt_quantizer.Quantizer(
    numerics=_signed(bits),
    calib_shared_axes=None,
    scale_stop_grad=True,
    calibration=calibration.AbsMaxCalibration,
    context=_CONTEXT,
  )
  quantizer.init_calibration()
  axes = tuple(range(kernel.ndim - 1))
  q, _ = quantizer.quant(jax.lax.stop_gradient(kernel), calibration_axes=axes)
  return straight_through(kernel, q.dequant().astype(kernel.dtype))


def input_levels(bits: int, signed: bool) -> int:
  """The largest integer of a quantized input."""
  return 2 ** (bits - 1) - 1 if signed else 2**bits - 1


def quantize_input(
  x: jax.Array, bound: jax.Array, bits: int, signed: bool
) -> jax.Array:
  """Quantization per tensor to a grid that ends at a learned bound.

  The gradients are those of LSQ (Esser et al., 2020): the identity for x
  inside the bound and zero outside; for the step size s = bound / n, the
  rounding error inside and the end of the grid outside. What is trained is the
  bound, since it keeps its meaning when bits change, and as in PACT (Choi et
  al., 2018) at the plain learning rate: LSQ's factor for s would multiply the
  bound's gradient by up to 1,000 in a head of 16 features at 8 bits.

  Args:
    x: [batch, ...], a layer's input; it is quantized in float32 whatever its
      type, since bfloat16 would round the bound's gradient, a sum over all x.
    bound: scalar > 0, the largest value that can be represented.
    bits: of an activation, 2 to 8; 32 returns x untouched.
    signed: whether x can be negative.
  """
  if bits == FLOAT_BITS:
    return x
  n = input_levels(bits, signed)
  # A bound of 0 would give zeros silently; 1e-5 is far below any in use. The
  # gradient passes, so a bound that a large step made negative comes back.
  bound = straight_through(bound, jnp.maximum(bound, 1e-5))
  grid = _signed(bits) if signed else IntUnsigned(bits=bits)
  step = bound / n
  inside = jnp.clip(x.astype(jnp.float32) / step, -n if signed else 0, n)
  rounded, _ = grid.vjp_fwd(jax.lax.stop_gradient(inside), _CONTEXT)
  return (straight_through(inside, rounded) * step).astype(x.dtype)


def initial_bound(x: jax.Array, bits: int, signed: bool) -> jax.Array:
  """LSQ's starting step, 2 mean|x| / sqrt(n), as a bound; at most max|x|."""
  n = input_levels(bits, signed)
  size = jnp.abs(x)
  bound = jnp.minimum(2 * jnp.mean(size) * math.sqrt(n), jnp.max(size))
  return jnp.maximum(bound, 1e-5).astype(jnp.float32)
