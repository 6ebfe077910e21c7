"""Muon for convolutions' kernels, beside another optimizer for the rest."""

import dataclasses
from typing import Any

import jax
import optax
import optax.contrib


@dataclasses.dataclass(frozen=True)
class Muon:
  """Muon's own settings.

  Attributes:
    rate: step -> learning rate.
    momentum: of the moving mean of the gradients.
    decay: weight decay, decoupled: `rate * decay` of each weight a step.
  """

  rate: optax.Schedule
  momentum: float = 0.95
  decay: float = 0.0


def labels(params: Any) -> Any:
  """Labels what Muon updates by 'muon': 4-d kernels of several inputs.

  A depthwise kernel is no matrix from inputs to outputs.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      "muon"
      if path[-1].key == "kernel" and x.ndim == 4 and x.shape[-2] > 1
      else "rest"
    ),
    params,
  )


def with_muon(
  muon: Muon, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Lets Muon update convolutions' kernels, and `rest` all else.

  A kernel is the matrix [height * width * inputs, outputs], as its authors
  flatten it (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon).
  """
  matrices = _flattened(
    optax.contrib.muon(muon.rate, beta=muon.momentum, weight_decay=muon.decay)
  )
  return optax.partition({"muon": matrices, "rest": rest}, labels)


def _flattened(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Shows arrays as matrices, [all other axes, last axis], to `inner`."""

  def flat(tree):
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), tree)

  def update(updates, state, params=None):
    moved, state = inner.update(flat(updates), state, flat(params))
    shaped = lambda x, like: x.reshape(like.shape)
    return jax.tree.map(shaped, moved, updates), state

  return optax.GradientTransformation(
    lambda params: inner.init(flat(params)), update
  )
