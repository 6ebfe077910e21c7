"""What a plan's masks will leave of a network."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxr18.compress import channels, density
from jaxr18.compress.gradual import Plan
from jaxr18.config.forecast import kernels
from jaxr18.config.forecast.outlook import Kept, Outlook, Tell
from jaxr18.cost.bounds import Range
from jaxr18.nn.spec import Layer

_SPLIT = (
  "how many {} each layer keeps: prune.distribution is {!r}, by the {} of"
  " trained weights"
)
_WHOLE = "whether single weights leave whole channels empty (per network alone)"

Ranges = dict[str, Range]  # of numbers of weights, by layer path
Totals = tuple[tuple[tuple[str, ...], int], ...]  # as an outlook's


def pruned(
  o: Outlook, plan: Plan, steps: int, origin: tuple, tell: Tell
) -> Outlook | None:
  """Applies a plan to an outlook; None where it cannot be met.

  Args:
    o: before it.
    plan: of the phase.
    steps: of the phase's training.
    origin: names the new masks.
    tell: is told what cannot be.
  """
  if steps and plan.last >= steps:
    tell(
      f"prune.{'end' if plan.moves else 'begin'}",
      f"puts the last update before step {plan.last} of {steps}, which never"
      " comes",
      "lower it, or train for longer",
    )
    return None
  try:
    out = _channels(o, plan) if plan.structured else _weights(o, plan, tell)
  except ValueError as e:
    field = "rules" if plan.distribution == "explicit" else "density"
    tell(f"prune.{field}", "cannot be met", str(e))
    return None
  return out and dataclasses.replace(out, masks=origin)


def _channels(o: Outlook, plan: Plan) -> Outlook:
  groups = channels.channel_groups(o.spec)
  steps = channels.steps_of(groups, plan.multiple)
  floor = min(plan.floor, plan.density)
  alive, total, why = {}, None, o.why
  if not o.fixed:
    alive = {g.name: (1, o.alive[g.name][1]) for g in groups}
  elif plan.distribution == "uniform":
    kept = channels.evenly(groups, plan.density, steps, floor)
    for g in groups:
      n = kept[g.name] * steps[g.name]
      alive[g.name] = tuple(min(n, a) for a in o.alive[g.name])
  else:
    sizes = {g.name: g.size for g in groups}
    budget, least = density.budget(sizes, plan.density, floor, steps)
    spent = {g.name: least[g.name] * steps[g.name] for g in groups}
    room = budget - sum(spent.values())
    for g in groups:
      more = room // steps[g.name] * steps[g.name]
      alive[g.name] = (
        min(spent[g.name], o.alive[g.name][0]),
        min(g.size, spent[g.name] + more, o.alive[g.name][1]),
      )
    unspent = max(steps.values()) - 1
    total = min(budget - unspent, sum(sizes.values())), budget
    if o.alive != o.widths:  # what is gone may be among the kept
      total = 0, budget
    why += (_SPLIT.format("channels", "global", plan.criterion),)
  singles = {
    x.path: _cut(o, x, alive) for x in o.spec.layers() if x.path in o.singles
  }
  return dataclasses.replace(
    o, alive=alive, alive_sum=total, singles=singles, totals=(), why=why
  )


def _cut(o: Outlook, layer: Layer, alive: Mapping[str, Range]) -> Kept:
  """A layer's single weights when more of its channels go."""
  before, size = o.singles[layer.path], o.size(layer)[1]
  left = kernels.size(o.spec, layer, alive)
  return Kept(
    max(0, int(before.least - (size - left[0]))),
    int(min(before.most, left[1])),
    (max(0, size - left[1]), math.inf),
  )


def _weights(o: Outlook, plan: Plan, tell: Tell) -> Outlook | None:
  layers = _matching(o, plan, tell)
  if not layers:
    return None
  left, why = {x.path: o.kept(x) for x in layers}, o.why
  kept, totals, wanted = {}, (), 0
  if plan.pattern:
    kept = _of_pattern(plan.pattern, layers, left)
  elif plan.distribution in ("global", "lamp"):
    wanted, kept, totals = _of_all(o, plan, layers, left)
    why += (_SPLIT.format("weights", plan.distribution, plan.criterion),)
  else:
    wanted, kept = _by_layer(plan, layers, left)
  if o.fixed and wanted > (most := _together(o, left)[1]):
    explicit = plan.distribution == "explicit"
    tell(
      "prune.rules" if explicit else "prune.density",
      f"asks for {wanted} weights in these layers, and init has at most"
      f" {int(most)} left",
      "lower it",
    )
    return None
  if not o.fixed:
    kept, totals = {p: (0, high) for p, (_, high) in left.items()}, ()
  singles = dict(o.singles)
  for layer in layers:
    low, high = map(int, kept[layer.path])
    if o.fixed and high == low == math.prod(layer.kernel_shape):
      continue
    dead = o.size(layer)[0] - o.in_alive(layer)[1]
    singles[layer.path] = Kept(low, high, (max(0, dead), math.inf))
  before = tuple(t for t in o.totals if not set(t[0]) & set(kept))
  return dataclasses.replace(
    o,
    singles=singles,
    totals=before + totals,
    why=tuple(dict.fromkeys((*why, _WHOLE))),
  )


def _matching(o: Outlook, plan: Plan, tell: Tell) -> list[Layer]:
  """The layers that a plan prunes; none where it cannot."""
  layers = [x for x in o.spec.layers() if re.fullmatch(plan.layers, x.path)]
  if not layers:
    paths = [x.path for x in o.spec.layers()]
    tell("prune.layers", f"matches no layer; there are {paths}", "mend it")
  m = plan.pattern[1] if plan.pattern else 1
  odd = [x for x in layers if x.kernel_shape[-2] % m]
  if odd:
    tell(
      "prune.pattern",
      f"must divide the input channels of each filter; it does not in"
      f" {', '.join(f'{x.path} ({x.kernel_shape[-2]})' for x in odd)}",
      "leave these layers out by prune.layers, such as"
      f" {_others(layers, odd)!r}",
    )
    return []
  return layers


def _others(layers: Sequence[Layer], odd: Sequence[Layer]) -> str:
  """A regex of the layers that are not among the odd ones."""
  out = {x.path for x in odd}
  if out == {"stem"}:
    return "(?!stem).*"
  return "|".join(x.path for x in layers if x.path not in out) or "stage.*"


def _of_pattern(pattern, layers: Sequence[Layer], left: Ranges) -> Ranges:
  """What N:M leaves: fewer where more of some m are masked already."""
  n, m = pattern
  kept = {}
  for layer in layers:
    low, high = left[layer.path]
    most = math.prod(layer.kernel_shape) * n // m
    kept[layer.path] = math.ceil(low * n / m - 1e-9), min(high, most)
  return kept


def _of_all(
  o: Outlook, plan: Plan, layers: Sequence[Layer], left: Ranges
) -> tuple[int, Ranges, Totals]:
  """The best of all layers together: how many, of which layer, and in all."""
  sizes = {x.path: math.prod(x.kernel_shape) for x in layers}
  floor = min(plan.floor, plan.density)
  wanted, least = density.budget(sizes, plan.density, floor)
  room = wanted - sum(least.values())
  kept = {
    p: (min(least[p], low), min(least[p] + room, high))
    for p, (low, high) in left.items()
  }
  # What is masked already is not among the best, unless a floor asks for it.
  best = all(least[p] <= low for p, (low, _) in left.items())
  if not best or wanted > _together(o, left)[0]:
    return wanted, kept, ()
  # Layers that lose none are as unmasked ones, which no total is of.
  part = tuple(p for p, both in kept.items() if min(both) < sizes[p])
  rest = wanted - sum(n for p, n in sizes.items() if p not in part)
  return wanted, kept, ((part, rest),)


def _by_layer(
  plan: Plan, layers: Sequence[Layer], left: Ranges
) -> tuple[int, Ranges]:
  """What a distribution that asks no scores keeps: in all, and by layer."""
  shapes = {x.path: x.kernel_shape for x in layers}
  counts = density.counts(
    plan.distribution,
    {p: np.broadcast_to(np.float32(0), shape) for p, shape in shapes.items()},
    plan.density,
    floor=min(plan.floor, plan.density),
    rules=plan.rules,
  )
  kept = {}
  for path, n in counts.items():
    low, high = left[path]
    if plan.distribution == "per_output":  # each output by itself
      n = n // shapes[path][-1] * shapes[path][-1]
      low = math.ceil(low * n / math.prod(shapes[path]) - 1e-9)
    kept[path] = min(n, low), min(n, high)
  return sum(counts.values()), kept


def _together(o: Outlook, left: Ranges) -> Range:
  """How many weights the masks so far leave in all these layers together."""
  known = [(paths, n) for paths, n in o.totals if set(paths) <= set(left)]
  inside = {p for paths, _ in known for p in paths}
  low, high = (
    sum(both[end] for p, both in left.items() if p not in inside)
    + sum(n for _, n in known)
    for end in (0, 1)
  )
  return low, high
