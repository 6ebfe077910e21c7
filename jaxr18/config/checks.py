"""A config is checked once and whole, before anything runs.

ml_collections lets None through for any field, a list for a tuple, and any
type inside a tuple. What is checked here can be relied on everywhere else.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from jaxr18.config.distill import check_members, check_teaching
from jaxr18.config.file import ConfigError
from jaxr18.config.forecast.outlook import (
  Outlook,
  outlooks_of_networks,
  outlooks_of_result,
)
from jaxr18.config.forecast.phase import check_features, foresee
from jaxr18.config.network import CHANNELS, CLASSES, check_network, network_spec
from jaxr18.config.prune import check_prune
from jaxr18.config.quantize import (
  check_calibration,
  check_dampening,
  check_learned,
  check_quantize,
  check_two_bits,
)
from jaxr18.config.schema import (
  EXPERIMENT,
  PHASE,
  SEARCH,
  TRAINING_IMAGES,
  completed,
  knobs,
  within,
)
from jaxr18.config.search import check_search, extremes, per_layer_score
from jaxr18.config.writers import WRITERS, check_writers
from jaxr18.deploy import torch_weights
from jaxr18.host import paths
from jaxr18.host.paths import names
from jaxr18.host.workdir import WorkdirError, read_result
from jaxr18.nn.spec import Layer
from jaxr18.train.files import mend_checkpoint

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MISSING = object()
_HELD_OUT = ("validation", "split_seed", "order")  # say which images were


def validate(
  config: ml_collections.ConfigDict,
  devices: int = 1,
  sources: bool = True,
  ended: Callable[[str], bool] = lambda name: False,
  processes: int = 1,
  read: Callable[[str], list[Outlook] | None] = lambda value: None,
) -> dict[str, list[Outlook] | None]:
  """Raises ConfigError where the config cannot be run.

  Each line names the field, its value, what is allowed and how to mend it.

  Args:
    config: as `base` makes it.
    devices: that share a batch.
    sources: whether what else a run needs must be there: other runs that `init`
      and `teacher` name, the packages of `writers`.
    ended: whether a phase of that name is finished, and so needs neither its
      sources nor devices that fit.
    processes: that train together.
    read: without `sources`, gives the outlooks of another run or of weights
      that a field names, or None.

  Returns:
    What is known of each phase's networks before it is trained (`forecast`),
    by name; None where a source that decides it cannot be read.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(
      f"config (={config!r}) must be a ConfigDict; start from"
      " jaxr18.config.base()"
    )
  check = Problems(config)
  check.phases()
  if not check.problems:
    section = {"search": SEARCH} if "search" in config else {}
    table = EXPERIMENT | dict.fromkeys(config.phases, PHASE) | section
    check.fields(table)
    check.batches(devices, ended)
    check_writers(check, sources)
    outlooks: dict[str, list[Outlook] | None] = {}
    for name in config.phases:
      check.training(name)
      check_prune(check, name)
      check_quantize(check, name)
      check_teaching(check, name, 1 if ended(name) else processes)
      check_members(check, name)
      check_network(check, name)
      found = check.sources(name, outlooks, sources and not ended(name), read)
      outlooks[name] = check.outlooks(name, found, ended(name))
      layers = check.layers(name, outlooks[name])
      check_calibration(check, name, layers)
      check_learned(check, name, layers)
      check_two_bits(check, name, layers)
      check_dampening(check, name, layers)
    if section and not check.problems:
      check_search(check)
    if section and not check.problems:
      _check_candidates(check, devices, found["init"])
  if check.problems:
    raise ConfigError("\n".join(check.problems))
  return outlooks


def _check_candidates(check, devices: int, init) -> None:
  """Notes what is wrong with the first candidate that cannot be run."""
  for params, candidate in extremes(check.config):
    try:
      validate(candidate, devices, sources=False, read=lambda value: init)
      per_layer_score(candidate, init)
    except ValueError as e:
      check.problems.append(
        f"config.search allows the candidate {params}, which cannot be run: {e}"
      )
      return


class Problems:
  """What is wrong, found so far; who checks several fields asks `good` first.

  Attributes:
    problems: one line each.
  """

  def __init__(self, config):
    self.config = config
    self.problems: list[str] = []
    self.bad: set[str] = set()

  def add(self, field: str, must: str, mend: str) -> None:
    """Notes what `field` must be and how to mend it."""
    self.bad.add(field)
    value = self.get(field)
    shown = "is missing and" if value is _MISSING else f"(={_show(value)})"
    self.problems.append(f"config.{field} {shown} {must}; {mend}")

  def get(self, field: str) -> Any:
    """A field's value by its dotted name; '' is the whole config."""
    value = self.config
    for part in field.split(".") if field else ():
      if not isinstance(value, ml_collections.ConfigDict):
        return _MISSING
      try:
        value = value.get(part, _MISSING)
      except ml_collections.config_dict.RequiredValueError:
        return _MISSING
    return value

  def good(self, *fields: str) -> bool:
    """Whether the fields exist and nothing is wrong with them so far."""
    return not any(within(f, self.bad) for f in fields)

  def phases(self) -> None:
    names = self.get("phases")
    if not isinstance(names, tuple) or not names:
      self.add(
        "phases",
        "must be a tuple of names, not empty",
        "start the config from base(phases=('teacher', 'student'))",
      )
      return
    for name in dict.fromkeys(names):
      if not isinstance(name, str) or not NAME.fullmatch(name):
        must = "a name of at most 64 small letters, digits and _"
        self.add("phases", f"has {name!r}, which must be {must}", "rename it")
      elif name in (
        *EXPERIMENT,
        *WRITERS,
        "phases",
        "search",
        *dir(ml_collections.ConfigDict),
      ):
        self.add(
          "phases",
          f"has {name!r}, which must not be a field, a method or a writer",
          "rename the phase",
        )
      elif self.get(name) is _MISSING:
        self.add(
          "phases",
          f"has {name!r}, which must have a section config.{name}",
          f"start the config from base(phases={names!r})",
        )
      elif names.count(name) > 1:
        self.add("phases", f"must have {name!r} only once", "rename one")

  def fields(self, table: dict[str, Any], prefix: str = "") -> None:
    """Each field by itself, and that there is no other."""
    section = self.get(prefix.rstrip("."))
    for key in section.keys():
      if key not in table and prefix + key != "phases":
        self.add(prefix + key, "is not a field that anything reads",
                 self.nearest(prefix + key, list(table)))  # fmt: skip
    for key, knob in table.items():
      name = prefix + key
      value = self.get(name)
      if isinstance(knob, dict):
        if isinstance(value, ml_collections.ConfigDict):
          self.fields(knob, f"{name}.")
        else:
          self.add(
            name,
            "must be a section of fields",
            f"leave it as base() makes it and set config.{name}.FIELD",
          )
      elif value is _MISSING:
        self.add(name, f"must be {knob.allowed()}", f"such as {knob.default!r}")
      else:
        for must, mend in knob.faults(value):
          self.add(name, must, mend)

  def nearest(self, name: str, siblings: list[str]) -> str:
    """What may have been meant: the same name elsewhere, or one like it."""
    prefix, _, last = name.rpartition(".")
    search = "search" in self.config
    known = [n for n, _ in knobs(self.config.phases, search)]
    near = [n for n in known if n.rpartition(".")[2] == last]
    if not near:
      near = difflib.get_close_matches(last, siblings, 1)
      near = [f"{prefix}.{n}".lstrip(".") for n in near]
    if near:
      return f"did you mean {' or '.join(f'config.{n}' for n in near)}?"
    if isinstance(self.get(name), ml_collections.ConfigDict):
      return "remove it, or name it in config.phases"
    return "remove it; --help lists the fields"

  def batches(self, devices: int, ended: Callable[[str], bool]) -> None:
    if not self.good("data.name", "data.validation", "data.limit"):
      return
    data = self.config.data
    total = TRAINING_IMAGES[data.name]
    if data.validation >= total:
      self.add(
        "data.validation",
        f"must be less than the {total} training images of {data.name}",
        f"lower it, such as to {total // 10}",
      )
      return
    count = _training_images(data)
    for name in self.config.phases:
      if not self.good(f"{name}.batch_size", f"{name}.epochs"):
        continue
      size, epochs = self.config[name].batch_size, self.config[name].epochs
      if size > count:
        self.add(
          f"{name}.batch_size",
          f"must be at most {count}, the training images that data.validation"
          f" (={data.validation}) and data.limit (={data.limit}) leave",
          "lower it",
        )
      elif size % devices and not ended(name):
        self.add(
          f"{name}.batch_size",
          f"must be divisible by the {devices} devices that share a batch",
          f"write {max(1, size // devices) * devices}",
        )
      elif epochs * (count // size) >= 2**31:
        self.add(
          f"{name}.epochs",
          f"must be fewer: {epochs * (count // size)} steps overflow an int32",
          f"lower it to {2**31 // (count // size) - 1} or less",
        )

  def training(self, name: str) -> None:
    c = self.config[name]
    if self.good(f"{name}.warmup_epochs", f"{name}.epochs"):
      if c.epochs and c.warmup_epochs > c.epochs:
        self.add(
          f"{name}.warmup_epochs",
          f"must be at most config.{name}.epochs (={c.epochs})",
          "lower it or train longer",
        )

  def sources(
    self, name: str, earlier: dict[str, Any], needed: bool, read
  ) -> dict[str, list[Outlook] | None]:
    """Other networks that a phase names, by field, each field's in its order.

    Args:
      name: the phase.
      earlier: outlooks of the earlier phases.
      needed: whether they must be there, finished, and of the same data.
      read: gives those that need not.

    Returns:
      None for a field of which one is not known.
    """
    out: dict[str, list[Outlook] | None] = {}
    for field in ("init", "teacher", "rewind", "others", "ensemble.members"):
      full, found = f"{name}.{field}", []
      out[field] = found
      if not self.good(full):
        continue
      if one := paths.misread(self.get(full), self.config.phases):
        must = "has a name that a comma ends or a backslash changes"
        self.add(full, must, f"write {one}, in Python {one!r}")
        continue
      for value in names(self.get(full)):
        if value in earlier:
          one = earlier[value]
        elif value in self.config.phases:
          one = None
          self.add(
            full,
            _must_be_source(earlier),
            "choose one, or change the order in config.phases",
          )
        else:
          one = self.finished(full, value, earlier) if needed else read(value)
        found = None if one is None or found is None else found + one
      out[field] = found
    return out

  def outlooks(
    self, name: str, sources: dict[str, Any], ended: bool
  ) -> list[Outlook] | None:
    """What a phase's networks will be; notes what cannot be."""
    if any(within(bad, (name,)) for bad in self.bad):
      return None

    def fault(field: str, must: str, mend: str) -> None:
      if not ended:
        self.add(f"{name}.{field}", must, mend)

    c = self.config[name]
    found = foresee(c, name, sources, self.steps(name), fault)
    if found is not None:
      check_features(c, found, sources["teacher"], fault)
    return found

  def layers(self, name: str, found: list[Outlook] | None) -> Sequence[Layer]:
    """A phase's layers in their bits; none where they are not known."""
    fields = [f"{name}.network.{field}" for field in PHASE["network"]]
    if not self.good(*fields, f"{name}.shrink"):
      return ()
    if self.config[name].shrink:
      return found[0].spec.layers() if found else ()
    return network_spec(self.config[name].network).layers()

  def steps(self, name: str) -> int:
    """Of a phase's training; 0 where the data section is wrong."""
    if any(within(bad, ("data",)) for bad in self.bad):
      return 0
    data, c = self.config.data, self.config[name]
    return c.epochs * (_training_images(data) // c.batch_size)

  def finished(self, full: str, value: str, earlier) -> list[Outlook] | None:
    """The networks of another run's workdir, or of PyTorch's weights."""
    workdir = paths.folder(value)
    must = _must_be_source(earlier)
    if torch_weights.is_name(workdir):
      return self.weights(full, must, workdir)
    try:
      result = read_result(workdir)
      found = outlooks_of_result(result, value)
      data = completed(result["config"])["data"]
      held_out = {k: data[k] for k in _HELD_OUT}
      phase = result["config"]["phases"][-1]
      step = result["phases"][phase]["step"]
    except (WorkdirError, ValueError, KeyError, TypeError) as e:
      self.add(full, must, str(e) if isinstance(e, WorkdirError) else repr(e))
      return None
    kept = workdir / phase / "checkpoints" / str(step)
    if not kept.is_dir():
      self.add(
        full, must, f"there is no {kept} any more; {mend_checkpoint(kept)}"
      )
    if not self.good("data.name", *(f"data.{k}" for k in _HELD_OUT)):
      return found
    here = self.config.data
    expected = {k: here[k] for k in _HELD_OUT}
    if data["name"] != here.name:
      self.add(
        full,
        f"must be of a run on the same data: it was {data['name']!r}, here"
        f" config.data.name is {here.name!r}",
        "train one on these data first",
      )
    elif here.validation and held_out != expected:
      self.add(
        full,
        "must have held out the same validation images, or it has seen those"
        f" that select here: its data had {_fields(held_out)}, here they are"
        f" {_fields(expected)}",
        "give both the same, such as "
        + " ".join(
          f"--config.data.{k}={v}"
          for k, v in held_out.items()
          if v != expected[k]
        ),
      )
    return found

  def weights(self, full: str, must: str, path) -> list[Outlook] | None:
    """The network of a file of PyTorch's, which takes images as ours."""
    try:
      net = torch_weights.load(path)
    except torch_weights.WeightsError as e:
      self.add(full, must, str(e))
      return None
    for what, got, want in (
      ("tell {} classes apart", net.spec.head.classes, CLASSES),
      ("take images of {} channels", net.spec.channels, CHANNELS),
    ):
      if got != want:
        self.add(
          full,
          f"must {what.format(want)}, it has {got}",
          "give weights that were trained on these data",
        )
    return outlooks_of_networks([net], str(path))


def _fields(values: dict[str, Any]) -> str:
  return ", ".join(f"{k}={v!r}" for k, v in values.items())


def _training_images(data) -> int:
  """How many images of a data section are trained on."""
  total = TRAINING_IMAGES[data.name]
  return min(data.limit or total, total - data.validation)


def _must_be_source(earlier) -> str:
  must = "must be a finished run's workdir, a file of PyTorch's weights"
  return f"{must} or an earlier phase ({', '.join(earlier) or 'none here'})"


def _show(value: Any) -> str:
  """Its repr; of a section only the beginning."""
  if not isinstance(value, ml_collections.ConfigDict):
    return repr(value)
  text = repr(value.to_dict())
  return text if len(text) < 100 else f"{text[:96]} ..."
