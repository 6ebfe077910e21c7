"""Scores of many candidate specs, and specs of a given score."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from jaxr18.cost.figures import FIGURES
from jaxr18.cost.score import Score, score
from jaxr18.nn.spec import BITS, NetSpec, check, with_bits


def score_many(specs: Iterable[NetSpec], **options) -> list[Score]:
  """Scores each spec, about 4,000 a second: nothing is traced or initialized.

  Args:
    specs: candidates.
    **options: of `score`, the same for all.
  """
  return [score(spec, **options) for spec in specs]


@dataclasses.dataclass(frozen=True)
class Solution:
  """What `solve` found: the knob's value, its spec and its score."""

  value: float
  spec: NetSpec
  score: Score


def solve(
  spec: NetSpec,
  target: float,
  knob: str,
  *,
  figure: str = "per_layer",
  multiple: int = 1,
) -> Solution:
  """Finds the least change of one knob that brings a score to a target.

  Args:
    spec: where to start.
    target: the score to reach, > 0.
    knob: 'width' finds the largest factor (to 1e-6) for all widths, above 1
      where there is room; 'bits' the most bits for all weights and
      activations alike; 'sparsity' the smallest fraction (to 1e-9) removed of
      every kernel.
    figure: which of `FIGURES` is to reach it.
    multiple: scaled widths are multiples of it and of all groups.

  Raises:
    ValueError: a knob or figure that does not exist, or a target that the
      knob cannot reach, with the lowest score that it can.
  """
  if figure not in FIGURES:
    raise ValueError(f"figure (={figure!r}) must be one of {FIGURES}")
  if not target > 0:
    raise ValueError(f"target (={target}) must be above 0")

  def solution(value, spec, **options):
    return Solution(value, spec, score(spec, **options))

  def fits(found):
    return getattr(found.score, figure).total <= target

  def by_width(factor):
    return solution(factor, scale_widths(spec, factor, multiple))

  def by_bits(bits):
    return solution(bits, with_bits(spec, [(".*", bits, bits)]))

  def by_sparsity(fraction):
    return solution(fraction, spec, sparsity=fraction)

  knobs = {
    "width": lambda: _largest(by_width, fits),
    "bits": lambda: next(
      (s for s in map(by_bits, sorted(BITS, reverse=True)) if fits(s)),
      by_bits(min(BITS)),
    ),
    "sparsity": lambda: _smallest(by_sparsity, fits),
  }
  if knob not in knobs:
    raise ValueError(f"knob (={knob!r}) must be one of {tuple(knobs)}")
  found = knobs[knob]()
  if not fits(found):
    lowest = getattr(found.score, figure).total
    raise ValueError(
      f"no {knob} brings the {figure} score to {target}: the lowest is"
      f" {lowest:.6f}, at {knob} {found.value:g}; turn another knob too"
    )
  return found


def scale_widths(spec: NetSpec, factor: float, multiple: int = 1) -> NetSpec:
  """Scales every width to the nearest multiple, at least one.

  The multiple is also one of all groups in the spec, so every candidate is a
  network; ranks scale too, to the nearest integer; depths, strides, groups and
  bits stay.
  """
  groups = [getattr(unit, "groups", 1) for _, unit in spec.units()]
  step = math.lcm(multiple, *groups)

  def scaled(conv):
    if conv is None:
      return None
    # A rank is the width of a low-rank convolution's core; 0 means none.
    ranks = tuple(r and max(1, round(r * factor)) for r in conv.ranks)
    features = max(1, round(conv.features * factor / step)) * step
    return dataclasses.replace(conv, features=features, ranks=ranks)

  stages = tuple(
    tuple(
      dataclasses.replace(
        block, **{name: scaled(conv) for name, conv in vars(block).items()}
      )
      for block in stage
    )
    for stage in spec.stages
  )
  out = dataclasses.replace(spec, stem=scaled(spec.stem), stages=stages)
  check(out)
  return out


def _largest(at: Callable, fits: Callable):
  """The largest factor that fits, or the smallest one at all."""
  low, high = 0.0, 1.0
  while fits(at(high)):
    low, high = high, 2 * high
  while high - low > 1e-6 * high and high > 1e-6:
    middle = (low + high) / 2
    low, high = (middle, high) if fits(at(middle)) else (low, middle)
  return at(low)


def _smallest(at: Callable, fits: Callable):
  """The smallest fraction in [0, 1] that fits, or 1."""
  if fits(at(0.0)):
    return at(0.0)
  low, high = 0.0, 1.0
  while high - low > 1e-9:
    middle = (low + high) / 2
    low, high = (low, middle) if fits(at(middle)) else (middle, high)
  return at(high)
