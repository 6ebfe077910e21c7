"""Runs a program of integers by XLA: the same integers as NumPy's and C's."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxr18.deploy import packed
from jaxr18.deploy.lower import lower
from jaxr18.deploy.program import Program, Step, run


def runner(program: Program) -> Callable[[np.ndarray], np.ndarray]:
  """Makes a function from uint8 images [n, size, size, channels] to logits.

  They are float32 [n, classes], divided by their unit outside of XLA; all else
  is integers, with 64 bits in the rescalings.
  """
  compiled = jax.jit(lambda images: forward(program, images))

  def logits(images: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
      found = compiled(jnp.asarray(images))
    return (np.asarray(found) / 2.0**program.logit_bits).astype(np.float32)

  return logits


def forward(program: Program, images: jax.Array) -> jax.Array:
  """Computes int64 logits; to be traced where 64 bits are enabled."""
  return run(program, images, _convolve, jnp)


def _convolve(x: jax.Array, step: Step) -> jax.Array:
  """Sums in int32; codes of 8 bits without a sign are shifted by 128."""
  shift = 128 if step.high > 127 else 0
  pad = step.kernel.shape[0] // 2
  x = jnp.pad(x.astype(jnp.int16) - jnp.int16(shift),
              [(0, 0), (pad, pad), (pad, pad), (0, 0)],
              constant_values=-shift)  # fmt: skip
  sums = lax.conv_general_dilated(
    x.astype(jnp.int8),
    jnp.asarray(step.kernel),
    window_strides=(step.stride, step.stride),
    padding="VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=step.groups,
    preferred_element_type=jnp.int32,
  )
  per_channel = step.kernel.astype(np.int32).sum((0, 1, 2))
  return sums + jnp.asarray(np.int32(shift) * per_channel)


def lower_with_sums(
  network: dict, arrays: dict, bits: int, images: np.ndarray
) -> Program:
  """Lowers a packed network with residual sums of no more than so many bits.

  Sums that were trained in so few stay as they are. The grid of others reaches
  as far as the operands of its sum do on some images; the one of the stem's
  output is that of the first sum, and twice as long.

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
  bounds = {f"{k}.sum_bound": np.float32(v) for k, v in found.items()}
  return lower(network | {"sum_bits": bits}, arrays | bounds)
