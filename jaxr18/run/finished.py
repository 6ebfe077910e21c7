"""A finished run, opened again by the commands that look at one."""

import pathlib
from typing import NamedTuple

from jaxr18.config import file as configfile
from jaxr18.config.experiment import Experiment, Place
from jaxr18.config.lift import renamed
from jaxr18.config.reading import parse
from jaxr18.config.schema import flatten
from jaxr18.data import dataset as data
from jaxr18.host import paths
from jaxr18.host.files import removing
from jaxr18.host.workdir import WorkdirError
from jaxr18.run import experiment
from jaxr18.run.result import Result, read


class Finished(NamedTuple):
  """A run's folder, its experiment, its result, and its data."""

  workdir: pathlib.Path
  experiment: Experiment
  result: Result
  dataset: data.Dataset


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


def reopen(workdir: str, data_dir: str | None = None) -> Finished:
  """Opens a finished run; its networks are for `sources` to load.

  Args:
    workdir: may begin with ~.
    data_dir: TFDS's folder, in place of the config's.

  Raises:
    WorkdirError: the run is not finished, there is none, or it is damaged.
  """
  folder = paths.folder(workdir)
  result = read(folder)
  opened = settings(folder, data_dir)
  _check_config(folder, opened, result)
  return Finished(folder, opened, result, experiment.load_data(opened.data))


def _check_config(
  folder: pathlib.Path, opened: Experiment, result: Result
) -> None:
  """Raises WorkdirError where config.json is another than the result has."""
  made_with = flatten(renamed(result.config))
  changed = experiment.changes(result.config, opened.saved())
  said = [text for field, text in changed.items() if field in made_with]
  if said:
    gone = removing([folder / "config.json", folder / "result.json"])
    raise WorkdirError(
      f"{folder}/config.json is not what {folder}/result.json was made with:"
      f" {'; '.join(said)}; {gone}, and the run's own command makes them again:"
      " nothing is trained anew"
    )
