"""What a config names that is no phase of it: other runs, files of weights."""

import pathlib
from typing import Any

from jaxr18.config.experiment import Source
from jaxr18.config.forecast.outlook import (
  outlooks_of_networks,
  outlooks_of_result,
)
from jaxr18.config.lift import lift
from jaxr18.config.schema import Data
from jaxr18.data import named
from jaxr18.data.facts import CIFAR10, DataError, Facts
from jaxr18.deploy import torch_weights
from jaxr18.host import paths
from jaxr18.host.workdir import WorkdirError
from jaxr18.run.parts import Images
from jaxr18.run.result import read
from jaxr18.train.files import mend_checkpoint

# What says which images a run has not been trained on.
_HELD_OUT = ("validation", "split_seed", "order")


def source(data: Data, name: str) -> Source:
  """Describes the networks of a finished run, or of PyTorch's weights.

  Args:
    data: of the run that is to take them.
    name: as the config has it.
  """
  path, here = paths.folder(name), _facts(data)
  if torch_weights.is_name(path):
    return _weights(path, here)
  try:
    result = read(path)
    outlooks = outlooks_of_result(result.to_json(), name)
    was = lift(result.config)["data"]
    held_out = {k: was[k] for k in _HELD_OUT}
    phase, left = list(result.phases.items())[-1]
  except WorkdirError as e:
    return Source(faults=(("", str(e)),))
  except (ValueError, KeyError, TypeError) as e:
    return Source(faults=(("", repr(e)),))
  faults = _data_faults(data, was["name"], held_out)
  if not faults and result.seen is not None:
    faults = _other_images(here, result.seen)
  kept = path / phase / "checkpoints" / str(left.step)
  if not kept.is_dir():
    mend = f"there is no {kept} any more; {mend_checkpoint(kept)}"
    faults = [("", mend), *faults]
  return Source(outlooks, tuple(faults))


def _facts(data: Data) -> Facts:
  """Those of the section; what is wrong with it is told elsewhere."""
  try:
    return named.facts_of(data.name, data.dir)
  except DataError:
    return CIFAR10


def _other_images(here: Facts, seen: Images) -> list[tuple[str, str]]:
  """A file of the same name that was another one."""
  there = seen.classes, seen.size, seen.channels
  if there == (here.classes, here.size, here.channels):
    return []
  return [
    (
      "must be of a run on the same images: it has seen {} classes, {} pixels a"
      " side and {} channels, and here they are {}, {} and {}".format(
        *there, here.classes, here.size, here.channels
      ),
      "train one on these data first",
    )
  ]


def _data_faults(
  data: Data, name: str, held_out: dict[str, Any]
) -> list[tuple[str, str]]:
  """What keeps a run of other data, or other splits of them, from use."""
  here = {k: getattr(data, k) for k in _HELD_OUT}
  if name != data.name:
    return [
      (
        f"must be of a run on the same data: it was {name!r}, here"
        f" config.data.name is {data.name!r}",
        "train one on these data first",
      )
    ]
  if not data.validation or held_out == here:
    return []
  same = (f"--config.data.{k}={v}" for k, v in held_out.items() if v != here[k])
  return [
    (
      "must have held out the same validation images, or it has seen those that"
      f" select here: its data had {_fields(held_out)}, here they are"
      f" {_fields(here)}",
      f"give both the same, such as {' '.join(same)}",
    )
  ]


def _weights(path: pathlib.Path, here: Facts) -> Source:
  """The network of a file of PyTorch's, which takes images as ours."""
  try:
    net = torch_weights.load(path)
  except torch_weights.WeightsError as e:
    return Source(faults=(("", str(e)),))
  faults = tuple(
    (
      f"must {what.format(want)}, it has {got}",
      "give weights that were trained on these data",
    )
    for what, got, want in (
      ("tell {} classes apart", net.spec.head.classes, here.classes),
      ("take images of {} channels", net.spec.channels, here.channels),
    )
    if got != want
  )
  return Source(outlooks_of_networks([net], str(path)), faults)


def _fields(values: dict[str, Any]) -> str:
  return ", ".join(f"{k}={v!r}" for k, v in values.items())
