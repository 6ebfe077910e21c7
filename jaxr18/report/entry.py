"""A run among others: its numbers as texts, for the page and for Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxr18.report import evidence, points
from jaxr18.report.points import Group, Point, Task
from jaxr18.run.result import Result

NOTES = {
  "per_network": "By the published points' formula: one number of bits for a"
  " whole network, the largest of any layer.",
  "per_layer": "Summed over layers, each with its own bits and the MACs that"
  " are really done.",
  "on_disk": "As per layer, the weights at what a file of them needs, scales"
  " and all.",
}


LABELS = {
  "per_network": "per network",
  "per_layer": "per layer",
  "on_disk": "on disk",
}
SHOWN = ("per_layer", "per_network", "on_disk")  # the first one tells most


def score_label(figure: str) -> str:
  """Returns what an axis calls a figure, such as 'per-layer score'."""
  return f"{LABELS[figure].replace(' ', '-')} score"


class Entry(NamedTuple):
  """A group of runs, and what the network of its first one shows.

  Attributes:
    group: what differs in the seed alone.
    evidence: None where there is none.
    why: then the reason, as a sentence.
  """

  group: Group
  evidence: evidence.Evidence | None
  why: str = ""

  @property
  def result(self) -> Result:
    return self.group.runs[0].result


def by_task(entries: Sequence[Entry]) -> dict[Task, list[Entry]]:
  """Groups entries that can be compared, in the order of the first of each."""
  out: dict[Task, list[Entry]] = {}
  for e in entries:
    out.setdefault(e.group.task, []).append(e)
  return out


def all_points(entries: Sequence[Entry], figure: str) -> list[Point]:
  """Lists the points of a task, with the reference points if it is theirs."""
  own = [points.of_group(e.group, figure) for e in entries]
  return own + (points.reference_points() if is_published(entries) else [])


def is_published(entries: Sequence[Entry]) -> bool:
  """Returns whether their task is the published points', with a goal of 90%."""
  return all(e.group.task == points.published_task() for e in entries)


OVERVIEW = ("run", "accuracy, %", "score: per layer", "per network", "on disk",
            "seeds", "MACs", "weights kept", "weights, kB",
            "activations, kB")  # fmt: skip


def overview_texts(entries: Sequence[Entry]) -> list[list[str]]:
  """Writes the head and a row of texts for each entry of one task."""
  goal = is_published(entries)
  rows = [[*OVERVIEW, *(["90%"] if goal else [])]]
  for e in entries:
    g, r = e.group, e.result
    bar = f" ± {100 * g.error:.2f}" if len(g.accuracies) > 1 else ""
    rows.append(
      [
        g.name,
        f"{100 * g.accuracy:.2f}{bar}",
        *(f"{g.scores[f]:.4f}" for f in SHOWN),
        str(len(g.accuracies)),
        f"{r.score.macs:,}",
        f"{r.kept:,}",
        f"{r.score.stored_bytes / 1000:,.1f}",
        f"{r.activation_bytes / 1000:,.1f}",
      ]
    )
    if goal:
      rows[-1].append("yes" if g.accuracy >= points.GOAL else "no")
  return rows


def sentence(e: Entry) -> str:
  """Says in a line what was trained."""
  r, g = e.result, e.group
  phases = " → ".join(r.config["phases"])
  if r.is_population:
    seeds = f"{len(g.accuracies)} members, one seed each"
  elif len(g.runs) > 1:
    names = ", ".join(run.name for run in g.runs[1:])
    seeds = (
      f"{len(g.runs)} seeds; what follows is of {g.runs[0].name}, seed"
      f" {r.seed}, and like it are {names}"
    )
  else:
    seeds = f"seed {r.seed}"
  return f"{r.config['data']['name']}; phases {phases}; {seeds}."


def numbers(e: Entry) -> list[tuple[str, str, str]]:
  """Lists (name, number, more of it) for what matters most."""
  r, g = e.result, e.group
  if len(g.accuracies) > 1:
    more = f"± {100 * g.error:.2f} over {len(g.accuracies)} seeds"
  else:
    more = f"{r.test.correct:,} of {r.test.count:,}"
  out = [("test accuracy", f"{100 * g.accuracy:.2f}%", more)]
  for name in SHOWN:
    f = getattr(r.score, name)
    terms = f"{f.params_term:.4f} weights + {f.ops_term:.4f} MACs"
    if len(g.accuracies) > 1:
      terms = "mean over seeds"
    out.append((f"score, {LABELS[name]}", f"{g.scores[name]:.4f}", terms))
  kept, weights = r.kept, sum(row.weights for row in r.score.rows)
  out += [
    ("MACs", _short(r.score.macs), f"{r.score.macs:,}"),
    (
      "weights kept",
      _short(kept),
      f"{100 * kept / weights:.1f}% of {weights:,}",
    ),
    (
      "memory",
      f"{(r.score.stored_bytes + r.activation_bytes) / 1000:,.0f} kB",
      f"{r.score.stored_bytes:,} bytes of weights on disk,"
      f" {r.activation_bytes:,} of activations for one image",
    ),
    *_speeds(r),
    ("training", _time(r.seconds), r.made.device),
  ]  # fmt: skip
  return out


def _speeds(r: Result) -> list[tuple[str, str, str]]:
  """Of each exported file that was timed."""
  return [
    (
      f"{name} file",
      f"{x.milliseconds:.2f} ms",
      f"for one image, {x.images_per_second:,.0f} images a second in batches;"
      f" {x.bytes:,} bytes; {x.measured_on}",
    )
    for name, x in r.exports.items()
    if x.milliseconds is not None and x.images_per_second is not None
  ]


def _short(n: int) -> str:
  for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
    if n >= unit:
      return f"{n / unit:.3g}{name}"
  return str(n)


def _time(seconds: float) -> str:
  if seconds < 100:
    return f"{seconds:.0f} s"
  minutes = seconds / 60
  return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def member_texts(result: Result) -> tuple[list[str], list[list[str]]]:
  """Writes head and rows of texts: members, and votes of an ensemble."""
  if not result.members:
    return [], []
  head = ["member", "test accuracy, %", "validation, %",
          "score: per layer", "per network", "on disk"]  # fmt: skip
  percent = lambda x: "" if x is None else f"{100 * x:.2f}"
  rows = []
  for i, m in enumerate(result.members):
    name = str(i) if m.seed is None else f"{i}, seed {m.seed}"
    scores = [f"{m.score[f]:.4f}" for f in SHOWN]
    found = m.test.accuracy, m.validation_accuracy
    rows.append([name, *map(percent, found), *scores])
  for how, v in result.votes.items():
    chosen = " (the vote)" if how == result.vote else ""
    scores = [f"{getattr(result.score, f).total:.4f}" for f in SHOWN]
    found = v.accuracy, v.validation_accuracy
    rows.append([how + chosen, *map(percent, found), *scores])
  return head, rows


def disagreement(result: Result) -> str:
  """Says how often members disagree; '' where there are not several."""
  pairs = [x for i, row in enumerate(result.disagreement) for x in row[i + 1 :]]
  if not pairs:
    return ""
  return (
    f"Two members answer differently on {100 * min(pairs):.1f}% to"
    f" {100 * max(pairs):.1f}% of the test images."
  )


def versions(result: Result) -> str:
  """Says in a line what made it."""
  made = result.made
  packages = ", ".join(f"{k} {v}" for k, v in made.versions.items())
  code = f"jaxr18 {made.jaxr18}, " if made.jaxr18 else ""
  if made.commit:
    code += (
      f"commit {made.commit[:12]}{' with changes' if made.changed else ''}, "
    )
  return (
    f"{code}Python {made.python}, {packages}; {made.device}, {made.platform}"
  )
