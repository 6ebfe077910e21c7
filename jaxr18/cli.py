"""What the commands share: flags, --help, plain errors, printed results.

A command ends with 0 when it did what was asked, with 1 when that failed, and
with 2 when the command line or the config cannot be run.
"""

import logging as std_logging
import os
import pathlib
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable

from absl import app, flags, logging

from jaxr18 import __version__
from jaxr18.config import file as configfile
from jaxr18.config.faults import ConfigError
from jaxr18.host import paths, stop
from jaxr18.host.errors import ToldError

# A flag that a function here defines belongs to the command that called it.
flags.disclaim_key_flags()

HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort")
HELP_FULL = ("--helpfull", "-helpfull")

# What libraries say of every run, or of one that was killed, and that nobody
# who runs it can do anything about. All other warnings are shown.
NOISE = (
  "Metadata file does not exist",
  "Attempted to create temporary directory",
  "Sharding info not provided when restoring",
  "No registered CheckpointArgs found",
  "Failed to get item metadata",
  "Skipping merge of OCDBT",
)


class ConfigFlag:
  """--config=FILE and any number of --config.FIELD=VALUE."""

  def __init__(self, file: flags.FlagHolder, fields: flags.FlagHolder):
    self._file, self._fields = file, fields

  @property
  def file(self) -> str:
    """As given: 'configs/kd_quant.py:digits'; '' where it is not."""
    return self._file.value or ""

  @property
  def fields(self) -> list[str]:
    """What is set, such as 'train.epochs=10'."""
    return list(self._fields.value)

  @property
  def value(self):
    """Its nested values, fields set but not checked; None without a file.

    Raises:
      ConfigError: the file is not there or gives no config.
    """
    if not self.file:
      return None
    values = configfile.load(self.file)
    configfile.override(values, self._fields.value)
    return values


def config_flag() -> ConfigFlag:
  """Defines --config, which takes a Python file or a run's config.json."""
  return ConfigFlag(
    flags.DEFINE_string(
      "config", None, "FILE.py, FILE.py:ARGUMENT or WORKDIR/config.json."
    ),
    flags.DEFINE_multi_string(_FIELDS, [], "Where --config.x=y is kept."),
  )


_FIELDS = "config_fields"


def workdir_flag(
  help_text: str = "A finished run's folder.",
) -> flags.FlagHolder:
  return flags.DEFINE_string("workdir", None, help_text)


def phase_flag() -> flags.FlagHolder:
  return flags.DEFINE_string("phase", "", "Whose network; default: the last.")


def data_dir_flag() -> flags.FlagHolder:
  return flags.DEFINE_string(
    "data_dir", None, "TFDS's folder, in place of the config's data.dir."
  )


def run(
  main: Callable,
  epilog: Callable[[bool], str] | None = None,
  arguments: str = "",
) -> None:
  """Parses the flags, calls main(config file and flags are set) and exits.

  Args:
    main: takes what is left of argv, as absl's does.
    epilog: gives the end of what --help prints, from whether all is wanted.
    arguments: the name of what the command takes beside its flags, at least
      one of it, such as 'WORKDIR'; '' where there are only flags.
  """
  quiet()
  _without_x64()
  # Flags may then stand behind an argument.
  flags.FLAGS.set_gnu_getopt(bool(arguments))

  def parse(argv):
    full = any(a in HELP_FULL for a in argv[1:])
    if full or any(a in HELP for a in argv[1:]):
      stop.say(help_text(epilog, full))
      sys.exit(0)
    if "--version" in argv[1:]:
      stop.say(f"jaxr18 {__version__}")
      sys.exit(0)
    try:
      # What a --flagfile holds may be --config.FIELD=VALUE too.
      argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=True)
      rest = flags.FLAGS(_arguments(argv))
    except flags.Error as e:
      _fail(2, f"{e}\n--help lists the flags.")
    _check_local(rest)
    return rest

  def guarded(rest):
    try:
      if arguments and not rest[1:]:
        raise app.UsageError(f"give one or more {arguments}s")
      if rest[1:] and not arguments:
        raise app.UsageError(
          f"unexpected {' '.join(rest[1:])}: flags are written --name=value"
        )
      return main(rest)
    except stop.Stopped as e:
      stop.say(f"{e}; all is saved, and the same command resumes it")
      sys.exit(stop.exit_status())
    except KeyboardInterrupt:
      _fail(130, "Interrupted.")
    except BrokenPipeError:  # the reader of the output is gone, as in `| head`
      stop.discard(sys.stdout, sys.stderr)
      sys.exit(1)
    except Exception as e:
      if (said := told(e)) is None:
        raise
      _fail(*said)

  app.run(guarded, argv=sys.argv, flags_parser=parse)


def _check_local(rest: list[str]) -> None:
  """Refuses addresses where a file or a folder is meant.

  They would be read as folders of such names below the current one.
  """
  given = [(f"--{name}", flags.FLAGS[name].value) for name in flags.FLAGS]
  given += [("the argument", value) for value in rest[1:]]
  for name, value in given:
    if name != "--storage" and isinstance(value, str) and paths.remote(value):
      _fail(2, f"{name} (={value}) {paths.LOCAL}; {paths.MOUNT}")


def _without_x64() -> None:
  """Takes JAX_ENABLE_X64 away, before JAX is imported.

  What is written here is of 32 bits at most; in 64 it would be other numbers,
  and of twice the size.
  """
  name = "JAX_ENABLE_X64"
  if os.environ.get(name, "").lower() in ("1", "true", "t", "yes", "y", "on"):
    os.environ[name] = "0"
    print(f"{name} is set, and taken as 0: nothing here has 64 bits",
          file=sys.stderr)  # fmt: skip


def report(error: Exception) -> int:
  """Prints an error as a command does that ends with it; its exit status."""
  if (said := told(error)) is None:
    traceback.print_exception(error)
    return 1
  status, message = said
  print(message, file=sys.stderr)
  return status


def told(error: Exception) -> tuple[int, str] | None:
  """Exit status and text of an error that needs no traceback."""
  if isinstance(error, ConfigError):
    lines = textwrap.indent(str(error), "  ")
    return error.status, f"The config cannot be run:\n{lines}"
  if isinstance(error, app.UsageError):
    return 2, f"{error}\n--help says more."
  if isinstance(error, ToldError):
    return error.status, f"Error: {error}"
  # The packed runner needs NumPy alone, and so knows no base of ours.
  from jaxr18.deploy.packed import PackedError

  return (1, f"Error: {error}") if isinstance(error, PackedError) else None


def quiet() -> None:
  """Warnings in one plain line each, without `NOISE`."""
  logging.set_verbosity(logging.WARNING)
  handler = logging.get_absl_handler()
  handler.setFormatter(std_logging.Formatter("%(levelname)s: %(message)s"))
  handler.addFilter(
    lambda record: not any(n in record.getMessage() for n in NOISE)
  )
  for noise in NOISE:
    warnings.filterwarnings("ignore", message=f".*{re.escape(noise)}")


def help_text(
  epilog: Callable[[bool], str] | None = None, full: bool = False
) -> str:
  """The command's docstring, its flags, the configs that there are."""
  lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    if flag.name == _FIELDS:
      continue
    name = f"  --{flag.name}"
    if flag.default not in (None, "", False, []):
      default = flag.default
      shown = ",".join(default) if isinstance(default, list) else default
      name += f"={shown}"
    text = textwrap.fill(
      flag.help, 79, initial_indent=" " * 16, subsequent_indent=" " * 16
    )
    # Beside its name where that leaves two spaces, else below it.
    lines.append(
      name.ljust(16) + text[16:] if len(name) < 15 else f"{name}\n{text}"
    )
  if "config" in flags.FLAGS:
    lines += ["", "Configs:", configfile.catalog()]
  if epilog:
    lines += ["", epilog(full)]
  return "\n".join(lines)


def _arguments(argv: list[str]) -> list[str]:
  """Turns --config.x=y and --config.x y into a flag that absl knows."""
  out, rest = argv[:1], list(argv[1:])
  while rest:
    a = rest.pop(0)
    if a == "--":
      return [*out, a, *rest]
    if field := re.match(r"--?config\.", a):
      if _FIELDS in flags.FLAGS:
        if "=" not in a and rest and not rest[0].startswith("--"):
          a += f"={rest.pop(0)}"
        a = f"--{_FIELDS}={a[field.end() :]}"
    out.append(a)
  return out


def _fail(status: int, message: str) -> None:
  print(message, file=sys.stderr)
  sys.exit(status)


def default_workdir(file: str) -> pathlib.Path:
  """runs/NAME[-ARGUMENT] of a config; a run's config.json has its own."""
  path, argument = paths.file_and_argument(file)
  if pathlib.Path(path).name == "config.json":
    return pathlib.Path(path).parent
  name = pathlib.Path(path).stem
  if argument:
    name += "-" + re.sub(r"[^\w.=,+-]+", "_", argument)
  return pathlib.Path("runs", name)
