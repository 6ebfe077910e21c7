"""What is known of each phase's network before anything is trained.

A phase's `Outlook` follows from its config and from the outlooks of what it
starts from, as its networks will follow from theirs: the spec, how many
channels each group keeps, how many weights each layer keeps. What the scores
of training decide stands as a range. From it follow the score, or bounds of
it, and whether a phase can be run at all.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from jaxr18.compress import channels, density, distill
from jaxr18.compress.gradual import Plan
from jaxr18.compress.shrink import dead_channels, narrower, without_blocks
from jaxr18.cost.bounds import Bounds, Range, add_bounds, plus, products, spread
from jaxr18.cost.figures import (
  BIAS_BITS,
  MACS_REFERENCE,
  PARAMS_REFERENCE,
  Figure,
  Score,
)
from jaxr18.cost.kept import (
  LayerWeights,
  batch_norm_of,
  encodings,
  layer_weights,
  stored_scales,
)
from jaxr18.cost.score import SCALE_BITS, exact_figure, score_counts
from jaxr18.cost.several import add_scores
from jaxr18.distillconfig import names
from jaxr18.forms import convolutions, form_of
from jaxr18.netconfig import misfit, network_spec, quantized
from jaxr18.network import stage_sides
from jaxr18.pruneconfig import make_plan
from jaxr18.spec import Layer, NetSpec

# How a fault is told: the field within the phase, what it must be, the mend.
Fault = Callable[[str, str, str], None]
Sources = Mapping[str, "list[Outlook] | None"]


@dataclasses.dataclass(frozen=True)
class Kept:
  """A layer's weights that no mask removes, where single ones are masked.

  Attributes:
    least, most: how many they are.
    whole: of those removed, how many lie in wholly masked channels.
  """

  least: int
  most: int
  whole: Range


@dataclasses.dataclass(frozen=True)
class Outlook:
  """What is known of a network before it is trained.

  Attributes:
    spec: the network; of widths that are not known, the largest.
    widths: channels of each group, by its name.
    width_sum: of all groups, where `widths` are not known.
    alive: channels of each group that are not masked.
    alive_sum: of all groups.
    singles: of the layers in which single weights are masked, by path.
    totals: (paths, weights kept in all of them), no path twice.
    masks: what made its masks; networks of equal ones have equal masks.
    why: what is not known, a sentence each.
    unknown: the source that decides it, where that cannot be read.
  """

  spec: NetSpec
  widths: dict[str, Range]
  alive: dict[str, Range]
  width_sum: Range | None = None
  alive_sum: Range | None = None
  singles: dict[str, Kept] = dataclasses.field(default_factory=dict)
  totals: tuple[tuple[tuple[str, ...], int], ...] = ()
  masks: tuple[Any, ...] = ()
  why: tuple[str, ...] = ()
  unknown: str = ""

  @property
  def fixed(self) -> bool:
    """Whether its widths are known."""
    return all(low == high for low, high in self.widths.values())


def outlook_of(spec: NetSpec, unknown: str = "") -> Outlook:
  """Of a network that nothing is masked in, or of which nobody knows."""
  sizes = {g.name: (g.size, g.size) for g in channels.channel_groups(spec)}
  out = Outlook(spec, sizes, sizes, unknown=unknown)
  if not unknown:
    return out
  layers = {
    x.path: Kept(0, math.prod(x.kernel_shape), (0, math.inf))
    for x in spec.layers()
  }
  alive = {name: (0, high) for name, (_, high) in sizes.items()}
  return dataclasses.replace(out, alive=alive, singles=layers)


def outlook_of_network(net, masks: tuple[Any, ...]) -> Outlook:
  """Of a network that is there; `masks` names its masks."""
  out = outlook_of(net.spec)
  dead = {name: int(gone.sum()) for name, gone in dead_channels(net).items()}
  alive = {n: (w - dead[n], w - dead[n]) for n, (w, _) in out.widths.items()}
  out = dataclasses.replace(out, alive=alive)
  singles = {}
  for layer in net.spec.layers():
    found = layer_weights(layer, net.masks)
    if found.kept != _size(out, layer, alive)[1]:
      whole = found.structured
      singles[layer.path] = Kept(found.kept, found.kept, (whole, whole))
  pruned = singles or any(dead.values())
  return dataclasses.replace(
    out, singles=singles, masks=masks if pruned else ()
  )


def outlooks_of_result(result: Mapping[str, Any], name: str) -> list[Outlook]:
  """Of the networks of a finished run, from what its result.json holds.

  Raises:
    ValueError, KeyError, TypeError: it does not hold them.
  """
  specs = result.get("specs") or [result["spec"]]
  specs = [NetSpec.from_json(json.dumps(spec)) for spec in specs]
  tables: dict[str, dict[str, Any]] = {}
  for row in result.get("score", {}).get("rows", ()):
    member, _, path = row["path"].partition("/")
    if not re.fullmatch(r"member\d+", member):
      member, path = "member0", row["path"]
    tables.setdefault(member, {})[path] = row
  out = []
  for i, spec in enumerate(specs):
    rows = tables.get(f"member{i}", {})
    whole = all(row["kept"] == row["weights"] for row in rows.values())
    if rows and whole:
      one = outlook_of(spec)
    elif rows:
      one = _counted(spec, rows, (name, i))
    else:
      one = outlook_of(spec, unknown=name)
    out.append(one)
  if "specs" not in result:  # a population's others have masks of their own
    more = len(result.get("members", ())) - 1
    out += [outlook_of(specs[0], name if out[0].masks else "")] * more
  return out


def _counted(spec: NetSpec, rows, masks: tuple[Any, ...]) -> Outlook:
  """Of a network whose weights a score has counted, by layer path."""
  out, alive = outlook_of(spec), {}
  for group in channels.channel_groups(spec):
    n = max(rows[path]["biases_kept"] for path in group.writers)
    alive[group.name] = n, n
  out = dataclasses.replace(out, alive=alive, masks=masks)
  singles = {}
  for layer in spec.layers():
    kept = rows[layer.path]["kept"]
    if kept != _size(out, layer, alive)[1]:
      singles[layer.path] = Kept(kept, kept, (0, math.inf))
  return dataclasses.replace(out, singles=singles)


def check_features(
  c: ml_collections.ConfigDict,
  found: Sequence[Outlook],
  teachers: Sequence[Outlook] | None,
  fault: Fault,
) -> None:
  """Notes stage outputs of student and teacher that cannot be compared."""
  if c.features == "none" or teachers is None:
    return
  if len(teachers) > 1:
    fault("teacher", f"must be one network with features={c.features!r}, and"
          f" is {len(teachers)}", "name one")  # fmt: skip
  for teacher in teachers[:1]:
    try:
      distill.check_stages(
        stage_sides(found[0].spec), stage_sides(teacher.spec)
      )
    except ValueError as e:
      fault("features", f"cannot be compared: {e}", "or write 'none'")


def foresee(
  c: ml_collections.ConfigDict,
  name: str,
  sources: Sources,
  steps: int,
  fault: Fault,
) -> list[Outlook] | None:
  """The outlooks of a phase's networks: one, or its members'.

  Args:
    c: the phase's section, in order by itself.
    name: of the phase.
    sources: of `init`, `rewind` and `ensemble.members`, each all that the field
      names; None where one of them cannot be read.
    steps: of training.
    fault: is told what cannot be.

  Returns:
    None where it cannot be, or where it hangs on a source that is not there.
  """
  if names(c.ensemble.members):
    return sources["ensemble.members"]
  told = False

  def tell(field: str, must: str, mend: str) -> None:
    nonlocal told
    told = True
    fault(field, must, mend)

  out, members = [], c.population.members
  for member in range(members):
    start = _start(c, sources, member, tell)
    if start is None or told:
      return None
    plan = make_plan(c, steps)
    if plan is not None:
      origin = (*start.masks, (name, member))
      start = _pruned(start, plan, steps, origin, tell)
    if start is None or told:
      return None
    out.append(start)
  return out


def _start(c, sources: Sources, member: int, tell: Fault) -> Outlook | None:
  """What one member begins with."""
  if not c.init:
    return outlook_of(network_spec(c.network))
  base = _one_of(c, "init", sources["init"], member, tell)
  if base is None:
    missing = sources["init"] is None and not c.shrink
    return outlook_of(network_spec(c.network), c.init) if missing else None
  if c.rewind and sources["rewind"] is not None:
    to = _one_of(c, "rewind", sources["rewind"], member, tell)
    if to is not None and to.fixed and base.fixed and to.spec != base.spec:
      tell(
        "rewind",
        "must be an earlier state of what init names, in the same bits and"
        f" forms: {_difference(base.spec, to.spec)}",
        "name a phase of the same `network`",
      )
  if c.shrink:
    return _shrunk(c, base, tell)
  spec = network_spec(c.network)
  if not base.fixed:
    tell(
      "init",
      "has widths that are known only when it has been trained, and"
      " `network` has others",
      "set shrink=True, which takes what init has",
    )
    return None
  if difference := misfit(spec, base.spec):
    tell(
      "init",
      f"must have the layers of `network`: {difference}",
      "give both the same widths, blocks and strides",
    )
    return None
  return _in_form(spec, base, tell)


def _one_of(c, field, found, member: int, tell: Fault) -> Outlook | None:
  """What a member takes of several, as `sources.load_for`."""
  if found is None:
    return None
  if len(found) == 1:
    return found[0]
  if len(found) == c.population.members:
    return found[member]
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


def _shrunk(c, base: Outlook, tell: Fault) -> Outlook | None:
  """As `sources.shrunk`, then in the phase's bits."""
  blocks = [n for n, _ in base.spec.blocks()]
  drop = [n for n in blocks if c.drop_blocks and re.fullmatch(c.drop_blocks, n)]
  if c.drop_blocks and not drop:
    tell("drop_blocks", f"matches no block; there are {blocks}",
         "name some of them")  # fmt: skip
    return None
  try:
    spec, moves = without_blocks(base.spec, drop)
  except ValueError as e:
    tell("drop_blocks", f"must leave a network: {e}", "drop others")
    return None

  def moved(table):
    out = {}
    for key, value in table.items():
      block, _, rest = key.partition("/")
      if block not in blocks or block in moves:
        out["/".join(filter(None, (moves.get(block, block), rest)))] = value
    return out

  alive = {n: r for n, r in moved(base.alive).items() if n in _sizes(spec)}
  spec = narrower(spec, {n: max(1, r[1]) for n, r in alive.items()})
  try:
    spec = quantized(spec, c.network)
  except ValueError as e:
    tell("network.bits", f"must fit the layers that init leaves: {e}",
         "mend or remove that rule")  # fmt: skip
    return None
  totals, gone = [], set(blocks) - set(moves)
  for paths, total in base.totals:
    if not any(p.partition("/")[0] in gone for p in paths):
      totals.append((tuple(moved(dict.fromkeys(paths))), total))
  fixed = all(low == high for low, high in alive.values())
  return Outlook(
    spec,
    alive,
    alive,
    None if fixed or drop else base.alive_sum,
    None if drop else base.alive_sum,
    {p: Kept(k.least, k.most, (0, math.inf))
     for p, k in moved(base.singles).items()},
    tuple(totals),
    base.masks,
    base.why,
    base.unknown,
  )  # fmt: skip


def _in_form(spec: NetSpec, base: Outlook, tell: Fault) -> Outlook | None:
  """A source's masks in a spec of the same widths; other forms, unpruned."""
  old = dict(convolutions(base.spec))
  changed = {
    path
    for path, conv in convolutions(spec)
    if form_of(conv) != form_of(old[path])
  }
  pruned = [
    x.unit
    for x in base.spec.layers()
    if x.unit in changed and _kept(base, x)[0] < _size(base, x, base.widths)[0]
  ]
  if pruned and not base.unknown:
    path = pruned[0]
    forms = form_of(old[path]), form_of(dict(convolutions(spec))[path])
    tell(
      "init",
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


def _sizes(spec: NetSpec) -> dict[str, int]:
  return {g.name: g.size for g in channels.channel_groups(spec)}


# ------------------------------------------------------------------- pruning


def _pruned(
  o: Outlook, plan: Plan, steps: int, origin: tuple, tell: Fault
) -> Outlook | None:
  if steps and plan.last >= steps:
    moves = plan.schedule != "one_shot" or plan.regrow != "none"
    tell(
      f"prune.{'end' if moves else 'begin'}",
      f"puts the last update before step {plan.last} of {steps}, which never"
      " comes",
      "lower it, or train for longer",
    )
    return None
  how = _channels if plan.structured else _weights
  try:
    out = how(o, plan, tell)
  except ValueError as e:
    field = "rules" if plan.distribution == "explicit" else "density"
    tell(f"prune.{field}", "cannot be met", str(e))
    return None
  return out and dataclasses.replace(out, masks=origin)


def _channels(o: Outlook, plan: Plan, tell: Fault) -> Outlook:
  del tell
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
    budget = round(plan.density * sum(sizes.values()))
    least = density.feasible(sizes, floor, budget, steps)
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


_SPLIT = (
  "how many {} each layer keeps: prune.distribution is {!r}, by the {} of"
  " trained weights"
)
_WHOLE = "whether single weights leave whole channels empty (in course alone)"


def _cut(o: Outlook, layer: Layer, alive) -> Kept:
  """A layer's single weights when more of its channels go."""
  before, size = o.singles[layer.path], _size(o, layer, o.widths)[1]
  left = _size(o, layer, alive)
  return Kept(
    max(0, int(before.least - (size - left[0]))),
    int(min(before.most, left[1])),
    (max(0, size - left[1]), math.inf),
  )


def _weights(o: Outlook, plan: Plan, tell: Fault) -> Outlook | None:
  layers = [x for x in o.spec.layers() if re.fullmatch(plan.layers, x.path)]
  if not layers:
    paths = [x.path for x in o.spec.layers()]
    tell("prune.layers", f"matches no layer; there are {paths}", "mend it")
    return None
  if plan.pattern:
    odd = [x for x in layers if x.kernel_shape[-2] % plan.pattern[1]]
    if odd:
      tell(
        "prune.pattern",
        f"must divide the input channels of each filter; it does not in"
        f" {', '.join(f'{x.path} ({x.kernel_shape[-2]})' for x in odd)}",
        "leave these layers out by prune.layers, such as"
        f" {_others(layers, odd)!r}",
      )
      return None
  left = {x.path: _kept(o, x) for x in layers}
  shapes = {x.path: np.broadcast_to(np.float32(0), x.kernel_shape)
            for x in layers}  # fmt: skip
  sizes = {path: shape.size for path, shape in shapes.items()}
  floor, totals, why = min(plan.floor, plan.density), (), o.why
  if plan.pattern:
    n, m = plan.pattern
    kept = {
      p: (math.ceil(low * n / m - 1e-9), min(high, sizes[p] * n // m))
      for p, (low, high) in left.items()
    }
  elif plan.distribution in ("global", "lamp"):
    total = round(sum(sizes.values()) * plan.density)
    least = density.feasible(sizes, floor, total)
    if o.fixed and total > (most := _most_left(o, left)):
      return _too_many(plan, total, "these layers", most, tell)
    room = total - sum(least.values())
    kept = {
      p: (min(least[p], low), min(least[p] + room, high))
      for p, (low, high) in left.items()
    }
    # What is masked already is not among the best, unless a floor asks for it.
    if all(least[p] <= low for p, (low, _) in left.items()):
      if _all_left(o, left, total):
        totals = ((tuple(kept), total),)
    why += (_SPLIT.format("weights", plan.distribution, plan.criterion),)
  else:
    found = density.counts(
      plan.distribution, shapes, plan.density, floor=floor, rules=plan.rules
    )
    if o.fixed and sum(found.values()) > (most := _most_left(o, left)):
      wanted = sum(found.values())
      return _too_many(plan, wanted, "these layers", most, tell)
    kept = {}
    for p, n in found.items():
      low, high = left[p]
      if plan.distribution == "per_output":  # each output by itself
        n = n // shapes[p].shape[-1] * shapes[p].shape[-1]
        low = math.ceil(low * n / sizes[p] - 1e-9)
      kept[p] = min(n, low), min(n, high)
  if not o.fixed:
    kept, totals = {p: (0, high) for p, (_, high) in left.items()}, ()
  singles = dict(o.singles)
  for layer in layers:
    low, high = map(int, kept[layer.path])
    if high == low == sizes[layer.path] and o.fixed:
      continue
    dead = _size(o, layer, o.widths)[0] - _size(o, layer, o.alive)[1]
    singles[layer.path] = Kept(low, high, (max(0, dead), math.inf))
  before = [t for t in o.totals if not set(t[0]) & set(kept)]
  return dataclasses.replace(
    o, singles=singles, totals=(*before, *totals),
    why=tuple(dict.fromkeys((*why, _WHOLE))),
  )  # fmt: skip


def _all_left(o: Outlook, left: Mapping[str, Range], total: int) -> bool:
  """Whether the masks so far surely leave so many weights in these layers."""
  known = [(paths, n) for paths, n in o.totals if set(paths) <= set(left)]
  inside = {p for paths, _ in known for p in paths}
  rest = sum(low for p, (low, _) in left.items() if p not in inside)
  return total <= rest + sum(n for _, n in known)


def _most_left(o: Outlook, left: Mapping[str, Range]) -> float:
  """The most weights that the masks so far leave in these layers."""
  known = [(paths, n) for paths, n in o.totals if set(paths) <= set(left)]
  inside = {p for paths, _ in known for p in paths}
  rest = sum(high for p, (_, high) in left.items() if p not in inside)
  return rest + sum(n for _, n in known)


def _too_many(plan: Plan, wanted: int, where: str, most: float, tell: Fault):
  explicit = plan.distribution == "explicit"
  tell(
    "prune.rules" if explicit else "prune.density",
    f"asks for {wanted} weights in {where}, and init has at most"
    f" {int(most)} left",
    "lower it",
  )


def _others(layers: Sequence[Layer], odd: Sequence[Layer]) -> str:
  """A regex of the layers that are not among the odd ones."""
  out = {x.path for x in odd}
  if out == {"stem"}:
    return "(?!stem).*"
  return "|".join(x.path for x in layers if x.path not in out) or "stage.*"


# --------------------------------------------------------------------- score


@functools.lru_cache(maxsize=64)
def _ends(spec: NetSpec) -> dict[str, tuple[str, str]]:
  """The groups of each layer's inputs and outputs, by path; '' for none."""
  ends = {x.path: ["", ""] for x in spec.layers()}
  for group in channels.channel_groups(spec):
    for path in group.readers:
      ends[path][0] = group.name
    for path in group.writers:
      ends[path][1] = group.name
    for path in group.through:  # channel by channel: in and out are the same
      ends[path][1] = group.name
  return {path: tuple(both) for path, both in ends.items()}


def _term(layer: Layer, ends: tuple[str, str]) -> tuple[float, list[str]]:
  """A kernel's size as a coefficient and the groups that multiply it."""
  inputs, outputs = ends
  size = layer.kernel**2 if layer.kind == "conv" else 1
  depthwise = not inputs and outputs and layer.groups == layer.in_features > 1
  if not depthwise:
    size *= (1 if inputs else layer.in_features) / layer.groups
  if not outputs:
    size *= layer.features
  return size, [end for end in ends if end]


def _size(o: Outlook, layer: Layer, of: Mapping[str, Range]) -> Range:
  """A kernel's weights between such channels, the least and the most."""
  c, groups = _term(layer, _ends(o.spec)[layer.path])
  return tuple(
    round(c * math.prod(of[g][end] for g in groups)) for end in (0, 1)
  )


def _kept(o: Outlook, layer: Layer) -> Range:
  if layer.path in o.singles:
    k = o.singles[layer.path]
    return k.least, k.most
  return _size(o, layer, o.alive)


def score_of(outlooks: Sequence[Outlook], ensemble: bool, views: int = 1):
  """The `Score` that a phase's networks will have, or its `Bounds`.

  Args:
    outlooks: of the phase.
    ensemble: whether all are charged; of a population the first is.
    views: of each image.
  """
  if not ensemble:
    return _score(outlooks[0], views)
  found = [_score(o, views) for o in outlooks]
  if all(isinstance(one, Score) for one in found):
    return add_scores(found)
  return add_bounds([_bounded(one) for one in found])


def exact_of(o: Outlook) -> float | None:
  """The exact figure that a network will have; None where it is not known."""
  found = _score(o, 1)
  if isinstance(found, Score):
    return found.exact.total
  return exact_figure(found.rows).total if found.rows else None


def _bounded(one: Score | Bounds) -> Bounds:
  if isinstance(one, Bounds):
    return one
  figures = {n: getattr(one, n) for n in ("course", "exact", "stored")}
  figures = {n: Figure(f.params_term, f.ops_term) for n, f in figures.items()}
  kept = sum(row.kept for row in one.rows)
  return Bounds(figures, figures, (one.macs, one.macs), (kept, kept), ())


def _score(o: Outlook, views: int) -> Score | Bounds:
  """Of one network."""
  counts = [_counts(o, layer) for layer in o.spec.layers()]
  if all(counts) and o.fixed:
    return score_counts(o.spec.layers(), counts, views=views)
  return _bounds(o, counts, views)


def _counts(o: Outlook, layer: Layer, sure: bool = True) -> LayerWeights | None:
  """A layer's weights where all is known, or all but `whole` if not `sure`."""
  size, kept = _size(o, layer, o.widths), _kept(o, layer)
  outputs = _ends(o.spec)[layer.path][1]
  alive = o.alive[outputs] if outputs else (layer.features, layer.features)
  whole = o.singles[layer.path].whole if layer.path in o.singles else (0, 0)
  if layer.path not in o.singles:
    whole = (size[0] - kept[0],) * 2
  whole = min(whole[0], size[0] - kept[0]), min(whole[1], size[0] - kept[0])
  known = (size, kept, alive) + ((whole,) if sure else ())
  if any(low != high for low, high in known):
    return None
  normed = batch_norm_of(layer) is not None
  vectors = 2 * normed + (layer.kind == "dense")
  biases, dead = layer.features if vectors else 0, layer.features - alive[0]
  return LayerWeights(
    size[0],
    int(kept[0]),
    int(whole[0]),
    biases,
    int(alive[0]) if normed else biases,
    size[0] + layer.features * vectors,
    int(kept[0] + alive[0] * vectors),
    int(whole[0] + dead * vectors),
  )


def _bounds(o: Outlook, counts, views: int) -> Bounds:
  layers, ends = o.spec.layers(), _ends(o.spec)

  def total(weigh, of: Mapping[str, Range], which=lambda layer: True) -> Range:
    """The sum of kernels' sizes, each times what `weigh` says of its layer."""
    terms = []
    for layer in filter(which, layers):
      c, groups = _term(layer, ends[layer.path])
      terms.append((c * weigh(layer), groups))
    sums = o.width_sum if of is o.widths else o.alive_sum
    return products(terms, of, sums)

  def by_output(weigh, of: Mapping[str, Range]) -> Range:
    """The same of output channels that a batch norm or a bias follows."""
    terms = []
    for layer in layers:
      if layer.ends_unit or layer.kind == "dense":
        end = ends[layer.path][1]
        n = weigh(layer) * (1 if end else layer.features)
        terms.append((n, [end] if end else []))
    sums = o.width_sum if of is o.widths else o.alive_sum
    return products(terms, of, sums)

  def kept(weigh) -> Range:
    """The sum of unmasked weights, each times what `weigh` says."""
    whole = total(weigh, o.alive, lambda x: x.path not in o.singles)
    one = {x.path: x for x in layers if x.path in o.singles}
    ranges = {p: (o.singles[p].least, o.singles[p].most) for p in one}
    slopes = {p: [(weigh(one[p]), high - low)]
              for p, (low, high) in ranges.items()}  # fmt: skip
    base = sum(weigh(one[p]) * low for p, (low, _) in ranges.items())
    return plus(whole, (base, base), spread(ranges, o.totals, slopes))

  side = lambda x: x.out_size**2
  q_w, q_a = max(x.w_bits for x in layers), max(x.a_bits for x in layers)
  macs = total(side, o.widths)
  charged = total(lambda x: side(x) * max(x.w_bits, x.a_bits), o.widths)
  ops = [views * n / 32 / MACS_REFERENCE for n in charged]
  weights = kept(lambda x: 1)
  biases = by_output(lambda x: BIAS_BITS, o.alive)
  bits = plus(kept(lambda x: x.w_bits), biases)
  stored = plus(
    _stored(o, layers, total),
    by_output(lambda x: BIAS_BITS, o.widths),
    _scales(o, layers, ends),
  )
  vectors = lambda x: 1 if x.kind == "dense" else 2
  params = plus(total(lambda x: 1, o.widths), by_output(vectors, o.widths))
  left = plus(weights, by_output(vectors, o.alive))
  masked = _whole_share(o, layers, params, left, macs)
  f = [views * n * max(q_w, q_a) / 32 / MACS_REFERENCE for n in macs]
  course = [n * q_w / 32 / PARAMS_REFERENCE for n in left]
  made = []
  for end in (0, 1):
    made.append(
      {
        "course": Figure(course[end], (1 - masked[1 - end]) * f[end]),
        "exact": Figure(bits[end] / 32 / PARAMS_REFERENCE, ops[end]),
        "stored": Figure(stored[end] / 32 / PARAMS_REFERENCE, ops[end]),
      }
    )
  known = [_counts(o, layer, sure=False) for layer in layers]
  rows = ()
  if all(known) and o.fixed:
    rows = score_counts(layers, known, views=views).rows
  macs = tuple(views * n for n in macs)
  return Bounds(*made, macs, weights, tuple(dict.fromkeys(o.why)), rows)


def _scales(o: Outlook, layers, ends) -> Range:
  """Bits of the scales beside a file's weights."""
  terms: list[tuple[float, list[str]]] = []
  for layer in layers:
    scales = stored_scales(layer)
    by_channel = scales >= layer.features
    end = ends[layer.path][1]
    if by_channel and end:
      terms.append((SCALE_BITS, [end]))
      scales -= layer.features
    terms.append((SCALE_BITS * scales, []))
  return products(terms, o.widths, o.width_sum)


def _stored(o: Outlook, layers, total) -> Range:
  """Bits of a file's kernels, each in its smallest form."""
  plain = lambda x: x.path not in o.singles
  if all(o.alive[g] == o.widths[g] for g in o.alive):
    out = total(lambda x: x.w_bits, o.widths, plain)
  else:
    out = plus(
      *(
        tuple(_file(x, s, k) for s, k in zip(
          _size(o, x, o.widths), _size(o, x, o.alive), strict=True))
        for x in filter(plain, layers)
      ),
      (0, 0),
    )  # fmt: skip
  if not o.singles:
    return out
  ranges, base = {}, 0.0
  slopes: list[dict[str, Any]] = [{}, {}]
  for layer in layers:
    if layer.path not in o.singles:
      continue
    k, size = o.singles[layer.path], _size(o, layer, o.widths)[1]
    ranges[layer.path] = k.least, k.most
    corners = _corners(layer, size, k)
    base += _file(layer, size, k.least)
    # Of 1 bit, whole kernels are smaller files than those that lack a weight.
    for end, most in enumerate((k.most, min(k.most, size - 0.5))):
      at = [_file(layer, size, min(n, max(most, k.least))) for n in corners]
      slopes[end][layer.path] = [
        ((b - a) / (y - x), y - x)
        for a, b, x, y in zip(
          at[:-1], at[1:], corners[:-1], corners[1:], strict=True
        )
        if y > x
      ]
  found = [spread(ranges, o.totals, slopes[end])[end] for end in (0, 1)]
  return plus(out, (base + found[0], base + found[1]))


def _file(layer: Layer, size: float, kept: float) -> float:
  forms = encodings((round(size),), kept, layer.w_bits)
  return min(forms.values())


def _corners(layer: Layer, size: int, k: Kept) -> list[float]:
  """Numbers of kept weights between which a file grows evenly."""
  index = math.ceil(math.log2(size)) if size > 1 else 0
  found = [size / index if index else size]
  found.append(size * (layer.w_bits - 1) / layer.w_bits)
  inner = sorted(n for n in found if k.least < n < k.most)
  return [k.least, *inner, k.most]


def _whole_share(o: Outlook, layers, params, left, macs) -> Range:
  """The course's p_s: the share in wholly masked channels."""
  by_params, by_macs = [0.0, 0.0], [0.0, 0.0]
  for layer in layers:
    size = _size(o, layer, o.widths)
    if layer.path in o.singles:
      k = o.singles[layer.path]
      gone = size[1] - k.least
      whole = min(k.whole[0], max(0, size[0] - k.most)), min(k.whole[1], gone)
    else:
      alive = _size(o, layer, o.alive)
      same = o.alive == o.widths
      whole = (0, 0) if same else (size[0] - alive[1], size[1] - alive[0])
    whole = max(0, whole[0]), max(0, whole[1])
    for end in (0, 1):
      by_params[end] += whole[end]
      by_macs[end] += whole[end] * layer.out_size**2
  if params[1] <= left[0] + 1e-3:
    return 0.0, 0.0
  low = min(by_params[0] / params[1], by_macs[0] / macs[1])
  removed = 1 - left[0] / params[1]
  high = min(removed, by_macs[1] / macs[0], 1.0)
  return low, max(low, high)
