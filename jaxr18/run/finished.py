"""A finished run, opened again by the commands that look at one."""

import difflib
import pathlib
from typing import NamedTuple

from jaxr18.config import file as configfile
from jaxr18.config.experiment import Experiment, Phase, Place
from jaxr18.config.lift import renamed
from jaxr18.config.reading import parse
from jaxr18.config.schema import flatten
from jaxr18.data import dataset as data
from jaxr18.host import paths
from jaxr18.host.errors import ToldError
from jaxr18.host.files import removing
from jaxr18.host.workdir import WorkdirError
from jaxr18.run import experiment, place
from jaxr18.run.result import Result, read


class PhaseError(ToldError):
  """A run has no phase of that name."""

  status = 2


class Finished(NamedTuple):
  """A run's folder, its experiment, its result, its data, and a phase of it."""

  workdir: pathlib.Path
  experiment: Experiment
  result: Result
  dataset: data.Dataset
  phase: Phase

  @property
  def is_last(self) -> bool:
    """Whether the phase is the one that the run's result is of."""
    return self.phase.name == self.experiment.phases[-1].name


def settings(workdir: pathlib.Path, data_dir: str | None = None) -> Experiment:
  """Opens a run's experiment from the config that it has saved.

  Args:
    workdir: of the run.
    data_dir: TFDS's folder, in place of the config's.

  Raises:
    ConfigError: there is none, or it cannot be used.
  """
  values = configfile.from_json(workdir / "config.json")
  if data_dir is not None:
    configfile.set_field(values, "data.dir", data_dir)
  return parse(values, Place(ended=lambda phase: True))


def reopen(
  workdir: str, data_dir: str | None = None, phase: str = ""
) -> Finished:
  """Opens a finished run; its networks are for `sources` to load.

  Args:
    workdir: may begin with ~.
    data_dir: TFDS's folder, in place of the config's.
    phase: whose network is wanted; '' is the last.

  Raises:
    WorkdirError: the run is not finished, there is none, or it is damaged.
    PhaseError: it has no such phase.
  """
  folder = paths.folder(workdir)
  result = read(folder)
  opened = settings(folder, data_dir)
  _check_config(folder, opened, result)
  phases = {p.name: p for p in opened.phases}
  if phase and phase not in phases:
    near = difflib.get_close_matches(phase, phases, 1)
    raise PhaseError(
      f"--phase={phase} must be a phase of {folder}, one of"
      f" {', '.join(phases)}" + (f"; did you mean {near[0]}?" if near else "")
    )
  dataset = experiment.load_data(opened.data)
  _check_images(folder, result, dataset)
  chosen = phases[phase] if phase else opened.phases[-1]
  return Finished(folder, opened, result, dataset, chosen)


def _check_images(folder: pathlib.Path, result: Result, dataset) -> None:
  """Raises WorkdirError where the images are others than the run has seen."""
  seen = result.seen
  if seen is None or seen.fingerprint == dataset.fingerprint:
    return
  raise WorkdirError(
    f"{folder} has seen images of {seen.name} with the fingerprint"
    f" {seen.fingerprint}, and those of {dataset.name} here have"
    f" {dataset.fingerprint}: give the same ones back, or --data_dir=FOLDER"
    " where they lie"
  )


def _check_config(
  folder: pathlib.Path, opened: Experiment, result: Result
) -> None:
  """Raises WorkdirError where config.json is another than the result has."""
  made_with = flatten(renamed(result.config))
  changed = place.changes(result.config, opened.saved())
  said = [text for field, text in changed.items() if field in made_with]
  if said:
    gone = removing([folder / "config.json", folder / "result.json"])
    raise WorkdirError(
      f"{folder}/config.json is not what {folder}/result.json was made with:"
      f" {'; '.join(said)}; {gone}, and the run's own command makes them again:"
      " nothing is trained anew"
    )
