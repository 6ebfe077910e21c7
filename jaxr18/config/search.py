"""A search's section: what of it does not fit together, and its candidates.

A candidate is plain numbers by name, `{'width1': 16, 'bits:head': 8, ...}`; its
config is that of an ordinary run, without the section.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxr18.compress.gradual import moves
from jaxr18.config.experiment import Experiment, Phase, Place
from jaxr18.config.faults import Findings
from jaxr18.config.forecast.score import per_layer_of, stored_bytes_of
from jaxr18.config.schema import Options, PhaseOptions, Search
from jaxr18.cost import memory

# What each layer keeps is then known before it is trained, and so the score.
DISTRIBUTIONS = ("uniform", "erk")

STAGED = ("widths", "blocks", "groups")  # have choices for each stage

Params = Mapping[str, int | float]
Values = Mapping[str, Any]
Found = Iterator[tuple[str, str, str]]


def dimensions(search: Search) -> dict[str, tuple]:
  """Lists the choices by name, in the order in which they are made."""
  out: dict[str, tuple] = {}
  for name in STAGED:
    for i, choices in enumerate(getattr(search, name)):
      out[f"{name}{i + 1}"] = choices
  out |= {f"bits:{pattern}": choices for pattern, choices in search.bits}
  return out | {"density": search.density, "resolution": search.resolution}


def candidate_values(values: Values, params: Params) -> dict[str, Any]:
  """Makes the config of a candidate, which `jaxr18.main` runs as any other.

  Args:
    values: of the search's config.
    params: the candidate's.
  """
  out = copy.deepcopy({k: v for k, v in values.items() if k != "search"})
  search = values["search"]
  phase = out[values["phases"][0]]
  for name in STAGED:
    stages = range(1, len(search[name]) + 1)
    phase["network"][name] = tuple(params[f"{name}{i}"] for i in stages)
  phase["network"]["bits"] = tuple(
    (pattern, b, max(2, b))  # activations have no 1 bit
    for pattern, _ in search["bits"]
    for b in [params[f"bits:{pattern}"]]
  )
  phase["network"]["resolution"] = params["resolution"]
  phase["prune"]["density"] = float(params["density"])
  return out


def chosen_fields(phase: str) -> tuple[str, ...]:
  """Names the fields that each candidate has its own values of."""
  fields = ("widths", "blocks", "groups", "bits", "resolution")
  names = (*(f"network.{field}" for field in fields), "prune.density")
  return tuple(f"{phase}.{name}" for name in names)


def describe_candidate(params: Params) -> str:
  """Describes a candidate, such as 'widths 16-32 blocks 1-1 density 0.5'."""
  many: dict[str, list[str]] = {}
  for name, value in params.items():
    what = _field_of(name)
    many.setdefault(what, []).append(f"{value:g}")
  return " ".join(f"{what} {'-'.join(values)}" for what, values in many.items())


def _field_of(name: str) -> str:
  """The field of `search` that a choice such as 'widths1' is made in."""
  return re.sub("[^a-z].*", "", name)


def per_layer_score(phase: Phase) -> float:
  """Computes the per-layer score that a candidate will have once trained.

  Args:
    phase: the candidate's only one.

  Raises:
    ValueError: its score is not known before.
  """
  found = phase.outlooks
  if not found or found[0].unknown:
    name = f"config.{phase.name}.start.init"
    raise ValueError(f"{name} hides what its masks leave")
  total = per_layer_of(found[0])
  if total is None:
    raise ValueError(f"config.{phase.name} hides its score: {found[0].why}")
  return total


def over_budgets(
  phase: Phase, search: Search, score: float
) -> dict[str, float]:
  """By how much a candidate is over each budget that there is; 0 or less fits.

  Args:
    phase: the candidate's only one.
    search: the section with the budgets.
    score: its `per_layer_score`.
  """
  [outlook] = phase.outlooks or []
  out = {"score": score - search.score_budget}
  if search.memory_budget:
    out["memory"] = memory.peak(outlook.spec).bytes - search.memory_budget
  if search.bytes_budget:
    stored = stored_bytes_of(outlook)
    assert stored is not None  # each layer's share is known before training
    out["bytes"] = stored - search.bytes_budget
  return out


def check(
  findings: Findings,
  shared: Options,
  phases: Sequence[Phase],
  search: Search,
  place: Place,
  parse: Callable[[Values, Place], Experiment],
) -> None:
  """Notes what a study cannot be made of; its phases are in order.

  Args:
    findings: of the config.
    shared, phases, search: what it says.
    place: where candidates are to be trained.
    parse: reads a candidate.
  """
  if len(phases) > 1:
    findings.add("phases", "must be one, of which candidates are trained",
                 "name a finished run in its init or teacher")  # fmt: skip
    return
  if not shared.data.validation:
    findings.add("data.validation", "must be above 0: candidates are compared"
                 " on held-out images", "such as 5000")  # fmt: skip
  phase, c = phases[0], phases[0].options
  for field, value, off in (
    ("start.shrink", c.start.shrink, False),
    ("population.size", c.population.size, 1),
    ("ensemble.members", c.ensemble.members, ""),
    ("network.stem_features", c.network.stem_features, 0),
    ("network.scale", c.network.scale, 0.0),
  ):
    if value != off:
      findings.add(f"{phase.name}.{field}", "has no place in a search",
                   f"write {off!r}")  # fmt: skip
  found = (
    *_rungs_fit(search, c),
    *_choices_fit(search),
    *_stages_fit(search, len(c.network.strides)),
    *_pruning_fits(search, c, phase.name),
  )
  for field, must, mend in found:
    findings.add(field, must, mend)
  if not findings.faults:
    _check_candidates(findings, search, place, parse)


def _check_candidates(
  findings: Findings,
  search: Search,
  place: Place,
  parse: Callable[[Values, Place], Experiment],
) -> None:
  """Notes what is wrong with the first candidate that cannot be run."""
  choices = dimensions(search)
  for pick in (min, max):
    params = {name: pick(options) for name, options in choices.items()}
    candidate = candidate_values(findings.values, params)
    try:
      per_layer_score(parse(candidate, place).phases[0])
    except ValueError as e:
      findings.add(
        "search",
        f"allows the candidate {params}, which cannot be run: {e}",
        "let it choose among others",
      )
      return


def _rungs_fit(search: Search, c: PhaseOptions) -> Found:
  rungs = (0, *search.rungs, c.epochs)
  if any(a >= b for a, b in zip(rungs[:-1], rungs[1:], strict=True)):
    yield (
      "search.rungs",
      f"must grow, and stay below the {c.epochs} epochs of the phase",
      "mend them, or train longer",
    )


def _choices_fit(search: Search) -> Found:
  """Choices that are named once."""
  for name, choices in dimensions(search).items():
    if len(set(choices)) < len(choices):
      must = f"has {choices!r}, which must name each once"
      yield f"search.{_field_of(name)}", must, "remove one"


def _stages_fit(search: Search, stages: int) -> Found:
  lengths = [len(getattr(search, f)) for f in STAGED]
  for field, length in zip(STAGED, lengths, strict=True):
    if length != stages:
      yield (
        f"search.{field}",
        f"must have {stages} entries, one a stage, as the phase's strides have",
        "mend it",
      )
  if lengths[0] != stages or lengths[2] != stages:
    return
  inputs = (search.widths[0], *search.widths[:-1])
  for i, groups in enumerate(search.groups):
    for g in groups:
      if odd := [w for w in (*inputs[i], *search.widths[i]) if w % g]:
        yield (
          "search.groups",
          f"has {g} at index {i}, which must divide every width of that stage"
          f" and of the one before; it does not divide {odd[0]}",
          f"remove it, or choose widths that are multiples of {g}",
        )


def _pruning_fits(search: Search, c: PhaseOptions, name: str) -> Found:
  p = c.prune
  if p.pattern:
    yield (f"{name}.prune.pattern", "has no place in a search: it is a"
           " density of its own", "write ''")  # fmt: skip
  if min(search.density) == 1:
    return
  if p.structured:
    yield (
      f"{name}.prune.structured",
      "must be False: widths are searched themselves",
      "leave it out",
    )
  if p.distribution not in DISTRIBUTIONS:
    yield (
      f"{name}.prune.distribution",
      f"must be one of {DISTRIBUTIONS}, so that the score is known before"
      " training",
      "choose one",
    )
  last = (p.end if moves(p.schedule, p.regrow) else p.begin) * c.epochs
  if last > search.rungs[0]:
    yield (
      "search.rungs",
      f"must begin at or after {last:g} epochs, when the last weights are"
      " pruned: accuracy and score are then of one network",
      f"raise the first, or lower config.{name}.prune.end",
    )
