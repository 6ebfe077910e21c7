"""Small networks with every kind of layer and numbers as training leaves them.

8x8 pixels, 2 stages: dense, grouped, depthwise-separable and low-rank
convolutions, batch statistics and scales that are not 0 and 1, inputs
calibrated on images.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18 import network
from jaxr18.augment import normalize
from jaxr18.spec import ConvSpec, resnet, with_bits

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
SIDE = 8

# w_bits and a_bits of all layers, and how inputs get their bounds.
BITS = {
  "float": (32, 32, "lsq"),
  "half": (16, 16, "lsq"),
  "8 bits": (8, 8, "lsq"),
  "4 bits": (4, 4, "lsq"),
  "ternary": (2, 2, "lsq"),
  "binary": (1, 3, "lsq"),
  "weights": (4, 32, "lsq"),
  "inputs": (32, 8, "lsq"),
  "dynamic": (4, 8, "dynamic"),
}


def images(n: int = 8, side: int = SIDE, seed: int = 3) -> np.ndarray:
  shape = (n, side, side, 3)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def normalized(x: np.ndarray) -> jax.Array:
  return normalize(x, MEAN, STD, SIDE)


def spec(bits: str):
  net = resnet((4, 8), (1, 1), (1, 2), (2, 1), (False, True), resolution=SIDE)
  block = net.stages[0][0]
  block = dataclasses.replace(block, conv2=ConvSpec(4, ranks=(2, 3)))
  net = dataclasses.replace(net, stages=((block,), *net.stages[1:]))
  w_bits, a_bits, scales = BITS[bits]
  return with_bits(net, [(".*", w_bits, a_bits)], scales)


@functools.cache
def net(bits: str, density: float = 1.0) -> network.Network:
  """With `density` below 1, kernels, batch norms and the head's bias lose so
  many of their numbers at random."""
  made = network.init(jax.random.key(0), spec(bits))
  made = network.calibrate(made, normalized(images(seed=1)))
  rng = np.random.default_rng(5)

  def spread(path, x):
    name = path[-1].key
    if name in ("kernel", "input_bound"):
      return x
    factor = 2.0 ** rng.normal(size=x.shape)
    if name in ("mean", "bias"):
      factor = rng.normal(size=x.shape)
    return jnp.asarray(factor, x.dtype)

  def mask(x):
    if density == 1 or not x.ndim:
      return jnp.array(True)
    return jnp.asarray(rng.random(x.shape) < density)

  moved = jax.tree_util.tree_map_with_path(
    spread, (made.params, made.batch_stats)
  )
  return made.replace(
    params=moved[0],
    batch_stats=moved[1],
    masks=jax.tree.map(mask, made.params),
  )


@functools.cache
def logits(bits: str, density: float = 1.0) -> np.ndarray:
  """Of the simulation, on `images()`."""
  run = jax.jit(
    network.forward,
    compiler_options={"xla_backend_optimization_level": 0},
  )
  return np.asarray(run(net(bits, density), normalized(images())))
