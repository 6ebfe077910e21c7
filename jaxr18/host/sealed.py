"""The hash in a run's small files: a flipped bit or a lost key is found.

It is a hash of the content as JSON and not of the text, so a file that was
indented anew is the same file. Files that were made before there was a hash are
read without one, unless their workdir was begun by a version that seals all.
"""

import hashlib
import json
import pathlib
import shlex
from typing import Any, NamedTuple

from jaxr18.host.files import write_json
from jaxr18.host.inputs import read_bytes

KEY = "hash"
FILE, LINE = 64, 16  # hexadecimal digits of a file's hash and of a line's


class SealError(ValueError):
  """Content that is not what was written."""


def parse(text: str | bytes) -> Any:
  """Parses the JSON of a file that may be damaged.

  Raises:
    ValueError: it is no JSON.
  """
  try:
    return json.loads(text)
  except RecursionError as e:
    raise SealError("it is nested too deeply") from e


class Lines(NamedTuple):
  """What a file of JSON lines holds.

  Attributes:
    rows: of all whole lines, without their hashes.
    numbers: of those lines, from 1.
    damaged: what is wrong with each other line, by its number.
  """

  rows: list[dict[str, Any]]
  numbers: list[int]
  damaged: dict[int, str]


def seal(value: dict[str, Any], digits: int = FILE) -> dict[str, Any]:
  """Returns a value as JSON gives it back, with its hash."""
  rest = json.loads(json.dumps({k: v for k, v in value.items() if k != KEY}))
  return rest | {KEY: _digest(rest, digits)}


def unseal(value: Any, digits: int, demanded: bool) -> dict[str, Any]:
  """Checks a value by its hash, and returns it without.

  Args:
    value: of JSON.
    digits: of its hash.
    demanded: whether it must have a hash; one that is there must be right.

  Raises:
    SealError: it is no object, or its hash is missing or wrong.
  """
  if not isinstance(value, dict):
    raise SealError(f"it is {type(value).__name__}, expected an object")
  rest = {k: v for k, v in value.items() if k != KEY}
  if KEY in value:
    made = _digest(rest, digits)
    if value[KEY] != made:
      raise SealError(f"its hash is {value[KEY]!r}, and its content has {made}")
  elif demanded:
    raise SealError("its hash is missing")
  return rest


def demanded(workdir: pathlib.Path) -> bool:
  """Returns whether all small files of a workdir must have a hash."""
  try:
    return "version" in parse(read_bytes(workdir / "config.json"))
  except (OSError, ValueError, TypeError):
    return False


def read(path: pathlib.Path, demanded: bool) -> dict[str, Any]:
  """Reads a sealed file, or an older one that has no hash.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no JSON, or a SealError.
  """
  return unseal(parse(read_bytes(path)), FILE, demanded)


def write(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes a JSON file with its hash."""
  write_json(path, seal(value))


def read_lines(path: pathlib.Path, demanded: bool = False) -> Lines:
  """Reads the rows of a file of sealed lines, such as metrics.jsonl.

  A last line that a kill has cut off is left out without a word: whoever made
  it makes it again. One that was whole, and has lost its end of line, is
  damaged. Where one line has a hash all must.

  Raises:
    OSError: it cannot be read.
  """
  *lines, last = read_bytes(path).split(b"\n")
  demanded = demanded or any(b'"%s":' % KEY.encode() in x for x in lines)
  rows, numbers, damaged = [], [], {}
  for i, text in enumerate([*lines, last], 1):
    if not text.strip():
      continue
    try:
      rows.append(unseal(parse(text), LINE, demanded))
      numbers.append(i)
    except ValueError as e:
      if i <= len(lines) or _begins_whole(text):
        damaged[i] = str(e)
  return Lines(rows, numbers, damaged)


def _begins_whole(text: bytes) -> bool:
  """Returns whether a line begins with all of an object."""
  try:
    json.JSONDecoder().raw_decode(text.decode(errors="replace"))
  except ValueError:
    return False
  return True


def without(path: pathlib.Path, damaged: dict[int, str]) -> str:
  """Writes the shell's command that removes lines from a file."""
  script = ";".join(f"{i}d" for i in sorted(damaged))
  return shlex.join(["sed", "-i", script, str(path)])


def _digest(value: dict[str, Any], digits: int) -> str:
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:digits]
