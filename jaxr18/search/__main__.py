"""Searches networks: which are accurate, and which cheap.

    python -m jaxr18.search --config=configs/search.py --trials=16
    python -m jaxr18.search --config=configs/search.py:digits --trials=6
    python -m jaxr18.search --workdir=runs/search --report

Trains candidates that the config's section `search` describes, each scored
before: those over its budget are never trained. At each rung only the best go
on. Ends when the study has --trials candidates that were trained to their end
or to a rung. The same command resumes; run by several processes, or machines
that share --workdir, it joins one study, and takes up what a killed one left.
Ctrl-C or SIGTERM saves before it stops. After each trial WORKDIR/search.json
has all of them, and pareto.html the picture. No test image is looked at: that
is for the chosen, by jaxr18.main --config=WORKDIR/trials/NUMBER/config.json.

Exit status: 0 when the study is finished, or stopped and saved; 1 when it
cannot go on; 2 when the command or the config cannot be run.
"""

import pathlib
import time
from typing import Any

from absl import app, flags

from jaxr18 import cli
from jaxr18.config.schema import describe_search
from jaxr18.host import paths

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag(
  "Where the study lives; default: runs/NAME[-ARGUMENT] of the config."
)
_TRIALS = flags.DEFINE_integer(
  "trials", None, "Candidates wanted of the study altogether.", lower_bound=1
)
_STORAGE = flags.DEFINE_string(
  "storage",
  None,
  "The study's journal, or the address of a database that Optuna knows, such as"
  " sqlite:///study.db; default: WORKDIR/journal.log.",
)
_REPORT = flags.DEFINE_bool(
  "report", False, "Only write and print what there is."
)

# Trials between which compiled programs are dropped: each has some of its own.
_CLEAR_EVERY = 10


def main(argv: list[str]) -> None:
  del argv
  values = _config()
  workdir = paths.folder(
    _WORKDIR.value or str(cli.default_workdir(_CONFIG.file))
  )
  path = _STORAGE.value or str(workdir / "journal.log")
  if not paths.remote(path):
    path = str(paths.folder(path))
  if _REPORT.value:
    return _report(workdir, path)
  # As in jaxr18.main: imported late, memory and signals first.
  from jaxr18.host import memory
  from jaxr18.host import stop as stop_lib

  memory.keep_freed_memory()
  stop = stop_lib.on_stop_signals()
  with stop.may_leave(str(workdir)):
    from jaxr18.config.reading import parse
    from jaxr18.config.search import chosen_fields
    from jaxr18.host import compiled
    from jaxr18.host.files import try_writing
    from jaxr18.host.locks import in_turn
    from jaxr18.run import experiment, place
    from jaxr18.search import storage
    from jaxr18.train.mesh import make_mesh

    searched = parse(values, place.place_of(workdir))
    compiled.keep_compiled()
  try_writing(workdir / "search.json")
  new = searched.saved()
  with in_turn(workdir):
    study = storage.open_study(path)
    before = storage.kept_config(study)
    if not before:
      storage.keep_config(study, new)
  changed = place.changes(before, new) if before else {}
  told = [
    text
    for name, text in changed.items()
    if name not in chosen_fields(searched.phases[0].name)
  ]
  if told:
    raise storage.StudyError(
      f"{storage.hidden(path)} is a study of another config:"
      f" {'; '.join(told)}; set it back, or give another --workdir"
      " or --storage"
    )
  with stop.may_leave(str(workdir)):
    dataset, mesh = experiment.load_data(searched.data), make_mesh()
  _work(study, searched, workdir, dataset, mesh, stop)


def _config() -> dict[str, Any]:
  """A search's values, not checked; {} where only a report is due."""
  if _REPORT.value:
    if not _CONFIG.file and not _WORKDIR.value:
      raise app.UsageError("give --workdir=DIR of a study")
    return {}
  config = _CONFIG.value
  if config is None:
    raise app.UsageError(
      "give --config=FILE with a section `search`, such as configs/search.py,"
      " and --trials=N"
    )
  if "search" not in config:
    raise app.UsageError(
      f"--config={_CONFIG.file} has no section `search`: start it from"
      " base(search=True), as configs/search.py does"
    )
  if _TRIALS.value is None:
    raise app.UsageError("give --trials=N, such as --trials=16")
  return config


def _work(study, searched, workdir, dataset, mesh, stop) -> None:
  """Trains candidates until there are enough, or until it is stopped."""
  import jax

  from jaxr18.config.search import describe_candidate, dimensions
  from jaxr18.host.locks import in_turn
  from jaxr18.host.stop import Stopped
  from jaxr18.search import storage, table, trial
  from jaxr18.train.progress import duration

  count = lambda rows: len(trial.finished(rows))
  began, first = time.monotonic(), None
  wanted = _TRIALS.value or 0  # which `_config` has asked for
  while not stop.received:
    work = trial.find_work(study, searched, workdir, wanted)
    if work is None:
      break
    if first is None:
      first = count(storage.rows(study))
      print(f"{workdir}: {first} of {wanted} trials are finished", flush=True)
    if work.untrained:
      print(
        f"{work.untrained} candidates were over a budget or seen before, and"
        " not trained"
      )
    print(
      f"trial {work.number}{' goes on' if work.begun else ''},"
      f" {count(storage.rows(study)) + 1} of {wanted}:"
      f" {describe_candidate(work.params)}; score {work.score:.6f}",
      flush=True,
    )
    with work.lock:
      row = trial.train(study, searched, work, dataset, mesh, stop)
    with in_turn(workdir):
      rows = table.write(study, workdir)
    if work.number % _CLEAR_EVERY == 0:
      jax.clear_caches()
    if row["state"] != "running":
      done = count(rows)
      each = (time.monotonic() - began) / max(1, done - first)
      left = duration(each * max(0, wanted - done))
      tail = f", about {left} left" if done < wanted else ""
      print(f"{table.line(row)}; {done} of {wanted} done{tail}", flush=True)
  if stop.received:
    raise Stopped(f"{workdir} stopped")
  with in_turn(workdir):
    rows = table.write(study, workdir)
  running = [r["number"] for r in rows if r["state"] == "running"]
  choices = dimensions(searched.chosen)
  if count(rows) < wanted and trial.exhausted(rows, choices):
    print("The study has had every candidate that config.search describes.")
  print(f"{count(rows)} of {wanted} trials are finished, the best of them:")
  print(table.front_text(rows))
  if running:
    print(
      f"trials {running} are being trained by others; where a worker was"
      " killed, the same command beside its folder takes its trial up"
    )
  print(f"all in {workdir}/search.json and pareto.html")


def _report(workdir: pathlib.Path, path: str) -> None:
  from jaxr18.host.errors import writing
  from jaxr18.host.locks import in_turn
  from jaxr18.search import storage, table

  if not (storage.is_url(path) or pathlib.Path(path).exists()):
    raise app.UsageError(storage.none_in(path))
  study = storage.open_study(path, new=False)
  with writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  with in_turn(workdir):
    rows = table.write(study, workdir)
  print(table.front_text(rows))
  print(f"all in {workdir}/search.json and pareto.html")


if __name__ == "__main__":
  cli.run(main, describe_search)
