"""Curves of a run's training, from the rows of its metrics.jsonl."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
  """Lists a line for each phase and field, with faint ones of members."""
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
  points = [(start + r["epoch"], value(r)) for r in rows]
  return [(x, y) for x, y in points if y is not None]


def summary(metrics: Metrics) -> str:
  """Describes the curves in words."""
  lines = []
  for phase, rows in metrics.items():
    known = [r for r in rows if r.get("validation_accuracy") is not None]
    if not known:
      continue
    first, last = known[0], known[-1]
    best = max(known, key=lambda r: r["validation_accuracy"])
    percent = lambda r: f"{100 * r['validation_accuracy']:.2f}%"
    if len(known) == 1:
      lines.append(f"{phase}: validation accuracy {percent(first)}.")
    else:
      lines.append(
        f"{phase}: validation accuracy from {percent(first)} after epoch"
        f" {first['epoch']} to {percent(last)} after epoch {last['epoch']},"
        f" at its best {percent(best)} after epoch {best['epoch']}."
      )
  return " ".join(lines)


HEAD = ("epoch", "phase", "loss", "training, %", "validation, %")


def texts(metrics: Metrics) -> list[list[str]]:
  """Writes a row of texts for each row of the metrics, as `HEAD` names them."""
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
