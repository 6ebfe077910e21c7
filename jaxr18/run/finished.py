"""A finished run, opened again by the commands that look at one."""

import json
import pathlib
from typing import Any, NamedTuple

import ml_collections

from jaxr18.config import file as configfile
from jaxr18.config.checks import validate
from jaxr18.config.schema import flatten
from jaxr18.data import dataset as data
from jaxr18.host import paths
from jaxr18.host.workdir import WorkdirError, read_result
from jaxr18.run import experiment
from jaxr18.train.files import removing


class Finished(NamedTuple):
  """A run's folder, its config, what its result.json holds, and its data."""

  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  result: dict[str, Any]
  dataset: data.Dataset


def settings(
  workdir: pathlib.Path, data_dir: str | None = None
) -> ml_collections.ConfigDict:
  """A run's config, checked.

  Args:
    workdir: of the run.
    data_dir: TFDS's folder, in place of the config's.

  Raises:
    configfile.ConfigError: there is none, or it cannot be used.
  """
  config = configfile.from_json(workdir / "config.json")
  validate(config, sources=False, ended=lambda phase: True)
  if data_dir is not None:
    config.data.dir = data_dir
  return config


def reopen(workdir: str, data_dir: str | None = None) -> Finished:
  """Opens a finished run; its networks are for `sources` to load.

  Args:
    workdir: may begin with ~.
    data_dir: TFDS's folder, in place of the config's.

  Raises:
    WorkdirError: the run is not finished, there is none, or it is damaged.
  """
  folder = paths.folder(workdir)
  result = read_result(folder)
  config = settings(folder, data_dir)
  _check_config(folder, config, result)
  return Finished(folder, config, result, experiment.load_data(config))


def _check_config(folder: pathlib.Path, config, result: dict[str, Any]) -> None:
  """Raises WorkdirError where config.json is another than the result has."""
  made_with = flatten(result["config"])
  kept = json.loads(config.to_json())
  changed = experiment.changes(result["config"], kept)
  said = [text for field, text in changed.items() if field in made_with]
  if said:
    gone = removing([folder / "config.json", folder / "result.json"])
    raise WorkdirError(
      f"{folder}/config.json is not what {folder}/result.json was made with:"
      f" {'; '.join(said)}; {gone}, and the run's own command makes them again:"
      " nothing is trained anew"
    )
