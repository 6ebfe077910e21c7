"""What the commands share: finding configs, plain errors, printing results."""

import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

PACKAGE = pathlib.Path(__file__).parent


def run(main: Callable, epilog: Callable[[], str] | None = None) -> None:
  """absl's app.run with configs found from any folder and plain errors."""
  argv = [find_config(a) for a in sys.argv]
  if epilog and any(a in ("--help", "-help", "--helpfull") for a in argv[1:]):
    print(epilog(), end="\n\n")
  logging.set_verbosity(logging.WARNING)

  def guarded(rest):
    # Imported late, as in main: flags are parsed before JAX is loaded.
    from jaxr18 import cifar10, validate
    from jaxr18.train import checkpoint, loop

    try:
      return main(rest)
    except validate.ConfigError as e:
      sys.exit(f"The config cannot be run:\n{e}")
    except (
      checkpoint.CheckpointError,
      loop.TrainingError,
      cifar10.DataError,
    ) as e:
      sys.exit(f"Error: {e}")

  app.run(guarded, argv=argv)


def find_config(argument: str) -> str:
  """Completes --config=configs/x.py[:arg] where it is not below this folder.

  The project's own configs are found from anywhere; a file below the current
  folder comes first.
  """
  match = re.fullmatch(r"(--?config=)([^:]+)(:.*)?", argument)
  if not match:
    return argument
  flag, path, rest = match.groups()
  for root in (pathlib.Path(), PACKAGE, PACKAGE.parent):
    if (root / path).is_file():
      return f"{flag}{os.fspath(root / path)}{rest or ''}"
  return argument


def config_name(filename: str) -> str:
  """configs/kd_quant.py:digits -> kd_quant-digits."""
  path, _, argument = filename.partition(":")
  name = pathlib.Path(path).stem
  return f"{name}-{argument}" if argument else name


def print_result(result: dict[str, Any], workdir) -> None:
  """The few lines that people want to see at the end."""
  score = result["score"]
  print(
    f"test accuracy {result['test_accuracy']:.2%}"
    f" ({result['test_correct']} of {result['test_count']})"
  )
  for name in ("course", "exact", "stored"):
    s = score[name]
    print(
      f"score, {name}: {s['total']:.6f}"
      f" = {s['params_term']:.6f} (weights) + {s['ops_term']:.6f} (MACs)"
    )
  print(
    f"{score['macs']:,} MACs, {score['course']['w']:,} parameters,"
    f" {result['seconds']:.0f} s of training; all in {workdir}/result.json"
  )


def workdir_flag() -> flags.FlagHolder:
  return flags.DEFINE_string("workdir", None, "A finished run's folder.")
