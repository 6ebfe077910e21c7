"""The points of accuracy and score to reach, what is reached, and its proof.

    python -m benchmarks.front [--data_dir=DIR]

For each point: the goal, the runs in docs/results/ that stand for it, their
mean accuracy on the test set, their per-layer score, and whether the packed
network beside each result gives the same number of right answers again, with
NumPy alone. Exits with 1 where one does not; a goal that is not reached is told
and is no failure.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence

from benchmarks.results import RESULTS
from benchmarks.results import run as run_of
from jaxr18.deploy import packed

ARTIFACT = "network.safetensors"  # beside result.json


@dataclasses.dataclass(frozen=True)
class Goal:
  """A point to reach.

  Attributes:
    accuracy: least mean test accuracy.
    score: largest per-layer score.
    seeds: runs that the mean is to be over.
    runs: folders in docs/results/ that stand for it, of one config.
  """

  accuracy: float
  score: float
  seeds: int
  runs: tuple[str, ...] = ()


GOALS = {
  "A": Goal(0.90, 0.0080, 3, ("cut_blocks",)),
  "B": Goal(0.9347, 0.045, 3),
  "C": Goal(0.945, 0.10, 1),
  "D": Goal(0.95, 0.30, 1),
  "E": Goal(0.8697, 0.0040, 1, ("integers",)),
}


def row(name: str, goal: Goal, results: Sequence[tuple[float, float]]) -> str:
  """A goal beside what is reached, on one line.

  Args:
    name, goal: the goal.
    results: test accuracy and per-layer score of each of its runs.
  """
  want = f"{name}: {goal.accuracy:.2%} at {goal.score:.4f}, {goal.seeds} seeds"
  if not results:
    return f"{want} | nothing yet"
  accuracies = [accuracy for accuracy, _ in results]
  score = max(score for _, score in results)
  mean = statistics.mean(accuracies)
  spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
  reached = mean >= goal.accuracy and score <= goal.score
  enough = len(results) >= goal.seeds
  found = f"{mean:.2%} at {score:.4f}, {len(results)} seeds"
  if len(results) > 1:
    found += f", standard deviation {spread:.2%}"
  word = "reached" if reached and enough else "not reached"
  return f"{want} | {found} | {word}"


def shipped() -> list[str]:
  """The runs that have their packed network beside their result."""
  return sorted(path.parent.name for path in RESULTS.glob(f"*/{ARTIFACT}"))


def right_answers(run: str, images, labels) -> int:
  """Of a run's packed network, with NumPy alone."""
  forward, _ = packed.load(RESULTS / run / ARTIFACT)
  return packed.right_answers(forward, images, labels)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", default="", help="TFDS's folder")
  data_dir = parser.parse_args().data_dir
  for name, goal in GOALS.items():
    found = map(run_of, goal.runs)
    points = [(r.test.accuracy, r.score.per_layer.total) for r in found]
    print(row(name, goal, points))
  if not shipped():
    print("no packed network is beside a result")
    return
  # Imported late: a goal's state needs no data set.
  from jaxr18.data import dataset as data

  test = data.load("cifar10", data_dir=data_dir).test
  wrong = []
  for run in shipped():
    promised = run_of(run).test.correct
    found = right_answers(run, test.images, test.labels)
    same = found == promised
    print(
      f"{run}: {found:,} of {len(test):,} right by NumPy,"
      f" {promised:,} in result.json: {'the same' if same else 'NOT the same'}"
    )
    if not same:
      wrong.append(run)
  if wrong:
    sys.exit(f"these artifacts do not reproduce their results: {wrong}")


if __name__ == "__main__":
  main()
