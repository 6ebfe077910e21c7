"""Each epoch's numbers beside metrics.jsonl: in TensorBoard, Weights & Biases.

metrics.jsonl is what counts: what is here is made of its lines, for looking at.
After a kill or a resume every line is there once. A writer that fails (a full
disk, no network) says so once and is left out; the training goes on.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from jaxr18.host.files import write_atomically
from jaxr18.host.inputs import read_bytes
from jaxr18.train.files import MetricsFile
from jaxr18.train.hooks import Hook, Row


class _Sink(NamedTuple):
  """One place to write to; any of these may raise."""

  begin: Callable[[str, Sequence[Row]], None]
  row: Callable[[str, Row], None]
  result: Callable[[dict[str, float]], None]
  close: Callable[[], None]


class Writer:
  """Writes to all that are asked for; without names to none."""

  def __init__(
    self, workdir: pathlib.Path, names: Sequence[str], config: dict[str, Any]
  ):
    """Opens each.

    Args:
      workdir: of the run; TensorBoard's files are in tensorboard/PHASE, and
        those of Weights & Biases in wandb/.
      names: of 'tensorboard' and 'wandb'.
      config: for Weights & Biases.
    """
    self._sinks: dict[str, _Sink] = {}
    opens = {"tensorboard": _tensorboard, "wandb": _wandb}
    for name in names:
      with self._guarded(name):
        self._sinks[name] = opens[name](workdir, config)

  def begin(self, phase: str, rows: Sequence[Row]) -> None:
    """Begins a phase, or goes on with it, with these lines so far."""
    self._each(lambda sink: sink.begin(phase, rows))

  def row(self, phase: str, row: Row) -> None:
    """Adds a line."""
    self._each(lambda sink: sink.row(phase, row))

  def hook(self, phase: str) -> Hook:
    """Returns what a phase's training loop calls; it is told each line once."""
    told = -1

    def begin(rows: Sequence[Row], step: int) -> None:
      nonlocal told
      del step
      told = rows[-1]["step"] if rows else -1
      self.begin(phase, rows)

    def after_epoch(row: Row) -> None:
      if row["step"] > told:
        self.row(phase, row)

    return Hook(begin=begin, after_epoch=after_epoch)

  def result(self, numbers: dict[str, float]) -> None:
    """Writes the numbers of a finished run, by name."""
    self._each(lambda sink: sink.result(numbers))

  def close(self) -> None:
    self._each(lambda sink: sink.close())

  def _each(self, call: Callable[[_Sink], None]) -> None:
    for name, sink in list(self._sinks.items()):
      with self._guarded(name):
        call(sink)

  @contextlib.contextmanager
  def _guarded(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as e:  # whatever a library, a disk or a network may raise
      self._sinks.pop(name, None)
      text = " ".join(str(e).split()) or type(e).__name__
      logging.warning(
        "%s is not written to any more, and the training goes on: %s",
        name, text,
      )  # fmt: skip


def scalars(row: Row) -> dict[str, float]:
  """Lists the numbers of a line; of several by name and member, or term."""
  out = {}
  for k, v in row.items():
    if isinstance(v, dict):
      out |= {f"{k}/{name}": x for name, x in v.items()}
    elif isinstance(v, list):
      out |= {f"{k}/{i}": x for i, x in enumerate(v)}
    elif isinstance(v, int | float) and k != "step":
      out[k] = v
  return out


def _tensorboard(workdir: pathlib.Path, config: dict[str, Any]) -> _Sink:
  """Event files; a phase that goes on gets a new one of all its lines.

  tensorboardX's own SummaryWriter writes in a thread, where a full disk ends
  the thread and then, its queue being full, the training waits for ever. Its
  record writer is called here in its place.
  """
  from tensorboardX import summary
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto import event_pb2

  proto: Any = event_pb2  # whose classes are made when it is imported
  root, files, last = workdir / "tensorboard", {}, {}

  def open_file(folder: pathlib.Path) -> None:
    if folder in files:
      files.pop(folder).close()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("events.out.tfevents.*"):
      old.unlink()
    files[folder] = EventsWriter(str(folder / "events"))
    # A TensorBoard that is open forgets what it read of the old file.
    start = proto.SessionLog(status=proto.SessionLog.START)
    files[folder].write_event(proto.Event(session_log=start, step=0))

  def add(folder: pathlib.Path, step: int, numbers: dict[str, float]) -> None:
    for tag, value in numbers.items():
      files[folder].write_event(
        proto.Event(
          wall_time=time.time(), step=step, summary=summary.scalar(tag, value)
        )
      )
    files[folder].flush()

  def begin(phase: str, rows: Sequence[Row]) -> None:
    open_file(root / phase)
    for row in rows:
      write(phase, row)

  def write(phase: str, row: Row) -> None:
    last["step"] = row["step"]
    add(root / phase, row["step"], scalars(row))

  def result(numbers: dict[str, float]) -> None:
    open_file(root)
    add(root, last.get("step", 0), numbers)

  def close() -> None:
    for file in files.values():
      file.close()

  return _Sink(begin, write, result, close)


def _wandb_run(workdir: pathlib.Path, config: dict[str, Any], run_id: str):
  """Begins or resumes a run; nobody may be there to answer a question."""
  import wandb  # type: ignore[reportMissingImports]

  # The run's own output is ours.
  quiet = wandb.Settings(
    console="off", silent=True, login_timeout=30, init_timeout=60
  )
  return wandb.init(
    project=os.environ.get("WANDB_PROJECT", "jaxr18"),
    name=workdir.name,
    id=run_id,
    resume="allow",
    dir=str(workdir),
    config=config,
    settings=quiet,
  )


def _wandb(workdir: pathlib.Path, config: dict[str, Any]) -> _Sink:
  """A run of Weights & Biases, the same after a resume.

  A line's step there is its number in the run, counted over the phases. The
  server says which step is its next, so a process that goes on sends what is
  missing and nothing twice. Offline each process has a folder of its own: the
  new one gets all lines, and those before it, which hold no more, are removed.
  """
  folder = workdir / "wandb"
  folder.mkdir(exist_ok=True)
  path = folder / "jaxr18.json"
  state = {"id": secrets.token_hex(4), "phases": []}
  if path.exists():
    saved = json.loads(read_bytes(path))
    # Its form before this one held the last step of each phase.
    phases = saved.get("phases") or list(saved.get("steps", {}))
    state = {"id": saved["id"], "phases": phases}
  write_atomically(path, json.dumps(state))
  run = _wandb_run(workdir, config, state["id"])
  first = run.step  # that it does not have
  number, begun = 0, set()

  def begin(phase: str, rows: Sequence[Row]) -> None:
    if phase not in state["phases"]:
      state["phases"].append(phase)
      write_atomically(path, json.dumps(state))
    for name in state["phases"][: state["phases"].index(phase)]:
      if name not in begun:  # it was finished by an earlier process
        send(name, MetricsFile(workdir / name / "metrics.jsonl", False).rows)
    send(phase, rows)
    if run.offline:
      for old in folder.glob(f"offline-run-*-{state['id']}"):
        if old != pathlib.Path(run.dir).parent:
          shutil.rmtree(old)

  def send(phase: str, rows: Sequence[Row]) -> None:
    begun.add(phase)
    run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
    for row in rows:
      write(phase, row)

  def write(phase: str, row: Row) -> None:
    nonlocal number
    if number >= first:
      numbers = {"step": row["step"]} | scalars(row)
      run.log({f"{phase}/{k}": v for k, v in numbers.items()}, step=number)
    number += 1

  return _Sink(begin, write, run.summary.update, run.finish)
