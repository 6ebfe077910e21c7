"""The folded network as a StableHLO program, which JAX and others can load.

`jax.export.deserialize(bytes).call(images)` runs it, on a CPU or a CUDA GPU
and at any batch size, without this package. Codes stay int8 in the file and
are multiplied as floats by XLA's own convolution: a foreign call would tie the
program to this machine.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export

from jaxr18.data.augment import normalize
from jaxr18.deploy import integer
from jaxr18.deploy.fold import fold
from jaxr18.nn.network import Network

PLATFORMS = ("cpu", "cuda")


def to_stablehlo(
  net: Network, *, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> bytes:
  """The serialized program: uint8 [n, size, size, channels] -> logits.

  Args:
    net: not stacked.
    mean, std: what images are normalized with, see `normalize`.
    size: of an image's side.

  Raises:
    ImportError: flatbuffers is not installed.
    ValueError: stacked networks.
  """
  spec, folded = net.spec, fold(net)

  def logits(images):
    x = normalize(images, mean, std, spec.resolution)
    return integer.forward(folded, spec, x, "float32", path="xla")

  (n,) = export.symbolic_shape("n")
  shape = (n, size, size, spec.channels)
  images = jax.ShapeDtypeStruct(shape, jnp.uint8)
  program = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  return bytes(program.serialize())
