"""How many weights each layer keeps: a distribution of the density.

Every distribution returns exact numbers by layer path, so that the mask is
always the best so many of a layer.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxr18.compress.criteria import Scores, check_finite
from jaxr18.nn.spec import decide

NAMES = ("uniform", "per_output", "global", "erk", "lamp", "explicit")


def counts(
  name: str,
  scores: Scores,
  density: float,
  *,
  floor: float = 0.0,
  rules: Sequence[tuple[str, float]] = (),
) -> dict[str, int]:
  """Counts the weights to keep, by layer path.

  - uniform: round(size * density) in each layer.
  - per_output: of each output's n weights all but floor(n (1 - density)), in
    each layer: Wanda's comparison group (Sun et al., 2023, arXiv:2306.11695).
  - global: the best round(total * density) of all layers together.
  - lamp: the same on scores by which a layer's weights are put in proportion
    to those above them (Lee et al., 2021, arXiv:2010.07611, equation 1). LAMP
    is of w^2, the scores of magnitude_l2; `prune.prune` takes no others.
  - erk: Erdos-Renyi-Kernel, a layer's density in proportion to the sum of its
    kernel's dimensions over their product (Evci et al., 2020,
    arXiv:1911.11134, section 3).
  - explicit: the first of `rules` whose regex matches the whole path; others
    keep everything.

  Args:
    name: one of `NAMES`.
    scores: by layer path.
    density: share of all weights to keep, (0, 1]; unused by explicit.
    floor: share that each layer keeps at least, at least one weight. What it
      adds in one layer, global and lamp take from the others; where they have
      not that much, the floor is lowered to what fits (`feasible`).
    rules: (regex, density), for explicit.

  Raises:
    ValueError: what would empty a layer, a density out of range or below one
      weight a layer, a floor above the density, or a rule that decides no
      layer.
  """
  sizes = {path: s.size for path, s in scores.items()}
  _check(name, scores, density, floor)
  least = at_least(sizes, floor)
  if name == "explicit":
    found = _explicit(list(sizes), rules)
    kept = {p: round(n * found[p]) for p, n in sizes.items()}
  elif name == "uniform":
    kept = {p: round(n * density) for p, n in sizes.items()}
  elif name == "per_output":
    kept = {
      p: s.shape[-1] * of_output(n // s.shape[-1], density)
      for (p, s), n in zip(scores.items(), sizes.values(), strict=True)
    }
  elif name == "erk":
    shapes = {path: s.shape for path, s in scores.items()}
    kept = {p: round(sizes[p] * d) for p, d in erk(shapes, density).items()}
  else:
    if name == "lamp":
      scores = {path: lamp(s) for path, s in scores.items()}
    return _best_of_all(scores, *budget(sizes, density, floor))
  kept = {p: max(n, least[p] if floor else 0) for p, n in kept.items()}
  empty = [p for p, n in kept.items() if n == 0]
  if empty:
    raise ValueError(
      f"{', '.join(empty)} would keep none of its"
      f" {', '.join(str(sizes[p]) for p in empty)} weights; raise density"
      f" (={density}), or give a floor"
    )
  return kept


def at_least(
  sizes: Mapping[str, int], floor: float, steps: Mapping[str, int] | None = None
) -> dict[str, int]:
  """Counts the steps that each keeps at least: its share, rounded up.

  Args:
    sizes: by name.
    floor: share of each.
    steps: what each is counted in; by default in ones.
  """
  of = steps or dict.fromkeys(sizes, 1)
  return {
    name: max(1, math.ceil(floor * n / of[name] - 1e-9))
    for name, n in sizes.items()
  }


def budget(
  sizes: Mapping[str, int],
  density: float,
  floor: float,
  steps: Mapping[str, int] | None = None,
) -> tuple[int, dict[str, int]]:
  """Returns how much all keep together, and the least steps of each.

  Args:
    sizes, steps: as of `at_least`.
    density: share of all.
    floor: share of each, where the total allows it.

  Raises:
    ValueError: as `feasible`.
  """
  total = round(sum(sizes.values()) * density)
  return total, feasible(sizes, floor, total, steps)


def feasible(
  sizes: Mapping[str, int],
  floor: float,
  total: int,
  steps: Mapping[str, int] | None = None,
) -> dict[str, int]:
  """Lowers a floor until `at_least` needs no more than a total.

  Rounded up, many small shares are more than the same share of all: a fifth of
  each of twelve groups is more than a fifth of their channels.

  Args:
    sizes: of each layer or group, by name.
    floor: the largest share of each to keep at least.
    total: how many may be kept altogether.
    steps: how many are kept or removed together, by name; None is one.

  Raises:
    ValueError: even one step of each is more than the total.
  """
  of = steps or dict.fromkeys(sizes, 1)

  def fits(share):
    least = at_least(sizes, share, steps)
    return sum(n * of[name] for name, n in least.items()) <= total

  if not fits(0.0):
    need = sum(of.values())
    raise ValueError(
      f"{total} of {sum(sizes.values())} are to be kept, and {len(sizes)}"
      f" layers or groups need {need} at least; raise the density to"
      f" {math.ceil(1e4 * need / sum(sizes.values())) / 1e4} or more"
    )
  if fits(floor):
    return at_least(sizes, floor, steps)
  low, high = 0.0, floor
  for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return at_least(sizes, low, steps)


def of_output(size: int, density: float) -> int:
  """Counts the weights of an output that per_output keeps, at least 1."""
  return size - math.floor(size * (1 - density) + 1e-9)


def erk(
  shapes: Mapping[str, Sequence[int]], density: float
) -> dict[str, float]:
  """Densities by layer; those that would exceed 1 are 1, the others share."""
  size = {p: math.prod(s) for p, s in shapes.items()}
  raw = {p: sum(s) / math.prod(s) for p, s in shapes.items()}
  dense: set[str] = set()
  while True:
    rest = [p for p in shapes if p not in dense]
    budget = density * sum(size.values()) - sum(size[p] for p in dense)
    scale = budget / sum(raw[p] * size[p] for p in rest) if rest else 0.0
    over = {p for p in rest if scale * raw[p] > 1}
    if not over:
      return {p: 1.0 if p in dense else scale * raw[p] for p in shapes}
    dense |= over


def lamp(scores: np.ndarray) -> np.ndarray:
  """Divides each score by the sum of itself and all that are higher.

  Of equal ones the later is taken as the lower. What is not above 0, as all
  that is masked already, stays as it is, and so lower than the others.
  """
  flat = scores.ravel().astype(np.float64)
  order = np.argsort(-flat, kind="stable")
  ordered = flat[order]
  sums = np.cumsum(np.maximum(ordered, 0))
  out = np.empty_like(flat)
  out[order] = np.divide(ordered, sums, out=ordered.copy(), where=ordered > 0)
  return out.reshape(scores.shape)


def kth_highest(flat: np.ndarray, k: int) -> np.ndarray:
  """Returns the k-th highest number, 4 times as fast as np.partition.

  Bounds around it are guessed from a sample, then few numbers lie between.

  Args:
    flat: [n], finite.
    k: from 1 to n.
  """
  n = flat.size
  if n > 1 << 16:
    sample = np.sort(flat[:: n >> 14 | 1])
    at = sample.size * (n - k) // n
    margin = 4 * math.isqrt(sample.size)  # 8 standard deviations or more
    low = sample[at - margin] if at >= margin else -np.inf
    high = sample[at + margin] if at + margin < sample.size else np.inf
    above = int(np.count_nonzero(flat > high))
    between = flat[(flat >= low) & (flat <= high)]
    if above < k <= above + between.size:
      flat, n, k = between, between.size, k - above
  return np.partition(flat, n - k)[n - k]


def _check(name, scores, density, floor):
  if name not in NAMES:
    raise ValueError(f"distribution (={name!r}) must be one of {NAMES}")
  if not scores:
    raise ValueError("no layer is to be pruned; widen the regex of layers")
  if not 0 < density <= 1:
    raise ValueError(f"density (={density}) must be above 0 and at most 1")
  if not 0 <= floor <= 1 or (floor > density and name != "explicit"):
    raise ValueError(
      f"floor (={floor}) must be from 0 to the density (={density})"
    )
  check_finite(scores)


def _explicit(paths, rules) -> dict[str, float]:
  first = decide(rules, paths)
  for rule in rules:
    if not 0 < rule[1] <= 1:
      raise ValueError(
        f"rule {tuple(rule)}: the density must be above 0 and at most 1"
      )
  return {p: r[1] if r else 1.0 for p, r in first.items()}


def _best_of_all(scores: Scores, total: int, least) -> dict[str, int]:
  """Counts of the best `total` of all layers, of equal ones the first.

  Layers that would fall below their least get it, and the others share what
  is left; then no layer that had enough can fall below again but by this.
  """
  fixed: dict[str, int] = {}
  while True:
    free = [p for p in scores if p not in fixed]
    kept = _split([scores[p] for p in free], total - sum(fixed.values()))
    low = {p: least[p] for p, n in zip(free, kept, strict=True) if n < least[p]}
    if not low:
      return {
        p: fixed[p] if p in fixed else kept[free.index(p)] for p in scores
      }
    fixed |= low


def _split(arrays: Sequence[np.ndarray], total: int) -> list[int]:
  """How many of the best `total` numbers lie in each array."""
  flat = np.concatenate([a.ravel() for a in arrays])
  if total >= flat.size:
    return [a.size for a in arrays]
  if total <= 0:
    return [0] * len(arrays)
  threshold = kth_highest(flat, total)
  out = [int(np.count_nonzero(a > threshold)) for a in arrays]
  ties = total - sum(out)
  for i, a in enumerate(arrays):
    more = min(ties, int(np.count_nonzero(a == threshold)))
    out[i] += more
    ties -= more
  return out
