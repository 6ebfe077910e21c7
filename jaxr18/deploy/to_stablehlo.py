"""The folded network as a StableHLO program, which JAX and others can load.

`jax.export.deserialize(bytes).call(images)` runs it, on a CPU or a CUDA GPU
and at any batch size, without this package. Codes stay int8 in the file and
are multiplied as floats by XLA's own convolution: a foreign call would tie the
program to this machine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import export

from jaxr18.data.augment import normalize
from jaxr18.deploy import integer, program_xla
from jaxr18.deploy.fold import fold
from jaxr18.deploy.program import Program
from jaxr18.nn.network import Network

PLATFORMS = ("cpu", "cuda")


def to_stablehlo(
  *nets: Network,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  size: int,
  vote: Callable[[jax.Array], jax.Array] = operator.itemgetter(0),
) -> bytes:
  """The serialized program: uint8 [n, size, size, channels] -> logits.

  Args:
    nets: one network, or the members of an ensemble; not stacked.
    mean, std: what images are normalized with, see `normalize`.
    size: of an image's side.
    vote: makes logits [n, classes] of those of all members, [members, n,
      classes]; the first one's by default.

  Raises:
    ImportError: flatbuffers is not installed.
    ValueError: stacked networks.
  """
  members = [(fold(net), net.spec) for net in nets]

  def logits(images):
    each = []
    for folded, spec in members:
      x = normalize(images, mean, std, spec.resolution)
      each.append(integer.forward(folded, spec, x, "float32", path="xla"))
    return vote(jnp.stack(each))

  return _exported(logits, size, nets[0].spec.channels)


def program_to_stablehlo(program: Program) -> bytes:
  """The same of a program of integers: int8 products and 64-bit rescalings.

  Logits are float32, divided by their unit at the very end.
  """

  def logits(images):
    codes = program_xla.forward(program, images, "xla")
    return codes.astype(jnp.float32) * 2.0**-program.logit_bits

  with jax.enable_x64(True):
    return _exported(logits, program.size, program.channels)


def _exported(logits: Callable, size: int, channels: int) -> bytes:
  (n,) = export.symbolic_shape("n")
  images = jax.ShapeDtypeStruct((n, size, size, channels), jnp.uint8)
  program = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  return bytes(program.serialize())
