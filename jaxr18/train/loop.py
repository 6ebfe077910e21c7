"""Steps, validations and checkpoints from the start, or on from where it was.

Host code around the jitted step. The order of batches follows from seed and
epoch, the augmentation from seed and step, so a run that was killed goes on
with the same bits.
"""

import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxr18 import data
from jaxr18.network import Network
from jaxr18.train import checkpoint
from jaxr18.train.evaluate import evaluate
from jaxr18.train.progress import MetricsFile, Reporter
from jaxr18.train.state import TrainState, zero_totals
from jaxr18.train.step import Batch, replicate, shard


class TrainingError(Exception):
  """Training that cannot go on: the loss is not finite."""


class Stopped(Exception):
  """SIGTERM or SIGINT came; the state is saved."""


@dataclasses.dataclass
class StopSignal:
  """Whether the process was asked to stop; see `on_stop_signals`."""

  received: bool = False


def on_stop_signals() -> StopSignal:
  """From now on SIGTERM and SIGINT ask the loop to save and stop.

  A second one ends the process at once, as it would have without.
  """
  stop = StopSignal()

  def handle(number, frame):
    del frame
    stop.received = True
    signal.signal(number, signal.SIG_DFL)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
  return stop


def train(
  state: TrainState,
  train_step: Callable,
  dataset: data.Dataset,
  *,
  phase: str,
  directory: pathlib.Path,
  meta: dict[str, Any],
  teacher: Network | None,
  key: jax.Array,
  seed: int,
  epochs: int,
  batch_size: int,
  eval_batch_size: int,
  every_seconds: float,
  progress: str,
  mesh: Mesh,
  stop: StopSignal,
) -> tuple[Network, dict[str, Any]]:
  """Trains one phase to its end.

  Args:
    state: before the first step; the latest checkpoint takes its place.
    train_step: of `make_train_step`.
    phase: its name, for people.
    directory: of the phase; holds checkpoints/ and metrics.jsonl.
    meta: goes into each checkpoint.
    every_seconds: between two checkpoints within an epoch; each epoch's end
      has one of its own.

  Returns:
    The network of the best validation accuracy (the last one if there is no
    validation split), and what is worth knowing of it.

  Raises:
    TrainingError: the loss is not finite.
    Stopped: a stop signal came; the state is saved.
    checkpoint.CheckpointError: what cannot be read or written.
  """
  manager = checkpoint.open_manager(directory / "checkpoints")
  steps_per_epoch = len(dataset.train.labels) // batch_size
  total = epochs * steps_per_epoch
  meta = meta | {
    "network": "net" if state.average is None else "average",
    "spec": state.net.spec.to_json(),
  }
  done = manager.latest_step() or 0
  spent = 0.0
  if done:
    state, spent = checkpoint.restore(manager, done, state)
  state, teacher, key = replicate((state, teacher, key), mesh)
  metrics = MetricsFile(directory / "metrics.jsonl", done)
  reporter = Reporter(phase, epochs, steps_per_epoch, progress)
  started = last_save = epoch_started = time.monotonic()
  epoch_images = 0
  order = None

  def save(step, validation=None):
    seconds = spent + time.monotonic() - started
    checkpoint.save(
      manager, step, state, meta | {"seconds": seconds}, validation
    )

  try:
    for step in range(done, total):
      epoch, i = divmod(step, steps_per_epoch)
      if order is None or i == 0:
        order = data.batches(len(dataset.train.labels), batch_size, seed, epoch)
      rows = dataset.train.take(order[i])
      batch = shard(Batch(rows.images, rows.labels, rows.index), mesh)
      state, loss = train_step(state, teacher, batch, key, np.int32(epoch))
      loss = float(loss)
      if not math.isfinite(loss):
        raise TrainingError(_not_finite(manager, phase, step + 1, loss))
      reporter.step(step + 1, batch_size, loss)
      epoch_images += batch_size
      if i == steps_per_epoch - 1:
        totals = jax.device_get(state.totals)
        accuracy = None
        if len(dataset.validation.labels):
          accuracy = evaluate(
            state.evaluated, dataset.validation, dataset, eval_batch_size, mesh
          ).accuracy
        seconds = time.monotonic() - epoch_started
        row = {
          "phase": phase,
          "step": step + 1,
          "epoch": epoch + 1,
          "loss": float(totals["loss"] / totals["count"]),
          "train_accuracy": float(totals["correct"] / totals["count"]),
          "validation_accuracy": accuracy,
          "images_per_second": epoch_images / seconds,
          "seconds": seconds,
        }
        metrics.write(row)
        reporter.epoch(row, step + 1)
        state = state.replace(totals=replicate(zero_totals(), mesh))
        save(step + 1, accuracy)
        last_save = epoch_started = time.monotonic()
        epoch_images = 0
      elif time.monotonic() - last_save > every_seconds:
        save(step + 1)
        last_save = time.monotonic()
      if stop.received and step + 1 < total:
        save(step + 1)
        checkpoint.finish(manager)
        raise Stopped(f"{phase} stopped at step {step + 1} of {total}")
    checkpoint.finish(manager)
  finally:
    reporter.close()
  best = checkpoint.best_step(manager)
  arrays, best_meta = checkpoint.read(manager, best)
  validation = (manager.metrics(best) or {}).get("validation")
  manager.close()
  return checkpoint.network_from(arrays, best_meta), {
    "step": best,
    "epoch": best // steps_per_epoch,
    "validation_accuracy": validation,
    "seconds": spent + time.monotonic() - started,
  }


def _not_finite(manager, phase: str, step: int, loss: float) -> str:
  checkpoint.finish(manager)
  good = manager.latest_step()
  left = f"the last good checkpoint is step {good} in {manager.directory}"
  if good is None:
    left = "there is no checkpoint yet"
  return (
    f"{phase}: the loss is {loss} at step {step}; {left}; try a lower"
    " learning_rate, a longer warmup_epochs or a clip_norm of 1, in a new"
    " --workdir"
  )
