"""A workdir before its run goes on: its place, its config and its starts.

A config that differs from the one there is refused where a phase that it
touches has begun. Otherwise it takes that one's place, and what it changes is
told.
"""

import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxr18.config import file as configfile
from jaxr18.config.experiment import (
  Experiment,
  Place,
  is_installed,
)
from jaxr18.config.faults import within
from jaxr18.config.lift import VERSION, as_json, lift, renamed
from jaxr18.config.schema import (
  FREE,
  flatten,
)
from jaxr18.data import named
from jaxr18.data.facts import KNOWN, Facts
from jaxr18.host import paths, sealed
from jaxr18.host.errors import writing
from jaxr18.host.files import removing, write_json
from jaxr18.nn import machine
from jaxr18.run import other_run
from jaxr18.run import result as result_lib
from jaxr18.train import checkpoint, starts
from jaxr18.train.files import latest_step


def place_of(workdir: pathlib.Path, finished: bool = False) -> Place:
  """Describes what an experiment has to fit: devices, packages, other runs.

  What is finished needs neither its sources nor as many devices.

  Args:
    workdir: of the run.
    finished: whether all of it is.
  """
  if finished:
    return Place(images=lambda d: _facts_of_result(workdir))
  return Place(
    devices=jax.device_count(),
    processes=jax.process_count(),
    ended=lambda name: (workdir / name / "phase.json").is_file(),
    source=other_run.source,
    installed=is_installed,
  )


def _facts_of_result(workdir: pathlib.Path) -> Facts:
  """What is known of a finished run's images, which may be gone."""
  result = result_lib.read(workdir)
  section, seen = result.config["data"], result.seen
  if section["name"] in KNOWN or seen is None:
    return named.facts_of(section["name"], section.get("dir", ""))
  total = section["validation"] + seen.train  # `limit` may have left some out
  return Facts(total, seen.classes, seen.size, seen.channels)


def prepare_workdir(experiment: Experiment, workdir: pathlib.Path) -> None:
  """Makes the workdir and keeps the config in it, or checks the one there.

  Another config takes its place where no phase that it touches has begun. What
  it changes is said and kept with this start, and so is what of the machine's
  arithmetic is not as it was.

  Raises:
    checkpoint.CheckpointError: it cannot be written, or was begun with another
      config.
  """
  path, new = workdir / "config.json", experiment.saved()
  with writing(path):
    workdir.mkdir(parents=True, exist_ok=True)
    write_together(path, {"version": VERSION} | new, _write_new)
  changed = check_config(experiment, workdir)
  if changed:
    version = {"version": VERSION} if sealed.demanded(workdir) else {}
    write_together(path, version | new, write_json)
  if jax.process_index() == 0:
    _keep_start(experiment, workdir, changed)


def _keep_start(
  experiment: Experiment, workdir: pathlib.Path, changed: list[str]
) -> None:
  """Adds this start to the workdir's, and says what is not as it was."""
  steps = {name: latest_step(workdir / name) for name in experiment.names}
  at = {name: step for name, step in steps.items() if step is not None}
  differs = starts.add(workdir, at, machine.arithmetic(), changed)
  if changed:
    print(f"{workdir}: the config was changed: {'; '.join(changed)}",
          file=sys.stderr, flush=True)  # fmt: skip
  if differs:
    print(
      f"{workdir} goes on by another arithmetic, and its bits will differ from"
      f" those of a run that was never stopped: {'; '.join(differs)}",
      file=sys.stderr,
      flush=True,
    )


def check_config(
  experiment: Experiment, workdir: pathlib.Path, finished: bool = False
) -> list[str]:
  """Lists what differs from the config in the workdir, a line for each field.

  Raises:
    checkpoint.CheckpointError: the run is finished, or the change touches a
      phase that has begun.
  """
  path, new = workdir / "config.json", experiment.saved()
  try:
    old = as_json(configfile.from_json(path))
  except ValueError as e:
    raise _unusable(workdir, e) from e
  changed = changes(old, new)
  begun = [
    name for name in old["phases"] if latest_step(workdir / name) is not None
  ]
  late = {
    k: v for k, v in changed.items() if finished or _touches(k, old, new, begun)
  }
  if late:
    what = "is finished" if finished else f"has begun {', '.join(begun)}"
    kept = shlex.quote(f"--config={paths.escaped(str(path))}")
    raise checkpoint.CheckpointError(
      f"{workdir} was begun with another config and {what}:"
      f" {'; '.join(late.values())}; set it back (it is in {kept}), or give"
      " another --workdir"
    )
  return list(changed.values())


def _touches(field: str, old, new, begun: list[str]) -> bool:
  """Whether a field has a say in a phase that has begun.

  A phase's own does in all later ones, which may have learned from it, and the
  place of a phase in the others' seeds.
  """
  if not begun:
    return False
  phases, last = old["phases"], old["phases"].index(begun[-1])
  if field == "phases":
    return new["phases"][: last + 1] != phases[: last + 1]
  section = field.partition(".")[0]
  if section in phases:
    return phases.index(section) <= last
  return section not in new["phases"]


def _write_new(path: pathlib.Path, value: Any) -> None:
  """Keeps a config where there is none, of a run that began with no other."""
  if path.exists():
    return
  for name in value["phases"]:
    directory = path.parent / name
    if latest := latest_step(directory):
      kept = directory / "checkpoints" / str(latest)
      meta = checkpoint.read_meta(kept)
      changed = changes(meta["config"], value)
      known = flatten(renamed(meta["config"]))
      if late := [said for field, said in changed.items() if field in known]:
        raise checkpoint.CheckpointError(
          f"{path} is gone, and {kept} was made with another config:"
          f" {'; '.join(late)}; set it back, or give another --workdir"
        )
  write_json(path, value)


def _unusable(workdir: pathlib.Path, e: Exception):
  gone = removing([workdir / "config.json", workdir / "result.json"])
  return checkpoint.CheckpointError(
    f"cannot use {workdir} as a workdir: {e}; {gone}, and the run's own command"
    " makes it again: nothing is trained anew"
  )


def changes(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, str]:
  """Lists what differs between two configs of a run and is not FREE.

  Both are as `as_json` gives them; `before` may have been saved when there were
  fewer fields.
  """
  before, after = flatten(lift(before)), flatten(lift(after))
  older = {
    "data.order": " (which is 'folder' where a config was saved without it)"
  }
  return {
    k: f"{k} was {before.get(k)!r} and is {after.get(k)!r}{older.get(k, '')}"
    for k in sorted(before.keys() | after.keys())
    if before.get(k) != after.get(k) and not within(k, FREE)
  }


def write_together(
  path: pathlib.Path, value: Any, write: Callable = sealed.write
) -> None:
  """Calls write(path, value) in the first process; the others wait for it."""
  if jax.process_index() == 0:
    write(path, value)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(path.name)
