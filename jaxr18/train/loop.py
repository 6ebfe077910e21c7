"""Steps, validations and checkpoints from the start, or on from where it was.

Host code around the jitted step. The order of batches follows from seed and
epoch, the augmentation from seed and step, so a run that was killed goes on
with the same bits.

An epoch ends with a checkpoint, then its validation, then its line in
metrics.jsonl. A run that was killed in between finds the checkpoint without
the line, and makes up for it.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxr18.data import dataset as data
from jaxr18.host.errors import ToldError
from jaxr18.host.files import STEADIER, NotFiniteError
from jaxr18.host.stop import Stopped, StopSignal
from jaxr18.host.stop import on_stop_signals as on_stop_signals
from jaxr18.nn.network import Network, apply_masks
from jaxr18.train import checkpoint
from jaxr18.train.evaluate import evaluate, predict
from jaxr18.train.files import CheckpointError, MetricsFile, mend_checkpoint
from jaxr18.train.progress import Reporter
from jaxr18.train.state import TrainState, forget
from jaxr18.train.step import Batch, Teachers, replicate, shard
from jaxr18.train.writers import Writer

# Steps between two looks at what other processes want: each look waits for all.
_AGREE_EVERY = 10


class TrainingError(ToldError):
  """Training that cannot go on: the loss or the state is not finite."""


def train(
  state: TrainState,
  train_step: Callable,
  dataset: data.Dataset,
  *,
  phase: str,
  directory: pathlib.Path,
  meta: dict[str, Any],
  teachers: Teachers,
  key: jax.Array,
  seed: int | tuple[int, ...],
  epochs: int,
  batch_size: int,
  eval_batch_size: int,
  every_seconds: float,
  progress: str,
  mesh: Mesh,
  stop: StopSignal,
  update: Callable[..., Network] | None = None,
  update_due: Callable[[int], bool] = lambda step: False,
  gradients: Callable | None = None,
  estimate: Callable[[Network], Network] | None = None,
  select_from: int = 0,
  cached: Callable | None = None,
  writer: Writer | None = None,
  watch: Callable[[dict[str, Any]], bool] | None = None,
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
    update: (state, step, gradients) -> network, of the same shapes, such as
      with other masks; called before each step that is `update_due`, and with
      no epochs once. `gradients` takes nothing and returns those of the step
      that follows, where there are any.
    gradients: of `make_gradients`, if `update` asks.
    estimate: network -> network with other statistics of batch norm; called
      at each epoch's end with the network that is evaluated, and the state
      has been created as `estimated`.
    select_from: the best network is one of this step or later.
    key, seed: of a population one for each member, whose batches follow from
      them; each line of metrics.jsonl then also has every member's validation
      accuracy, and `validation_accuracy` is their mean.
    cached: a `CachedTeacher`, in place of a teacher.
    writer: gets each line of metrics.jsonl.
    watch: called after each epoch, its state saved, with its line of
      metrics.jsonl, and again with that of the last one if a finished epoch
      is gone on from; training stops where it returns False.

  Returns:
    The network of the best validation accuracy (the last one if there is no
    validation split), and what is worth knowing of it.

  Raises:
    TrainingError: the loss is not finite.
    Stopped: a stop signal came, or `watch` said so; the state is saved.
    CheckpointError: what cannot be read or written.
  """
  began = time.monotonic()
  steps_per_epoch = len(dataset.train) // batch_size
  total = epochs * steps_per_epoch
  validation = dataset.validation
  writes = jax.process_index() == 0
  metrics = MetricsFile(directory / "metrics.jsonl", writes, select_from)
  folder = directory / "checkpoints"
  manager = checkpoint.open_manager(folder, metrics.validation)
  meta = meta | {
    "network": "net" if state.average is None else "average",
    "spec": state.net.spec.to_json(),
    "data": dataset.fingerprint,
  }
  latest, spent = manager.latest_step(), 0.0
  done = latest or 0
  if latest is not None:
    state, spent = _restore(folder / str(done), state, meta)
  metrics.go_on_from(done)
  lost = [
    step
    for step in manager.all_steps()
    if step < done and step % steps_per_epoch == 0 and not metrics.row(step)
  ]
  reporter = Reporter(
    phase, epochs, steps_per_epoch, progress if writes else "none"
  )
  state, teachers, key = replicate((state, teachers, key), mesh)
  in_flight = None  # step and loss of the step that the device works on

  def look() -> None:
    """Waits for the step in flight and looks at its loss."""
    nonlocal in_flight
    if in_flight is not None:
      (step, loss), in_flight = in_flight, None
      loss = np.asarray(loss)
      if not np.isfinite(loss).all():
        raise _not_finite(manager, folder, phase, step, f"the loss is {loss}")
      reporter.step(step, batch_size * loss.size, float(loss.mean()))

  def order_of(epoch: int) -> np.ndarray:
    """Rows [steps, batch], or [steps, members, batch]."""
    seeds = seed if isinstance(seed, tuple) else (seed,)
    orders = [
      data.batches(len(dataset.train), batch_size, s, epoch) for s in seeds
    ]
    return np.stack(orders, 1) if isinstance(seed, tuple) else orders[0]

  def batch(step: int, rows: np.ndarray) -> Batch:
    part = dataset.train.take(rows)
    logits = None
    if cached is not None:
      logits = cached(key, step, step // steps_per_epoch, part)
    whole = Batch(part.images, part.labels, part.index, logits)
    return shard(whole, mesh, rows.ndim - 1)

  def gradients_at(step: int, rows: np.ndarray):
    epoch = np.int32(step // steps_per_epoch)
    return gradients(state, teachers, batch(step, rows), key, epoch)

  def save(step: int, ended: bool) -> None:
    nonlocal state
    if cached is not None:  # what the state was taught is there after a kill
      cached.flush()
    if ended and estimate is not None:  # others are never evaluated
      found = estimate(state.evaluated).batch_stats
      state = state.replace(statistics=replicate(found, mesh))
    arrays = checkpoint.flatten(state)
    for name, array in arrays.items():
      if not np.isfinite(array).all():
        raise _not_finite(manager, folder, phase, step, f"{name} is not finite")
    seconds = spent + time.monotonic() - began
    checkpoint.save(manager, step, arrays, meta | {"seconds": seconds})

  def validate(step: int, state: TrainState) -> None:
    totals = jax.tree.map(np.sum, jax.device_get(state.totals))
    count = totals["count"]
    row = {
      "phase": phase,
      "step": step,
      "epoch": step // steps_per_epoch,
      "loss": float(totals["loss"] / count) if count else None,
      "train_accuracy": float(totals["correct"] / count) if count else None,
      "validation_accuracy": None,
    }
    if len(validation):
      with reporter.validating(step):
        try:
          found = evaluate(
            state.evaluated, validation, dataset, eval_batch_size, mesh
          )
        except NotFiniteError as e:
          what = "a logit of the validation images is not finite"
          raise _not_finite(manager, folder, phase, step, what) from e
        if isinstance(seed, tuple):
          each = [one.accuracy for one in found]
          row["validation_accuracies"] = each
          row["validation_accuracy"] = sum(each) / len(each)
        else:
          row["validation_accuracy"] = found.accuracy
    row |= reporter.timing()
    metrics.write(row)
    if step in lost:
      return  # the writer is about to get all lines
    if writer is not None:
      writer.row(phase, row)
    reporter.epoch(row)

  def leave() -> None:
    checkpoint.finish(manager)
    reporter.close()

  def may_leave(step: int):
    """While it compiles and validates it may leave: nothing would be lost."""
    return stop.may_leave(f"{phase} at step {step} of {total}", leave)

  try:
    with may_leave(done):
      for step in sorted(lost):  # lines that somebody removed, being damaged
        kept, _ = _restore(folder / str(step), state, meta)
        validate(step, replicate(kept, mesh))
      _check_best(folder, manager.all_steps(), metrics)
      if writer is not None:
        writer.begin(phase, metrics.rows)
      if done < total:
        # The batch that comes first, since a table keeps what it is asked for.
        epoch, i = divmod(done, steps_per_epoch)
        run_step = train_step.lower(
          state, teachers, batch(done, order_of(epoch)[i]), key, np.int32(epoch)
        ).compile()
        if len(validation):
          first = validation.images[:eval_batch_size]
          predict(state.evaluated, first, dataset, eval_batch_size, mesh)
    reporter.start(done)
    last_save = time.monotonic()
    for step in range(done, total + 1):
      epoch, i = divmod(step, steps_per_epoch)
      if i == 0 and step > 0:
        with may_leave(step):
          if metrics.last_step < step:
            validate(step, state)
        if watch is not None and not watch(metrics.row(step)):
          checkpoint.finish(manager)
          raise Stopped(f"{phase} stopped at step {step} of {total}")
        zeros = jax.tree.map(jnp.zeros_like, state.totals)
        state = state.replace(totals=replicate(zeros, mesh))
      if step < total and (i == 0 or step == done):
        order = order_of(epoch)
      if (
        update is not None and update_due(step) and (step < total or not total)
      ):
        look()
        seen = functools.cache(
          functools.partial(gradients_at, step, order[i] if total else None)
        )
        state = _with_network(state, update(state, step, seen), mesh)
      if step == total:
        break
      state, loss = run_step(
        state, teachers, batch(step, order[i]), key, np.int32(epoch)
      )
      look()  # at the step before, while the device works on this one
      in_flight = step + 1, loss
      stopping, due = _agreed(
        step, stop.received, time.monotonic() - last_save > every_seconds
      )
      ended = i == steps_per_epoch - 1
      if stopping or due or ended:
        look()
        save(step + 1, ended)
        last_save = time.monotonic()
      if stopping:
        checkpoint.finish(manager)
        raise Stopped(f"{phase} stopped at step {step + 1} of {total}")
    if not total:
      if latest is None:
        save(0, ended=True)
        checkpoint.finish(manager)
      if metrics.empty:
        validate(0, state)
    checkpoint.finish(manager)
  finally:
    reporter.close()
  best = checkpoint.best_step(manager.all_steps(), metrics.validation)
  manager.close()
  net = checkpoint.network_from(*checkpoint.read(folder / str(best)))
  info = {
    "step": best,
    "epoch": best // steps_per_epoch,
    "validation_accuracy": metrics.validation.get(best),
    "seconds": spent + time.monotonic() - began,
  }
  each = metrics.row(best).get("validation_accuracies")
  return net, info | ({"validation_accuracies": each} if each else {})


def _with_network(state: TrainState, net: Network, mesh: Mesh) -> TrainState:
  """The state with another network; its average gets the masks.

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


def _restore(
  path: pathlib.Path, like: TrainState, here: dict[str, Any]
) -> tuple[TrainState, float]:
  """A checkpoint's state, as host arrays, and the seconds spent until it.

  Args:
    here: what a checkpoint of this run would say of itself.
  """
  arrays, meta = checkpoint.read(path)
  fingerprint, now = here["data"], here.get("sources", {})
  before = meta.get("sources", now)  # older ones do not say
  if others := [name for name in now if now[name] != before.get(name)]:
    raise CheckpointError(
      f"{path} was trained from other networks: those of {', '.join(others)}"
      " have changed since; give those back, or give another --workdir"
    )
  if meta["data"] != fingerprint:
    raise CheckpointError(
      f"{path} was trained on other images: it was begun with data of the"
      f" fingerprint {meta['data']!r}, and this is {fingerprint!r}; set"
      " config.data back, or give another --workdir"
    )
  return checkpoint.unflatten(arrays, like, path), meta["seconds"]


def _check_best(
  folder: pathlib.Path, steps: Sequence[int], metrics: MetricsFile
) -> None:
  """Raises CheckpointError where the best checkpoint so far is gone."""
  if metrics.validation:
    best = checkpoint.best_step(metrics.validation, metrics.validation)
    if best not in steps:
      raise CheckpointError(
        f"there is no checkpoint {folder / str(best)}, the best so far;"
        f" {mend_checkpoint(folder / str(best))}"
      )


def _agreed(step: int, *wishes: bool) -> tuple[bool, ...]:
  """What any process wishes, the same in all: they must save together."""
  if jax.process_count() == 1:
    return wishes
  if step % _AGREE_EVERY:
    return (False,) * len(wishes)
  everyone = multihost_utils.process_allgather(np.array(wishes))
  return tuple(everyone.any(axis=0).tolist())


def _not_finite(
  manager, folder: pathlib.Path, phase: str, step: int, what: str
) -> TrainingError:
  checkpoint.finish(manager)
  good = manager.latest_step()
  left = f"the last good checkpoint is step {good} in {folder}"
  if good is None:
    left = "there is no checkpoint yet"
  return TrainingError(
    f"{phase}: {what} at step {step}; {left}; try {STEADIER}, in a new"
    " --workdir"
  )
