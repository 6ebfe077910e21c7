"""Accuracy and score of networks as points, and which of them are best.

Runs that differ in their seed alone are one point, their mean with the
standard deviation over seeds.
"""

import functools
import itertools
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxr18.config import faults
from jaxr18.config import schema as config_lib
from jaxr18.config.lift import as_json, lift
from jaxr18.cost.figures import FIGURES as FIGURES
from jaxr18.report.runs import Run, shown
from jaxr18.run.result import Result

GOAL = 0.9  # the accuracy that the score asks for, on the published task
REFERENCES = pathlib.Path(__file__).with_name("reference_points.json")
# As in that file.
SERIES = ("published results", "published, recounted", "benchmarks, libraries")


class Task(NamedTuple):
  """What an accuracy is of; those of two tasks cannot be compared.

  Attributes:
    data: the data set's name.
    images: of its test split.
    classes: that are told apart.
  """

  data: str
  images: int
  classes: int

  def __str__(self) -> str:
    return f"{self.data}, {self.images:,} test images, {self.classes} classes"


class Point(NamedTuple):
  """A network in a picture of accuracy against score.

  Attributes:
    label: its name, unique among the points.
    accuracy: on the test split, 0 to 1.
    score: lower is better, above 0.
    error: half the length of its error bar, in the accuracy's unit.
    series: points of one series share a color and a mark.
    detail: more about it, in lines; shown where it is pointed at.
    link: where all about it is, such as '#run-3'; '' if nowhere.
    ended: whether it was trained to its end; no other is of the front.
  """

  label: str
  accuracy: float
  score: float
  error: float = 0.0
  series: str = "runs"
  detail: str = ""
  link: str = ""
  ended: bool = True


class Group(NamedTuple):
  """Runs, or members of a population, that differ in their seed alone.

  Attributes:
    name: of the runs together; no other group has it.
    slug: the same for links and folders.
    runs: in the order of their seeds; one for a population.
    accuracies: one for each seed.
    scores: the mean of each figure, by its name.
  """

  name: str
  slug: str
  runs: tuple[Run, ...]
  accuracies: tuple[float, ...]
  scores: dict[str, float]

  @property
  def task(self) -> Task:
    return task_of(self.runs[0].result)

  @property
  def accuracy(self) -> float:
    return statistics.mean(self.accuracies)

  @property
  def error(self) -> float:
    """The standard deviation over seeds (n - 1); 0 for a single one."""
    several = len(self.accuracies) > 1
    return statistics.stdev(self.accuracies) if several else 0.0


def task_of(result: Result) -> Task:
  name = shown(
    result.seen.name if result.seen else result.config["data"]["name"]
  )
  return Task(name, result.images, result.spec.head.classes)


def published_task() -> Task:
  """Describes what the public reference points are measured on."""
  return Task(**json.loads(REFERENCES.read_text())["task"])


def sources() -> list[dict[str, Any]]:
  """Lists the public reference points with their sources and formula."""
  return json.loads(REFERENCES.read_text())["groups"]


def reference_points() -> list[Point]:
  """Results that others have published, by the reference formula.

  From `reference_points.json`, which names its sources.
  """
  return [
    Point(
      point["label"],
      point["accuracy"] / 100,
      point["score"],
      series=series,
      detail="\n".join(_origin(point, group["source"])),
    )
    for series, group in zip(SERIES, sources(), strict=True)
    for point in group["points"]
  ]


def _origin(point: Mapping[str, Any], source: str) -> Iterator[str]:
  """Whose a public point is, what more is known, and who has run it."""
  if owner := point.get("owner"):
    yield f"by {owner}"
  if more := point.get("more"):
    yield more
  if "run" in point:
    yield (
      "accuracy of the published file, run on all 10,000 test images"
      if point["run"]
      else "accuracy as published, not run again"
    )
  yield f"from: {source}"


def front(points: Sequence[Point]) -> list[Point]:
  """Finds the points that no other beats, by score.

  What was not trained to its end beats nothing, and is not one of them.
  """
  best, out = -math.inf, []
  ended = [p for p in points if p.ended]
  for point in sorted(ended, key=lambda p: (p.score, -p.accuracy)):
    if point.accuracy > best:
      best = point.accuracy
      out.append(point)
  return out


def group(runs: Sequence[Run], free: Collection[str] = ()) -> list[Group]:
  """Runs of one task put together where they differ in the seed alone.

  Of two runs with the same config and seed the first counts: they are no
  second draw.

  Args:
    free: fields, or sections, of a config that change no number.
  """
  found: dict[str, dict[int, Run]] = {}
  for run in runs:
    rest = {
      k: v
      for k, v in config_lib.flatten(lift(run.result.config)).items()
      if k != "seed" and not faults.within(k, free)
    }
    key = json.dumps([rest, task_of(run.result)], sort_keys=True)
    found.setdefault(key, {}).setdefault(run.result.seed, run)
  out: list[Group] = []
  for by_seed in found.values():
    together = tuple(by_seed[seed] for seed in sorted(by_seed))
    names = _name([run.name for run in together]), together[0].name
    name = _first_new(names, {g.name for g in out} | _published())
    # A file system may not tell large letters from small ones.
    slug = re.sub(r"[^\w.=-]", "-", name).lower()
    slug = _first_new([slug], {g.slug for g in out})
    out.append(_group(name, slug, together))
  return out


def _first_new(names: Sequence[str], taken: Collection[str]) -> str:
  more = (f"{names[-1]}-{i}" for i in itertools.count(2))
  return next(n for n in itertools.chain(names, more) if n not in taken)


@functools.cache
def _published() -> frozenset[str]:
  return frozenset(p.label for p in reference_points())


def _group(name: str, slug: str, runs: tuple[Run, ...]) -> Group:
  accuracies, scores = [], {figure: [] for figure in FIGURES}
  for run in runs:
    r = run.result
    if r.is_population:
      accuracies += [m.test.accuracy for m in r.members]
      for figure in FIGURES:
        scores[figure] += [m.score[figure] for m in r.members]
    else:
      accuracies.append(r.test.accuracy)
      for figure in FIGURES:
        scores[figure].append(getattr(r.score, figure).total)
  means = {figure: statistics.mean(scores[figure]) for figure in FIGURES}
  return Group(name, slug, runs, tuple(accuracies), means)


def _name(names: list[str]) -> str:
  """What the names begin with, without 'seed' and the like at its end."""
  if len(names) == 1:
    return names[0]
  shared = os.path.commonprefix(names)
  name = re.sub(r"[-_./]+(seed|s)?[-_./=]*\d*$", "", shared)
  return name if re.search("[a-zA-Z]", name) else names[0]


def of_group(one: Group, figure: str) -> Point:
  """Makes a point of a group, by one of the score's figures."""
  return Point(
    one.name,
    one.accuracy,
    one.scores[figure],
    one.error,
    "runs",
    detail(one),
    f"#{anchor(one)}",
  )


def anchor(one: Group) -> str:
  """Returns the id of the group's part of the page."""
  return f"run-{one.slug}"


def detail(one: Group) -> str:
  """Writes a group's numbers in at most four lines."""
  result = one.runs[0].result
  n = len(one.accuracies)
  if n > 1:
    seeds = f"{n} seeds, standard deviation {100 * one.error:.2f} points"
  else:
    p, count = one.accuracy, result.test.count
    error = 100 * math.sqrt(p * (1 - p) / count)
    seeds = (
      f"one seed; {error:.2f} points is the standard error of {count:,} images"
    )
  scores = ", ".join(
    f"{k.replace('_', ' ')} {one.scores[k]:.4f}" for k in FIGURES
  )
  w_bits = sorted({row.w_bits for row in result.score.rows})
  a_bits = sorted({row.a_bits for row in result.score.rows})
  bits = "/".join(",".join(map(str, b)) for b in (w_bits, a_bits))
  lines = [
    seeds,
    f"score: {scores}",
    f"{result.kept:,} weights kept, {result.score.macs:,} MACs, bits {bits}",
  ]
  if result.votes:
    lines.append(f"{len(result.members)} members, vote: {result.vote}")
  return "\n".join(lines)


def changes(config: Mapping[str, Any]) -> list[str]:
  """Lists what a config sets otherwise than the defaults: 'field=value'.

  The seed is left out, for which there are the groups.
  """
  now = lift(config)
  before = config_lib.flatten(lift(_with_widths(now)))
  return [
    f"{name}={_short(value)}"
    for name, value in sorted(config_lib.flatten(now).items())
    if before.get(name) != value and name != "seed"
  ]


def _with_widths(config: dict[str, Any]) -> dict[str, Any]:
  """The defaults of a config of these phases and widths, as it would be saved.

  What is one for all stages has an entry for each of them in a saved config.
  """
  values = as_json(config_lib.defaults(tuple(config["phases"])))
  for name in values["phases"]:
    widths = faults.at(config, f"{name}.network.widths")
    if widths is not faults.MISSING:
      values[name]["network"]["widths"] = widths
  return values


def _short(value: Any) -> str:
  return json.dumps(value, separators=(", ", ": ")).replace('"', "")
