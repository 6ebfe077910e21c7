"""The ResNet of a `NetSpec` in Linen: nothing but layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxr18.nn import calibrate, passes, quantize
from jaxr18.nn import conv as fast_conv
from jaxr18.nn.batch_norm import batch_norm
from jaxr18.nn.spec import (
  FLOAT_BITS,
  BlockSpec,
  ConvSpec,
  HeadSpec,
  NetSpec,
  has_bound,
  has_kernel_bound,
)

BATCH_NORM_MOMENTUM = 0.9  # share of the old running statistics in the new
BATCH_NORM_EPSILON = 1e-5

kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class _Quantized(nn.Module):
  """A layer whose kernel and input are quantized before they meet."""

  def quantized(self, x, kernel, spec, signed):
    """Quantizes x and the kernel to the bits of the spec.

    When the collection 'squares' is mutable, the sum of x squared by channel
    goes there. When one that is named after a method of calibration is, the
    input's bound is taken from x itself and put there. The collection 'levels'
    has the input's levels in place of the spec's bits, for searches that
    compile once.
    """
    if self.is_mutable_collection("squares"):
      squares = jnp.sum(jnp.square(x), axis=range(x.ndim - 1))
      self.put_variable("squares", "input", squares)
    bound = None
    if has_bound(spec):
      bound = self.param("input_bound", nn.initializers.ones, ())
      n = quantize.input_levels(spec.a_bits, signed)
      if self.has_variable("levels", "input"):
        n = self.get_variable("levels", "input")
      for method in calibrate.METHODS:
        if self.is_mutable_collection(method):
          bound = calibrate.initial_bound(x, n, signed, method)
          self.put_variable(method, "input_bound", bound)
    if self.has_variable("levels", "input"):
      x = quantize.to_levels(x, bound, n, signed)
    else:
      x = quantize.quantize_input(x, bound, spec.a_bits, signed, spec.scales)
    kernel = quantize.quantize_kernel(
      kernel, spec.w_bits, self.kernel_bound(kernel, spec), spec.two_bits
    )
    return x, kernel

  def kernel_bound(self, kernel, spec):
    """Returns the learned end of the kernel's grid; None where it has none."""
    if not has_kernel_bound(spec):
      return None
    by_channel = spec.w_scales == "learned_channel"
    shape = kernel.shape[-1:] if by_channel else ()
    bound = self.param("kernel_bound", nn.initializers.ones, shape)
    for method in calibrate.METHODS:
      if self.is_mutable_collection(method):
        bound = quantize.least_error_bound(
          kernel, spec.w_bits, by_channel, spec.two_bits
        )
        self.put_variable(method, "kernel_bound", bound)
    return bound


class Conv(_Quantized):
  """One convolution without bias, dense or grouped."""

  spec: ConvSpec
  signed: bool

  @nn.compact
  def __call__(self, x):
    s = self.spec
    shape = (s.kernel, s.kernel, x.shape[-1] // s.groups, s.features)
    kernel = self.param("kernel", kernel_init, shape)
    x, kernel = self.quantized(x, kernel, s, self.signed)
    return fast_conv.conv(
      x, kernel, stride=s.stride, padding=s.kernel // 2, groups=s.groups
    )


class FactorizedConv(nn.Module):
  """A depthwise-separable or a low-rank convolution, several in a row.

  Depthwise, then pointwise (Howard et al., 2017); or 1x1 to few channels, the
  kernel between few channels, 1x1 to all (Kim et al., 2016).
  """

  spec: ConvSpec
  signed: bool

  @nn.compact
  def __call__(self, x):
    for i, (name, part) in enumerate(self.spec.parts(x.shape[-1])):
      x = Conv(part, self.signed or i > 0, name=name)(x)
    return x


class Head(_Quantized):
  """The classifier: a dense layer with bias."""

  spec: HeadSpec

  @nn.compact
  def __call__(self, x):
    s = self.spec
    shape = (x.shape[-1], s.classes)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = self.param("bias", nn.initializers.zeros, (s.classes,))
    x, kernel = self.quantized(x, kernel, s, signed=False)
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _conv(spec: ConvSpec, name: str, signed: bool = False):
  kind = FactorizedConv if spec.depthwise or any(spec.ranks) else Conv
  return kind(spec, signed, name=name)


class BatchNorm(nn.Module):
  """Batch norm, the sum with a residual if there is one, and ReLU.

  Scale, bias and statistics are float32 whatever the type of the input is.
  In evaluation the input's own mean and variance go to the collection
  'moments' when it is mutable.
  """

  train: bool
  relu: bool = True

  @nn.compact
  def __call__(self, x, residual=None):
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    var = self.variable("batch_stats", "var", jnp.ones, shape)
    if self.train:
      y, *statistics = batch_norm(
        x, scale, bias, residual, relu=self.relu, epsilon=BATCH_NORM_EPSILON
      )
      if not self.is_initializing():
        keep = BATCH_NORM_MOMENTUM
        for old, new in zip((mean, var), statistics, strict=True):
          old.value = keep * old.value + (1 - keep) * new
      return y
    if self.is_mutable_collection("moments"):
      axes = range(x.ndim - 1)
      self.put_variable("moments", "mean", jnp.mean(x, axes))
      self.put_variable("moments", "var", jnp.var(x, axes))
    factor = jax.lax.rsqrt(var.value + BATCH_NORM_EPSILON) * scale
    y = ((x - mean.value) * factor + bias).astype(x.dtype)
    if residual is not None:
      y = y + residual
    return nn.relu(y) if self.relu else y


class Block(nn.Module):
  """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)) (He et al., 2015).

  With `sum_bits`, both operands of the sum lie on one grid, so the sum is one
  of integers. The stem's output, which enters the first block, lies on that
  block's.
  """

  spec: BlockSpec
  train: bool
  sum_bits: int = FLOAT_BITS
  first: bool = False

  @nn.compact
  def __call__(self, x):
    bits, floats = self.sum_bits, self.sum_bits == FLOAT_BITS
    bound = None
    if not floats:
      bound = self.param("sum_bound", nn.initializers.ones, ())
      if self.first and not self.calibrating():
        x = quantize.quantize_sum(x, bound, bits, signed=False)
    x, y = passes.fork(x)
    y = _conv(self.spec.conv1, "conv1")(y)
    y = BatchNorm(self.train, name="bn1")(y)
    y = _conv(self.spec.conv2, "conv2")(y)
    if self.spec.proj is not None:
      x = _conv(self.spec.proj, "proj")(x)
      x = BatchNorm(self.train, relu=False, name="proj_bn")(x)
    if floats:
      return BatchNorm(self.train, name="bn2")(y, x)
    assert bound is not None
    y = BatchNorm(self.train, relu=False, name="bn2")(y)
    if method := self.calibrating():
      n = quantize.input_levels(bits, True)
      ends = [calibrate.initial_bound(v, n, True, method) for v in (x, y)]
      bound = jnp.maximum(*ends)
      self.put_variable(method, "sum_bound", bound)
    x, y = (quantize.quantize_sum(v, bound, bits) for v in (x, y))
    return nn.relu(y + x)

  def calibrating(self) -> str:
    """The method by which bounds are taken from images now, or ''."""
    methods = filter(self.is_mutable_collection, calibrate.METHODS)
    return next(methods, "")


class ResNet(nn.Module):
  """Normalized images [batch, size, size, channels] -> logits [batch, classes].

  With `train`, batch norm uses the batch's statistics and updates the
  collection 'batch_stats'.
  """

  spec: NetSpec
  train: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = _conv(self.spec.stem, "stem", signed=True)(images)
    x = BatchNorm(self.train, name="stem_bn")(x)
    for i, (name, block) in enumerate(self.spec.blocks()):
      x = Block(block, self.train, self.spec.sum_bits, i == 0, name=name)(x)
    x = jnp.mean(x, axis=(1, 2))
    return Head(self.spec.head, name="head")(x).astype(jnp.float32)
