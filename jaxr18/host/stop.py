"""SIGTERM and SIGINT end a run with its state saved.

Its exit status is then 0, or JAXR18_STOPPED_STATUS where that is set: so a
scheduler's script learns that there is more to do.

A signal ends the process at once where the code says that it may
(`StopSignal.may_leave`). Everywhere else it is only noted, and the training
loop looks for it after every step: where a place was forgotten, no work is
lost, and the end comes a step later.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class Stopped(Exception):
  """A stop signal came; the state is saved."""


class StopSignal:
  """Whether the process was asked to stop.

  Attributes:
    received: whether a signal came.
    alone: False where other processes train with this one: it would take them
      down if it left without them, so `may_leave` changes nothing.
  """

  def __init__(self):
    self.received = False
    self.alone = True
    self._cleanup: Callable[[], None] | None = None
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def may_leave(
    self, where: str, cleanup: Callable[[], None] = lambda: None
  ) -> Iterator[None]:
    """Lets a signal end the process at once while the block runs.

    Args:
      where: what is stopped, for people.
      cleanup: what is left to do before the end; called in another thread.

    Raises:
      Stopped: a signal came before; `cleanup` has been called.
    """
    with self._lock:  # a signal comes before this block or within it
      if self.alone and self.received:
        cleanup()
        raise Stopped(f"{where} stopped")
      outer, self._cleanup = self._cleanup, cleanup
    try:
      yield
    finally:
      # It waits here, for ever, where the other thread is about to leave.
      with self._lock:
        self._cleanup = outer

  def leave(self) -> None:
    """Ends the process if it may be left now; else returns.

    A cleanup that raises keeps the process alive: the main thread is about to
    meet the same error, such as a failed write, and to tell it.
    """
    with self._lock:  # held to the end: no block is left, no save begun
      if self._cleanup is None or not self.alone:
        return
      try:
        self._cleanup()
      except Exception:
        return
      say("Stopped; all is saved, and the same command goes on from there.")
      say("", sys.stderr)
      os._exit(exit_status())


def exit_status() -> int:
  """Returns the exit status of a process that stopped with all saved."""
  status = os.environ.get("JAXR18_STOPPED_STATUS", "")
  return int(status) if status.isdecimal() else 0


def on_stop_signals() -> StopSignal:
  """Lets SIGTERM and SIGINT ask the run to stop; a second one kills it.

  A thread waits for them: the main one may be in XLA's compiler for a minute,
  where no handler written in Python runs.
  """
  stop = StopSignal()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: None)
  threading.Thread(target=_wait, args=(stop, reader), daemon=True).start()
  return stop


def say(text: str, file: Any = None) -> None:
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
  stop.leave()
  os._exit(128 + _next(reader))


def _next(reader: int) -> int:
  """Waits for SIGTERM or SIGINT, whatever other signals have handlers."""
  while True:
    number = os.read(reader, 1)[0]
    if number in (signal.SIGTERM, signal.SIGINT):
      return number
