"""A search's section: what of it does not fit together, and its candidates.

A candidate is plain numbers by name, `{'width1': 16, 'bits:head': 8, ...}`; its
config is that of an ordinary run, without the section.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from jaxr18.compress.gradual import moves
from jaxr18.config.forecast.outlook import Outlook
from jaxr18.config.forecast.phase import foresee
from jaxr18.config.forecast.score import per_layer_of

# What each layer keeps is then known before it is trained, and so the score.
DISTRIBUTIONS = ("uniform", "erk")

Params = Mapping[str, int | float]


def dimensions(search: ml_collections.ConfigDict) -> dict[str, tuple]:
  """The choices by name, in the order in which they are made."""
  out = {}
  for name in ("widths", "blocks", "groups"):
    for i, choices in enumerate(search[name]):
      out[f"{name}{i + 1}"] = choices
  out |= {f"bits:{pattern}": choices for pattern, choices in search.bits}
  return out | {"density": search.density, "resolution": search.resolution}


def candidate_config(
  config: ml_collections.ConfigDict, params: Params
) -> ml_collections.ConfigDict:
  """The config of one candidate, which `jaxr18.main` runs as any other."""
  search = config.search
  out = config.copy_and_resolve_references().unlock()
  del out["search"]
  phase = out[config.phases[0]]
  for name in ("widths", "blocks", "groups"):
    stages = range(1, len(search[name]) + 1)
    phase.network[name] = tuple(params[f"{name}{i}"] for i in stages)
  phase.network.bits = tuple(
    (pattern, b, max(2, b))  # activations have no 1 bit
    for pattern, _ in search.bits
    for b in [params[f"bits:{pattern}"]]
  )
  phase.network.resolution = params["resolution"]
  phase.prune.density = float(params["density"])
  return out.lock()


def chosen_fields(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """What each candidate has its own of, whatever the config says."""
  fields = ("widths", "blocks", "groups", "bits", "resolution")
  names = (*(f"network.{field}" for field in fields), "prune.density")
  return tuple(f"{config.phases[0]}.{name}" for name in names)


def describe_candidate(params: Params) -> str:
  """Such as 'widths 16-32 blocks 1-1 groups 1-4 bits 8/4 density 0.5 ...'."""
  many: dict[str, list[str]] = {}
  for name, value in params.items():
    what = re.match("[a-z]*", name)[0]
    many.setdefault(what, []).append(f"{value:g}")
  return " ".join(f"{what} {'-'.join(values)}" for what, values in many.items())


def per_layer_score(
  config: ml_collections.ConfigDict, init: list[Outlook] | None = None
) -> float:
  """The per-layer score that a candidate's network will have once trained.

  Args:
    config: the candidate's.
    init: what its phase starts from, if from anything.

  Raises:
    ValueError: it cannot be trained, or its score is not known before.
  """
  name = config.phases[0]

  def fault(field: str, must: str, mend: str) -> None:
    raise ValueError(f"config.{name}.{field} {must}; {mend}")

  found = foresee(config[name], name, {"init": init, "rewind": None}, 0, fault)
  if not found or found[0].unknown:
    raise ValueError(f"config.{name}.init hides what its masks leave")
  total = per_layer_of(found[0])
  if total is None:
    raise ValueError(f"config.{name} hides its score: {found[0].why}")
  return total


def extremes(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[dict[str, Any], ml_collections.ConfigDict]]:
  """Candidates that stand for all: the smallest of each choice, the largest."""
  choices = dimensions(config.search)
  for pick in (min, max):
    params = {name: pick(values) for name, values in choices.items()}
    yield params, candidate_config(config, params)


def check_search(problems) -> None:
  """Notes what a study cannot be made of; the phase is in order by itself."""
  config = problems.config
  if len(config.phases) > 1:
    problems.add("phases", "must be one, of which candidates are trained",
                 "name a finished run in its init or teacher")  # fmt: skip
    return
  name = config.phases[0]
  if not config.data.validation:
    problems.add("data.validation", "must be above 0: candidates are compared"
                 " on held-out images", "such as 5000")  # fmt: skip
  c, search = config[name], config.search
  for field, off in (("shrink", False), ("population.members", 1),
                     ("ensemble.members", ""), ("network.stem_features", 0),
                     ("network.scale", 0.0)):  # fmt: skip
    if problems.get(f"{name}.{field}") != off:
      problems.add(f"{name}.{field}", "has no place in a search",
                   f"write {off!r}")  # fmt: skip
  _check_rungs(problems, search, c)
  _check_stages(problems, search, len(c.network.strides))
  _check_pruning(problems, search, c, name)


def _check_rungs(problems, search, c) -> None:
  rungs = (0, *search.rungs, c.epochs)
  if any(a >= b for a, b in zip(rungs[:-1], rungs[1:], strict=True)):
    problems.add(
      "search.rungs",
      f"must grow, and stay below the {c.epochs} epochs of the phase",
      "mend them, or train longer",
    )


def _check_stages(problems, search, stages: int) -> None:
  for field in ("widths", "blocks", "groups"):
    if len(search[field]) != stages:
      problems.add(
        f"search.{field}",
        f"must have {stages} entries, one a stage, as the phase's strides have",
        "mend it",
      )
  if not problems.good("search.widths", "search.groups"):
    return
  inputs = (search.widths[0], *search.widths[:-1])
  for i, groups in enumerate(search.groups):
    for g in groups:
      if odd := [w for w in (*inputs[i], *search.widths[i]) if w % g]:
        problems.add(
          "search.groups",
          f"has {g} at index {i}, which must divide every width of that stage"
          f" and of the one before; it does not divide {odd[0]}",
          f"remove it, or choose widths that are multiples of {g}",
        )


def _check_pruning(problems, search, c, name: str) -> None:
  p = c.prune
  if p.pattern:
    problems.add(f"{name}.prune.pattern", "has no place in a search: it is a"
                 " density of its own", "write ''")  # fmt: skip
  if min(search.density) == 1:
    return
  if p.structured:
    problems.add(
      f"{name}.prune.structured",
      "must be False: widths are searched themselves",
      "leave it out",
    )
  if p.distribution not in DISTRIBUTIONS:
    problems.add(
      f"{name}.prune.distribution",
      f"must be one of {DISTRIBUTIONS}, so that the score is known before"
      " training",
      "choose one",
    )
  last = (p.end if moves(p.schedule, p.regrow) else p.begin) * c.epochs
  if last > search.rungs[0]:
    problems.add(
      "search.rungs",
      f"must begin at or after {last:g} epochs, when the last weights are"
      " pruned: accuracy and score are then of one network",
      f"raise the first, or lower config.{name}.prune.end",
    )
