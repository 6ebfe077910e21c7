"""One study that any number of processes share, in a file or a database.

Optuna, which only this module knows, samples and stores. What it has no notion
of lies in attributes of its trials: the score that was known before training,
the accuracy at each rung, the folder in which it is trained.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxr18.host import paths
from jaxr18.host.errors import ToldError, writing

NAME = "jaxr18"
# How a trial ends; until then it is 'running'. The first two are trained.
COMPLETE, HALVED = "complete", "halved"
OVER, SEEN, FAILED = "over budget", "seen before", "failed"


class StudyError(ToldError):
  """A study that cannot be opened or gone on with."""


class Study(NamedTuple):
  """Optuna's study, and the storage of which it is the only one."""

  optuna: Any
  storage: Any
  where: str  # as it was opened


def lies_in(study: Study, folder: pathlib.Path) -> bool:
  """Returns whether the study is a file in that folder."""
  path = pathlib.Path(study.where)
  return not is_url(study.where) and path.resolve().parent == folder.resolve()


def is_url(where: str) -> bool:
  """Returns whether a --storage is a database's address and not a file."""
  return paths.remote(where)


def hidden(where: str) -> str:
  """Writes a --storage as it may be printed: without a password."""
  return re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", where)


def open_study(where: str | pathlib.Path, new: bool = True) -> Study:
  """Opens the study in a file or a database.

  Args:
    where: a journal's path; or an address that Optuna takes, such as
      sqlite:///study.db, postgresql://user:word@host/name or redis://host.
    new: whether one is begun where there is none.

  Raises:
    StudyError: Optuna or the database's package is missing, there is no study,
      or something else.
    CheckpointError: the file cannot be written.
  """
  optuna = _optuna()
  url = is_url(str(where))
  storage = _database(optuna, str(where)) if url else _journal(optuna, where)
  try:
    if not new and NAME not in optuna.study.get_all_study_names(storage):
      raise StudyError(none_in(where))
    study = optuna.create_study(
      study_name=NAME,
      storage=storage,
      directions=("maximize", "minimize"),  # accuracy, score
      load_if_exists=True,
    )
  except StudyError:
    raise
  except Exception as e:  # of many types, each database's own among them
    raise StudyError(
      f"{hidden(str(where))} is not the journal or the database of a study"
      f" ({_first_line(e)}); give another --storage"
    ) from e
  return Study(study, storage, str(where))


def none_in(where: str | pathlib.Path) -> str:
  """Says that no study is there."""
  return (
    f"there is no study in {hidden(str(where))}; give the --workdir, or the"
    " --storage, of one"
  )


def _journal(optuna, path: str | pathlib.Path):
  """A file's storage."""
  path, journal = pathlib.Path(path), optuna.storages.journal
  # The lock is a file that is made exclusively, which NFS does since version 3.
  # Optuna's other one, a link, is never taken for abandoned where it leads
  # nowhere, as on a machine that has the folder under another name.
  lock = journal.JournalFileOpenLock(str(path))
  with writing(path, "--storage"):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = journal.JournalFileBackend(str(path), lock)
    lock.acquire()
    try:
      _cut_torn_line(path)
    finally:
      lock.release()
  try:
    return optuna.storages.JournalStorage(file)
  except (ValueError, KeyError, TypeError, AssertionError) as e:
    raise StudyError(
      f"{path} is not the journal of a study ({e!r}); give another --storage"
    ) from e


def _database(optuna, url: str):
  """A database's storage."""
  try:
    if url.startswith("redis"):
      backend = optuna.storages.journal.JournalRedisBackend(url)
      return optuna.storages.JournalStorage(backend)
    return optuna.storages.get_storage(url)
  except Exception as e:  # of many types, each database's own among them
    raise StudyError(
      f"{hidden(url)} cannot be opened ({_first_line(e)}); start the database"
      " and install its package, or give a file or another address as"
      " --storage"
    ) from e


def _first_line(e: Exception) -> str:
  line = hidden((str(e).splitlines() or [""])[0])
  return f"{type(e).__name__}: {line}"


def kept_config(study: Study) -> dict[str, Any]:
  """Returns the config that the study was begun with; empty without."""
  return study.optuna.user_attrs.get("config", {})


def keep_config(study: Study, config: Mapping[str, Any]) -> None:
  study.optuna.set_user_attr("config", dict(config))


def ask(
  study: Study, choices: Mapping[str, tuple], seed: int, **known: Any
) -> tuple[int, dict[str, Any]]:
  """Asks for a new trial: its number, and its values by name.

  The randomness follows from the seed and the trial's number, so that a study
  of one worker can be repeated.

  Args:
    choices: by name; those of one are not asked for.
    known: attributes that it has from the start.
  """
  trial = study.optuna.ask()
  note(study, trial.number, **known)
  state = np.random.SeedSequence([seed, trial.number]).generate_state(1)
  study.optuna.sampler = _optuna().samplers.TPESampler(seed=int(state[0]))
  params = {name: _choose(trial, name, c) for name, c in choices.items()}
  note(study, trial.number, params=params)
  return trial.number, params


def suggest(study: Study, params: Mapping[str, Any]) -> None:
  """Gives these values to the next trial that anyone asks for."""
  study.optuna.enqueue_trial(dict(params))


def note(study: Study, number: int, **attributes: Any) -> None:
  """Keeps what is known of a trial so far."""
  for name, value in attributes.items():
    study.storage.set_trial_user_attr(_id(study, number), name, value)


def charge(
  study: Study, number: int, score: float, over: Mapping[str, float]
) -> bool:
  """Keeps a trial's score, where the sampler finds it too.

  Args:
    study: the study.
    number: of the trial.
    score: of its network.
    over: by how much it is over each budget; 0 or less fits.

  Returns:
    Whether it is within all budgets.
  """
  trial = _optuna().Trial(study.optuna, _id(study, number))
  for name, excess in over.items():
    trial.set_constraint(name, excess)
  note(study, number, score=score)
  return max(over.values()) <= 0


def finish(
  study: Study, number: int, outcome: str, accuracy: float | None = None,
  **known: Any,
) -> None:  # fmt: skip
  """Ends a trial.

  Optuna models complete trials, takes halved ones for worse, and those over
  the budget for what to keep away from. One that was seen before is no news.

  Args:
    study: the study.
    number: of the trial.
    outcome: one of the states that end a trial.
    accuracy: on the validation images, of a complete trial.
    **known: more to keep of it, as `note` takes it.
  """
  state = _optuna().trial.TrialState
  note(study, number, outcome=outcome, **known)
  if outcome == COMPLETE:
    study.optuna.tell(number, (accuracy, row(study, number)["score"]))
  else:
    pruned = outcome in (HALVED, OVER)
    study.optuna.tell(number, state=state.PRUNED if pruned else state.FAIL)


def row(study: Study, number: int) -> dict[str, Any]:
  """Returns one of `rows`."""
  return _row(study.storage.get_trial(_id(study, number)))


def _id(study: Study, number: int) -> int:
  storage = study.storage
  return storage.get_trial_id_from_study_id_trial_number(
    storage.get_study_id_from_name(NAME), number
  )


def rows(study: Study) -> list[dict[str, Any]]:
  """Lists what is known of each trial, in the order of their numbers.

  `accuracy` is on validation images, a complete trial's or the last rung's.
  """
  return [_row(t) for t in study.optuna.get_trials(deepcopy=False)]


def _row(trial) -> dict[str, Any]:
  known = trial.user_attrs
  rungs = known.get("rungs", [])
  accuracy = rungs[-1]["accuracy"] if rungs else None
  if trial.values is not None:
    accuracy = trial.values[0]
  ended = trial.state.is_finished()
  return {
    "number": trial.number,
    "state": known.get("outcome", FAILED) if ended else "running",
    "params": known.get("params", dict(trial.params)),
    "score": known.get("score"),
    "accuracy": accuracy,
    "rungs": rungs,
    "seconds": known.get("seconds", 0.0),
    "reason": known.get("reason", ""),
    "home": known.get("home", ""),
  }


def _choose(trial, name: str, choices: tuple) -> Any:
  """Even steps are numbers to the sampler, others names without an order."""
  if len(choices) == 1:
    return choices[0]
  steps = {b - a for a, b in zip(choices[:-1], choices[1:], strict=True)}
  step = steps.pop()
  if not steps and type(step) is int and step > 0:
    return trial.suggest_int(name, choices[0], choices[-1], step=step)
  return trial.suggest_categorical(name, choices)


def _cut_torn_line(path: pathlib.Path) -> None:
  """Removes a line that a machine's end cut off: nothing reads beyond it."""
  with path.open("r+b") as f:
    text = f.read()
    if text and not text.endswith(b"\n"):
      f.truncate(text.rfind(b"\n") + 1)


def _optuna():
  try:
    import optuna
  except ImportError as e:
    raise StudyError(
      f"a search needs Optuna ({e}): pip install 'jaxr18[search]'"
    ) from e
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna
