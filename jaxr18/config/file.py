"""Configs from files: a Python file's get_config, or a run's config.json.

What is read is nested plain values. Those that are wrong are taken as they are:
`parse` then names all of them at once, whether they stand in a file or on the
command line.
"""

import ast
import contextlib
import difflib
import importlib.util
import pathlib
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from jaxr18.config.faults import ConfigError
from jaxr18.config.fields import Field
from jaxr18.config.lift import RENAMED, VERSION, lift
from jaxr18.config.schema import fields
from jaxr18.host import paths, sealed
from jaxr18.host.inputs import read_bytes

PACKAGE = pathlib.Path(__file__).parents[1]
# In the package where that is installed, beside it in a checkout.
CONFIGS = PACKAGE / "_configs"
if not CONFIGS.is_dir():
  CONFIGS = PACKAGE.parent / "configs"


Values = dict[str, Any]  # of a config, nested


def load(name: str) -> Values:
  """Reads 'FILE.py', 'FILE.py:ARGUMENT' or a run's 'WORKDIR/config.json'.

  A relative FILE is looked for below the current folder, then among the
  project's own.

  Raises:
    ConfigError: there is no such file, or it gives no config.
  """
  file, argument = paths.file_and_argument(name)
  path = find(file, name)
  if path.suffix == ".json":
    return from_json(path)
  if path.suffix != ".py":
    raise ConfigError(
      f"--config={file} must be a .py with get_config or the config.json of a"
      " workdir; give another file"
    )
  import ml_collections  # late, as --help needs none of it

  from jaxr18.config.configdict import plain

  with _said_of(name, path):
    module = _module(path)
    _check_argument(argument, getattr(module, "ARGUMENTS", None))
    config = module.get_config(*([argument] if argument else []))
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(
      f"{name}: get_config returned {config!r}, expected what"
      " jaxr18.config.base() returns; end it with 'return config'"
    )
  return plain(config)


def _check_argument(given: str, known: Sequence[str] | None) -> None:
  """Raises ValueError for an argument that a file's ARGUMENTS does not name."""
  if known is not None and given not in ("", *known):
    raise ValueError(
      f"argument {given!r} must be {', '.join(map(repr, known))} or none"
    )


def sweep(name: str) -> list[dict[str, Any]]:
  """Lists what a file's `sweep(add)` adds: fields and values, a run each.

  `add` takes {"train.optimizer.learning_rate": 0.1}, or seed=1 where there is
  no dot.

  Raises:
    ConfigError: there is no such file or function, or it adds nothing, or one
      run twice.
  """
  from jaxr18.config.configdict import plain

  path = find(paths.file_and_argument(name)[0], name)
  runs = []

  def add(given=None, **more):
    runs.append(plain({**(given or {}), **more}))

  with _said_of(name, path):
    function = getattr(_module(path), "sweep", None)
    if function is not None:
      function(add)
  if function is None or not runs:
    raise ConfigError(
      f"{name} has no sweep(add) that adds a run; write such as\n"
      "def sweep(add):\n"
      "  for rate in (0.05, 0.1):\n"
      '    add({"train.optimizer.learning_rate": rate})'
    )
  for i, added in enumerate(runs):
    if added in runs[:i]:
      raise ConfigError(f"{name}: sweep adds {added} twice; add it once")
  return runs


@contextlib.contextmanager
def _said_of(name: str, path: pathlib.Path) -> Iterator[None]:
  """Turns whatever a person's file may raise into a ConfigError."""
  try:
    yield
  except Exception as e:
    told = f"{name}{_line_of(e, path)}: {_text(e)}{_new_name(_text(e))}"
    raise ConfigError(told) from e


def _new_name(text: str) -> str:
  """What ml_collections could not set by its older name, by today's."""
  given = re.search(r"""Key "(\w+)" does not|override field '(\w+)'""", text)
  new = RENAMED.get((given[1] or given[2]) if given else "")
  return f"; it is {new} of a phase now" if new else ""


def _module(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location("config", path.resolve())
  assert spec and spec.loader, path  # as of all that ends in .py
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def find(file: str, given: str = "") -> pathlib.Path:
  """Completes a relative path to a config.

  Args:
    file: its name.
    given: what of the command line that is a part of, for an error.

  Raises:
    ConfigError: no such file; the project's own are listed.
  """
  path = paths.folder(file)
  if path.is_file():
    return path
  if path.parts[:1] == ("configs",):
    shipped = CONFIGS.joinpath(*path.parts[1:])
    if shipped.is_file():
      return shipped
  if given != file and paths.folder(given).is_file():
    raise ConfigError(
      f"--config={given}: a colon ends the file's name there, or a backslash"
      f" changes it; write '--config={paths.escaped(given)}'"
    )
  near = difflib.get_close_matches(path.stem, _beside(path), 1)
  meant = f"; did you mean {_beside(path)[near[0]]}?" if near else ""
  raise ConfigError(
    f"--config={file}: there is no such file in {pathlib.Path.cwd()}{meant};"
    f" the project's own are\n{catalog()}"
  )


def _beside(path: pathlib.Path) -> dict[str, str]:
  """The configs that may be meant, by their names' stems."""
  out = {p.stem: f"configs/{p.name}" for p in CONFIGS.glob("*.py")}
  if path.parent.is_dir():
    out |= {p.stem: str(p) for p in path.parent.glob("*.py")}
  return out


def catalog() -> str:
  """Lists the project's configs, a line each, with their descriptions."""
  lines = []
  for path in sorted(CONFIGS.glob("*.py")):
    about = ast.get_docstring(ast.parse(path.read_text())) or ""
    name = f"  configs/{path.name}".ljust(32)
    first = " ".join(about.splitlines()[:1])
    lines.append(
      name + textwrap.shorten(first, 79 - len(name), placeholder=" ...")
    )
  return "\n".join(lines)


def from_json(path: pathlib.Path) -> Values:
  """Opens the config that a run saved, with fields that it lacks as then.

  Raises:
    ConfigError: it cannot be read, or is no config.
  """
  try:
    saved = sealed.parse(read_bytes(path))
    version = saved.get("version", 1)
    if version not in range(1, VERSION + 1):
      raise ValueError(
        f"version is {version!r}, expected at most {VERSION}: a newer jaxr18"
        " has written it"
      )
    values = lift(saved)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise ConfigError(
      f"{path} is not a config that a run has saved ({type(e).__name__}:"
      f" {_text(e)}); give the config.json of a workdir"
    ) from e
  if values["data"]["order"] == "folder" and "order" not in saved["data"]:
    logging.warning(
      "%s was saved before images were ordered by their content:"
      " config.data.order is 'folder', as it was, for the same run from the"
      " same folder; --config.data.order=content splits and orders as new"
      " runs do",
      path,
    )
  return {name: _as_tuples(value) for name, value in values.items()}


def override(values: Values, assignments: Sequence[str]) -> None:
  """Sets fields from the command line's 'train.epochs=10'.

  The field says how its text is read: as it is where that is a string, else as
  a Python value; what cannot be read so stays text. A tuple of one entry may be
  written without its comma, and one rule without the tuple around it.
  """
  for assignment in assignments:
    name, _, text = assignment.partition("=")
    known = _field(values, name)
    if known is None:
      value = _literal(text)
    elif known.kind is str and not known.many:
      value = text
    else:
      value = _wrapped(known, _as_tuples(_literal(text)))
    set_field(values, name, value)


def _wrapped(field: Field, value: Any) -> Any:
  """A value in the tuple that its field has, where that goes without saying."""
  if field.many and type(value) in (int, float, bool):
    return (value,)
  first, *others = value if type(value) is tuple and value else (value,)
  if field.kind is tuple and others and isinstance(first, str):
    return (value,)  # one rule
  return value


def set_field(values: Values, name: str, value: Any) -> None:
  """Sets a field, whether it is there or not, and its sections with it."""
  *sections, last = name.split(".")
  for section in sections:
    if not isinstance(values.get(section), dict):
      values[section] = {}
    values = values[section]
  values[last] = value


def _field(values: Values, name: str) -> Field | None:
  phases = values.get("phases")
  phases = phases if isinstance(phases, tuple) else ()
  known = {f.name: f for f in fields(phases, search="search" in values)}
  return known.get(name)


def _literal(text: str) -> Any:
  """What a text is in Python; the text itself where it is nothing there."""
  try:
    return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def _as_tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _as_tuples(inner) for name, inner in value.items()}
  if isinstance(value, list | tuple):
    return tuple(map(_as_tuples, value))
  return value


def _text(error: Exception) -> str:
  """The message; ml_collections wraps a KeyError in an AttributeError."""
  text = error.args[0] if error.args else repr(error)
  if isinstance(text, Exception):
    return _text(text)
  return " ".join(str(text).split())


def _line_of(error: Exception, path: pathlib.Path) -> str:
  """The last line of the file that was running, such as ', line 24'."""
  trace, line = error.__traceback__, getattr(error, "lineno", None)
  while trace:
    if trace.tb_frame.f_code.co_filename == str(path.resolve()):
      line = trace.tb_lineno
    trace = trace.tb_next
  return f", line {line}" if line else ""
