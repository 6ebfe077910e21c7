"""What a phase's networks begin with, as `sources` will make them.

New, or what `init` names: shrunk, or with its masks in the phase's own spec.
"""

import dataclasses
import math
from collections.abc import Mapping

from jaxr18.compress.channels import channel_groups
from jaxr18.compress.ensemble import of_member
from jaxr18.compress.shrink import (
  matching_blocks,
  moved,
  narrower,
  without_blocks,
)
from jaxr18.config.forecast.outlook import Outlook, Tell, outlook_of
from jaxr18.config.network import misfit, network_spec, quantized
from jaxr18.config.schema import PhaseOptions
from jaxr18.data.facts import Facts
from jaxr18.nn.forms import convolutions, form_of
from jaxr18.nn.spec import NetSpec

Sources = Mapping[str, list[Outlook] | None]


def start_of(
  c: PhaseOptions, sources: Sources, member: int, images: Facts, tell: Tell
) -> Outlook | None:
  """Predicts the network that one member of a phase begins with.

  Args:
    c: of the phase.
    sources: what is known of the networks that each field names.
    member: its number in the population.
    images: that the network is to see.
    tell: is told each field that does not fit, what it must be and the mend.

  Returns:
    None where there can be no such network, or where nothing is known of it.
  """
  if not c.start.init:
    return outlook_of(network_spec(c.network, images))
  base = _taken(c, "start.init", sources["start.init"], member, tell)
  if base is None:
    missing = sources["start.init"] is None and not c.start.shrink
    if not missing:
      return None
    return outlook_of(network_spec(c.network, images), c.start.init)
  if c.start.rewind and sources["start.rewind"] is not None:
    to = _taken(c, "start.rewind", sources["start.rewind"], member, tell)
    if to is not None and to.fixed and base.fixed and to.spec != base.spec:
      tell(
        "start.rewind",
        "must be an earlier state of what init names, in the same bits and"
        f" forms: {_difference(base.spec, to.spec)}",
        "name a phase of the same `network`",
      )
  if c.start.shrink:
    return _shrunk(c, base, tell)
  own = network_spec(c.network, images)  # a shrunk one has layers of its own
  if not base.fixed:
    tell(
      "start.init",
      "has widths that are known only when it has been trained, and"
      " `network` has others",
      "set shrink=True, which takes what init has",
    )
    return None
  if difference := misfit(own, base.spec):
    tell(
      "start.init",
      f"must have the layers of `network`: {difference}",
      "give both the same widths, blocks and strides",
    )
    return None
  return _in_form(own, base, tell)


def _taken(c, field, found, member: int, tell: Tell) -> Outlook | None:
  """What a member takes of all that a field names; None if it cannot."""
  if found is None:
    return None
  own = of_member(found, c.population.size, member)
  if own is not None:
    return own
  if any(o.unknown for o in found):
    return found[0]
  for other in found[1:]:
    if other.spec != found[0].spec or other.widths != found[0].widths:
      what = _difference(found[0].spec, other.spec) or "their widths differ"
    elif other.masks != found[0].masks:
      what = "each has masks of its own"
    else:
      continue
    tell(
      field,
      f"names {len(found)} networks, of whose weights the mean is taken, and"
      f" they differ: {what}",
      "name one, or as many as population.members",
    )
    return None
  return found[0]


def _difference(a: NetSpec, b: NetSpec) -> str:
  """The first thing in which two specs differ; '' if there is none."""
  there = dict(b.units())
  for path, unit in a.units():
    if path not in there:
      return f"{path} is missing in the other"
    for f in dataclasses.fields(unit):
      one, two = getattr(unit, f.name), getattr(there[path], f.name, None)
      if one != two:
        return f"{path} has {f.name}={one!r} and {f.name}={two!r}"
  for f in ("resolution", "channels", "stages"):
    if getattr(a, f) != getattr(b, f):
      return f"{f} differs"
  return ""


def _shrunk(c, base: Outlook, tell: Tell) -> Outlook | None:
  """As `sources.shrunk`, then in the phase's bits."""
  try:
    drop = matching_blocks(base.spec, c.start.drop_blocks)
  except ValueError as e:
    tell("start.drop_blocks", str(e), "name some of them")
    return None
  try:
    spec, moves = without_blocks(base.spec, drop)
  except ValueError as e:
    tell("start.drop_blocks", f"must leave a network: {e}", "drop others")
    return None
  stays = {g.name for g in channel_groups(spec)}
  alive = moved(base.alive, base.spec, moves)
  alive = {n: r for n, r in alive.items() if n in stays}
  spec = narrower(spec, {n: max(1, r[1]) for n, r in alive.items()})
  try:
    spec = quantized(spec, c.network)
  except ValueError as e:
    tell("network.bits", f"must fit the layers that init leaves: {e}",
         "mend or remove that rule")  # fmt: skip
    return None
  totals = []
  for paths, total in base.totals:
    left = moved(dict.fromkeys(paths), base.spec, moves)
    if len(left) == len(paths):
      totals.append((tuple(left), total))
  fixed = all(low == high for low, high in alive.values())
  singles = moved(base.singles, base.spec, moves)
  return dataclasses.replace(
    base,
    spec=spec,
    widths=alive,
    alive=alive,
    width_sum=None if fixed or drop else base.alive_sum,
    alive_sum=None if drop else base.alive_sum,
    singles={
      p: dataclasses.replace(k, whole=(0, math.inf)) for p, k in singles.items()
    },
    totals=tuple(totals),
  )


def _in_form(spec: NetSpec, base: Outlook, tell: Tell) -> Outlook | None:
  """A source's masks in a spec of the same widths; other forms, unpruned."""
  old, new = dict(convolutions(base.spec)), dict(convolutions(spec))
  changed = {p for p in new if form_of(new[p]) != form_of(old[p])}
  pruned = [
    x.unit
    for x in base.spec.layers()
    if x.unit in changed and base.kept(x)[0] < base.size(x)[0]
  ]
  if pruned and not base.unknown:
    forms = form_of(old[pruned[0]]), form_of(new[pruned[0]])
    tell(
      "start.init",
      f"has pruned {', '.join(dict.fromkeys(pruned))}, and a mask does not"
      f" carry over from {forms[0]!r} to {forms[1]!r}",
      "shrink the network before, prune it after, or keep the form",
    )
    return None
  paths = {x.path for x in spec.layers()}
  return dataclasses.replace(
    base,
    spec=spec,
    singles={p: k for p, k in base.singles.items() if p in paths},
    totals=tuple(t for t in base.totals if paths.issuperset(t[0])),
  )
