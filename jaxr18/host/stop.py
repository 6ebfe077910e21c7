"""SIGTERM and SIGINT end a run with its state saved.

Its exit status is then 0, or JAXR18_STOPPED_STATUS where that is set: so a
scheduler's script learns that there is more to do.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TextIO


class Stopped(Exception):
  """A stop signal came; the state is saved."""


class StopSignal:
  """Whether the process was asked to stop.

  Attributes:
    received: the training loop looks at it after every step.
    leave: what is left to do before the process may end at once; None while
      work would be lost, and then the loop saves it and stops.
    status: the process's exit status, if it stops and all is saved.
  """

  def __init__(self, leave: Callable[[], None] | None = None, status: int = 0):
    self.received = False
    self.leave = leave
    self.status = status


def on_stop_signals() -> StopSignal:
  """From now on SIGTERM and SIGINT ask the run to stop; a second one kills it.

  A thread waits for them: the main one may be in XLA's compiler for a minute,
  where no handler written in Python runs.
  """
  status = os.environ.get("JAXR18_STOPPED_STATUS", "")
  stop = StopSignal(lambda: None, int(status) if status.isdecimal() else 0)
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: None)
  threading.Thread(target=_wait, args=(stop, reader), daemon=True).start()
  return stop


def say(text: str, file: TextIO | None = None) -> None:
  """Prints a line, whether or not somebody still reads the output.

  Its reader may be gone (`| head -1`), and the exit status must not suffer.
  """
  file = sys.stdout if file is None else file
  try:
    print(text, file=file, end="\n" if text else "", flush=True)
  except OSError:
    discard(file)


def discard(*files: TextIO) -> None:
  """Sends outputs that nobody reads nowhere, with what is left to be written.

  It would fail again when the process ends.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for file in files:
    os.dup2(nowhere, file.fileno())


def _wait(stop: StopSignal, reader: int) -> None:
  _next(reader)
  stop.received = True
  if stop.leave is not None:
    try:
      stop.leave()
    except Exception:
      pass  # a failed write: the main thread is about to meet it and to say so
    else:
      say("Stopped; all is saved, and the same command goes on from there.")
      say("", sys.stderr)
      os._exit(stop.status)
  os._exit(128 + _next(reader))


def _next(reader: int) -> int:
  """Waits for SIGTERM or SIGINT, whatever other signals have handlers."""
  while True:
    number = os.read(reader, 1)[0]
    if number in (signal.SIGTERM, signal.SIGINT):
      return number
