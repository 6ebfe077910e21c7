"""Runs an experiment: trains, tests and scores what a config describes.

  python -m jaxr18.main --config=configs/kd_quant.py:digits
  python -m jaxr18.main --config=configs/kd_quant.py --config.student.epochs=10
  python -m jaxr18.main --config=runs/kd_quant/config.json --workdir=runs/again

The same command resumes a run that was stopped or killed, and prints the
result of a finished one. Ctrl-C or SIGTERM saves before it stops.

Exit status: 0 when finished, or stopped and saved; 1 when the run failed; 2
when the command or the config cannot be run, and then nothing was touched. A
stopped run ends with JAXR18_STOPPED_STATUS in place of 0 where that is set.
"""

import shlex
import sys

from absl import app

from jaxr18 import cli
from jaxr18.config import file as configfile
from jaxr18.config.schema import describe
from jaxr18.host import paths

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag(
  "Where the run lives; default: runs/NAME[-ARGUMENT] of the config."
)


def main(argv: list[str]) -> None:
  del argv
  config = _CONFIG.value
  if config is None:
    raise app.UsageError(
      f"give --config=FILE, one of\n{configfile.catalog()}\nor your own"
    )
  if "search" in config:
    raise app.UsageError(
      f"--config={_CONFIG.file} describes a search; give it to"
      " python -m jaxr18.search, with --trials=16"
    )
  workdir = paths.folder(
    _WORKDIR.value or str(cli.default_workdir(_CONFIG.file))
  )
  # Imported late: --help and a wrong flag need no JAX. Memory is arranged
  # before JAX has threads, the cluster is joined before it has devices, and
  # signals are taken before the seconds that the imports need.
  from jaxr18.host import memory, stop
  from jaxr18.host.doing import doing

  memory.keep_freed_memory()
  signals = stop.on_stop_signals()
  doing(f"{workdir}: loading JAX")
  with signals.may_leave(str(workdir)):
    import jax

    from jaxr18.host import cluster, compiled
    from jaxr18.run import experiment
    from jaxr18.run.summary import summary

    joined = cluster.initialize_cluster()
  try:
    if joined:
      print(joined, file=sys.stderr, flush=True)
    compiled.keep_compiled()
    finished = (workdir / "result.json").exists()
    command = shlex.join(["python", "-m", "jaxr18.main", *sys.argv[1:]])
    result = experiment.run(config, workdir, signals, command)
    if jax.process_index() == 0:
      if finished:
        print(f"{workdir} was finished already:")
      print(f"{summary(result)}; all in {workdir}/result.json")
  except stop.Stopped:
    raise
  except Exception as e:
    cluster.leave_others(e, cli.report)
    raise


if __name__ == "__main__":
  cli.run(main, describe)
