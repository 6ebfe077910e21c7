"""Names of folders and files as a person writes them, in configs and flags.

A name that stands alone, such as --workdir or data.dir, is taken as it is. In a
list of sources a comma ends a name, and in --config=FILE:ARGUMENT a colon ends
the file's. There, and only there, a backslash takes the character behind it as
it is: `runs/a\\,b` is one source, `a\\:b.py` a file, and `\\\\` a backslash.

A ~ at the beginning of a name is somebody's home folder; ./~a is one called ~a.
"""

import os
import pathlib
import re

# What a name must be that `remote` refuses, and how to mend it.
LOCAL = "must lie on a file system of this machine"
MOUNT = "mount it (gcsfuse, s3fs, rclone mount) and give that path"

# A character, or a backslash and the character that it takes.
_TOKEN = re.compile(r"\\?.", re.DOTALL)


def folder(name: str) -> pathlib.Path:
  """Returns a path by its name; a ~ that is no user's is part of the name."""
  path = pathlib.Path(os.path.expanduser(name))
  # pathlib drops a ./ before it, and who expands it again would be wrong.
  return path.absolute() if str(path).startswith("~") else path


def remote(name: str | os.PathLike) -> bool:
  """Returns whether a name is an address of a store, such as gs://bucket."""
  return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(name)) is not None


def names(text: str) -> tuple[str, ...]:
  """Splits a list such as 'runs/a, runs/b' into names; '' has none.

  Spaces around a name are left out, but for those behind a backslash.
  """
  parts: list[list[str]] = [[]]
  for token in _TOKEN.findall(text):
    if token == ",":
      parts.append([])
    else:
      parts[-1].append(token)
  return tuple(filter(None, map(_plain, parts)))


def file_and_argument(text: str) -> tuple[str, str]:
  """Splits FILE:ARGUMENT into the file's name and the argument as it stands."""
  tokens = _TOKEN.findall(text)
  end = tokens.index(":") if ":" in tokens else len(tokens)
  return _plain(tokens[:end]), "".join(tokens[end + 1 :])


def escaped(name: str) -> str:
  """Writes a name as it must stand in a list or before a colon."""
  text = re.sub(r"([\\,:])", r"\\\1", name)
  return re.sub(r"^\s|\s\Z", r"\\\g<0>", text)


def misread(text: str, known: tuple[str, ...] = ()) -> str:
  """Says what to write where a text means one name and is read as others.

  Args:
    text: a list of names.
    known: what of those is no file.

  Returns:
    '' where it is no such text: its names are there, or its whole is not.
  """
  parsed = names(text)
  if parsed == (text,) or not folder(text).exists():
    return ""
  there = all(name in known or folder(name).exists() for name in parsed)
  return "" if parsed and there else escaped(text)


def _plain(tokens: list[str]) -> str:
  first, last = 0, len(tokens)
  while first < last and tokens[first].isspace():
    first += 1
  while last > first and tokens[last - 1].isspace():
    last -= 1
  return "".join(token[-1] for token in tokens[first:last])
