"""What a study has found so far: its front, for people, files and pictures."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr18.config.search import describe_candidate
from jaxr18.host.files import write_atomically, write_json
from jaxr18.report.page import document, growth, pareto
from jaxr18.report.points import GOAL, Point, published_task
from jaxr18.search import halving, storage
from jaxr18.search.storage import Study
from jaxr18.search.trial import finished

Row = dict[str, Any]  # of `storage.rows`


def front(rows: list[Row]) -> list[Row]:
  """Finds complete trials that no other beats, by score."""
  rows = _with_numbers(rows, storage.COMPLETE)
  if not rows:
    return []
  ranks = halving.ranks(
    np.array([(-row["accuracy"], row["score"]) for row in rows])
  )
  best = [row for row, rank in zip(rows, ranks, strict=True) if rank == 0]
  return sorted(best, key=lambda row: row["score"])


def covered(rows: list[Row]) -> list[tuple[float, float]]:
  """Measures how the front grows: its hypervolume over the time trained.

  The plane is that of accuracy and the logarithm of the score, between the
  worst and the best value of either that was found; what lies below and to the
  right of a candidate is covered (Zitzler and Thiele, 1998).

  Returns:
    (hours that all trials took so far, covered share of that rectangle) after
    each candidate that was trained to its end, in the order of their numbers.
    Of a study whose rectangle has no area, nothing.
  """
  points = {
    row["number"]: np.array([-math.log10(row["score"]), row["accuracy"]])
    for row in _with_numbers(rows, storage.COMPLETE)
    if row["score"] > 0  # of which there is a logarithm
  }
  if not points:
    return []
  low, high = (end(list(points.values()), 0) for end in (np.min, np.max))
  if not np.all(high > low):
    return []
  out, front, seconds = [], [], 0.0
  for row in rows:
    seconds += row["seconds"]
    if (at := points.get(row["number"])) is not None:
      front.append((at - low) / (high - low))
      out.append((seconds / 3600, float(_area(front))))
  return out


def _area(points: Sequence[np.ndarray]) -> float:
  """Of the union of rectangles from the origin to each point."""
  area = height = 0.0
  for width, top in sorted(map(tuple, points), reverse=True):
    area += width * max(0.0, top - height)
    height = max(height, top)
  return area


def write(study: Study, workdir: pathlib.Path) -> list[Row]:
  """Writes search.json and pareto.html; in turn with other workers.

  Returns:
    The rows of all trials.
  """
  rows = storage.rows(study)
  summary = {
    "config": storage.kept_config(study),
    "finished": len(finished(rows)),
    "front": [row["number"] for row in front(rows)],
    "trials": [
      {k: v for k, v in row.items() if k != "home"}
      | {"candidate": describe_candidate(row["params"])}
      for row in rows
    ],
  }
  write_json(workdir / "search.json", summary)
  data = summary["config"]["data"]["name"]
  write_atomically(workdir / "pareto.html", page(rows, data))
  return rows


def page(rows: list[Row], data: str) -> str:
  """Makes a page of the trained candidates with a picture to point at.

  Args:
    data: the data set's name; the goal of 90% is CIFAR-10's.
  """
  markup = "<p>No candidate has been trained yet.</p>"
  if found := points(rows):
    markup = pareto(
      found,
      score_label="per-layer score",
      split="validation",
      goal=GOAL if data == published_task().data else None,
    )
    markup += growth(covered(rows))
  return document(
    "Search",
    markup,
    f"{len(finished(rows))} candidates trained, {_count(rows, storage.OVER)}"
    " over the score budget; accuracy on validation images",
  )


def points(rows: list[Row]) -> list[Point]:
  """Candidates trained to their end, and those that a rung has ended."""
  return [
    Point(
      f"trial {row['number']}",
      row["accuracy"],
      row["score"],
      series=name,
      detail="\n".join([line(row), describe_candidate(row["params"])]),
      ended=state == storage.COMPLETE,
    )
    for state, name in ((storage.COMPLETE, "trained to the end"),
                        (storage.HALVED, "halved: accuracy at that rung"))
    for row in _with_numbers(rows, state)
  ]  # fmt: skip


def _with_numbers(rows: list[Row], state: str) -> list[Row]:
  """Those of a state whose accuracy and score can be compared."""
  numbers = lambda row: (row["accuracy"], row["score"])
  return [
    row
    for row in rows
    if row["state"] == state
    and all(x is not None and math.isfinite(x) for x in numbers(row))
  ]


def _count(rows: list[Row], state: str) -> int:
  return sum(row["state"] == state for row in rows)


def line(row: Row) -> str:
  """Says in a line how a trial ended."""
  rungs = ", ".join(
    f"{rung['accuracy']:.2%} after {rung['epoch']}" for rung in row["rungs"]
  )
  if row["state"] == storage.COMPLETE:
    rungs += f"{', ' if rungs else ''}{row['accuracy']:.2%} at the end"
  if row["state"] == storage.FAILED:
    return f"trial {row['number']} failed: {row['reason']}"
  return (
    f"trial {row['number']} {row['state']}: score {row['score']:.6f},"
    f" validation {rungs}; {row['seconds']:.0f} s"
  )


def front_text(rows: list[Row]) -> str:
  """Writes the front as a table, a line a trial."""
  best = front(rows)
  if not best:
    return "no candidate has been trained to its end yet"
  lines = ["trial  per-layer score  validation  candidate"]
  lines += [
    f"{row['number']:>5}  {row['score']:>11.6f}  {row['accuracy']:>10.2%}"
    f"  {describe_candidate(row['params'])}"
    for row in best
  ]
  return "\n".join(lines)
