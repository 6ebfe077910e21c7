"""Accuracy against score as an SVG whose points can be pointed at.

The score is on a logarithmic axis, and so is the share of wrong answers: a
point more is harder at 93% than at 60%, and gets more room there.
"""

import html
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxr18.report import svg
from jaxr18.report.points import GOAL, Point, front

LEAST_ERROR = 1e-3  # where the accuracy's axis ends, at 99.9%
_ACCURACIES = (
  0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.84, 0.86, 0.88, 0.9,
  0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999,
)  # fmt: skip


class Frame(NamedTuple):
  """Where numbers lie in a picture.

  Attributes:
    width, height: of the picture.
    box: (left, top, right, bottom) of the axes.
    scores: the axis' ends.
    heights: the axis' ends, as `height_of` gives them.
  """

  width: float
  height: float
  box: tuple[float, float, float, float]
  scores: tuple[float, float]
  heights: tuple[float, float]

  def x(self, score: float) -> float:
    low, high = self.scores
    share = math.log(score / low) / math.log(high / low)
    return self.box[0] + share * (self.box[2] - self.box[0])

  def y(self, accuracy: float) -> float:
    low, high = self.heights
    share = (height_of(accuracy) - low) / (high - low)
    return self.box[3] - share * (self.box[3] - self.box[1])


def height_of(accuracy: float) -> float:
  """Minus the decimal logarithm of the share of wrong answers."""
  return -math.log10(max(1 - accuracy, LEAST_ERROR))


def frame(
  points: Sequence[Point],
  width: float,
  height: float,
  goal: float | None = GOAL,
) -> Frame:
  """Axes that hold all points, their error bars and a goal."""
  scores = [p.score for p in points] or [0.01, 1.0]
  ends = [height_of(goal)] if goal or not points else []
  for p in points:
    ends += [height_of(p.accuracy - p.error), height_of(p.accuracy + p.error)]
  wide = math.log(max(scores) / min(scores)) or 1.0
  apart = max(math.exp(0.05 * wide), 1.1)
  tall = max(ends) - min(ends) or 1.0
  return Frame(
    width,
    height,
    (46.0, 12.0, width - 12.0, height - 46.0),
    (min(scores) / apart, max(scores) * apart),
    (min(ends) - 0.06 * tall, max(ends) + 0.1 * tall),
  )


def accuracy_ticks(
  f: Frame, goal: float | None = GOAL, apart: float = 24.0
) -> list[float]:
  """Round accuracies, the goal among them, at least `apart` from each other."""
  kept = [goal] if goal else []
  low, high = (1 - 10**-h for h in f.heights)
  inside = [a for a in _ACCURACIES if low <= a <= high]
  for a in inside if len(inside) > 2 else svg.ticks(max(low, 0), high):
    if all(abs(f.y(a) - f.y(k)) >= apart for k in kept):
      kept.append(a)
  return sorted(kept)


def score_ticks(f: Frame, apart: float = 44.0) -> list[float]:
  kept: list[float] = []
  every = list(svg.log_ticks(*f.scores))
  if len(every) < 3:  # the runs' scores are nearly the same
    every = svg.ticks(*f.scores)
  for tick in sorted(every, key=lambda t: f"{t:e}"[0] != "1"):  # 1, 10, 100
    if all(abs(f.x(tick) - f.x(k)) >= apart for k in kept):
      kept.append(tick)
  return sorted(kept)


def label_order(points: Sequence[Point]) -> list[int]:
  """Which points get their labels first: the front, runs, and then others."""
  best = set(front(points))
  return sorted(
    range(len(points)),
    key=lambda i: (
      points[i].series != points[0].series,
      points[i] not in best,
      points[i].score,
    ),
  )


def steps(points: Sequence[Point], f: Frame) -> list[tuple[float, float]]:
  """The front's line: the best accuracy that each score can buy."""
  line: list[tuple[float, float]] = []
  for p in front(points):
    x, y = f.x(p.score), f.y(p.accuracy)
    line.append((x, line[-1][1] if line else f.box[3]))
    line.append((x, y))
  if line:
    line.append((f.box[2], line[-1][1]))
  return line


def series_of(points: Sequence[Point]) -> list[str]:
  """In the order of their first points."""
  return list(dict.fromkeys(p.series for p in points))


def shorten(label: str, most: int) -> str:
  """At most so many letters; of a repository its owner alone."""
  label = re.sub(r"^([\w-]+)/[\w.-]+", r"\1", label)
  return label if len(label) <= most else label[: most - 1].rstrip() + "…"


def said(p: Point) -> str:
  """A point in a few words."""
  bar = f" ± {100 * p.error:.2f}" if p.error else ""
  return f"{100 * p.accuracy:.2f}%{bar} at a score of {p.score:.4g}"


def draw(
  points: Sequence[Point],
  *,
  key: str,
  width: float = 920,
  height: float = 470,
  score_label: str = "score",
  split: str = "test",
  letters: int = 26,
  goal: float | None = GOAL,
) -> str:
  """The picture; the page's script shows what belongs to `data-point`.

  Args:
    points: the first one's series is the most important one.
    key: makes its ids unique in the page.
    width, height: in pixels, where it is not scaled.
    score_label: says which score it is.
    split: whose images the accuracy is of.
    letters: the longest label.
    goal: an accuracy that is drawn as a line, if there is one.
  """
  f = frame(points, width, height, goal)
  left, top, right, bottom = f.box
  parts = []
  for tick in score_ticks(f):
    x = f.x(tick)
    parts.append(_line(x, top, x, bottom, "grid"))
    parts.append(
      svg.text(x, bottom + 17, f"{tick:g}", text_anchor="middle", class_="tick")
    )
  for tick in accuracy_ticks(f, goal):
    y, own = f.y(tick), tick == goal
    parts.append(_line(left, y, right, y, "goal" if own else "grid"))
    parts.append(
      svg.text(
        left - 7,
        y + 4,
        f"{100 * tick:g}",
        text_anchor="end",
        class_="tick goal-text" if own else "tick",
      )  # fmt: skip
    )
  parts.append(
    svg.text(
      (left + right) / 2,
      height - 8,
      f"{score_label}, lower is better",
      text_anchor="middle",
      class_="axis",
    )  # fmt: skip
  )
  parts.append(
    svg.tag(
      "text",
      html.escape(f"{split} accuracy, %"),
      class_="axis",
      text_anchor="middle",
      transform=f"translate(12 {(top + bottom) / 2:.0f}) rotate(-90)",
    )  # fmt: skip
  )
  parts.append(svg.path(steps(points, f), class_="front"))
  order = series_of(points)
  best = set(front(points))
  parts += _labels(points, f, order, letters, goal)
  for i, p in reversed(list(enumerate(points))):
    parts.append(_mark(i, p, f, order.index(p.series), p in best))
  names = [p.label for p in front(points)]
  about = (
    f"{len(points)} networks by {split} accuracy, upwards, and {score_label},"
    " to the right, both on logarithmic axes; the line joins the best at each"
    f" score: {', '.join(names)}. The table below has the numbers."
  )
  return svg.tag(
    "svg",
    svg.tag(
      "title",
      html.escape(f"{split.title()} accuracy against score"),
      id=f"{key}-title",
    ),
    svg.tag("desc", html.escape(about), id=f"{key}-desc"),
    *parts,
    viewBox=f"0 0 {width:g} {height:g}",
    role="group",
    aria_labelledby=f"{key}-title",
    aria_describedby=f"{key}-desc",
    class_="scatter",
  )


def _line(x1, y1, x2, y2, class_: str) -> str:
  x1, y1, x2, y2 = map(float, (x1, y1, x2, y2))
  return svg.tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label_places(points, f: Frame, letters: int, goal, size: float = 12.0):
  """(label, left, baseline) of what fits, by the point's number."""
  texts = [shorten(p.label, letters) for p in points]
  places = svg.place_labels(
    [(f.x(p.score), f.y(p.accuracy)) for p in points],
    [(0.56 * size * len(t) + 2, size + 2) for t in texts],
    label_order(points) if points else [],
    f.box,
    taken=[
      *((f.box[0], f.y(g) - 1, f.box[2], f.y(g) + 1) for g in [goal] if g),
      *_boxes(steps(points, f)),
      *(
        (
          f.x(p.score) - 2,
          f.y(p.accuracy + p.error),
          f.x(p.score) + 2,
          f.y(p.accuracy - p.error),
        )
        for p in points
      ),
    ],
  )
  return {i: (texts[i], x + 1, y + 0.85 * size) for i, (x, y) in places.items()}


def _boxes(line):
  for (x1, y1), (x2, y2) in itertools.pairwise(line):
    yield min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _labels(points, f, order, letters, goal):
  for i, (words, x, y) in label_places(points, f, letters, goal).items():
    number = order.index(points[i].series)
    yield svg.text(
      x, y, words, class_=f"label s{number % 6}", data_series=number
    )


def _mark(i, p, f, number, best) -> str:
  x, y = f.x(p.score), f.y(p.accuracy)
  inside = []
  if p.error:
    high, low = f.y(p.accuracy + p.error) - y, f.y(p.accuracy - p.error) - y
    inside.append(
      svg.tag(
        "path", class_="error", d=f"M-4 {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"
      )
    )
  inside.append(svg.tag("path", class_="mark", d=MARKS[number % len(MARKS)]))
  return svg.tag(
    "g",
    *inside,
    class_=f"point s{number % 6}" + (" best" if best else ""),
    transform=f"translate({x:.1f} {y:.1f})",
    tabindex=0,
    role="link" if p.link else "img",
    aria_label=f"{p.label}, {p.series}: {said(p)}",
    data_point=i,
    data_series=number,
  )


MARKS = (
  "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",  # a disk
  "M-4.5-4.5h9v9h-9z",
  "M0-6L6 0L0 6L-6 0z",
  "M0-6L5.5 4.5h-11z",
)
