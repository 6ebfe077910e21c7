"""What happens between the steps of a phase, beside the steps themselves."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxr18.nn.network import Network, apply_masks
from jaxr18.train.feed import Feed
from jaxr18.train.mesh import replicate
from jaxr18.train.state import TrainState, forget
from jaxr18.train.step import Teachers

Row = dict[str, Any]  # a line of metrics.jsonl


def _nothing(*args) -> None:
  del args


@dataclasses.dataclass(frozen=True)
class Hook:
  """Functions that the training loop calls; each does nothing by default.

  A hook that differs between processes must neither call a collective nor
  raise.

  Attributes:
    begin: (rows, step), once, before the first step and after compilation:
      the lines of metrics.jsonl so far, and the step to go on from.
    due: step -> whether `change` is called before it; pure, and cheap.
    change: (step, state) -> state of the same shapes and types, while the
      device works on nothing. A pure function of its arguments, the same in
      all processes: a run that was killed calls it again.
    after_step: (step, loss), one step late; the loss is [] or [members].
    validating: step, before the validation images are looked at.
    after_epoch: row -> False where the phase is to end. State and row are on
      disk. A run that goes on from an epoch's end tells the same row again.
    close: once or twice, in whatever thread; must not raise.
  """

  begin: Callable[[Sequence[Row], int], None] = _nothing
  due: Callable[[int], bool] = lambda step: False
  change: Callable[[int, TrainState], TrainState] = lambda step, state: state
  after_step: Callable[[int, np.ndarray], None] = _nothing
  validating: Callable[[int], None] = _nothing
  after_epoch: Callable[[Row], bool | None] = _nothing
  close: Callable[[], None] = _nothing


def pruning(
  feed: Feed,
  teachers: Teachers,
  due: Callable[[int], bool],
  update: Callable[..., Network],
  gradients: Callable,
) -> Hook:
  """Returns the hook that gives the network other masks.

  Args:
    feed: gives the batch whose gradients are looked at.
    teachers: of the phase.
    due: of a `gradual.Plan`.
    update: (state, step, gradients) -> network. `gradients` takes nothing and
      returns those of the step that follows.
    gradients: of `make_gradients`.
  """

  def change(step: int, state: TrainState) -> TrainState:
    @functools.cache
    def seen():
      epoch = np.int32(step // feed.steps)
      return gradients(state, teachers, feed.batch(step), feed.key, epoch)

    return with_network(state, update(state, step, seen), feed.mesh)

  return Hook(due=due, change=change)


def with_network(state: TrainState, net: Network, mesh: Mesh) -> TrainState:
  """Returns the state with another network; its average gets the masks.

  The optimizer remembers nothing of weights that the masks bring back.
  """
  net = replicate(net, mesh)
  grown = jax.tree.map(lambda new, old: new & ~old, net.masks, state.net.masks)
  average = state.average
  if average is not None:
    average = average.replace(
      masks=net.masks, params=apply_masks(average.params, net.masks)
    )
  # The step donates its input, and no buffer twice.
  opt_state = forget(state.opt_state, grown)
  state = state.replace(net=net, average=average, opt_state=opt_state)
  return jax.tree.map(jnp.copy, state)
