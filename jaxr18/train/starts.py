"""starts.jsonl of a workdir: where each start went on, and by what arithmetic.

Bits are the same on one machine. What is computed by another path of the
convolution, other instructions or other threads is not, so each start keeps
what it has computed by.
"""

import datetime
import json
import pathlib
from typing import Any

from jaxr18.host import sealed
from jaxr18.host.errors import reading
from jaxr18.host.files import write_atomically
from jaxr18.train.files import CheckpointError


def path_of(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "starts.jsonl"


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the starts so far; none where a run is older than this file.

  Raises:
    CheckpointError: a line is damaged.
  """
  path = path_of(workdir)
  if not path.exists():
    return []
  with reading(path):
    rows, _, damaged = sealed.read_lines(path, sealed.demanded(workdir))
  if damaged:
    first = min(damaged)
    raise CheckpointError(
      f"{path} is damaged: line {first}: {damaged[first]};"
      f" `{sealed.without(path, damaged)}` removes it, and the same command"
      " goes on"
    )
  return rows


def add(
  workdir: pathlib.Path,
  at: dict[str, int],
  arithmetic: dict[str, Any],
  changed: list[str],
) -> list[str]:
  """Keeps a start, and says what differs from how the run was computed so far.

  Args:
    at: the latest checkpoint's step of each phase that has begun.
    arithmetic: of `nn.machine`.
    changed: fields of the config that this start has changed.

  Returns:
    A line for each part of the arithmetic that is another one than of the start
    that made the latest checkpoint; it is in the kept start too.
  """
  starts = read(workdir)
  # What came no further than where it began has left nothing.
  last = next((s for s in reversed(starts) if s["at"] != at), None)
  before = last["arithmetic"] if last else arithmetic
  differs = [
    f"{name} was {before.get(name)!r} and is {arithmetic.get(name)!r}"
    for name in sorted(before.keys() | arithmetic.keys())
    if before.get(name) != arithmetic.get(name)
  ]
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  start = {
    "time": now,
    "at": at,
    "arithmetic": arithmetic,
    "differs": differs,
    "changed": changed,
  }
  lines = [sealed.seal(s, sealed.LINE) for s in [*starts, start]]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  write_atomically(path_of(workdir), text)
  return differs
