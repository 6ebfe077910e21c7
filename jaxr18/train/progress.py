"""Telling a person how far training is, on a terminal or in a log."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def duration(seconds: float) -> str:
  """Such as '1:02:03' or '4:05'."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  tail = f"{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
  return f"{hours}:{tail}" if hours else tail


class _Clock:
  """Counts images and seconds from its start."""

  def __init__(self):
    self.started, self.images, self.paused = time.monotonic(), 0, 0.0

  def seconds(self) -> float:
    return time.monotonic() - self.started

  def rate(self) -> float:
    """Images a second of training: pauses are left out."""
    return self.images / max(1e-9, self.seconds() - self.paused)


class Reporter:
  """A live bar where there is a terminal, else one plain line an epoch.

  Rates and the time left are of this process, since it started or resumed and
  had compiled.
  """

  def __init__(self, phase: str, epochs: int, steps_per_epoch: int, mode: str):
    """Shows that the phase begins; mode is 'auto', 'bar', 'plain' or 'none'."""
    if mode == "auto":
      mode = "bar" if sys.stderr.isatty() else "plain"
    self._phase, self._epochs, self._mode = phase, epochs, mode
    self._steps_per_epoch = steps_per_epoch
    self._total = epochs * steps_per_epoch
    self._validation, self._shown = "", 0.0
    self.start(0)
    self._bar = None
    if mode == "bar":
      self._bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
      )
      self._task = self._bar.add_task(
        phase, total=self._total, text="compiling"
      )
      self._bar.start()

  def start(self, step: int) -> None:
    """Starts the clocks, after compilation, at the step to go on from."""
    self._first = step
    self._clock, self._epoch_clock = _Clock(), _Clock()
    if step:
      self._line(f"{self._phase}: goes on at step {step} of {self._total}")

  def step(self, step: int, images: int, loss: float) -> None:
    """After each step, with the images and the loss of one."""
    self._clock.images += images
    self._epoch_clock.images += images
    now = time.monotonic()
    if self._bar and now - self._shown > 0.2:
      self._shown = now
      epoch = (step - 1) // self._steps_per_epoch + 1
      self._show(
        step,
        f"epoch {epoch}/{self._epochs} {self._clock.rate():.0f} images/s"
        f" loss {loss:.3f}{self._validation} {duration(self._left(step))} left",
      )

  @contextlib.contextmanager
  def validating(self, step: int) -> Iterator[None]:
    """Leaves the time within out of the images a second."""
    began = time.monotonic()
    self._show(step, "validating")
    yield
    for clock in (self._clock, self._epoch_clock):
      clock.paused += time.monotonic() - began

  def timing(self) -> dict[str, float]:
    """Of the epoch so far, as far as this process ran it."""
    clock = self._epoch_clock
    return {"images_per_second": clock.rate(), "seconds": clock.seconds()}

  def epoch(self, row: dict[str, Any]) -> None:
    """After each epoch, with its line of metrics.jsonl."""
    accuracy, step = row["validation_accuracy"], row["step"]
    shown = "" if accuracy is None else f" val {accuracy:.2%}"
    self._validation = shown
    self._epoch_clock = _Clock()
    if not self._total:
      self._line(f"{self._phase}: no training{shown}")
      return
    text = (
      f"epoch {row['epoch']}/{self._epochs} {row['images_per_second']:.0f}"
      f" images/s loss {row['loss']:.3f}{shown}"
    )
    left = f" {duration(self._left(step))} left"
    self._show(step, text + (left if step < self._total else ""))
    self._line(f"{self._phase}: {text} train {row['train_accuracy']:.2%}{left}")

  def close(self) -> None:
    """Leaves the terminal as it was; may be called twice."""
    if self._bar:
      self._bar.stop()

  def _left(self, step: int) -> float:
    """Seconds to the end of the phase, validations included."""
    done = max(1, step - self._first)
    return self._clock.seconds() * (self._total - step) / done

  def _show(self, step: int, text: str) -> None:
    if self._bar:
      self._bar.update(self._task, completed=step, text=text)

  def _line(self, text: str) -> None:
    if self._mode == "plain":
      print(text, file=sys.stderr, flush=True)
