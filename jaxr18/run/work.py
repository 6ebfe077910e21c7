"""An experiment at work: where, on what, and who is told."""

import dataclasses
import pathlib

import jax

from jaxr18.config.experiment import (
  Experiment,
)
from jaxr18.data import dataset as data
from jaxr18.host.stop import StopSignal
from jaxr18.train.hooks import Hook
from jaxr18.train.writers import Writer


@dataclasses.dataclass(frozen=True)
class Run:
  """An experiment at work: where, on what, and who is told.

  Attributes:
    experiment: of the workdir.
    workdir: of the run.
    dataset: of the experiment.
    mesh: over which batches are split.
    stop: says whether a signal has come.
    writer: gets each epoch's numbers too.
    hooks: of the training loop, after those that prune and show.
  """

  experiment: Experiment
  workdir: pathlib.Path
  dataset: data.Dataset
  mesh: jax.sharding.Mesh
  stop: StopSignal
  writer: Writer | None = None
  hooks: tuple[Hook, ...] = ()
