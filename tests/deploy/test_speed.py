"""Times of a function whose time is known."""

import numpy as np
import pytest

from jaxr18.deploy.speed import BATCH, measure


class Clock:
  """Stands still but for what `run` adds."""

  now = 0.0

  def __call__(self):
    return self.now


@pytest.mark.parametrize("given, batch", [(BATCH + 50, BATCH), (30, 30)])
def test_a_call_of_two_milliseconds_and_one_an_image(given, batch):
  clock, calls = Clock(), []

  def run(images):
    calls.append(len(images))
    slow = 7.0 if len(calls) == 1 else 0.0  # it compiles
    clock.now += slow + 0.002 + 0.001 * len(images)
    return images

  found = measure(run, np.zeros((given, 4, 4, 3)), 0.5, clock)
  assert found.milliseconds == pytest.approx(3)
  assert found.images_per_second == pytest.approx(
    batch / (0.002 + 0.001 * batch)
  )
  assert found.batch == batch and set(calls) == {1, batch}
  assert 0.5 <= clock.now - 7 < 1.5


def test_a_slow_one_is_called_four_times():
  clock, calls = Clock(), []

  def run(images):
    calls.append(len(images))
    clock.now += 60.0
    return images

  measure(run, np.zeros((1, 4, 4, 3)), 1.0, clock)
  assert len(calls) == 8  # once unmeasured and thrice, of each kind
