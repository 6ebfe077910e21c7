"""From a config as a person writes it to a checked, typed experiment."""

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jaxr18.config import search as search_lib
from jaxr18.config.checks import LAYER_CHECKS, PHASE_CHECKS, Draft
from jaxr18.config.configdict import plain
from jaxr18.config.experiment import ANYWHERE, Experiment, Phase, Place
from jaxr18.config.faults import MISSING, ConfigError, Findings
from jaxr18.config.forecast.outlook import Outlook
from jaxr18.config.forecast.phase import check_features, foresee
from jaxr18.config.network import network_faults, network_spec
from jaxr18.config.schema import (
  Data,
  Options,
  PhaseOptions,
  Search,
  fields,
  staged,
)
from jaxr18.data.facts import CIFAR10, DataError, Facts, ImagesError
from jaxr18.host import paths
from jaxr18.host.paths import names
from jaxr18.nn.spec import Layer, NetSpec

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

# The package of each writer, which the extra of the same name installs.
WRITERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}

# The fields of a phase that name other networks.
SOURCES = ("start.init", "teacher.source", "start.rewind", "loss.others",
           "ensemble.members")  # fmt: skip


def parse(config: Any, place: Place = ANYWHERE) -> Experiment:
  """Checks a config, and returns the experiment that it describes.

  Args:
    config: a `ConfigDict`, or nested values.
    place: where it is to run.

  Raises:
    ConfigError: it cannot be run. Each line names the field, its value, what
      is allowed and how to mend it.
  """
  if not isinstance(config, Mapping | ml_collections.ConfigDict):
    raise ConfigError(
      f"config (={config!r}) must be a ConfigDict; start from"
      " jaxr18.config.base()"
    )
  values = plain(config)
  findings = Findings(values)
  _check_phases(findings)
  if findings.faults:
    raise ConfigError(*findings.faults)
  reading = _Reading(findings, place)
  reading.check_images()
  reading.check_batches()
  _check_writers(findings, reading.shared, place)
  phases = tuple(
    reading.phase(i, name) for i, name in enumerate(values["phases"])
  )
  if reading.search is not None and not findings.faults:
    search_lib.check(
      findings, reading.shared, phases, reading.search, place, parse
    )
  if findings.faults:
    raise ConfigError(*findings.faults)
  shared = reading.shared
  return Experiment(
    seed=shared.seed,
    data=shared.data,
    checkpoint=shared.checkpoint,
    eval_batch_size=shared.eval_batch_size,
    progress=shared.progress,
    writers=names(shared.writers),
    phases=phases,
    search=reading.search,
    values=_values(shared, reading.search, phases),
  )


def _values(
  shared: Options, search: Search | None, phases: Sequence[Phase]
) -> dict[str, Any]:
  values = shared.model_dump()
  if search is not None:
    values["search"] = search.model_dump()
  values["phases"] = tuple(phase.name for phase in phases)
  return values | {p.name: p.options.model_dump() for p in phases}


def _check_phases(findings: Findings) -> None:
  """Names of phases that can be folders and sections."""
  values = findings.values
  phases = values.get("phases", MISSING)
  if not isinstance(phases, tuple) or not phases:
    findings.add(
      "phases",
      "must be a tuple of names, not empty",
      "start the config from base(phases=('teacher', 'student'))",
    )
    return
  taken = (*Options.model_fields, *WRITERS, "phases", "search",
           *dir(ml_collections.ConfigDict))  # fmt: skip
  for name in dict.fromkeys(phases):
    if not isinstance(name, str) or not NAME.fullmatch(name):
      must = "a name of at most 64 small letters, digits and _"
      findings.add("phases", f"has {name!r}, which must be {must}", "rename it")
    elif name in taken:
      findings.add(
        "phases",
        f"has {name!r}, which must not be a field, a method or a writer",
        "rename the phase",
      )
    elif name not in values:
      findings.add(
        "phases",
        f"has {name!r}, which must have a section config.{name}",
        f"start the config from base(phases={phases!r})",
      )
    elif phases.count(name) > 1:
      findings.add("phases", f"must have {name!r} only once", "rename one")


def _check_writers(findings: Findings, shared: Options, place: Place) -> None:
  """Writers that there are, and whose packages are."""
  given = names(shared.writers)
  for i, name in enumerate(given):
    if name not in WRITERS:
      near = difflib.get_close_matches(name, WRITERS, 1)
      findings.add(
        "writers",
        f"has {name!r}, which must be one of {', '.join(WRITERS)}",
        f"write {near[0]!r}" if near else "choose one, or '' for none",
      )
    elif name in given[:i]:
      findings.add("writers", f"must have {name!r} only once", "remove one")
    elif not place.installed(WRITERS[name]):
      findings.add(
        "writers",
        f"has {name!r}, which needs the package {WRITERS[name]}",
        f"pip install 'jaxr18[{name}]', or leave it out",
      )


class _Reading:
  """Reads sections and checks them, phase after phase.

  Attributes:
    shared: what all phases share; a field that is wrong has its default.
    search: its section, if there is one.
    images: what is known of those that the section `data` names.
  """

  def __init__(self, findings: Findings, place: Place):
    values = findings.values
    self.findings, self.place, self.names = findings, place, values["phases"]
    self.has_search = "search" in values
    self.known = [f.name for f in fields(self.names, self.has_search)]
    self.known += [*self.names]
    apart = {"phases", "search", *self.names}
    shared = {k: v for k, v in values.items() if k not in apart}
    self.shared = findings.read(Options, shared, "", self.known)
    self.options = {
      name: _staged(
        findings.read(PhaseOptions, values[name], f"{name}.", self.known)
      )
      for name in self.names
    }
    self.search = None
    if self.has_search:
      self.search = findings.read(
        Search, values["search"], "search.", self.known
      )
    self.outlooks: dict[str, Sequence[Outlook] | None] = {}
    self.images = CIFAR10

  def check_images(self) -> None:
    """Images that are there, and large enough for what is done to them."""
    findings = self.findings
    if not findings.good("data.name", "data.dir"):
      return
    try:
      self.images = self.place.images(self.shared.data)
    except ImagesError as e:
      findings.add("data.name", f"must name images: {e.fact}", e.mend)
      return
    except DataError as e:
      findings.add("data.name", f"must name images: {e}", "mend that")
      return
    size = self.images.size
    for name in self.names:
      augment = self.options[name].augment
      for field, most in (("pad", size - 1), ("cutout", size)):
        if getattr(augment, field) > most:
          findings.add(
            f"{name}.augment.{field}",
            f"must be at most {most}, of images of {size}x{size} pixels",
            f"lower it to {most} or less",
          )

  def check_batches(self) -> None:
    """Batches that the images and devices allow."""
    findings, data = self.findings, self.shared.data
    if not findings.good("data.name", "data.validation", "data.limit"):
      return
    total = self.images.train
    if data.validation >= total:
      findings.add(
        "data.validation",
        f"must be less than the {total} training images of {data.name}",
        f"lower it, such as to {total // 10}",
      )
      return
    for name in self.names:
      if findings.good(f"{name}.batch_size", f"{name}.epochs"):
        self._check_batch(name)

  def _check_batch(self, name: str) -> None:
    data, devices = self.shared.data, self.place.devices
    c, count = self.options[name], _training_images(data, self.images)
    if c.batch_size > count:
      self.findings.add(
        f"{name}.batch_size",
        f"must be at most {count}, the training images that data.validation"
        f" (={data.validation}) and data.limit (={data.limit}) leave",
        "lower it",
      )
    elif c.batch_size % devices and not self.place.ended(name):
      self.findings.add(
        f"{name}.batch_size",
        f"must be divisible by the {devices} devices that share a batch",
        f"write {max(1, c.batch_size // devices) * devices}",
      )
    elif c.epochs * (count // c.batch_size) >= 2**31:
      self.findings.add(
        f"{name}.epochs",
        f"must be fewer: {c.epochs * (count // c.batch_size)} steps overflow"
        " an int32",
        f"lower it to {2**31 // (count // c.batch_size) - 1} or less",
      )

  def phase(self, index: int, name: str) -> Phase:
    """Checks a phase by itself and with those before it."""
    findings, c = self.findings, self.options[name]
    ended = self.place.ended(name)
    draft = Draft(
      name, c, self.shared.data.validation, 1 if ended else self.place.processes
    )
    for reads, check in PHASE_CHECKS:
      if findings.good(*(f"{name}.{field}" for field in reads)):
        for field, must, mend in check(draft):
          findings.add(f"{name}.{field}", must, mend)
    spec = self._spec(name, c)
    found = {field: self._sources(name, field) for field in SOURCES}
    outlooks = self._outlooks(name, c, found)
    self.outlooks[name] = outlooks
    self._check_layers(name, c, spec, outlooks)
    return Phase(name, index, c, spec, outlooks)

  def _spec(self, name: str, c: PhaseOptions) -> NetSpec | None:
    """Of the network section; None where it is none, or a source's holds."""
    section = f"{name}.network"
    if not self.findings.good(section):
      return None
    for field, must, mend in network_faults(
      c.network, not c.start.shrink, self.images
    ):
      full = f"{section}.{field}".rstrip(".")
      self.findings.add(full, must, mend)
    ensemble = bool(names(c.ensemble.members))
    if c.start.shrink or ensemble or not self.findings.good(section):
      return None
    return network_spec(c.network, self.images)

  def _sources(self, name: str, field: str) -> list[Outlook] | None:
    """The outlooks of all that a field names; None where one is not known."""
    full = f"{name}.{field}"
    value = operator.attrgetter(field)(self.options[name])
    if not self.findings.good(full):
      return []
    if one := paths.misread(value, self.names):
      must = "has a name that a comma ends or a backslash changes"
      self.findings.add(full, must, f"write {one}, in Python {one!r}")
      return []
    found: list[Outlook] | None = []
    for source in names(value):
      one = self._source(name, full, source)
      found = None if one is None or found is None else [*found, *one]
    return found

  def _source(
    self, name: str, full: str, source: str
  ) -> Sequence[Outlook] | None:
    if source in self.outlooks:
      return self.outlooks[source]
    earlier = ", ".join(self.outlooks) or "none here"
    which = (
      "must be a finished run's workdir, a file of one network's weights or an"
      f" earlier phase ({earlier})"
    )
    if source in self.names:
      mend = "choose one, or change the order in config.phases"
      self.findings.add(full, which, mend)
      return None
    found = self.place.source(self.shared.data, source)
    if not self.place.ended(name):
      for must, mend in found.faults:
        self.findings.add(full, must or which, mend)
    return found.outlooks

  def _outlooks(
    self, name: str, c: PhaseOptions, sources: Mapping[str, Any]
  ) -> Sequence[Outlook] | None:
    """What a phase's networks will be; notes what cannot be."""
    if not self.findings.good(name):
      return None

    def tell(field: str, must: str, mend: str) -> None:
      if not self.place.ended(name):
        self.findings.add(f"{name}.{field}", must, mend)

    found = foresee(c, name, sources, self._steps(c), self.images, tell)
    if found is not None:
      check_features(c, found, sources["teacher.source"], tell)
    return found

  def _steps(self, c: PhaseOptions) -> int:
    """Of a phase's training; 0 where the data section is wrong."""
    if not self.findings.good("data"):
      return 0
    count = _training_images(self.shared.data, self.images)
    return c.epochs * (count // c.batch_size)

  def _check_layers(self, name, c, spec, outlooks) -> None:
    layers: Sequence[Layer] = spec.layers() if spec else ()
    if c.start.shrink and outlooks:
      layers = outlooks[0].spec.layers()
    elif names(c.ensemble.members) and self.findings.good(f"{name}.network"):
      layers = network_spec(c.network, self.images).layers()
    for reads, check in LAYER_CHECKS if layers else ():
      if self.findings.good(*(f"{name}.{field}" for field in reads)):
        for field, must, mend in check(c, layers):
          self.findings.add(f"{name}.{field}", must, mend)


def _staged(c: PhaseOptions) -> PhaseOptions:
  """The options with an entry for each stage where one is for all."""
  network = c.network.model_copy(update=staged(c.network.model_dump()))
  return c.model_copy(update={"network": network})


def _training_images(data: Data, images: Facts) -> int:
  """How many images of a data section are trained on."""
  total = images.train
  return min(data.limit or total, total - data.validation)
