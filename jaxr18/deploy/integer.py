"""Evaluation of a folded network whose products are of integers: int8 times
int8, summed in int32.

Inputs are rounded to codes, codes are convolved, and a sum becomes a float
once, by one factor for each output channel and a bias. Residual sums, ReLU and
pooling are in float32, and so is a layer whose weights or inputs are floats.
`program.py` defines what a device without floats computes.

The simulation in `nn/resnet.py`, which trains, multiplies the same codes as
floats, already scaled. Both are the same but for float32's rounding, which
decides otherwise where a value lies within that of the middle between two
codes. `train/evaluate.py` tests the codes as floats; with fused multiply-add
`jaxr18/deploy/packed.py` gives the same bits as this on a CPU.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxr18.deploy import packed
from jaxr18.deploy.fold import Folded
from jaxr18.nn import int8, quantize
from jaxr18.nn.conv import conv
from jaxr18.nn.spec import (
  FLOAT_BITS,
  HALF_BITS,
  Layer,
  NetSpec,
  has_four_levels,
)

ARITHMETIC = ("int8", "float32")
_TOLERANCE = 2.0**-20  # of float32's sums, relative to the largest


def forward(
  folded: Folded,
  spec: NetSpec,
  images: jax.Array,
  arithmetic: str = "int8",
  path: str | None = None,
) -> jax.Array:
  """Computes the logits of normalized images, [batch, classes], float32.

  Args:
    folded: of `fold`.
    spec: of the same network.
    images: [batch, resolution, resolution, channels], normalized.
    arithmetic: 'int8', or 'float32', which multiplies the same codes as
      floats and is exact while sums stay below 2**24.
    path: of the convolutions, see `nn.conv` and `nn.int8`.
  """
  return _run(folded, spec, images, (arithmetic,), path)[0]


@functools.partial(jax.jit, static_argnames="spec")
def wrong_layers(
  folded: Folded, spec: NetSpec, images: jax.Array
) -> dict[str, jax.Array]:
  """Finds layers whose int8 and float32 sums differ beyond rounding.

  Returns:
    bool by the path of each layer of integers, on the inputs that int8 gives.
  """
  return _run(folded, spec, images, ARITHMETIC, None)[1]


def choose_arithmetic(folded: Folded, spec: NetSpec, images: jax.Array) -> str:
  """Chooses 'int8' where this device's integer convolutions are right.

  XLA has had int8 convolutions on GPUs that were wrong for grouped layers.
  Then a warning names the layers, and 'float32' serves.
  """
  found = jax.device_get(wrong_layers(folded, spec, images))
  wrong = [path for path, differs in found.items() if differs]
  if not wrong:
    return "int8"
  logging.warning(
    "int8 convolutions are wrong on %s in %s; the codes are multiplied as"
    " float32 instead",
    jax.devices()[0].device_kind,
    ", ".join(wrong),
  )
  return "float32"


def _run(folded, spec, images, arithmetics, path):
  """Logits by the first arithmetic, and by layer whether the second differs."""
  wrong = {}

  def apply(layer: Layer, x):
    numbers = folded[layer.path]
    integers = max(layer.w_bits, layer.a_bits) < HALF_BITS
    if integers and "input_bound" in numbers and arithmetics == ("int8",):
      if isinstance(x, _Pending):
        x = x.compute((layer, numbers))
      return _Pending(layer, numbers, x, path)
    x, factor = _floats(x), numbers.get("scale", 1)
    if layer.a_bits < HALF_BITS:
      bound = numbers.get("input_bound", quantize.dynamic_bound(x))
      how = layer.a_bits, layer.signed_input
      step = quantize.input_step(bound, *how)
      x = quantize.input_codes(x, bound, *how)
      if integers:
        factor = factor * step
      else:
        x = x * step
    else:
      x = quantize.quantize_input(x, None, layer.a_bits, layer.signed_input)
    kernel = numbers.get("kernel", numbers.get("codes"))
    if integers:
      sums, *others = (
        _int_sums(x, kernel, layer, path)
        if a == "int8"
        else _float_sums(x, kernel, layer, path)
        for a in arithmetics
      )
      for other in others:
        apart = jnp.max(jnp.abs(sums - other))
        wrong[layer.path] = apart > _TOLERANCE * jnp.max(jnp.abs(other))
    else:
      sums = _float_sums(x, kernel, layer, path)
    y = sums * factor
    return y + numbers["bias"] if "bias" in numbers else y

  def on_grid(operands, block, signed):
    if spec.sum_bits == FLOAT_BITS:
      return functools.reduce(_plus, operands)
    bound = folded[block]["sum_bound"]
    codes = [
      quantize.sum_codes(_floats(v), bound, spec.sum_bits, signed)
      for v in operands
    ]
    step = quantize.input_step(bound, spec.sum_bits, True)
    return functools.reduce(jnp.add, codes) * step

  logits = packed.walk(
    units(spec),
    images,
    apply,
    relu=_relu,
    add=lambda y, x, block: on_grid((y, x), block, True),
    mean=lambda x: _mean(_floats(x)),
    enter=lambda x, block: on_grid((_floats(x),), block, False),
  )
  return _floats(logits)[:, 0, 0], wrong


@dataclasses.dataclass(frozen=True)
class _Pending:
  """A layer of integers that waits for what follows, which goes with it.

  Attributes:
    layer: of the spec.
    numbers: of the folded layer, with a bound of its input.
    x: its input, float32, or its codes.
    path: of its convolution.
    relu: whether ReLU follows.
    residual: what is added before that, float32; or None.
  """

  layer: Layer
  numbers: dict
  x: jax.Array
  path: str | None
  relu: bool = False
  residual: jax.Array | None = None

  def compute(self, following: tuple[Layer, dict] | None = None) -> jax.Array:
    """Computes float32, or the codes of the input of a following layer."""
    layer, numbers, codes = self.layer, self.numbers, self.numbers["codes"]
    step, after = _grid(layer, numbers), _grid(*(following or (layer, numbers)))
    features = codes.shape[-1:]
    factor = jnp.broadcast_to(numbers["scale"] * step, features)
    bias = jnp.broadcast_to(numbers.get("bias", np.float32(0)), features)
    residual = np.zeros(0, np.float32)
    if self.residual is not None:
      residual = self.residual

    def form(x, codes, residual, factor, bias, steps):
      if x.dtype == jnp.float32:
        how = layer.a_bits, layer.signed_input
        x = quantize.codes_by_step(x, steps[0], *how)
      y = _int_sums(x, codes, layer, self.path) * factor + bias
      y = y if self.residual is None else y + residual
      y = jax.nn.relu(y) if self.relu else y
      if following is None:
        return y
      how = following[0].a_bits, following[0].signed_input
      return quantize.codes_by_step(y, steps[1], *how)

    ends = _ends(layer) + _ends(following[0] if following else layer)
    return int8.call(
      "int8_float",
      form,
      (self.x, codes, residual, factor, bias, jnp.stack([step, after])),
      _sizes(layer),
      self.path,
      how=(layer.stride, layer.kernel // 2, layer.groups),
      adds=self.residual is not None,
      relu=self.relu,
      ends=ends,
    )


def _grid(layer: Layer, numbers: dict) -> jax.Array:
  """The step of a layer's input, float32 []."""
  how = layer.a_bits, layer.signed_input
  return quantize.input_step(numbers["input_bound"], *how)


def _ends(layer: Layer) -> tuple[int, int]:
  """The least and the largest code of a layer's input."""
  low, high = quantize.input_ends(layer.a_bits, layer.signed_input)
  return int(low), int(high)


def _floats(x):
  return x.compute() if isinstance(x, _Pending) else x


def _relu(x):
  if not isinstance(x, _Pending):
    return jax.nn.relu(x)
  x = dataclasses.replace(x, relu=True)
  # Several layers read a residual sum, and one what is between two layers.
  return x if x.residual is None else x.compute()


def _plus(y, x):
  if isinstance(y, _Pending):
    return dataclasses.replace(y, residual=_floats(x))
  return y + _floats(x)


def _mean(x):
  """Over width, then height, in an order that no compiler changes."""
  _, height, width, _ = x.shape
  rows = functools.reduce(jnp.add, [x[:, :, i] for i in range(width)])
  total = functools.reduce(jnp.add, [rows[:, i] for i in range(height)])
  return total[:, None, None] / (height * width)


def units(spec: NetSpec) -> dict[str, list[Layer]]:
  """Layers by unit, for `packed.walk`."""
  out: dict[str, list[Layer]] = {}
  for layer in spec.layers():
    out.setdefault(layer.unit, []).append(layer)
  return out


def _float_sums(x, kernel, layer: Layer, path):
  return conv(
    x.astype(jnp.float32),
    kernel.astype(jnp.float32),
    stride=layer.stride,
    padding=layer.kernel // 2,
    groups=layer.groups,
    path=path,
  )


def _int_sums(x, codes, layer: Layer, path=None):
  """Sums in int32, as float32."""
  sums = int8.conv(
    x,
    codes,
    stride=layer.stride,
    groups=layer.groups,
    codes=_sizes(layer),
    path=path,
  )
  return sums.astype(jnp.float32)


def _sizes(layer: Layer) -> int8.Codes:
  """The largest codes of a layer; four levels are -3, -1, 1 and 3."""
  inputs = quantize.input_levels(layer.a_bits, layer.signed_input)
  weights = 3 if has_four_levels(layer) else 2 ** (layer.w_bits - 1)
  return int8.Codes(layer.signed_input, inputs, weights)
