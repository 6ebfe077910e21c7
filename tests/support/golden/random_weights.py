"""Numbers from a seed, the same wherever a golden value is made or tested.

Only the raw bits of a NumPy bit generator are promised to stay the same in
every version (NEP 19), so the numbers are made from them here.
"""

import math

import numpy as np


def uniform(seed: int, shape, low: float = 0.0, high: float = 1.0):
  """float32 numbers, evenly from [low, high)."""
  raw = np.random.Philox(seed).random_raw(math.prod(shape))
  unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
  return (low + (high - low) * unit).reshape(shape).astype(np.float32)


def state_dict(shapes: dict[str, tuple[int, ...]], seed: int):
  """Random weights for PyTorch's names and shapes.

  Convolutions and dense layers are as large as He's keep the activations;
  batch norm has random scales, biases and means, and positive variances. The
  second scale of a block is small, so that logits stay of order 1.
  """
  out = {}
  for i, (name, shape) in enumerate(shapes.items()):
    low, high = -0.2, 0.2  # biases, means
    if len(shape) > 1:
      high = math.sqrt(6 / math.prod(shape[1:]))
      low = -high
    elif name.endswith("running_var"):
      low, high = 0.5, 1.5
    elif name.endswith("weight"):
      low, high = (0.2, 0.6) if "bn2" in name else (0.5, 1.5)
    out[name] = uniform(1000 * seed + i, shape, low, high)
  return out
