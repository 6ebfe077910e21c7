"""What one phase keeps on disk: its checkpoints and metrics.jsonl."""

import contextlib
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxr18.host.errors import ToldError
from jaxr18.host.files import STEADIER
from jaxr18.train import checkpoint
from jaxr18.train.files import CheckpointError, MetricsFile, mend_checkpoint
from jaxr18.train.state import TrainState


class TrainingError(ToldError):
  """Training that cannot go on: the loss or the state is not finite."""


class PhaseStore:
  """The checkpoints of a phase and a line for each epoch.

  An epoch ends with a checkpoint, then its validation, then its line. A run
  that was killed in between finds the checkpoint without the line, and makes up
  for it.

  Attributes:
    name: of the phase.
    step: to go on from; 0 where there is no checkpoint.
    empty: whether there is no checkpoint.
    last_row: the step of the last line, or 0.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    meta: dict[str, Any],
    *,
    every_seconds: float = float("inf"),
    select_from: int = 0,
  ):
    """Opens what is there; lines later than the last checkpoint are dropped.

    Args:
      directory: of the phase; gets checkpoints/ and metrics.jsonl.
      meta: goes into each checkpoint: 'phase' is its name, 'data' and 'sources'
        must be those of the checkpoint that is gone on from, 'network' and
        'spec' say which part of the state is evaluated.
      every_seconds: after which a checkpoint is `late`.
      select_from: the best network is one of this step or later.

    Raises:
      CheckpointError: what cannot be read or written.
    """
    self._began = time.monotonic()
    self._meta, self._every = meta, every_seconds
    self.name, self._folder = meta["phase"], directory / "checkpoints"
    first = jax.process_index() == 0
    self._metrics = MetricsFile(directory / "metrics.jsonl", first, select_from)
    self._manager = checkpoint.open_manager(
      self._folder, self._metrics.validation
    )
    latest = self._manager.latest_step()
    # Each process reads a shared folder of its own accord.
    self.empty, self.step = _as_first(latest is None, latest or 0)
    self._metrics.go_on_from(self.step)
    (self.last_row,) = _as_first(self._metrics.last_step)
    self._spent, self._saved = 0.0, time.monotonic()

  @property
  def rows(self) -> list[dict[str, Any]]:
    """All lines so far."""
    return self._metrics.rows

  def row(self, step: int) -> dict[str, Any]:
    """Returns the line of a step; an empty one where there is none."""
    return self._metrics.row(step)

  def add(self, row: dict[str, Any]) -> None:
    """Adds a line; it is on disk when this returns."""
    self._metrics.write(row)
    self.last_row = max(self.last_row, row["step"])

  def restore(self, like: TrainState) -> TrainState:
    """Returns the state to go on from, or `like` where there is none.

    Raises:
      CheckpointError: a checkpoint of other networks, images or shapes.
    """
    if self.empty:
      return like
    state, self._spent = self._read(self.step, like)
    return state

  def without_rows(self, every: int) -> list[int]:
    """Lists earlier checkpoints at an epoch's end that have no line.

    Somebody has removed the line, being damaged.

    Args:
      every: steps of an epoch.
    """
    return [
      step
      for step in sorted(self._manager.all_steps())
      if step < self.step and step % every == 0 and not self.row(step)
    ]

  def read(self, step: int, like: TrainState) -> TrainState:
    """Returns the state of a checkpoint, as host arrays."""
    return self._read(step, like)[0]

  def check_best(self) -> None:
    """Raises CheckpointError where the best checkpoint so far is gone."""
    validation = self._metrics.validation
    if validation:
      best = checkpoint.best_step(validation, validation)
      if best not in self._manager.all_steps():
        path = self._folder / str(best)
        raise CheckpointError(
          f"there is no checkpoint {path}, the best so far;"
          f" {mend_checkpoint(path)}"
        )

  def late(self) -> bool:
    """Says whether the last checkpoint of this process is too old."""
    return time.monotonic() - self._saved > self._every

  def save(self, step: int, state: TrainState) -> None:
    """Starts to write a checkpoint; an error may come with the next call.

    Raises:
      TrainingError: a number of the state is not finite.
    """
    arrays = checkpoint.flatten(state)
    for name, array in arrays.items():
      if not np.isfinite(array).all():
        raise self.not_finite(step, f"{name} is not finite")
    meta = self._meta | {"seconds": self._seconds()}
    checkpoint.save(self._manager, step, arrays, meta)
    self._saved = time.monotonic()

  def finish(self) -> None:
    """Waits until what was saved is on disk."""
    checkpoint.finish(self._manager)

  def abandon(self) -> None:
    """Waits for what is being written, whatever becomes of it.

    An error is on its way to the caller, who may go on in this process: another
    store of the folder would remove what this one is in the middle of. Of
    several processes none waits: the others may not have failed.
    """
    if jax.process_count() == 1:
      with contextlib.suppress(Exception):
        self._manager.close()

  def not_finite(self, step: int, what: str) -> TrainingError:
    """Returns the error of a number that is lost, with what would mend it."""
    self.finish()
    good = self._manager.latest_step()
    left = f"the last good checkpoint is step {good} in {self._folder}"
    if good is None:
      left = "there is no checkpoint yet"
    return TrainingError(
      f"{self.name}: {what} at step {step}; {left}; try {STEADIER}, in a new"
      " --workdir"
    )

  def close(self) -> dict[str, Any]:
    """Closes the checkpoints and tells of the best one.

    Returns:
      Its step and validation accuracy (the last one without validation images),
      those of a population's members, and the seconds that the phase took.
    """
    validation = self._metrics.validation
    best = checkpoint.best_step(self._manager.all_steps(), validation)
    self._manager.close()
    row = self.row(best)
    info = {
      "step": best,
      "epoch": row.get("epoch", 0),
      "validation_accuracy": validation.get(best),
      "seconds": self._seconds(),
    }
    each = row.get("validation_accuracies")
    return info | ({"validation_accuracies": each} if each else {})

  def _seconds(self) -> float:
    return self._spent + time.monotonic() - self._began

  def _read(self, step: int, like: TrainState) -> tuple[TrainState, float]:
    """Reads a checkpoint's state and the seconds until it."""
    path = self._folder / str(step)
    arrays, meta = checkpoint.read(path)
    images, now = self._meta["data"], self._meta.get("sources", {})
    before = meta.get("sources", now)  # older ones do not say
    if others := [name for name in now if now[name] != before.get(name)]:
      raise CheckpointError(
        f"{path} was trained from other networks: those of {', '.join(others)}"
        " have changed since; give those back, or give another --workdir"
      )
    if meta["data"] != images:
      raise CheckpointError(
        f"{path} was trained on other images: it was begun with data of the"
        f" fingerprint {meta['data']!r}, and this is {images!r}; set"
        " config.data back, or give another --workdir"
      )
    for name, so_far in like.totals.get("terms", {}).items():
      # A run that was begun before terms were summed has none of its epoch.
      zero = np.zeros(so_far.shape, so_far.dtype)
      arrays.setdefault(f"totals.terms.{name}", zero)
    return checkpoint.unflatten(arrays, like, path), meta["seconds"]


def _as_first(*values):
  """What the first process holds, the same in all."""
  if jax.process_count() == 1:
    return values
  shared = multihost_utils.broadcast_one_to_all(np.array(values, np.int64))
  return tuple(type(v)(x) for v, x in zip(values, shared, strict=True))
