"""Accuracy and score of networks as points, and which of them are best.

Runs that differ in their seed alone are one point, their mean with the
standard deviation over seeds.
"""

import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from jaxr18 import config as config_lib
from jaxr18.report.runs import Run

FIGURES = ("course", "exact", "stored")
GOAL = 0.9  # the accuracy that the score asks for
REFERENCES = pathlib.Path(__file__).with_name("reference_points.json")
SERIES = ("published results", "published, recounted")  # as in that file


class Point(NamedTuple):
  """A network in a picture of accuracy against score.

  Attributes:
    label: its name, unique among the points.
    accuracy: on the test split, 0 to 1.
    score: lower is better, above 0.
    error: half the length of its error bar, in the accuracy's unit.
    series: points of one series share a color and a mark.
    detail: more about it, in lines; shown where it is pointed at.
  """

  label: str
  accuracy: float
  score: float
  error: float = 0.0
  series: str = "runs"
  detail: str = ""


class Group(NamedTuple):
  """Runs, or members of a population, that differ in their seed alone.

  Attributes:
    name: of the runs together.
    runs: in the order of their seeds; one for a population.
    accuracies: one for each seed.
    scores: the mean of each figure, by its name.
  """

  name: str
  runs: tuple[Run, ...]
  accuracies: tuple[float, ...]
  scores: dict[str, float]

  @property
  def accuracy(self) -> float:
    return statistics.mean(self.accuracies)

  @property
  def error(self) -> float:
    """The standard deviation over seeds (n - 1); 0 for a single one."""
    several = len(self.accuracies) > 1
    return statistics.stdev(self.accuracies) if several else 0.0


def sources() -> list[dict[str, Any]]:
  """Public reference points with where they are from, and their formula."""
  return json.loads(REFERENCES.read_text())["groups"]


def reference_points() -> list[Point]:
  """Results that others have published, by the course's formula.

  From `reference_points.json`, which names its sources.
  """
  return [
    Point(
      point["label"],
      point["accuracy"] / 100,
      point["score"],
      series=series,
      detail=f"from: {group['source']}",
    )
    for series, group in zip(SERIES, sources(), strict=True)
    for point in group["points"]
  ]


def front(points: Sequence[Point]) -> list[Point]:
  """Those that no other beats: cheaper ones are less accurate; by score."""
  best, out = -math.inf, []
  for point in sorted(points, key=lambda p: (p.score, -p.accuracy)):
    if point.accuracy > best:
      best = point.accuracy
      out.append(point)
  return out


def group(runs: Sequence[Run], free: Collection[str] = ()) -> list[Group]:
  """Runs put together where their configs differ in the seed alone.

  Of two runs with the same config and seed the first counts: they are no
  second draw.

  Args:
    free: fields, or sections, of a config that change no number.
  """
  found: dict[str, dict[int, Run]] = {}
  for run in runs:
    rest = {
      k: v
      for k, v in config_lib.flatten(run.result["config"]).items()
      if k != "seed" and not config_lib.within(k, free)
    }
    key = json.dumps(rest, sort_keys=True)
    found.setdefault(key, {}).setdefault(run.result["seed"], run)
  out, names = [], set()
  for by_seed in found.values():
    together = tuple(by_seed[seed] for seed in sorted(by_seed))
    name = _name([run.name for run in together])
    if name in names:
      name = together[0].name
    names.add(name)
    out.append(_group(name, together))
  return out


def _group(name: str, runs: tuple[Run, ...]) -> Group:
  accuracies, scores = [], {figure: [] for figure in FIGURES}
  for run in runs:
    r = run.result
    if is_population(r):
      accuracies += [m["test_accuracy"] for m in r["members"]]
      for figure in FIGURES:
        scores[figure] += [m["score"][figure] for m in r["members"]]
    else:
      accuracies.append(r["test_accuracy"])
      for figure in FIGURES:
        scores[figure].append(r["score"][figure]["total"])
  means = {figure: statistics.mean(scores[figure]) for figure in FIGURES}
  return Group(name, runs, tuple(accuracies), means)


def _name(names: list[str]) -> str:
  """What the names begin with, without 'seed' and the like at its end."""
  if len(names) == 1:
    return names[0]
  shared = os.path.commonprefix(names)
  name = re.sub(r"[-_./]+(seed|s)?[-_./=]*\d*$", "", shared)
  return name if re.search("[a-zA-Z]", name) else names[0]


def is_population(result: dict[str, Any]) -> bool:
  """Members that differ in their seeds, and no vote of theirs."""
  return "members" in result and "votes" not in result


def of_group(one: Group, figure: str) -> Point:
  """A group as a point, by one of the score's figures."""
  return Point(
    one.name,
    one.accuracy,
    one.scores[figure],
    one.error,
    "runs",
    detail(one),
  )


def detail(one: Group) -> str:
  """Its numbers, and what its config sets, in lines."""
  result = one.runs[0].result
  n = len(one.accuracies)
  if n > 1:
    seeds = f"{n} seeds, standard deviation {100 * one.error:.2f} points"
  else:
    p, count = one.accuracy, result["test_count"]
    error = 100 * math.sqrt(p * (1 - p) / count)
    seeds = (
      f"one seed; {error:.2f} points is the standard error of {count:,} images"
    )
  scores = ", ".join(f"{k} {one.scores[k]:.4f}" for k in FIGURES)
  score = result["score"]
  kept = sum(row["kept"] for row in score["rows"])
  w_bits = sorted({row["w_bits"] for row in score["rows"]})
  a_bits = sorted({row["a_bits"] for row in score["rows"]})
  bits = "/".join(",".join(map(str, b)) for b in (w_bits, a_bits))
  lines = [
    seeds,
    f"score: {scores}",
    f"{kept:,} weights kept, {score['macs']:,} MACs, bits {bits}",
  ]
  if "votes" in result:
    lines.append(f"{len(result['members'])} members, vote: {result['vote']}")
  return "\n".join(lines + changes(result["config"]))


def changes(config: dict[str, Any]) -> list[str]:
  """What a resolved config sets otherwise than the defaults: 'field=value'.

  The seed is left out, for which there are the groups.
  """
  defaults = json.loads(config_lib.base(tuple(config["phases"])).to_json())
  before = config_lib.flatten(defaults)
  return [
    f"{name}={_short(value)}"
    for name, value in sorted(
      config_lib.flatten(config_lib.completed(config)).items()
    )
    if before.get(name) != value and name != "seed"
  ]


def _short(value: Any) -> str:
  return json.dumps(value, separators=(", ", ": ")).replace('"', "")
