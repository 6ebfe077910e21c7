"""Steps, validations and checkpoints from the start, or on from where it was.

Host code around the jitted step. The order of batches follows from seed and
epoch, the augmentation from seed and step, so a run that was killed goes on
with the same bits.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxr18.host.files import NotFiniteError
from jaxr18.host.stop import Stopped, StopSignal
from jaxr18.nn.network import Network
from jaxr18.train.clock import Clock
from jaxr18.train.evaluate import Validation
from jaxr18.train.feed import Feed
from jaxr18.train.hooks import Hook
from jaxr18.train.mesh import replicate
from jaxr18.train.state import TrainState
from jaxr18.train.step import Teachers
from jaxr18.train.store import PhaseStore
from jaxr18.train.store import TrainingError as TrainingError

# Steps between two looks at what other processes want: each look waits for all.
_AGREE_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Training:
  """What a phase's training is made of, beside its state.

  Attributes:
    name: of the phase, for people.
    step: of `make_train_step`.
    feed: gives its batches.
    teachers: on all devices of the mesh, as `replicate` puts them.
    epochs: 0 only transforms.
    mesh: over which batches are split.
    validation: measures the network after each epoch.
    estimate: network -> network with other statistics of batch norm; called at
      each epoch's end with the network that is evaluated, where the state has
      been created as `estimated`.
  """

  name: str
  step: Callable
  feed: Feed
  teachers: Teachers
  epochs: int
  mesh: Mesh
  validation: Validation
  estimate: Callable[[Network], Network] | None = None

  @property
  def steps(self) -> int:
    """Steps of the whole phase."""
    return self.epochs * self.feed.steps

  def at(self, step: int) -> str:
    """Says where the phase is, for people."""
    return f"{self.name} at step {step} of {self.steps}"


def train(
  t: Training,
  state: TrainState,
  store: PhaseStore,
  hooks: Sequence[Hook],
  stop: StopSignal,
) -> None:
  """Trains one phase to its end; `store` then holds its best network.

  Args:
    t: what it is made of.
    state: before the first step; the latest checkpoint takes its place.
    store: of the phase's directory.
    hooks: called in their order.
    stop: says whether a signal came.

  Raises:
    TrainingError: the loss or the state is not finite.
    Stopped: a stop signal came, or a hook said so; the state is saved.
    CheckpointError: what cannot be read or written.
  """
  n, clock = t.feed.steps, Clock()
  state = replicate(store.restore(state), t.mesh)
  flight = _Flight(t, store, hooks, clock)
  with _left_whole(store, hooks):
    with stop.may_leave(t.at(store.step), lambda: _leave(store, hooks)):
      run_step = _begin(t, state, store, hooks, clock)
    for epoch in range(store.step // n, t.epochs):
      first = max(store.step, epoch * n)
      if epoch and first == epoch * n:
        state = _end_epoch(t, first, state, store, hooks, stop, clock)
      for step, batch in t.feed.epoch(epoch, first):
        for hook in hooks:
          if hook.due(step):
            flight.land()
            state = hook.change(step, state)
        state, loss = run_step(
          state, t.teachers, batch, t.feed.key, np.int32(epoch)
        )
        flight.land()  # the step before, while the device works on this one
        flight.start(step + 1, loss)
        ended = step + 1 == (epoch + 1) * n
        stopping, late = _agreed(step, stop.received, store.late())
        if stopping or late or ended:
          flight.land()
          state = _save(t, step + 1, state, store, ended)
        if stopping:
          store.finish()
          raise Stopped(f"{t.at(step + 1)} stopped")
    if t.epochs:
      _end_epoch(t, t.steps, state, store, hooks, stop, clock)
    else:
      _transform(t, state, store, hooks, clock)
    store.finish()


def measure(
  t: Training, step: int, state: TrainState, store: PhaseStore, clock: Clock
) -> None:
  """Measures a state on the validation images and adds its line.

  Args:
    t: what the training is made of.
    step: that the state has come to.
    state: whose totals are those of the epoch that ends.
    store: gets the line.
    clock: of the epoch.

  Raises:
    TrainingError: a logit is not finite.
  """
  totals = jax.tree.map(np.sum, jax.device_get(state.totals))
  count = totals["count"]
  row: dict[str, Any] = {
    "phase": t.name,
    "step": step,
    "epoch": step // t.feed.steps,
    "loss": float(totals["loss"] / count) if count else None,
    "train_accuracy": float(totals["correct"] / count) if count else None,
    "validation_accuracy": None,
  }
  clock.pause()
  try:
    each = t.validation.accuracies(state.evaluated)
  except NotFiniteError as e:
    what = "a logit of the validation images is not finite"
    raise store.not_finite(step, what) from e
  clock.go_on()
  if each:
    row["validation_accuracy"] = sum(each) / len(each)
  if count and "terms" in totals:
    row["terms"] = {k: float(v / count) for k, v in totals["terms"].items()}
  if isinstance(t.feed.seed, tuple) and each:
    row["validation_accuracies"] = each
  row |= {"images_per_second": clock.rate(), "seconds": clock.seconds()}
  store.add(row)


class _Flight:
  """The step that the device works on, while the host prepares the next."""

  def __init__(
    self, t: Training, store: PhaseStore, hooks: Sequence[Hook], clock: Clock
  ):
    self._t, self._store, self._hooks, self._clock = t, store, hooks, clock
    self._step, self._loss = 0, None

  def start(self, step: int, loss: jax.Array) -> None:
    self._step, self._loss = step, loss

  def land(self) -> None:
    """Waits for the step, looks at its loss and tells the hooks.

    Raises:
      TrainingError: the loss is not finite.
    """
    if self._loss is None:
      return
    loss, self._loss = np.asarray(self._loss), None
    if not np.isfinite(loss).all():
      raise self._store.not_finite(self._step, f"the loss is {loss}")
    self._clock.add(self._t.feed.batch_size * loss.size)
    for hook in self._hooks:
      hook.after_step(self._step, loss)


def _leave(store: PhaseStore, hooks: Sequence[Hook]) -> None:
  """Before the process ends at a signal: all is on disk, the terminal whole."""
  store.finish()
  for hook in hooks:
    hook.close()


@contextlib.contextmanager
def _left_whole(store: PhaseStore, hooks: Sequence[Hook]) -> Iterator[None]:
  """Closes the hooks, and before an error leaves, what is being written."""
  try:
    yield
  except BaseException:
    store.abandon()
    raise
  finally:
    for hook in hooks:
      hook.close()


def _begin(
  t: Training,
  state: TrainState,
  store: PhaseStore,
  hooks: Sequence[Hook],
  clock: Clock,
) -> Callable:
  """Compiles the step, if one is left, and the evaluation.

  Lines of metrics.jsonl that are gone are made again first.
  """
  for step in store.without_rows(t.feed.steps):
    kept = replicate(store.read(step, state), t.mesh)
    measure(t, step, kept, store, clock)
  store.check_best()
  run_step = t.step
  if store.step < t.steps:
    # The batch that comes first, since a table keeps what it is asked for.
    epoch, batch = store.step // t.feed.steps, t.feed.batch(store.step)
    args = state, t.teachers, batch, t.feed.key, np.int32(epoch)
    run_step = t.step.lower(*args).compile()
    t.validation.compile(state.evaluated)
  for hook in hooks:
    hook.begin(store.rows, store.step)
  clock.restart()
  return run_step


def _end_epoch(
  t: Training,
  step: int,
  state: TrainState,
  store: PhaseStore,
  hooks: Sequence[Hook],
  stop: StopSignal,
  clock: Clock,
) -> TrainState:
  """Measures a saved state, tells the hooks, and starts an epoch's totals.

  A run that goes on from an epoch's end comes here again, with the line that it
  has or lacks.
  """
  with stop.may_leave(t.at(step), lambda: _leave(store, hooks)):
    if store.last_row < step:
      for hook in hooks:
        hook.validating(step)
      measure(t, step, state, store, clock)
      clock.restart()
  _tell(t, step, store, hooks)
  zeros = jax.tree.map(jnp.zeros_like, state.totals)
  return state.replace(totals=replicate(zeros, t.mesh))


def _tell(
  t: Training, step: int, store: PhaseStore, hooks: Sequence[Hook]
) -> None:
  """Tells all hooks an epoch's line; one of them may end the phase."""
  told = [hook.after_epoch(store.row(step)) for hook in hooks]
  if False in told:
    store.finish()
    raise Stopped(f"{t.at(step)} stopped")


def _transform(
  t: Training,
  state: TrainState,
  store: PhaseStore,
  hooks: Sequence[Hook],
  clock: Clock,
) -> None:
  """What a phase of no epochs does: changes the network, saves and measures."""
  if store.empty:
    for hook in hooks:
      if hook.due(0):
        state = hook.change(0, state)
    state = _save(t, 0, state, store, ended=True)
    store.finish()
  if not store.rows:
    measure(t, 0, state, store, clock)
    _tell(t, 0, store, hooks)


def _save(
  t: Training, step: int, state: TrainState, store: PhaseStore, ended: bool
) -> TrainState:
  """Saves a state; at an epoch's end with statistics that are estimated."""
  t.feed.flush()  # what the state was taught is there after a kill
  if ended and t.estimate is not None:  # others are never evaluated
    statistics = t.estimate(state.evaluated).batch_stats
    state = state.replace(statistics=replicate(statistics, t.mesh))
  store.save(step, state)
  return state


def _agreed(step: int, *wishes: bool) -> tuple[bool, ...]:
  """What any process wishes, the same in all: they must save together."""
  if jax.process_count() == 1:
    return wishes
  if step % _AGREE_EVERY:
    return (False,) * len(wishes)
  everyone = multihost_utils.process_allgather(np.array(wishes))
  return tuple(everyone.any(axis=0).tolist())
