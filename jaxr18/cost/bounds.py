"""Bounds of a score where training decides what each layer keeps.

Between two bounds lies every network that a plan allows. They hold, and are
not always reached: a sum of products of widths is bounded by a linear program
(McCormick, 1976), and each figure's two terms are bounded apart.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from jaxr18.cost.figures import FIGURES, Figure, LayerScore, Score, plain_table

Range = tuple[float, float]  # the least and the most


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The lowest and the highest that each of the three figures can be.

  Attributes:
    low, high: by the figures' names.
    macs, kept: of one image; weights that no mask removes.
    why: what is not known before training, a sentence each.
    rows: by layer where every layer's weights are known, as of a `Score`.
  """

  low: dict[str, Figure]
  high: dict[str, Figure]
  macs: Range
  kept: Range
  why: tuple[str, ...]
  rows: tuple[LayerScore, ...] = ()

  def as_dict(self) -> dict[str, Any]:
    """Returns plain numbers, strings, lists and dicts."""
    out: dict[str, Any] = {"bounds": True, "why": list(self.why)}
    for name in FIGURES:
      out[name] = {
        which: {**dataclasses.asdict(figure), "total": figure.total}
        for which, figure in (
          ("low", self.low[name]),
          ("high", self.high[name]),
        )
      }
    for name in ("macs", "kept"):
      out[name] = dict(zip(("low", "high"), getattr(self, name), strict=True))
    return out

  def to_json(self) -> str:
    return json.dumps(self.as_dict(), allow_nan=False)

  def table(self) -> str:
    """Says what is not known; there is no table by layer."""
    return "\n".join(("These are bounds, not the score:", *self.why, ""))

  def summary(self) -> Table:
    """Makes a rich table of the figures' bounds."""
    table = plain_table("Score, lower is better, between")
    table.add_column("figure")
    for name in ("the lowest", "the highest"):
      table.add_column(name, justify="right")
    for name in FIGURES:
      low, high = self.low[name].total, self.high[name].total
      table.add_row(name, f"{low:.6f}", f"{high:.6f}")
    counts = [
      f"{name} {_text(low)}" + (f" to {_text(high)}" if high > low else "")
      for name, (low, high) in (
        ("MACs", self.macs),
        ("kept weights", self.kept),
      )
    ]
    table.caption, table.caption_justify = "\n".join(counts), "left"
    return table


def add_bounds(members: Sequence[Score | Bounds]) -> Bounds:
  """Adds the bounds of an ensemble's members."""
  members = [_as_bounds(m) if isinstance(m, Score) else m for m in members]

  def added(figures):
    return {
      name: Figure(
        math.fsum(f[name].params_term for f in figures),
        math.fsum(f[name].ops_term for f in figures),
      )
      for name in FIGURES
    }

  return Bounds(
    added([m.low for m in members]),
    added([m.high for m in members]),
    plus(*(m.macs for m in members)),
    plus(*(m.kept for m in members)),
    tuple(dict.fromkeys(line for m in members for line in m.why)),
  )


def _as_bounds(one: Score) -> Bounds:
  """Of a score that is known: both are the same."""
  figures = {n: getattr(one, n) for n in FIGURES}
  figures = {n: Figure(f.params_term, f.ops_term) for n, f in figures.items()}
  kept = sum(row.kept for row in one.rows)
  return Bounds(figures, figures, (one.macs, one.macs), (kept, kept), ())


def plus(*ranges: Range) -> Range:
  return sum(r[0] for r in ranges), sum(r[1] for r in ranges)


def _text(n: float) -> str:
  return f"{round(n):,}"


def products(
  terms: Sequence[tuple[float, Sequence[str]]],
  ranges: Mapping[str, Range],
  total: Range | None = None,
) -> Range:
  """Bounds of a sum of products of at most two numbers, each in its range.

  Args:
    terms: (coefficient above 0, names of what it multiplies, each once).
    ranges: of each number, by name.
    total: of the sum of all of them, if that is known.
  """
  used = {name for _, names in terms for name in names}
  if all(ranges[n][0] == ranges[n][1] for n in used):
    at = {n: ranges[n][0] for n in used}
    value = sum(c * math.prod(at[n] for n in names) for c, names in terms)
    return value, value
  order = list(ranges)
  pairs: dict[tuple[str, ...], float] = {}
  cost = dict.fromkeys(order, 0.0)
  constant = 0.0
  for c, names in terms:
    if len(names) == 2:
      key = tuple(sorted(names))
      pairs[key] = pairs.get(key, 0.0) + c
    elif names:
      cost[names[0]] += c
    else:
      constant += c
  n, rows, limits = len(order) + len(pairs), [], []

  def at_most(limit, **by):
    row = np.zeros(n)
    for i, value in by["of"].items():
      row[i] = value
    rows.append(row)
    limits.append(limit)

  for k, (a, b) in enumerate(pairs, len(order)):
    i, j = order.index(a), order.index(b)
    (al, ah), (bl, bh) = ranges[a], ranges[b]
    at_most(al * bl, of={k: -1, i: bl, j: al})
    at_most(ah * bh, of={k: -1, i: bh, j: ah})
    at_most(-ah * bl, of={k: 1, i: -bl, j: -ah})
    at_most(-al * bh, of={k: 1, i: -bh, j: -al})
  if total is not None:
    every = range(len(order))
    at_most(total[1], of=dict.fromkeys(every, 1))
    at_most(-total[0], of=dict.fromkeys(every, -1))
  least, most = (
    sum(c * math.prod(ranges[n][end] for n in names) for c, names in terms)
    for end in (0, 1)
  )
  if not rows:
    return least, most
  bounds = [ranges[name] for name in order]
  bounds += [(0, ranges[a][1] * ranges[b][1]) for a, b in pairs]
  ends = _ends([*cost.values(), *pairs.values()], rows, limits, bounds)
  if ends is None:
    return least, most
  low, high = (end + constant for end in ends)
  slack = 1e-6 * max(1.0, abs(high))  # of the solver
  return max(0.0, low - slack), high + slack


def _ends(
  costs: Sequence[float],
  rows: Sequence[np.ndarray],
  limits: Sequence[float],
  bounds: Sequence[Range],
) -> Range | None:
  """Solves a linear program for its least and its largest sum.

  Args:
    costs: of each number.
    rows, limits: a number times its entry in a row, summed, is at most the
      row's limit.
    bounds: of each number.

  Returns:
    None where the solver finds none.
  """
  from scipy.optimize import linprog  # 0.3 seconds, for those who need it

  ends = []
  for sign in (1, -1):
    found = linprog(
      sign * np.array(costs), np.array(rows), np.array(limits), bounds=bounds
    )
    if found.status != 0:
      return None
    ends.append(sign * found.fun)
  return ends[0], ends[1]


def spread(
  ranges: Mapping[str, Range],
  totals: Sequence[tuple[Sequence[str], float]],
  slopes: Mapping[str, Sequence[tuple[float, float]]],
) -> Range:
  """Bounds of a sum of functions that rise, whatever shares a total has.

  Args:
    ranges: of each argument, by name.
    totals: (names, their sum), no name twice; others are free.
    slopes: of each function above its lowest argument, (slope, length) pairs
      whose slopes fall, as a concave function's; a linear one has one pair.

  Returns:
    The least and the most above the functions' values at the lowest arguments.
    The least is of the functions' chords.
  """
  free = set(ranges).difference(*(names for names, _ in totals))
  low, high = 0.0, sum(s * n for name in free for s, n in slopes[name])
  for names, total in totals:
    room = total - sum(ranges[name][0] for name in names)
    parts = [part for name in names for part in slopes[name]]
    chords = [
      (sum(s * n for s, n in slopes[name]) / length, length)
      for name in names
      if (length := sum(n for _, n in slopes[name]))
    ]
    high += _filled(sorted(parts, reverse=True), room)
    low += _filled(sorted(chords), room)
  return low, high


def _filled(parts: Sequence[tuple[float, float]], room: float) -> float:
  value = 0.0
  for slope, length in parts:
    taken = min(length, max(0, room))
    value += slope * taken
    room -= taken
  return value
