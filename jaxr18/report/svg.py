"""Elements of SVG and HTML as strings, axes, and where labels fit."""

import html
import math
from collections.abc import Iterator, Sequence

import numpy as np


def tag(name: str, *children: str, **attributes) -> str:
  """An element; its children are markup, its attributes plain text.

  Underscores in attributes become hyphens, one at the end vanishes
  (`class_`); None leaves an attribute out.
  """
  text = "".join(
    f' {k.rstrip("_").replace("_", "-")}="{_value(v)}"'
    for k, v in attributes.items()
    if v is not None
  )
  return f"<{name}{text}>{''.join(children)}</{name}>"


def _value(v) -> str:
  if isinstance(v, float):
    return f"{v:.1f}".removesuffix(".0")
  return html.escape(str(v))


def text(x: float, y: float, words: str, **attributes) -> str:
  return tag("text", html.escape(words), x=float(x), y=float(y), **attributes)


def path(points: Sequence[tuple[float, float]], **attributes) -> str:
  """A line through points."""
  d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
  return tag("path", d=d, fill="none", **attributes)


def log_ticks(low: float, high: float) -> Iterator[float]:
  """1, 2, 5 times powers of ten within [low, high], both above 0.

  Every digit where it is less than a decade, which has one or two of those.
  """
  digits = (1, 2, 5) if high / low >= 10 else range(1, 10)
  for exponent in range(math.floor(math.log10(low)) - 1, 99):
    for digit in digits:
      value = float(f"{digit}e{exponent}")
      if value > high * (1 + 1e-9):
        return
      if value >= low * (1 - 1e-9):
        yield value


def ticks(low: float, high: float, about: int = 5) -> list[float]:
  """Round numbers within [low, high], `about` as many."""
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
  out = {}
  for i in order:
    (x, y), (w, h) = points[i], sizes[i]
    for left, top in _places(x, y, w, h, radius + 2):
      new = (left, top, left + w, top + h)
      inside = (
        new[0] >= box[0] and new[1] >= box[1]
        and new[2] <= box[2] and new[3] <= box[3]
      )  # fmt: skip
      if inside and not _overlaps(new, used[:count]):
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
    for dx in (g / 2, -w - g / 2):
      for dy in (-h - g / 2, g / 2):
        yield x + dx, y + dy


def _overlaps(box, others: np.ndarray) -> bool:
  left, top, right, bottom = box
  x = (left < others[:, 2]) & (others[:, 0] < right)
  return bool((x & (top < others[:, 3]) & (others[:, 1] < bottom)).any())
