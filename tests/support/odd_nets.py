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

from jaxr18.data.augment import normalize
from jaxr18.deploy import integer
from jaxr18.nn import network
from jaxr18.nn.spec import (
  BOUNDS,
  TWO_BITS,
  W_SCALES,
  ConvSpec,
  NetSpec,
  has_four_levels,
  resnet,
  with_bits,
)

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
SIDE = 8

# (regex on layer paths, w_bits, a_bits), as `with_bits` takes them.
BITS = {
  "float": [(".*", 32, 32)],
  "4 bits": [(".*", 4, 4)],
  "binary": [(".*", 1, 3)],
  "learned": [("stem", 2, 4), (".*", 3, 3)],
  "learned_channel": [("head", 2, 4), (".*", 4, 4)],
  "four_levels": [("stage2.*/proj", 3, 3), (".*", 2, 3)],
  "four_levels learned": [("stem", 8, 8), (".*", 2, 2)],
  "mixed": [
    ("stem", 8, 8),
    ("stage1.*/conv1", 3, 5),
    ("stage1.*/conv2", 2, 2),
    ("stage2.*/conv1", 16, 16),
    ("stage2.*/conv2", 4, 32),
    ("stage2.*/proj", 8, 8),
    ("head", 32, 8),
  ],
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
  w_scales = bits if bits in W_SCALES else W_SCALES[0]
  if bits == "four_levels learned":
    w_scales = "learned_channel"
  two_bits = TWO_BITS["four_levels" in bits]
  net = with_bits(net, BITS[bits], w_scales=w_scales, two_bits=two_bits)
  if bits == "mixed":
    (block,) = net.stages[1]
    proj = dataclasses.replace(block.proj, scales="dynamic")
    block = dataclasses.replace(block, proj=proj)
    net = dataclasses.replace(net, stages=(net.stages[0], (block,)))
  return net


# Compiled unoptimized, since each runs a few times.
fast_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def net(bits: str, density: float = 1.0) -> network.Network:
  """With `density` below 1, kernels, batch norms and the head's bias lose so
  many of their numbers at random; kernels of four levels lose none."""
  return numbers(spec(bits), density)


def numbers(of: NetSpec, density: float = 1.0) -> network.Network:
  """As `net`, of any spec."""
  made = jax.eval_shape(lambda k: network.init(k, of), jax.random.key(0))
  rng = np.random.default_rng(5)

  def number(path, x):
    name = path[-1].key
    if name == "kernel":
      size = np.prod(x.shape[:-1]) ** -0.5
    else:
      size = {"input_bound": 0.2, "mean": 0.3, "bias": 0.5}.get(name, 0.3)
    value = size * rng.normal(size=x.shape)
    if name in (*BOUNDS, "scale", "var"):
      value = 2.0**value * (2 if name in BOUNDS else 1)
    return jnp.asarray(value, x.dtype)

  params, batch_stats = jax.tree_util.tree_map_with_path(
    number, (made.params, made.batch_stats)
  )
  masks = jax.tree.map(
    lambda x: jnp.asarray((rng.random(x.shape) < density) | (x.ndim == 0)),
    made.params,
  )
  for layer in filter(has_four_levels, of.layers()):
    network.at(masks, layer.path)["kernel"] = jnp.asarray(True)
  return made.replace(params=params, batch_stats=batch_stats, masks=masks)


_forward = fast_jit(network.forward)
_folded_forward = fast_jit(integer.forward, static_argnums=(1, 3))


def forward(net: network.Network, x: np.ndarray) -> np.ndarray:
  """The simulation's logits of uint8 images."""
  return np.asarray(_forward(net, normalized(x)))


def folded_forward(folded, spec, arithmetic: str = "float32") -> np.ndarray:
  """Logits of `images()` by the path that has no batch norm."""
  x = normalized(images())
  return np.asarray(_folded_forward(folded, spec, x, arithmetic))


@functools.cache
def logits(bits: str, density: float = 1.0) -> np.ndarray:
  """The simulation's, of `images()`."""
  return forward(net(bits, density), images())
