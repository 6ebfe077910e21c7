"""Runs a program of integers by XLA: the same integers as NumPy's and C's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.deploy import packed
from jaxr18.deploy.lower import lower
from jaxr18.deploy.program import Program, Step, codes, output, run
from jaxr18.nn import int8
from jaxr18.nn.network import Network


def runner(
  program: Program, path: str | None = None
) -> Callable[[np.ndarray], np.ndarray]:
  """Makes a function from uint8 images [n, size, size, channels] to logits.

  They are float32 [n, classes], divided by their unit outside of XLA; all else
  is integers, with 64 bits in the rescalings.

  Args:
    program: of `lower`.
    path: of the convolutions, as `nn.int8.conv` takes it.
  """
  compiled = jax.jit(lambda images: forward(program, images, path))

  def logits(images: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
      found = compiled(jnp.asarray(images))
    return (np.asarray(found) / 2.0**program.logit_bits).astype(np.float32)

  return logits


def forward(
  program: Program, images: jax.Array, path: str | None = None
) -> jax.Array:
  """Computes int64 logits; to be traced where 64 bits are enabled.

  Args:
    program: of `lower`.
    images: uint8 [n, size, size, channels].
    path: of the convolutions, as `nn.int8.conv` takes it.
  """
  tensors = {"image": _Tensor(images, 0, 255)}
  for step in program.steps:
    x, other = tensors[step.source], tensors.get(step.plus)
    tensors[step.target] = _run(*_begin(step, x), other, path)
  return tensors["logits"].values[:, 0, 0].astype(jnp.int64)


class _Tensor(NamedTuple):
  """Integers from `low` to `high`."""

  values: jax.Array
  low: int
  high: int


_TYPES = "uint8", "int8", "uint16", "int16", "int32"  # of nn/int8.cc


def _type(low: int, high: int) -> str:
  """The smallest type for integers from `low` to `high`."""
  for name in _TYPES:
    if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
      return name
  return "int64"


def _begin(step: Step, x: _Tensor) -> tuple[Step, _Tensor]:
  """Pools or resizes what a step reads, and gives the step without that."""
  if step.resize is not None:
    found = codes(step, x.values, jnp).astype(_type(step.low, step.high))
    step = dataclasses.replace(step, resize=None, table=None, read=None)
    x = _Tensor(found, step.low, step.high)
  elif step.pooled:
    pixels = x.values.shape[1] * x.values.shape[2]
    low, high = min(0, x.low * pixels), x.high * pixels
    dtype = jnp.promote_types(_type(low, high), jnp.int32)
    total = x.values.sum((1, 2), keepdims=True, dtype=dtype)
    step, x = dataclasses.replace(step, pooled=False), _Tensor(total, low, high)
  elif step.read is None and step.table is None:
    x = x._replace(values=x.values.astype(_type(step.low, step.high)))
  return step, x


def _run(step: Step, x: _Tensor, other: _Tensor | None, path) -> _Tensor:
  """Computes a step, in one call where our own code serves (nn/int8.cc)."""
  low, high = step.write.low, step.write.high
  if other is not None:
    low, high = 0, max(0, high + (step.shortcut or other).high)
  dtype, plus = _type(low, high), x.values if other is None else other.values

  def form(x, kernel, other, *_):
    convolve = functools.partial(_convolve, path=path)
    return output(step, x, other, convolve, jnp).astype(dtype)

  if not {dtype, str(x.values.dtype), str(plus.dtype)} <= set(_TYPES):
    return _Tensor(form(x.values, None, plus), low, high)
  looks_up = step.table is not None
  table = np.zeros(0, np.uint8)
  if step.table is not None:
    table = step.table.astype(_type(step.low, step.high))
  numbers, rules = _numbers(step)
  values = int8.call(
    "int8_layer",
    form,
    (x.values, step.kernel, plus, table, *numbers),
    _codes(step),
    path,
    how=(step.stride, step.kernel.shape[0] // 2, step.groups),
    looks_up=looks_up,
    adds=other is not None,
    rules=rules,
  )
  return _Tensor(values, low, high)


def _numbers(step: Step):
  """A step's multipliers and offsets, and what nn/int8.cc calls `rules`."""
  given = step.read, step.write, step.shortcut
  some = [rule for rule in given if rule is not None]
  multipliers = np.concatenate([r.multiplier for r in some]).astype(np.int32)
  rules: list[int] = []
  for r in given:
    rules += [0] * 4 if r is None else [len(r.offset), r.shift, r.low, r.high]
  return (multipliers, np.concatenate([r.offset for r in some])), tuple(rules)


def _codes(step: Step) -> int8.Codes:
  weights = int(np.abs(step.kernel.astype(np.int16)).max())
  return int8.Codes(step.low < 0, max(-step.low, step.high), weights)


def _convolve(x: jax.Array, step: Step, path: str | None = None) -> jax.Array:
  """Sums in int32."""
  return int8.conv(
    x.astype(_type(step.low, step.high)),
    step.kernel,
    stride=step.stride,
    groups=step.groups,
    codes=_codes(step),
    path=path,
  )


def lower_with_sums(
  network: dict, arrays: dict, bits: int, images: np.ndarray
) -> Program:
  """Lowers a packed network with residual sums of no more than so many bits.

  Sums that were trained in so few stay as they are; others get the grids of
  `sum_bounds`.

  Args:
    network, arrays: as `packed.read` gives them.
    bits: of the sums and their operands, 2 to 24.
    images: uint8 [n, size, size, channels], not those of a test.

  Raises:
    ProgramError: as `lower` does.
  """
  program = lower(network, arrays)
  if program.sum_bits <= bits:
    return program
  found = sum_bounds(network, program, images)
  bounds = {f"{block}.sum_bound": bound for block, bound in found.items()}
  return lower(network | {"sum_bits": bits}, arrays | bounds)


def with_sums(
  net: Network, network: dict, arrays: dict, bits: int, images: np.ndarray
) -> Network:
  """Makes the network whose residual sums have no more than so many bits.

  Args:
    net: not stacked; itself where its sums were trained in so few.
    network, arrays: of its packed file, as `packed.read` gives them.
    bits, images: as `lower_with_sums` takes them.

  Raises:
    ProgramError: as `lower` does.
  """
  program = lower(network, arrays)
  if program.sum_bits <= bits:
    return net
  params, masks = dict(net.params), dict(net.masks)
  for block, bound in sum_bounds(network, program, images).items():
    params[block] = {**params[block], "sum_bound": jnp.asarray(bound)}
    masks[block] = {**masks[block], "sum_bound": jnp.asarray(True)}
  spec = dataclasses.replace(net.spec, sum_bits=bits)
  return net.replace(params=params, masks=masks, spec=spec)


def sum_bounds(
  network: dict, program: Program, images: np.ndarray
) -> dict[str, np.float32]:
  """Finds how far the operands of each block's sum reach on some images.

  The stem's output is on the grid of the first sum, which goes twice as far.

  Args:
    network: as `packed.read` gives it.
    program: it, with fine sums.
    images: uint8 [n, size, size, channels].
  """
  first, *_ = packed.blocks_of(network["units"])

  def reaches(images):
    seen: dict[str, list] = {}

    def watch(step: Step, operand) -> None:
      stem = step.path.startswith("stem")
      block = first if stem else step.path.split("/")[0]
      largest = jnp.max(jnp.abs(operand)) * (step.unit / (1 + stem))
      seen.setdefault(block, []).append(largest)

    run(program, images, _convolve, jnp, watch)
    return {block: jnp.max(jnp.stack(x)) for block, x in seen.items()}

  with jax.enable_x64(True):
    found = jax.device_get(jax.jit(reaches)(jnp.asarray(images)))
  return {block: np.float32(bound) for block, bound in found.items()}
