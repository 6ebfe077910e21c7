"""Goals beside what is reached, and the artifacts that prove results."""

import pytest

from benchmarks import front
from benchmarks.results import run as run_of
from jaxr18.data import cifar10
from jaxr18.data import dataset as data

SHIPPED = front.shipped()


class TestRow:
  def test_the_mean_over_all_seeds_counts(self):
    results = (0.898, 0.01), (0.904, 0.02)
    text = front.row("X", front.Goal(0.90, 0.02, 2), results)
    assert "90.10% at 0.0200, 2 seeds" in text and "| reached" in text
    assert "standard deviation 0.42%" in text

  @pytest.mark.parametrize(
    "seeds, accuracy, score", [(1, 0.8999, 0.01), (1, 0.95, 0.0201),
                               (3, 0.95, 0.01)]
  )  # fmt: skip
  def test_what_falls_short(self, seeds, accuracy, score):
    goal = front.Goal(0.90, 0.02, seeds)
    text = front.row("X", goal, [(accuracy, score)])
    assert "| not reached" in text

  def test_without_a_run(self):
    text = front.row("X", front.Goal(0.9, 0.1, 1), [])
    assert text.endswith("| nothing yet")


def test_every_run_of_a_goal_is_there():
  for goal in front.GOALS.values():
    for run in goal.runs:
      assert 0 < run_of(run).test.accuracy < 1
      assert run in SHIPPED


@pytest.mark.parametrize("run", SHIPPED)
def test_an_artifact_gives_its_result_again(run):
  """With NumPy alone, wherever CIFAR-10 is."""
  if cifar10.open_folder(cifar10.resolve_data_dir()) is None:
    pytest.skip("CIFAR-10 is not prepared here; TFDS_DATA_DIR names its folder")
  test = data.load("cifar10").test
  right = front.right_answers(run, test.images, test.labels)
  assert right == run_of(run).test.correct
