"""Images a second, without the pauses."""

import time


class Clock:
  """Counts images and seconds from its start."""

  def __init__(self):
    self.restart()

  def restart(self) -> None:
    """Counts from now on."""
    self._started, self._images, self._paused = time.monotonic(), 0, 0.0
    self._pause: float | None = None

  def add(self, images: int) -> None:
    """Counts images that were trained on."""
    self._images += images

  def pause(self) -> None:
    """Leaves the time until `go_on` out of the rate."""
    self._pause = time.monotonic()

  def go_on(self) -> None:
    """Ends a pause, if there is one."""
    if self._pause is not None:
      self._paused += time.monotonic() - self._pause
      self._pause = None

  def seconds(self) -> float:
    """Returns the seconds since the start, pauses included."""
    return time.monotonic() - self._started

  def rate(self) -> float:
    """Returns the images a second of training."""
    return self._images / max(1e-9, self.seconds() - self._paused)
