"""Telling a person how far training is, on a terminal or in a log."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxr18.train.clock import Clock
from jaxr18.train.hooks import Hook


def duration(seconds: float) -> str:
  """Writes seconds as '1:02:03' or '4:05'."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  tail = f"{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
  return f"{hours}:{tail}" if hours else tail


class Reporter:
  """A live bar where there is a terminal, else one plain line an epoch.

  Rates and the time left are of this process, since it started or resumed and
  had compiled.
  """

  def __init__(
    self,
    phase: str,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
    mode: str,
  ):
    """Shows that the phase begins.

    Args:
      phase: its name.
      epochs, steps_per_epoch: of the phase.
      batch_size: images a step of one network.
      mode: 'auto', 'bar', 'plain' or 'none'.
    """
    if mode == "auto":
      mode = "bar" if sys.stderr.isatty() else "plain"
    self._phase, self._epochs, self._mode = phase, epochs, mode
    self._steps_per_epoch = steps_per_epoch
    self._total = epochs * steps_per_epoch
    self._batch_size, self._clock = batch_size, Clock()
    self._validation, self._shown = "", 0.0
    self._first, self._told = 0, -1
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

  def hook(self) -> Hook:
    """Returns what the training loop calls."""
    return Hook(
      begin=self.begin,
      after_step=self.step,
      validating=self.validating,
      after_epoch=self.epoch,
      close=self.close,
    )

  def begin(self, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Starts the clock, after compilation, at the step to go on from."""
    self._first, self._told = step, rows[-1]["step"] if rows else -1
    self._clock.restart()
    if step:
      self._line(f"{self._phase}: goes on at step {step} of {self._total}")

  def step(self, step: int, loss: np.ndarray) -> None:
    """Shows a step with its loss, or each member's."""
    self._clock.add(self._batch_size * loss.size)
    now = time.monotonic()
    if self._bar and now - self._shown > 0.2:
      self._shown = now
      epoch = (step - 1) // self._steps_per_epoch + 1
      self._show(
        step,
        f"epoch {epoch}/{self._epochs} {self._clock.rate():.0f} images/s"
        f" loss {loss.mean():.3f}{self._validation}"
        f" {duration(self._left(step))} left",
      )

  def validating(self, step: int) -> None:
    """Leaves the time until the epoch's line out of the images a second."""
    self._clock.pause()
    self._show(step, "validating")

  def epoch(self, row: dict[str, Any]) -> None:
    """Shows an epoch with its line of metrics.jsonl."""
    self._clock.go_on()
    accuracy, step = row["validation_accuracy"], row["step"]
    if step <= self._told:  # by an earlier process
      return
    shown = "" if accuracy is None else f" val {accuracy:.2%}"
    self._validation = shown
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
