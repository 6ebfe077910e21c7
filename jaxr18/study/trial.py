"""What a worker does: finds a candidate, trains it, tells how it ended."""

import contextlib
import json
import pathlib
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from jaxr18 import experiment, sources
from jaxr18.cost.score import score
from jaxr18.distillconfig import names
from jaxr18.searchconfig import candidate_config, dimensions, exact_score
from jaxr18.study import halving, storage
from jaxr18.study.storage import Study, StudyError
from jaxr18.train.files import OccupiedError, alone_in, in_turn
from jaxr18.train.loop import TrainingError
from jaxr18.train.stop import Stopped, StopSignal
from jaxr18.train.writers import Writer

# So many candidates in a row that are not to be trained, or that fail, end the
# search.
MOST_UNTRAINED, MOST_FAILED = 1000, 10


TRIED = (storage.COMPLETE, storage.HALVED, storage.FAILED)


class Work(NamedTuple):
  """A candidate to train, in a folder that is locked.

  Attributes:
    number, params, score: of the trial.
    folder: an ordinary workdir.
    lock: leave it when the trial has ended.
    begun: by another worker, which was killed or stopped.
    untrained: candidates before it that were over the budget, or that the
      study has had before.
  """

  number: int
  params: dict[str, Any]
  score: float
  folder: pathlib.Path
  lock: contextlib.ExitStack
  begun: bool
  untrained: int


def finished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The trials that count: trained to their end, or halved."""
  ends = (storage.COMPLETE, storage.HALVED)
  return [row for row in rows if row["state"] in ends]


def find_work(
  study: Study,
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  trials: int,
) -> Work | None:
  """A trial whose worker is gone, or a new one; None if none is wanted.

  Args:
    study: of the config.
    config: validated.
    workdir: of the study, or of this machine's part in it.
    trials: wanted of the study altogether.

  Raises:
    StudyError: candidates are over the budget, or fail, again and again.
  """
  with in_turn(workdir):
    home = _home(workdir)
    rows = storage.rows(study)
    running = [row for row in rows if row["state"] == "running"]
    for row in running:
      if row["home"] == home:
        if work := _take_up(study, row, config, workdir):
          return work
    rows = storage.rows(study)
    _check_failures(rows)
    running = [row for row in rows if row["state"] == "running"]
    if len(finished(rows)) + len(running) >= trials:
      return None
    return _ask(study, config, workdir, home)


def _take_up(study: Study, row, config, workdir) -> Work | None:
  """The trial of that row, if no worker is at it and it is to be trained."""
  number = row["number"]
  if row["score"] is None:  # and nobody else is in their turn
    storage.finish(
      study, number, storage.FAILED, reason="killed before it was scored"
    )
    return None
  if row["score"] > config.search.score_budget:
    storage.finish(study, number, storage.OVER)
    return None
  folder, lock = _folder(workdir, number), contextlib.ExitStack()
  try:
    lock.enter_context(alone_in(folder))
  except OccupiedError:
    return None
  row = storage.row(study, number)
  if row["state"] != "running":  # it ended a moment ago
    lock.close()
    return None
  return Work(number, row["params"], row["score"], folder, lock, True, 0)


def _ask(study: Study, config, workdir: pathlib.Path, home: str) -> Work:
  """A new candidate that is not over the budget.

  The sampler may choose the same one twice, which would train to the same bits.
  """
  choices, budget = dimensions(config.search), config.search.score_budget
  lowest = float("inf")
  seen = [row["params"] for row in storage.rows(study)]
  for untrained in range(MOST_UNTRAINED):
    number, params = storage.ask(study, choices, config.seed, home=home)
    if params in seen:
      storage.finish(study, number, storage.SEEN)
      continue
    seen.append(params)
    exact = exact_score(candidate_config(config, params))
    if storage.charge(study, number, exact, budget):
      folder, lock = _folder(workdir, number), contextlib.ExitStack()
      lock.enter_context(alone_in(folder))
      return Work(number, params, exact, folder, lock, False, untrained)
    storage.finish(study, number, storage.OVER)
    lowest = min(lowest, exact)
  raise StudyError(
    f"{MOST_UNTRAINED} candidates in a row were over"
    f" config.search.score_budget (={budget}), the cheapest new one at"
    f" {lowest:.6f}, or were seen before; raise it, or let the search choose"
    " among more networks, in a new --workdir"
  )


def train(
  study: Study,
  config: ml_collections.ConfigDict,
  work: Work,
  dataset,
  mesh,
  stop: StopSignal,
) -> dict[str, Any]:
  """Trains a candidate to its end, or to the rung that ends it.

  The network that is kept is the one of the best validation accuracy; no test
  image is looked at.

  Returns:
    Its row of `storage.rows`; 'running' where a signal stopped it, saved.
  """
  began, number = time.monotonic(), work.number
  before = storage.row(study, number)["seconds"]
  goes_on = True

  def watch(line: dict[str, Any]) -> bool:
    nonlocal goes_on
    if line["epoch"] in config.search.rungs:
      goes_on = reach(
        study,
        number,
        line["epoch"],
        line["validation_accuracy"],
        config.search.eta,
      )
    return goes_on

  def end(outcome: str, accuracy=None, **known) -> None:
    seconds = before + time.monotonic() - began
    storage.finish(study, number, outcome, accuracy, seconds=seconds, **known)

  candidate = candidate_config(config, work.params)
  experiment.prepare_workdir(candidate, work.folder)
  try:
    to = names(candidate.writers)
    writer = Writer(work.folder, to, json.loads(candidate.to_json()))
    with contextlib.closing(writer), may_leave(stop):
      phases = experiment.train_phases(
        candidate, work.folder, dataset, mesh, stop, writer, watch
      )
  except Stopped:
    if goes_on:
      seconds = before + time.monotonic() - began
      storage.note(study, number, seconds=seconds)
    else:
      end(storage.HALVED)
  except TrainingError as e:
    end(storage.FAILED, reason=str(e))
  else:
    net = sources.load_network(work.folder)
    exact = score(net.spec, masks=net.masks).exact.total
    accuracy = phases[candidate.phases[-1]]["validation_accuracy"]
    end(storage.COMPLETE, accuracy, score=exact)
  return storage.row(study, number)


def reach(
  study: Study, number: int, epoch: int, accuracy: float, eta: int
) -> bool:
  """Whether a trial that has come to a rung goes on; said once and kept."""
  rows = {row["number"]: row for row in storage.rows(study)}
  mine = rows.pop(number)
  for rung in mine["rungs"]:
    if rung["epoch"] == epoch:
      return rung["goes_on"]
  earlier = [
    (rung["accuracy"], row["score"])
    for row in rows.values()
    for rung in row["rungs"]
    if rung["epoch"] == epoch
  ]
  goes_on = halving.goes_on(earlier, (accuracy, mine["score"]), eta)
  rung = {"epoch": epoch, "accuracy": accuracy, "goes_on": goes_on}
  storage.note(study, number, rungs=[*mine["rungs"], rung])
  return goes_on


@contextlib.contextmanager
def may_leave(stop: StopSignal, leave: Callable[[], None] = lambda: None):
  """The process may end at once, or where a training loop within says so."""
  before, stop.leave = stop.leave, leave
  try:
    yield
  finally:
    stop.leave = before


def _check_failures(rows) -> None:
  ended = [row for row in rows if row["state"] in TRIED]
  last = ended[-MOST_FAILED:]
  if len(last) == MOST_FAILED and all(
    r["state"] == storage.FAILED for r in last
  ):
    raise StudyError(
      f"the last {MOST_FAILED} candidates have failed, at last:"
      f" {last[-1]['reason']}; change the config, in a new --workdir"
    )


def _folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
  folder = workdir / "trials" / f"{number:04d}"
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def _home(workdir: pathlib.Path) -> str:
  """What tells this folder from another machine's, whatever both are named.

  A trial is gone on with where its checkpoints are.
  """
  path = workdir / ".home"
  if not path.exists() or not path.read_text():
    path.write_text(uuid.uuid4().hex)
  return path.read_text()
