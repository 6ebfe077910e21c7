"""How fast a network's file runs here: one image at a time, and many."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BATCH = 100  # images, where many are given at once
SECONDS = 1.0  # that each of the two takes about, but for one slow call
_FEWEST, _MOST = 3, 200  # calls


class Speed(NamedTuple):
  """Medians over calls, on whatever else the machine is doing.

  Attributes:
    milliseconds: of one image alone.
    images_per_second: in batches.
    batch: images of such a batch.
  """

  milliseconds: float
  images_per_second: float
  batch: int


def measure(
  run: Callable[[np.ndarray], np.ndarray],
  images: np.ndarray,
  seconds: float = SECONDS,
  clock: Callable[[], float] = time.perf_counter,
) -> Speed:
  """Times a function, which is called once before each measurement.

  Args:
    run: images -> logits; what it returns is waited for.
    images: [n, size, size, channels]; the first are taken.
    seconds: for each of the two.
    clock: in seconds.
  """
  many = images[:BATCH]
  one = _median(run, images[:1], seconds, clock)
  all_of_them = _median(run, many, seconds, clock)
  return Speed(1000 * one, len(many) / all_of_them, len(many))


def _median(run, images, seconds: float, clock) -> float:
  """Measures the seconds of a call, after one that is not timed."""
  np.asarray(run(images))
  began, times = clock(), []
  while len(times) < _MOST:
    start = clock()
    np.asarray(run(images))
    end = clock()
    times.append(end - start)
    if len(times) >= _FEWEST and end - began >= seconds:
      break
  return statistics.median(times)
