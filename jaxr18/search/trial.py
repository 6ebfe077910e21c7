"""What a worker does: finds a candidate, trains it, tells how it ended."""

import contextlib
import math
import pathlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxr18.config.experiment import Experiment, Place, Source
from jaxr18.config.forecast.outlook import Outlook, outlooks_of_networks
from jaxr18.config.reading import parse
from jaxr18.config.search import (
  candidate_values,
  dimensions,
  over_budgets,
  per_layer_score,
)
from jaxr18.cost.score import score
from jaxr18.host.locks import OccupiedError, alone_in, in_turn
from jaxr18.host.paths import names
from jaxr18.host.stop import Stopped, StopSignal
from jaxr18.run import place, sources
from jaxr18.run.phase import train_phases
from jaxr18.run.work import Run
from jaxr18.search import halving, storage
from jaxr18.search.storage import Study, StudyError
from jaxr18.train.hooks import Hook
from jaxr18.train.store import TrainingError
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
  """Lists the trials that count: trained to their end, or halved."""
  ends = (storage.COMPLETE, storage.HALVED)
  return [row for row in rows if row["state"] in ends]


def find_work(
  study: Study,
  searched: Experiment,
  workdir: pathlib.Path,
  trials: int,
) -> Work | None:
  """Finds a trial whose worker is gone, or a new one; None if there is none.

  Args:
    study: of the experiment.
    searched: what is searched.
    workdir: of the study, or of this machine's part in it.
    trials: wanted of the study altogether.

  Raises:
    StudyError: candidates are over the budget, or fail, again and again.
  """
  with in_turn(workdir):
    home, *older = _homes(workdir)
    if not storage.lies_in(study, workdir):
      older = []  # what a copy of the folder left running is the first one's
    rows = storage.rows(study)
    running = [row for row in rows if row["state"] == "running"]
    for row in running:
      if row["home"] in (home, *older):
        if work := _take_up(study, row, searched, workdir):
          return work
    rows = storage.rows(study)
    _check_failures(rows)
    running = [row for row in rows if row["state"] == "running"]
    if len(finished(rows)) + len(running) >= trials:
      return None
    return _ask(study, searched, workdir, home)


def _take_up(study: Study, row, searched, workdir) -> Work | None:
  """The trial of that row, if no worker is at it and it is to be trained."""
  number = row["number"]
  if row["score"] is None:  # and nobody else is in their turn
    storage.finish(
      study, number, storage.FAILED, reason="killed before it was scored"
    )
    return None
  _, over = _over(searched, row["params"], _init_of(searched))
  if max(over.values()) > 0:
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


def _ask(
  study: Study, searched: Experiment, workdir: pathlib.Path, home: str
) -> Work | None:
  """A new candidate that is not over the budget; None where there is none left.

  The sampler may choose the same one twice, which would train to the same bits:
  then one is drawn that the study has not had.
  """
  choices, lowest = dimensions(searched.chosen), float("inf")
  init = _init_of(searched)
  seen = {_key(row["params"]) for row in storage.rows(study)}
  for untrained in range(MOST_UNTRAINED):
    if len(seen) >= math.prod(map(len, choices.values())):
      break
    number, params = storage.ask(study, choices, searched.seed, home=home)
    if _key(params) in seen:
      storage.finish(study, number, storage.SEEN)
      rng = np.random.default_rng([searched.seed, number])
      if (other := _unseen(choices, seen, rng)) is not None:
        storage.suggest(study, other)
      continue
    seen.add(_key(params))
    planned, over = _over(searched, params, init)
    if storage.charge(study, number, planned, over):
      folder, lock = _folder(workdir, number), contextlib.ExitStack()
      lock.enter_context(alone_in(folder))
      return Work(number, params, planned, folder, lock, False, untrained)
    storage.finish(study, number, storage.OVER)
    lowest = min(lowest, planned)
  rows = storage.rows(study)
  if any(row["state"] in (*TRIED, "running") for row in rows):
    if exhausted(rows, choices):
      return None
  lowest = min([lowest, *(r["score"] for r in rows if r["score"] is not None)])
  if exhausted(rows, choices):
    raise StudyError(
      f"all {len(seen)} candidates are over {_budgets(searched)}, the cheapest"
      f" at a score of {lowest:.6f}; raise it, or let the search choose among"
      " more networks, in a new --workdir"
    )
  raise StudyError(
    f"{MOST_UNTRAINED} candidates in a row were over {_budgets(searched)}, the"
    f" cheapest at a score of {lowest:.6f}; raise it, or let the search choose"
    " among more networks, in a new --workdir"
  )


def _over(
  searched: Experiment, params: Mapping[str, Any], init: list[Outlook]
) -> tuple[float, dict[str, float]]:
  """A candidate's score, and by how much it is over each budget."""
  there = Place(source=lambda data, name: Source(init))
  candidate = parse(candidate_values(searched.values, params), there)
  (phase,) = candidate.phases
  planned = per_layer_score(phase)
  return planned, over_budgets(phase, searched.chosen, planned)


def _budgets(searched: Experiment) -> str:
  """The budgets that there are, as a config has them."""
  names = ("score_budget", "memory_budget", "bytes_budget")
  found = {name: getattr(searched.chosen, name) for name in names}
  return " or ".join(
    f"config.search.{name} (={value})" for name, value in found.items() if value
  )


def exhausted(rows, choices: Mapping[str, tuple]) -> bool:
  """Returns whether a study has had every candidate that there is."""
  seen = {_key(row["params"]) for row in rows}
  return len(seen) >= math.prod(map(len, choices.values()))


def _key(params: Mapping[str, Any]) -> tuple:
  return tuple(sorted(params.items()))


def _unseen(choices: Mapping[str, tuple], seen, rng) -> dict[str, Any] | None:
  """A candidate that is not among those seen, drawn at random."""

  def at(i: int) -> dict[str, Any]:
    out = {}
    for name, values in choices.items():
      i, j = divmod(i, len(values))
      out[name] = values[j]
    return out

  total = math.prod(map(len, choices.values()))
  for _ in range(100):  # enough, unless most are seen
    params = at(int(rng.integers(min(total, 2**62))))
    if _key(params) not in seen:
      return params
  left = [i for i in range(min(total, 10**6)) if _key(at(i)) not in seen]
  return at(int(rng.choice(left))) if left else None


def _init_of(searched: Experiment) -> list[Outlook]:
  """What candidates start from; nothing where they do not."""
  return [
    outlook
    for name in names(searched.phases[0].options.start.init)
    for outlook in outlooks_of_networks(sources.load_other(name), name)
  ]


def train(
  study: Study,
  searched: Experiment,
  work: Work,
  dataset,
  mesh,
  stop: StopSignal,
) -> dict[str, Any]:
  """Trains a candidate to its end, or to the rung that ends it.

  The network that is kept is the one of the best validation accuracy; no test
  image is looked at.

  Args:
    study: the study, which is told how the trial ends.
    searched: the search.
    work: the candidate, and the lock on its folder.
    dataset: of the search.
    mesh: over which a batch is split.
    stop: says whether a signal came.

  Returns:
    Its row of `storage.rows`; 'running' where a signal stopped it, saved.
  """
  began, number, search = time.monotonic(), work.number, searched.chosen
  before = storage.row(study, number)["seconds"]
  goes_on = True

  def watch(line: dict[str, Any]) -> bool:
    nonlocal goes_on
    if line["epoch"] in search.rungs:
      goes_on = reach(
        study,
        number,
        line["epoch"],
        line["validation_accuracy"],
        search.eta,
      )
    return goes_on

  def end(outcome: str, accuracy=None, **known) -> None:
    seconds = before + time.monotonic() - began
    storage.finish(study, number, outcome, accuracy, seconds=seconds, **known)

  candidate = parse(candidate_values(searched.values, work.params))
  place.prepare_workdir(candidate, work.folder)
  try:
    writer = Writer(work.folder, candidate.writers, candidate.saved())
    with contextlib.closing(writer):
      phases = train_phases(
        Run(
          candidate,
          work.folder,
          dataset,
          mesh,
          stop,
          writer,
          (Hook(after_epoch=watch),),
        )
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
    total = score(net.spec, masks=net.masks).per_layer.total
    accuracy = phases[candidate.phases[-1].name]["validation_accuracy"]
    end(storage.COMPLETE, accuracy, score=total)
  return storage.row(study, number)


def reach(
  study: Study, number: int, epoch: int, accuracy: float, eta: int
) -> bool:
  """Decides whether a trial that has come to a rung goes on; decided once.

  Args:
    study: the study, which keeps the decision.
    number: of the trial.
    epoch: of the rung.
    accuracy: on the validation images, at that epoch.
    eta: one in so many of a rung's trials goes on.
  """
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


def _homes(workdir: pathlib.Path) -> list[str]:
  """What tells this folder from another machine's, whatever both are named.

  A trial is gone on with where its checkpoints are. A copy of the folder brings
  the name along, in a file that is another one: it gets a name of its own, and
  the names of what it was copied from follow.
  """
  path, found = workdir / ".home", []
  if path.exists():
    inode, *found = path.read_text().split() or [""]
    if found and inode == str(path.stat().st_ino):
      return found
    if not inode.isdecimal():  # of an earlier version, the name alone
      found = [inode, *found] if inode else found
      _write_homes(path, found)
      return found
  found = [uuid.uuid4().hex, *found]
  path.unlink(missing_ok=True)
  _write_homes(path, found)
  return found


def _write_homes(path: pathlib.Path, found: list[str]) -> None:
  """Writes the names behind the number of the file itself."""
  with path.open("a+") as f:
    f.truncate(0)
    f.write(" ".join([str(path.stat().st_ino), *found]))
