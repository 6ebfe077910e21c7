"""The average of a network's weights over the steps: EMA, and SWA's mean."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxr18.nn.network import Network, apply_masks


@dataclasses.dataclass(frozen=True)
class Average:
  """How weights are averaged while they train.

  Attributes:
    decay: of the moving average; 0 follows the weights themselves.
    mean_from: the step from which the average is the plain mean of the weights
      after it and every `mean_every` steps since, whatever `decay` (Izmailov et
      al., 2018); None is never.
    mean_every: in steps.
    teaches: the average is the teacher of the network that it follows.
  """

  decay: float = 0.0
  mean_from: int | None = None
  mean_every: int = 1
  teaches: bool = False


def move(rule: Average, average: Network, net: Network, step) -> Network:
  """Moves the average towards a network; faster at first, to forget the start.

  Args:
    average, net: of the same shapes; the result has the masks of `net`.
    step: number of the update that made `net`, from 0; may be traced.
  """
  decay = jnp.minimum(rule.decay, (1 + step) / (10 + step))
  if rule.mean_from is not None:
    since = step - rule.mean_from
    n = since // rule.mean_every  # networks in the mean so far
    due = since % rule.mean_every == 0
    decay = jnp.where(n >= 0, jnp.where(due, n / (n + 1), 1), decay)
  move = lambda a, b: decay * a + (1 - decay) * b
  params = jax.tree.map(move, average.params, net.params)
  return net.replace(
    # What is masked from now on is 0 in the average too.
    params=apply_masks(params, net.masks),
    batch_stats=jax.tree.map(move, average.batch_stats, net.batch_stats),
  )
