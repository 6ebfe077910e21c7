"""Where things lie in a picture of accuracy against score.

The score is on a logarithmic axis, and so is the share of wrong answers: a
point more is harder at 93% than at 60%, and gets more room there. Vega-Lite
draws by the same scales, and places no labels: they are placed here.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxr18.report.points import GOAL, Point, front

LEAST_ERROR = 1e-3  # where the accuracy's axis ends, at 99.9%
GOAL_SHARE = 0.25  # of the axis that may be spent on showing the goal
_ACCURACIES = (
  0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.84, 0.86, 0.88, 0.9,
  0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999,
)  # fmt: skip


class Frame(NamedTuple):
  """Where numbers lie in the axes, from the left upper corner.

  Attributes:
    width, height: of the axes, in pixels.
    scores: the ends of the axis.
    errors: shares of wrong answers at the bottom and at the top.
    goal: an accuracy that is drawn as a line, None where there is none.
  """

  width: float
  height: float
  scores: tuple[float, float]
  errors: tuple[float, float]
  goal: float | None = None

  def x(self, score: float) -> float:
    low, high = self.scores
    return self.width * math.log(score / low) / math.log(high / low)

  def y(self, accuracy: float) -> float:
    bottom, top = self.errors
    share = math.log(bottom / error_of(accuracy)) / math.log(bottom / top)
    return self.height * (1 - share)

  @property
  def goal_inside(self) -> bool:
    """Whether the goal's line lies within the axes."""
    bottom, top = self.errors
    return self.goal is not None and top <= error_of(self.goal) <= bottom


def error_of(accuracy: float) -> float:
  """Returns the share of wrong answers, as the upright axis shows it."""
  return max(1 - accuracy, LEAST_ERROR)


def frame(
  points: Sequence[Point],
  width: float,
  height: float,
  goal: float | None = GOAL,
) -> Frame:
  """Returns axes that hold all points and their error bars.

  They hold the goal too where that costs less than `GOAL_SHARE` of them.

  Args:
    points: what is drawn.
    width, height: of the axes, in pixels.
    goal: an accuracy to reach, None where there is none.
  """
  scores = [p.score for p in points] or [0.01, 1.0]
  wide = math.log(max(scores) / min(scores)) or 1.0
  apart = max(math.exp(0.05 * wide), 1.1)
  height_of = lambda accuracy: -math.log10(error_of(accuracy))
  ends = [height_of(p.accuracy + s * p.error) for p in points for s in (-1, 1)]
  if goal is not None:
    with_goal = [*ends, height_of(goal)]
    tall = max(with_goal) - min(with_goal)
    if not ends or tall * (1 - GOAL_SHARE) <= max(ends) - min(ends):
      ends = with_goal
  ends = ends or [0.5, 1.5]
  tall = max(ends) - min(ends) or 0.3
  return Frame(
    width,
    height,
    (min(scores) / apart, max(scores) * apart),
    (10 ** (0.06 * tall - min(ends)), 10 ** (-0.1 * tall - max(ends))),
    goal,
  )


def accuracy_ticks(f: Frame, apart: float = 24.0) -> list[float]:
  """Returns round accuracies, the goal among them, so many pixels apart."""
  low, high = (1 - error for error in f.errors)
  inside = [a for a in _ACCURACIES if low <= a <= high]
  first = [f.goal] if f.goal_inside and f.goal is not None else []
  finer = (ticks(max(low, 0), high, n) for n in (5, 10, 20))
  return _at_least_three([inside, *finer], f.y, apart, first)


def score_ticks(f: Frame, apart: float = 44.0) -> list[float]:
  """Returns round scores, 1, 10, 100 before others, so many pixels apart."""
  low, high = f.scores
  round_ones = sorted(log_ticks(low, high), key=lambda t: f"{t:e}"[0] != "1")
  finer = (ticks(low, high, n) for n in (5, 10, 20))
  return _at_least_three([round_ones, *finer], f.x, apart, [])


def _at_least_three(choices, place, apart: float, first) -> list[float]:
  """The first choice of ticks of which three fit, or the one with the most."""
  best: list[float] = []
  for every in choices:
    kept = list(first)
    for tick in every:
      if all(abs(place(tick) - place(k)) >= apart for k in kept):
        kept.append(tick)
    if len(kept) > len(best):
      best = kept
    if len(best) >= 3:
      break
  return sorted(best)


def label_order(points: Sequence[Point]) -> list[int]:
  """Orders points by whose label comes first: the front, runs, others.

  Of each group, those that are best among the runs come before the rest.
  """
  best = set(front(points))
  best_runs = set(front([p for p in points if p.series == points[0].series]))
  return sorted(
    range(len(points)),
    key=lambda i: (
      points[i].series != points[0].series,
      points[i] not in best,
      points[i] not in best_runs,
      points[i].score,
    ),
  )


def steps(points: Sequence[Point], f: Frame) -> list[tuple[float, float]]:
  """Returns the front's line, (score, accuracy): the best that each can buy."""
  line: list[tuple[float, float]] = []
  for p in front(points):
    line.append((p.score, line[-1][1] if line else 1 - f.errors[0]))
    line.append((p.score, p.accuracy))
  if line:
    line.append((f.scores[1], line[-1][1]))
  return line


def series_of(points: Sequence[Point]) -> list[str]:
  """Lists the series in the order of their first points."""
  return list(dict.fromkeys(p.series for p in points))


def shorten(label: str, most: int) -> str:
  """Shortens a name to so many letters; of a repository to its owner."""
  label = re.sub(r"^([\w-]+)/[\w.-]+", r"\1", label)
  return label if len(label) <= most else label[: most - 1].rstrip() + "…"


def said(p: Point) -> str:
  """Describes a point in a few words."""
  bar = f" ± {100 * p.error:.2f}" if p.error else ""
  return f"{100 * p.accuracy:.2f}%{bar} at a score of {p.score:.4g}"


def spoken(p: Point) -> str:
  """Returns a point in words that no other of the picture has."""
  return f"{p.label}, {p.series}: {said(p)}"


class Label(NamedTuple):
  """A point's label: its text, and its left end's place from the point."""

  text: str
  dx: float
  dy: float


def labels(
  points: Sequence[Point], f: Frame, letters: int, size: float = 12.0
) -> dict[int, Label]:
  """Returns the labels that cover nothing, by the point's number.

  Args:
    points: what is drawn.
    f: where it lies.
    letters: of the longest label.
    size: of the letters, in pixels.
  """
  texts = [shorten(p.label, letters) for p in points]
  line = [(f.x(score), f.y(a)) for score, a in steps(points, f)]
  taken = [*_boxes(line)]
  if f.goal_inside and f.goal is not None:
    taken.append((0, f.y(f.goal) - 1, f.width, f.y(f.goal) + 1))
  for p in points:
    if p.error:
      x, top, bottom = f.x(p.score), p.accuracy + p.error, p.accuracy - p.error
      taken.append((x - 2, f.y(top), x + 2, f.y(bottom)))
  spots = [(f.x(p.score), f.y(p.accuracy)) for p in points]
  places = place_labels(
    spots,
    [(0.56 * size * len(t) + 2, size + 2) for t in texts],
    label_order(points) if points else [],
    (0, 0, f.width, f.height),
    taken=taken,
  )
  return {
    i: Label(texts[i], x + 1 - spots[i][0], y + 0.85 * size - spots[i][1])
    for i, (x, y) in places.items()
  }


def _boxes(line):
  for (x1, y1), (x2, y2) in itertools.pairwise(line):
    yield min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def log_ticks(low: float, high: float) -> Iterator[float]:
  """Lists 1, 2, 5 times powers of ten within [low, high], both above 0.

  Every digit, and 1.5, where it is less than a decade.
  """
  digits = (1, 2, 5) if high / low >= 10 else (1, 1.5, *range(2, 10))
  for exponent in range(math.floor(math.log10(low)) - 1, 99):
    for digit in digits:
      value = float(f"{digit}e{exponent}")
      if value > high * (1 + 1e-9):
        return
      if value >= low * (1 - 1e-9):
        yield value


def ticks(low: float, high: float, about: int = 5) -> list[float]:
  """Lists round numbers within [low, high], `about` as many."""
  if high <= low:
    return [low]
  raw = (high - low) / about
  unit = 10.0 ** math.floor(math.log10(raw))
  step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= 0.8 * raw)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def place_labels(
  points: Sequence[tuple[float, float]],
  sizes: Sequence[tuple[float, float]],
  order: Sequence[int],
  box: tuple[float, float, float, float],
  radius: float = 6.0,
  taken: Sequence[tuple[float, float, float, float]] = (),
) -> dict[int, tuple[float, float]]:
  """Puts labels beside their points where they cover nothing.

  A label is never nearer to another point than to its own.

  Args:
    points: (x, y) of every point.
    sizes: (width, height) of every point's label.
    order: which points get labels, the most important first.
    box: (left, top, right, bottom) that labels stay in.
    radius: of a point's mark.
    taken: more that labels must not cover, as boxes.

  Returns:
    The left upper corner of each label that fits, by its point.
  """
  marks = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]
  used = np.empty((len(taken) + len(marks) + len(order), 4))
  count = len(taken) + len(marks)
  used[:count] = np.array([*taken, *marks]).reshape(-1, 4)
  spots, out = np.array(points).reshape(-1, 2), {}
  for i in order:
    (x, y), (w, h) = points[i], sizes[i]
    for left, top in _places(x, y, w, h, radius + 2):
      new = (left, top, left + w, top + h)
      inside = (
        new[0] >= box[0] and new[1] >= box[1]
        and new[2] <= box[2] and new[3] <= box[3]
      )  # fmt: skip
      free = inside and not _overlaps(new, used[:count])
      if free and _nearest(new, spots, i):
        used[count] = new
        count += 1
        out[i] = (left, top)
        break
  return out


def _places(x, y, w, h, gap):
  for near in (0, 5):
    g = gap + near
    yield x + g, y - h / 2  # right
    yield x - g - w, y - h / 2
    yield x - w / 2, y - g - h + 2  # above
    yield x - w / 2, y + g - 2
    for dy in (-h / 4, h / 4):  # beside it, a little higher or lower
      yield x + g, y - h / 2 + dy
      yield x - g - w, y - h / 2 + dy
    for dx in (g / 2, -w - g / 2):
      for dy in (-h - g / 2, g / 2):
        yield x + dx, y + dy


def _nearest(box, points: np.ndarray, own: int) -> bool:
  """Returns whether no point is nearer to the box than its own."""
  left, top, right, bottom = box
  inside = np.clip(points, (left, top), (right, bottom))
  away = np.hypot(*(points - inside).T)
  return bool(away[own] <= away.min() + 1e-9)


def _overlaps(box, others: np.ndarray) -> bool:
  left, top, right, bottom = box
  x = (left < others[:, 2]) & (others[:, 0] < right)
  return bool((x & (top < others[:, 3]) & (others[:, 1] < bottom)).any())
