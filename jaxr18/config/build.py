"""From a phase's options to what the rooms below take."""

from typing import Literal

from jaxr18.compress.gradual import Plan
from jaxr18.config.checks import PATTERN
from jaxr18.config.schema import PhaseOptions, Prune


def plan(p: Prune, steps: int) -> Plan | None:
  """What a phase of so many steps does to its masks; None for nothing."""
  if not p.prunes:
    return None
  pattern = PATTERN.fullmatch(p.pattern)
  return Plan(
    density=p.density,
    structured=p.structured,
    criterion=p.criterion,
    distribution=p.distribution,
    rules=tuple((pattern, float(d)) for pattern, d in p.rules),
    pattern=tuple(map(int, pattern.groups())) if pattern else None,
    layers=p.layers,
    floor=p.floor,
    multiple=p.multiple,
    schedule=p.schedule,
    begin=round(p.begin * steps),
    end=round(p.end * steps),
    every=p.every,
    regrow=p.regrow,
    drop=p.drop,
  )


def member_seeds(c: PhaseOptions, seed: int) -> tuple[int, ...]:
  """A population's seeds: a member is what a run alone with its seed is."""
  return tuple(range(seed, seed + c.population.members))


def factors(
  c: PhaseOptions, field: Literal["learning_rates", "temperatures"]
) -> tuple[float, ...]:
  """A population's factors by member, of one for all or one for each."""
  values = tuple(map(float, getattr(c.population, field)))
  return values * c.population.members if len(values) == 1 else values
