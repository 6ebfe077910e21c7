"""Programs of integers of the odd networks, and what `packed` makes of them."""

import dataclasses
import functools
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np
import odd_nets

from jaxr18.deploy import packed
from jaxr18.deploy.lower import lower
from jaxr18.deploy.pack import pack
from jaxr18.deploy.program import Program, Rescale, Step
from jaxr18.nn.spec import with_bits


@functools.cache
def with_sums():
  """The network of 4 bits with residual sums of 5 bits."""
  net = odd_nets.net("4 bits")
  spec = dataclasses.replace(net.spec, sum_bits=5)
  new = {name: {"sum_bound": jnp.float32(3)} for name, _ in spec.blocks()}
  params, masks = dict(net.params), dict(net.masks)
  for name, bound in new.items():
    params[name] = params[name] | bound
    masks[name] = masks[name] | {"sum_bound": jnp.asarray(True)}
  return net.replace(params=params, masks=masks, spec=spec)


@functools.cache
def description(bits, density=1.0):
  """What `packed.read` gives of a network, and what runs it."""
  how = dict(mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "net")
    if bits == "eights":
      eights = with_bits(odd_nets.spec("float"), [(".*", 8, 8)])
      net = odd_nets.numbers(eights)
    elif bits == "trained sums":
      net = with_sums()
    else:
      net = odd_nets.net(bits, density)
    path.write_bytes(pack(net, **how))
    return packed.read(path), packed.load(path)[0]


@functools.cache
def program(bits, sum_bits=16, density=1.0, size=8):
  network, arrays = description(bits, density)[0]
  return lower(network | {"data": {"size": size}}, arrays, sum_bits)


def anything(seed: int) -> Program:
  """A program of random numbers: every kind of step, from 8x8 pixels.

  A rule either has numbers of all sizes up to the largest, or spreads what it
  is given over its results.
  """
  rng = np.random.default_rng(seed)
  bits = (7, 8, 15, 16, 24)[seed % 5]
  top, codes = 2 ** (bits - 1) - 1, ((0, 255), (-127, 127), (0, 15))[seed % 3]
  stem = ((-128, 127), (0, 255))[seed % 2]
  mid, out = (5, 12) if seed % 2 else (12, 3)

  def rule(channels, largest, ends):
    shift = int(rng.integers(1, 47))
    if rng.random() < 0.15:
      multiplier = rng.integers(-(2**30), 2**30 + 1, channels)
      offset = rng.integers(-(2**60), 2**60 + 1, channels)
      return Rescale(multiplier, offset >> rng.integers(0, 40), shift, *ends)
    factor = 1.5 * ends[1] / largest
    shift = min(shift, 29 - int(np.ceil(np.log2(factor))))
    multiplier = np.rint(rng.uniform(0.2, 1, channels) * factor * 2.0**shift)
    offset = np.full(channels, 2 ** max(0, shift - 1))
    return Rescale(np.int64(multiplier), offset, max(1, shift), *ends)

  def step(path, source, target, shape, low_high, ends, size=8, **more):
    stride, groups = more.pop("stride", 1), more.pop("groups", 1)
    kernel = rng.integers(-128, 128, shape).astype(np.int8)
    step = Step(
      path, source, target, kernel, stride, groups, 8, *low_high, size,
      (size - 1) // stride + 1, None, 1.0, **more,
    )  # fmt: skip
    spread = 300 * np.sqrt(np.prod(shape[:3])) * max(map(abs, low_high)) / 4
    write = rule(shape[3], spread, ends)
    return dataclasses.replace(step, write=write)

  table = rng.integers(stem[0], stem[1] + 1, (3, 256)).astype(np.int16)
  whole, signed = (0, 2 * top + 1), (-top, top)
  read = lambda: rule(1, 2 * top, codes)
  watched = dict(to_sums=True)
  last = (-(2**31) + 1, 2**31 - 1)
  steps = (
    step("stem", "image", "a", (3, 3, 3, mid), stem, whole, table=table,
         **watched),
    step("1", "a", "b", (3, 3, 1, mid), codes, codes, groups=mid, read=read()),
    step("2", "b", "c", (1, 1, mid, mid), codes, signed, plus="a",
         shortcut=rule(1, 2 * top, (0, top)), **watched),
    step("3", "c", "d", (1, 1, mid, out), codes, signed, stride=2, read=read(),
         **watched),
    step("4", "c", "e", (3, 3, mid, out), codes, codes, stride=2, read=read()),
    step("5", "e", "f", (3, 3, out, out), codes, signed, 4, plus="d",
         **watched),
    step("head", "f", "logits", (1, 1, out, 10), codes, last, 4, pooled=True,
         read=rule(1, 32 * top, codes)),
  )  # fmt: skip
  return Program(steps, bits, 16, 8, 3, 10, {})
