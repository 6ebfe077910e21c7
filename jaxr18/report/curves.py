"""Curves of a run's training, from the rows of its metrics.jsonl."""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxr18.report import svg

Metrics = Mapping[str, Sequence[Mapping[str, Any]]]  # rows by phase
ACCURACIES = {
  "validation_accuracy": "validation",
  "train_accuracy": "training",
}
LOSSES = {"loss": "loss"}


class Curve(NamedTuple):
  """A line of one phase: (epochs since the run began, value)."""

  name: str
  points: list[tuple[float, float]]
  faint: bool = False


def starts(metrics: Metrics) -> dict[str, int]:
  """Epochs that came before each phase."""
  out, epoch = {}, 0
  for phase, rows in metrics.items():
    out[phase] = epoch
    epoch += max((r["epoch"] for r in rows), default=0)
  return out


def curves(metrics: Metrics, fields: Mapping[str, str]) -> list[Curve]:
  """A line for each phase and field; of a population faint ones of members."""
  out = []
  for phase, start in starts(metrics).items():
    rows = metrics[phase]
    for field, name in fields.items():
      out.append(Curve(name, _points(rows, start, lambda r, f=field: r.get(f))))
    each = [r.get("validation_accuracies") for r in rows]
    if "validation_accuracy" in fields and each and each[-1]:
      for i in range(len(each[-1])):
        member = lambda r, i=i: (r.get("validation_accuracies") or {i: None})[i]
        out.append(Curve("validation", _points(rows, start, member), True))
  return [c for c in out if c.points]


def _points(rows, start: int, value: Callable):
  found = [(start + r["epoch"], value(r)) for r in rows]
  return [(x, y) for x, y in found if y is not None]


def summary(metrics: Metrics) -> str:
  """The curves in words."""
  lines = []
  for phase, rows in metrics.items():
    known = [r for r in rows if r.get("validation_accuracy") is not None]
    if not known:
      continue
    first, last = known[0], known[-1]
    best = max(known, key=lambda r: r["validation_accuracy"])
    say = lambda r: f"{100 * r['validation_accuracy']:.2f}%"
    if len(known) == 1:
      lines.append(f"{phase}: validation accuracy {say(first)}.")
    else:
      lines.append(
        f"{phase}: validation accuracy from {say(first)} after epoch"
        f" {first['epoch']} to {say(last)} after epoch {last['epoch']}, at its"
        f" best {say(best)} after epoch {best['epoch']}."
      )
  return " ".join(lines)


def draw(metrics: Metrics, fields: Mapping[str, str], label: str, key: str):
  """One chart, as SVG; '' where the rows have none of the fields.

  Args:
    fields: of a row, and what each is called; accuracies are shown in percent.
    label: of the upright axis.
    key: makes its ids unique in the page.
  """
  lines = curves(metrics, fields)
  if not lines:
    return ""
  width, height = 420.0, 250.0
  left, top, right, bottom = 40.0, 24.0, width - 76.0, height - 40.0
  percent = "loss" not in fields
  scale = 100 if percent else 1
  every = [scale * y for c in lines for _, y in c.points]
  low, high = min(every), max(every)
  pad = 0.05 * (high - low) or 0.5
  low, high = low - pad, high + pad
  last = max(x for c in lines for x, _ in c.points) or 1
  at_x = lambda x: left + x / last * (right - left)
  at_y = lambda y: bottom - (scale * y - low) / (high - low) * (bottom - top)
  parts = []
  for tick in svg.ticks(low, high):
    y = at_y(tick / scale)
    parts.append(
      svg.tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
      + svg.text(left - 6, y + 4, f"{tick:g}", text_anchor="end", class_="tick")
    )
  for tick in svg.ticks(0, last):
    if tick == int(tick):
      parts.append(
        svg.text(
          at_x(tick),
          bottom + 16,
          f"{tick:g}",
          text_anchor="middle",
          class_="tick",
        )  # fmt: skip
      )
  parts.append(
    svg.text(
      (left + right) / 2,
      height - 6,
      "epoch",
      text_anchor="middle",
      class_="axis",
    )  # fmt: skip
  )
  parts.append(svg.text(0, 12, label, class_="axis"))
  parts += _phases(metrics, at_x, top, bottom, right)
  names = list(fields.values())
  ends: dict[str, float] = {}
  for c in sorted(lines, key=lambda c: not c.faint):
    number = names.index(c.name) % 2 * 2
    line = [(at_x(x), at_y(y)) for x, y in c.points]
    if len(line) == 1:
      x, y = line[0]
      parts.append(svg.tag("circle", cx=x, cy=y, r=3, class_=f"dot s{number}"))
    else:
      kind = "faint" if c.faint else "curve"
      parts.append(svg.path(line, class_=f"{kind} s{number}"))
    if not c.faint:
      ends[c.name] = line[-1][1]
  for name, y in _apart(ends, 14, bottom).items():
    number = names.index(name) % 2 * 2
    parts.append(svg.text(right + 6, y + 4, name, class_=f"end s{number}"))
  return svg.tag(
    "svg",
    svg.tag("title", html.escape(f"{label} by epoch"), id=f"{key}-title"),
    svg.tag("desc", html.escape(summary(metrics)), id=f"{key}-desc"),
    *parts,
    viewBox=f"0 0 {width:g} {height:g}",
    role="img",
    aria_labelledby=f"{key}-title",
    aria_describedby=f"{key}-desc",
  )


def _phases(metrics, at_x, top, bottom, right):
  """A line where each phase but the first begins, and its name."""
  begins = starts(metrics)
  ends = [*list(begins.values())[1:], None]
  for (phase, start), end in zip(begins.items(), ends, strict=True):
    x, until = at_x(start), right if end is None else at_x(end)
    if start:
      yield svg.tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="phase")
    if len(begins) > 1 and until - x > 7 * len(phase):
      yield svg.text(x + 4, top + 8, phase, class_="tick")


def _apart(ends: Mapping[str, float], least: float, bottom: float):
  """Heights of names, moved so that none covers another."""
  order = sorted(ends, key=ends.get)
  placed = {name: ends[name] for name in order}
  for above, below in itertools.pairwise(order):
    placed[below] = max(placed[below], placed[above] + least)
  over = max(0.0, max(placed.values(), default=0.0) - bottom)
  return {name: y - over for name, y in placed.items()}


HEAD = ("epoch", "phase", "loss", "training, %", "validation, %")


def texts(metrics: Metrics) -> list[list[str]]:
  """A row of texts for each of the metrics' rows, as `HEAD` names them."""
  show = lambda v, s: "" if v is None else f"{s * v:.{4 if s == 1 else 2}f}"
  return [
    [
      str(r["epoch"]),
      phase,
      show(r.get("loss"), 1),
      show(r.get("train_accuracy"), 100),
      show(r.get("validation_accuracy"), 100),
    ]
    for phase, rows in metrics.items()
    for r in rows
  ]
