"""Runs an experiment: python -m jaxr18.main --config=configs/kd_quant.py

Train, test and score as the config says. The same command resumes a run that
was stopped or killed. Any field can be set: --config.student.epochs=10; the
fields are listed by --help.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from jaxr18 import cli
from jaxr18.config import describe

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run lives; default: runs/NAME of the config."
)
_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if _CONFIG.value is None:
    raise app.UsageError("give --config=FILE, such as configs/kd_quant.py")
  # Imported late: --help and a wrong flag need no JAX.
  from jaxr18 import experiment
  from jaxr18.train import loop

  name = cli.config_name(
    config_flags.get_config_filename(flags.FLAGS["config"])
  )
  workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
  try:
    result = experiment.run(_CONFIG.value, workdir, loop.on_stop_signals())
  except loop.Stopped as e:
    print(f"{e}; saved in {workdir}; the same command resumes it")
    return
  cli.print_result(result, workdir)


if __name__ == "__main__":
  cli.run(main, describe)
