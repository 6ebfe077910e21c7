"""Telling a person how far training is, on a terminal or in a log."""

import json
import os
import pathlib
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def duration(seconds: float) -> str:
  """Such as '1:02:03' or '4:05'."""
  minutes, seconds = divmod(max(0, round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  tail = f"{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
  return f"{hours}:{tail}" if hours else tail


class Reporter:
  """A live bar where there is a terminal, else one plain line an epoch.

  Rates are of this process since it started or resumed, compilation left out.
  """

  def __init__(self, phase: str, epochs: int, steps_per_epoch: int, mode: str):
    self.phase, self.epochs = phase, epochs
    self.steps_per_epoch = steps_per_epoch
    if mode == "auto":
      mode = "bar" if sys.stderr.isatty() else "plain"
    self.mode = mode
    self.started = self.images = 0
    self.bar = None
    if mode == "bar":
      self.bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
      )
      self.task = self.bar.add_task(
        phase, total=epochs * steps_per_epoch, text="compiling"
      )
      self.validation = ""
      self.bar.start()

  def step(self, step: int, images: int, loss: float) -> None:
    """After each step; the first one only starts the clock."""
    now = time.monotonic()
    if not self.started:
      self.started, self.first, self.shown = now, step, now
      return
    self.images += images
    if self.bar and now - self.shown > 0.2:
      self.shown = now
      text = (
        f"epoch {(step - 1) // self.steps_per_epoch + 1}/{self.epochs}"
        f"  {self.rate():.0f} images/s  loss {loss:.3f}{self.validation}"
        f"  {duration(self.left(step))} left"
      )
      self.bar.update(self.task, completed=step, text=text)

  def rate(self) -> float:
    """Images a second."""
    return self.images / max(1e-9, time.monotonic() - self.started)

  def left(self, step: int) -> float:
    """Seconds to the end of the phase."""
    done = step - self.first
    rest = self.epochs * self.steps_per_epoch - step
    return (time.monotonic() - self.started) * rest / max(1, done)

  def epoch(self, row: dict[str, Any], step: int) -> None:
    """After each epoch, with its line of metrics.jsonl."""
    accuracy = row["validation_accuracy"]
    shown = "" if accuracy is None else f"  validation {accuracy:.2%}"
    self.validation = shown
    if self.mode == "plain":
      print(
        f"{self.phase}: epoch {row['epoch']}/{self.epochs}"
        f"  loss {row['loss']:.4f}  train {row['train_accuracy']:.2%}{shown}"
        f"  {row['images_per_second']:.0f} images/s"
        f"  {duration(self.left(step))} left",
        file=sys.stderr,
        flush=True,
      )

  def close(self) -> None:
    if self.bar:
      self.bar.stop()


class MetricsFile:
  """metrics.jsonl: one line an epoch, none twice after a resume."""

  def __init__(self, path: pathlib.Path, resumed_at: int):
    """Drops the lines of steps after `resumed_at`: they are made again."""
    self.path = path
    rows = read_metrics(path) if path.exists() else []
    kept = [row for row in rows if row["step"] <= resumed_at]
    write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept))

  def write(self, row: dict[str, Any]) -> None:
    with self.path.open("a") as f:
      f.write(json.dumps(row) + "\n")
      f.flush()
      os.fsync(f.fileno())


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; one that a kill cut off is left out."""
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


def write_atomically(path: pathlib.Path, text: str) -> None:
  """The whole text or nothing, also when killed in between."""
  part = path.with_name(path.name + ".part")
  with part.open("w") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  part.replace(path)
