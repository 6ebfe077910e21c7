"""A run among others: its numbers as texts, for the page and for Markdown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxr18.report import evidence, points
from jaxr18.report.points import FIGURES, Group, Point, Task

NOTES = {
  "per_network": "By the published points' formula: one number of bits for a"
  " whole network, the largest of any layer.",
  "per_layer": "Summed over layers, each with its own bits and the MACs that"
  " are really done.",
  "on_disk": "As per layer, the weights at what a file of them needs, scales"
  " and all.",
}


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
  def result(self) -> dict[str, Any]:
    return self.group.runs[0].result


def by_task(entries: Sequence[Entry]) -> dict[Task, list[Entry]]:
  """What can be compared, in the order of the first of each."""
  out: dict[Task, list[Entry]] = {}
  for e in entries:
    out.setdefault(e.group.task, []).append(e)
  return out


def all_points(entries: Sequence[Entry], figure: str) -> list[Point]:
  """The entries of one task, and the reference points if it is theirs."""
  own = [points.of_group(e.group, figure) for e in entries]
  return own + (points.reference_points() if is_published(entries) else [])


def is_published(entries: Sequence[Entry]) -> bool:
  """Whether their task is the published points', whose goal is 90%."""
  return all(e.group.task == points.published_task() for e in entries)


OVERVIEW = ("run", "accuracy, %", "seeds", "score: per network", "per layer",
            "on disk", "MACs", "weights kept")  # fmt: skip


def overview_texts(entries: Sequence[Entry]) -> list[list[str]]:
  """The names and a row of texts for each entry of one task."""
  goal = is_published(entries)
  rows = [[*OVERVIEW, *(["90%"] if goal else [])]]
  for e in entries:
    g, score = e.group, e.result["score"]
    bar = f" ± {100 * g.error:.2f}" if len(g.accuracies) > 1 else ""
    rows.append(
      [
        g.name,
        f"{100 * g.accuracy:.2f}{bar}",
        str(len(g.accuracies)),
        *(f"{g.scores[f]:.4f}" for f in FIGURES),
        f"{score['macs']:,}",
        f"{sum(r['kept'] for r in score['rows']):,}",
      ]
    )
    if goal:
      rows[-1].append("yes" if g.accuracy >= points.GOAL else "no")
  return rows


def sentence(e: Entry) -> str:
  """What was trained, in a line."""
  r, g = e.result, e.group
  phases = " → ".join(r["config"]["phases"])
  if points.is_population(r):
    seeds = f"{len(g.accuracies)} members, one seed each"
  elif len(g.runs) > 1:
    names = ", ".join(run.name for run in g.runs[1:])
    seeds = (
      f"{len(g.runs)} seeds; what follows is of {g.runs[0].name}, seed"
      f" {r['seed']}, and like it are {names}"
    )
  else:
    seeds = f"seed {r['seed']}"
  return f"{r['config']['data']['name']}; phases {phases}; {seeds}."


def numbers(e: Entry) -> list[tuple[str, str, str]]:
  """(name, number, more of it) for what matters most."""
  r, g = e.result, e.group
  score = r["score"]
  if len(g.accuracies) > 1:
    more = f"± {100 * g.error:.2f} over {len(g.accuracies)} seeds"
  else:
    more = f"{r['test_correct']:,} of {r['test_count']:,}"
  out = [("test accuracy", f"{100 * g.accuracy:.2f}%", more)]
  for name in FIGURES:
    f = score[name]
    terms = f"{f['params_term']:.4f} weights + {f['ops_term']:.4f} MACs"
    if len(g.accuracies) > 1:
      terms = "mean over seeds"
    out.append((f"score, {name}", f"{g.scores[name]:.4f}", terms))
  rows = score["rows"]
  kept, weights = sum(x["kept"] for x in rows), sum(x["weights"] for x in rows)
  out += [
    ("MACs", _short(score["macs"]), f"{score['macs']:,}"),
    (
      "weights kept",
      _short(kept),
      f"{100 * kept / weights:.1f}% of {weights:,}",
    ),
    ("training", _time(r["seconds"]), r["device"]),
  ]  # fmt: skip
  return out


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


def member_texts(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Head and rows of texts: members of a population or ensemble, its votes."""
  if "members" not in result:
    return [], []
  head = ["member", "test accuracy, %", "validation, %",
          "score: per network", "per layer", "on disk"]  # fmt: skip
  percent = lambda x: "" if x is None else f"{100 * x:.2f}"
  rows = []
  for i, m in enumerate(result["members"]):
    name = f"{i}, seed {m['seed']}" if "seed" in m else str(i)
    scores = [f"{m['score'][f]:.4f}" for f in FIGURES]
    found = m["test_accuracy"], m.get("validation_accuracy")
    rows.append([name, *map(percent, found), *scores])
  for how, v in result.get("votes", {}).items():
    chosen = " (the vote)" if how == result.get("vote") else ""
    scores = [f"{result['score'][f]['total']:.4f}" for f in FIGURES]
    found = v["test_accuracy"], v.get("validation_accuracy")
    rows.append([how + chosen, *map(percent, found), *scores])
  return head, rows


def disagreement(result: dict[str, Any]) -> str:
  """In words, '' where there are not several members."""
  table = result.get("disagreement") or []
  pairs = [x for i, row in enumerate(table) for x in row[i + 1 :]]
  if not pairs:
    return ""
  return (
    f"Two members answer differently on {100 * min(pairs):.1f}% to"
    f" {100 * max(pairs):.1f}% of the test images."
  )


def versions(result: dict[str, Any]) -> str:
  packages = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
  return (
    f"Python {result['python']}, {packages}; {result['device']},"
    f" {result['platform']}"
  )
