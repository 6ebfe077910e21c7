"""Makes a program of integers of a packed network.

All floats that the program comes from are here: steps of grids, scales and
biases become multipliers and offsets once, in float64, so that what computes
the program has the same integers on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxr18.deploy import packed
from jaxr18.deploy.program import Program, Rescale, Step, reach, run, width
from jaxr18.host.errors import ToldError

SUM_BITS = 16  # of residual sums that were trained as floats
LARGEST_SUM_BITS = 24
ACCUMULATOR_BITS = 32
_MULTIPLIER_BITS = 30  # and a sign
_LARGEST_SHIFT = 46
_OFFSET_BITS = 60  # and a sign
_LOGIT_BITS = 30  # and a sign
_FINEST_LOGIT = 16  # binary places
_RESIZE_BITS = 12  # of a row's weight, and of a column's


class ProgramError(ToldError):
  """A network that integers alone cannot hold."""


def lower(network: dict, arrays: dict, sum_bits: int | None = None) -> Program:
  """Makes a packed network's steps.

  Residual sums that were trained on grids stay on these. Those that were
  trained as floats get grids that reach as far as the weights allow, so nothing
  saturates there.

  Args:
    network, arrays: as `packed.read` gives them.
    sum_bits: of residual sums and their operands, 2 to 24, where they were
      trained as floats; None is 16, or what they were trained in.

  Raises:
    ProgramError: a layer that integers cannot hold; the text names it.
  """
  trained = network.get("sum_bits")
  if None not in (trained, sum_bits) and trained != sum_bits:
    raise ProgramError(
      f"residual sums were trained in {trained} bits, not in {sum_bits}: leave"
      " --sum_bits out"
    )
  return _Builder(network, arrays, trained or sum_bits or SUM_BITS).build()


def load(path: str) -> tuple[Callable[[np.ndarray], np.ndarray], Program]:
  """Makes a function from images to float logits by NumPy, and the program.

  Raises:
    packed.PackedError: the file cannot be read.
    ProgramError: integers cannot hold its network.
  """
  program = lower(*packed.read(path))
  return lambda x: run(program, x) / 2.0**program.logit_bits, program


@dataclasses.dataclass
class _Grid:
  """A tensor: its name, its side, the step between two integers, and, of
  residual sums, the largest value by channel."""

  name: str
  size: int
  step: np.float64 = np.float64(1)
  up: np.ndarray | None = None

  @property
  def high(self) -> np.ndarray:
    """As `up`, of residual sums, which have it."""
    assert self.up is not None
    return self.up


class _Builder:
  """Walks through the units and keeps the steps."""

  def __init__(self, network: dict, arrays: dict, sum_bits: int):
    if not 2 <= sum_bits <= LARGEST_SUM_BITS:
      raise ProgramError(
        f"residual sums of {sum_bits} bits, expected 2 to {LARGEST_SUM_BITS}"
      )
    self.network, self.arrays, self.units = network, arrays, network["units"]
    self.sum_bits, self.signed = sum_bits, 2 ** (sum_bits - 1) - 1
    self.steps: list[Step] = []
    self.names = iter(range(10**6))
    for layers in self.units.values():
      for layer in layers:
        _check(layer, arrays)

  def build(self) -> Program:
    network, side = self.network, self.network["resolution"]
    size = network.get("data", {}).get("size", side)
    x = self.stem()
    for block in packed.blocks_of(self.units):
      x = self.block(block, x)
    logit_bits = self.head(x)
    return Program(
      tuple(self.steps),
      self.sum_bits,
      logit_bits,
      size,
      packed.channels_of(network),
      packed.classes_of(network),
      network.get("provenance", {}),
    )

  def stem(self) -> _Grid:
    x = _Grid("image", self.network["resolution"])
    last, real, x = self.chain("stem", x)
    up = np.maximum(real.high, 0)
    largest = 2**self.sum_bits - 1
    step = _step(up.max(), largest)
    step = self.trained_step(packed.blocks_of(self.units)[0]) or step
    return self.finish(last, real, x, step, (0, largest), up)

  def block(self, name: str, x: _Grid) -> _Grid:
    """conv1, the projection where there is one, conv2 and the sum."""
    inner = self.units[f"{name}/conv2"][0]
    last, real, mid = self.chain(f"{name}/conv1", x)
    mid = self.finish(last, real, mid, *_codes(inner, self.arrays))
    last, real, mid = self.chain(f"{name}/conv2", mid)
    proj = None
    if f"{name}/proj" in self.units:
      proj = self.chain(f"{name}/proj", x)
    up = x.high if proj is None else proj[1].high
    sizes = [real.low, real.high, up, *([proj[1].low] if proj else [])]
    step = self.trained_step(name)
    step = step or _step(max(np.abs(s).max() for s in sizes), self.signed)
    ends = -self.signed, self.signed
    out = np.maximum(real.high + up, 0)
    if proj is not None:
      x = self.finish(*proj, step, ends, up)
      return self.finish(last, real, mid, step, ends, out, plus=x.name)
    shortcut = _rescale(x.step / step, 0, (0, self.signed))
    more = dict(plus=x.name, shortcut=shortcut)
    return self.finish(last, real, mid, step, ends, out, **more)

  def trained_step(self, block: str) -> np.float64 | None:
    """The step of a block's sums, where they were trained on a grid."""
    bound = self.arrays.get(f"{block}.sum_bound")
    if bound is None:
      return None
    return np.float64(np.float32(bound) * np.float32(1 / self.signed))

  def head(self, x: _Grid) -> int:
    """Returns the binary places of the logits."""
    if x.size**2 * 2**self.sum_bits > 2 ** (ACCUMULATOR_BITS - 1):
      raise ProgramError(
        f"head: sums of {self.sum_bits} bits over {x.size}x{x.size} pixels"
        f" need more than {ACCUMULATOR_BITS} bits; export it as packed,"
        " stablehlo or onnx"
      )
    x = dataclasses.replace(x, step=x.step / x.size**2)
    last, real, _ = self.chain("head", x)
    largest = max(np.abs(real.low).max(), np.abs(real.high).max())
    room = _LOGIT_BITS - int(np.ceil(np.log2(max(largest, 1e-30))))
    bits = max(0, min(_FINEST_LOGIT, room))
    limit = 2**31 - 1
    step, ends = np.float64(2.0**-bits), (-limit, limit)
    self.finish(last, real, x, step, ends, target="logits", pooled=True)
    self.steps[-1] = dataclasses.replace(self.steps[-1], out_size=1)
    return bits

  def chain(self, unit: str, x: _Grid) -> tuple[dict, _Real, _Grid]:
    """All layers of a unit but the last, and what the last one's sums mean."""
    *first, last = self.units[unit]
    for layer, following in zip(first, self.units[unit][1:], strict=True):
      real = self.real(layer, x)
      x = self.finish(layer, real, x, *_codes(following, self.arrays))
    return last, self.real(last, x), x

  def real(self, layer: dict, x: _Grid) -> _Real:
    """What a layer's sums are worth, and how far they go."""
    path, (step, (low, high)) = layer["path"], _codes(layer, self.arrays)
    kernel = packed.kernel(layer, self.arrays).astype(np.int8)
    scale = np.float64(self.arrays.get(f"{path}.scale", np.float32(1))) * step
    scale = np.broadcast_to(scale, kernel.shape[-1:])
    bias = self.arrays.get(f"{path}.bias", np.zeros(1, np.float32))
    bias = np.broadcast_to(np.float64(bias), kernel.shape[-1:])
    down, up = reach(kernel, low, high)
    if max(down.max(), up.max()) >= 2 ** (ACCUMULATOR_BITS - 1):
      raise ProgramError(
        f"{path}: its sums need {width(max(down.max(), up.max()))} bits,"
        f" expected at most {ACCUMULATOR_BITS}; give it fewer bits, or export"
        " it as packed, stablehlo or onnx"
      )
    ends = np.stack([-down * scale, up * scale])
    return _Real(kernel, scale, bias, ends.min(0) + bias, ends.max(0) + bias)

  def finish(
    self,
    layer: dict,
    real: _Real,
    x: _Grid,
    step: np.float64,
    ends: tuple[int, int],
    up: np.ndarray | None = None,
    **more: Any,
  ) -> _Grid:
    """Adds a layer's step; its result lies on a grid of `step`."""
    path = layer["path"]
    in_step, (low, high) = _codes(layer, self.arrays)
    if x.name == "image":
      more |= _reading(self.network, self.arrays)
    elif x.up is not None:  # of residual sums
      more["read"] = _rescale(x.step / in_step, 0, (low, high))
    target = more.pop("target", f"t{next(self.names)}")
    out_size = (x.size - 1) // layer["stride"] + 1
    write = _rescale(real.scale / step, real.bias / step, ends, path)
    self.steps.append(
      Step(
        path,
        x.name,
        target,
        real.kernel,
        layer["stride"],
        layer["groups"],
        layer["w_bits"],
        low,
        high,
        x.size,
        out_size,
        write,
        float(step),
        to_sums=up is not None,
        **more,
      )
    )
    return _Grid(target, out_size, np.float64(step), up)


@dataclasses.dataclass(frozen=True)
class _Real:
  """A layer's kernel; its sums times scale, plus bias, are real numbers that
  go from low to high; all by output channel."""

  kernel: np.ndarray
  scale: np.ndarray
  bias: np.ndarray
  low: np.ndarray
  high: np.ndarray


def _check(layer: dict, arrays: dict) -> None:
  """Raises ProgramError where a layer is not of integers."""
  path, why = layer["path"], ""
  if layer["w_bits"] >= packed.HALF_BITS:
    why = f"its weights are float{layer['w_bits']}, expected 1 to 8 bits"
  elif layer["a_bits"] >= packed.HALF_BITS:
    why = f"its inputs are float{layer['a_bits']}, expected 2 to 8 bits"
  elif f"{path}.input_bound" not in arrays:
    why = "each image has its own scale, expected one that is fixed or learned"
  if why:
    raise ProgramError(
      f"{path}: {why}, since this form holds integers alone; train it so, or"
      " export it as packed, stablehlo or onnx"
    )


def _codes(layer: dict, arrays: dict) -> tuple[np.float64, tuple[int, int]]:
  """The step between a layer's input codes, and the ends of them."""
  bits, signed = layer["a_bits"], layer["signed_input"]
  n = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
  bound = arrays[f"{layer['path']}.input_bound"]
  step = np.float64(np.float32(bound) * np.float32(1 / n))
  return step, (-n if signed else 0, n)


def _reading(network: dict, arrays: dict) -> dict[str, Any]:
  """How the stem's codes come from bytes: fields of a `Step`.

  At the network's size they are in a table, as the network was trained on them,
  so nothing is lost. An image of another size is resized first, by weights that
  add up to 1 in each row and column; then normalization is one factor and one
  offset of each channel.
  """
  layer, channels = network["units"]["stem"][0], packed.channels_of(network)
  step, ends = _codes(layer, arrays)
  side = network["resolution"]
  size = network.get("data", {}).get("size", side)
  if size != side:
    mean, std = np.float64(network["mean"]), np.float64(network["std"])
    one = 4.0**_RESIZE_BITS
    read = _rescale(1 / (255 * std * step * one), -mean / (std * step), ends)
    return {"resize": _weights(size, side), "read": read}
  every = np.zeros((256, side, side, channels), np.uint8)
  every[:] = np.arange(256, dtype=np.uint8)[:, None, None, None]
  x = packed.normalize(every, network)[:, 0, 0]
  bound = arrays[f"{layer['path']}.input_bound"]
  codes, _ = packed.quantize(x, bound, layer["a_bits"], layer["signed_input"])
  return {"table": codes.T.astype(np.int16)}


def _weights(size: int, side: int) -> np.ndarray:
  """`packed.resizing` in units of 2**-12, int64; each column's sum is 1."""
  exact = np.float64(packed.resizing(size, side)) * 2**_RESIZE_BITS
  whole = np.rint(exact).astype(np.int64)
  rest = 2**_RESIZE_BITS - whole.sum(0)
  whole[exact.argmax(0), np.arange(side)] += rest
  return whole


def _step(largest: float, levels: int) -> np.float64:
  return np.float64(max(largest, 1e-20) / levels)


def _rescale(
  factor: np.ndarray | float,
  bias: np.ndarray | float,
  ends: Sequence[int],
  path: str = "",
) -> Rescale:
  """The rescaling by `factor` and `bias`, in units of the result.

  The shift is the largest that leaves the multipliers 30 bits, the offsets 60
  bits and itself at most 46.
  """
  factor = np.atleast_1d(np.float64(factor))
  bias = np.broadcast_to(np.float64(bias), factor.shape)
  room = [_LARGEST_SHIFT]
  for numbers, bits in ((factor, _MULTIPLIER_BITS), (bias, _OFFSET_BITS)):
    if np.abs(numbers).max() > 0:
      exponent = int(np.floor(np.log2(np.abs(numbers).max())))
      room.append(bits - 1 - exponent)
  shift = min(room)
  if shift < 1:
    raise ProgramError(
      f"{path}: its numbers go up to {max(np.abs(factor).max(), 0):.3g} steps"
      " of what follows, which no multiplier of 30 bits holds; export it as"
      " packed, stablehlo or onnx"
    )
  multiplier = np.rint(factor * 2.0**shift).astype(np.int64)
  offset = np.rint(bias * 2.0**shift).astype(np.int64) + 2 ** (shift - 1)
  return Rescale(multiplier, offset, shift, *map(int, ends))
