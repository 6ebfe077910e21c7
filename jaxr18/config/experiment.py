"""A checked, typed experiment, and what of its surroundings it has to fit."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxr18.config.forecast.outlook import Outlook
from jaxr18.config.lift import as_json
from jaxr18.config.schema import Checkpoint, Data, PhaseOptions, Search
from jaxr18.data.facts import Facts
from jaxr18.data.named import facts_of
from jaxr18.nn.spec import NetSpec


@dataclasses.dataclass(frozen=True)
class Source:
  """Another run's networks, or a file's, as a config names them.

  Attributes:
    outlooks: of its networks; None where they cannot be read.
    faults: what keeps a run from taking them: what the field must be, and how
      to mend it.
  """

  outlooks: Sequence[Outlook] | None = None
  faults: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an experiment is to run, as far as its config has to fit that.

  Attributes:
    devices: that share a batch.
    processes: that train together.
    ended: whether a phase of that name is finished, and so needs neither its
      sources nor devices that fit.
    source: what a name stands for that is no phase; for these data.
    images: what is known of the images that the section `data` names.
    installed: whether a package is there.
  """

  devices: int = 1
  processes: int = 1
  ended: Callable[[str], bool] = lambda phase: False
  source: Callable[[Data, str], Source] = lambda data, name: Source()
  installed: Callable[[str], bool] = lambda package: True
  images: Callable[[Data], Facts] = lambda data: facts_of(data.name, data.dir)


ANYWHERE = Place()


def is_installed(package: str) -> bool:
  """Returns whether a package can be imported."""
  return importlib.util.find_spec(package) is not None


@dataclasses.dataclass(frozen=True)
class Phase:
  """One phase of an experiment, which can be run.

  Attributes:
    name: of the phase.
    index: its place in the experiment, which its random numbers depend on.
    options: all of its fields.
    spec: of its network; None where that follows from a source.
    outlooks: what is known of its networks before they are trained; None where
      a source that decides it cannot be read.
  """

  name: str
  index: int
  options: PhaseOptions
  spec: NetSpec | None
  outlooks: Sequence[Outlook] | None


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What is to be run: typed, checked, and never changed again.

  Attributes:
    seed, data, checkpoint, eval_batch_size, progress: of `schema.Options`.
    writers: the names of them.
    phases: in their order.
    search: what a search may choose; None where it is no search.
    values: all fields as plain nested values, which config.json holds.
  """

  seed: int
  data: Data
  checkpoint: Checkpoint
  eval_batch_size: int
  progress: str
  writers: tuple[str, ...]
  phases: tuple[Phase, ...]
  search: Search | None
  values: Mapping[str, Any]

  @property
  def names(self) -> tuple[str, ...]:
    """Of the phases, in their order."""
    return tuple(phase.name for phase in self.phases)

  @property
  def chosen(self) -> Search:
    """What the search may choose, of an experiment that is one."""
    if self.search is None:
      raise ValueError("the experiment has no section `search`")
    return self.search

  def saved(self) -> dict[str, Any]:
    """Returns all fields as JSON gives them back, for config.json."""
    return as_json(self.values)
