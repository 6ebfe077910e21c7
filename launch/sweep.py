"""Runs everything that a config's `sweep(add)` adds, here or as an array.

  python launch/sweep.py --config=configs/baseline.py --parallel=2
  python launch/sweep.py --config=configs/baseline.py --array=sweep.txt

A config file may have, beside get_config, a function

  def sweep(add):
    for rate in (0.05, 0.1):
      add({"train.optimizer.learning_rate": rate})

Each run is `python -m jaxr18.main` in a workdir of its own, by default
runs/NAME-sweep/train.optimizer.learning_rate=0.05; --config.FIELD=VALUE holds
for all. As a source of another run, a comma in such a name has a backslash
before it.
The same command goes on: finished runs are not run again. A run that fails is
told at the end, and the others go on. Ctrl-C or SIGTERM stops all, saved.
PYTHON names another interpreter for the runs.

Exit status: 0 when all are finished, or stopped and saved; 1 when one failed; 2
when the command line or a config cannot be run, and then nothing was started.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
from typing import Any

from absl import app, flags

from jaxr18 import cli
from jaxr18.config import file as configfile
from jaxr18.config.faults import ConfigError
from jaxr18.host import paths
from jaxr18.host.files import write_atomically
from jaxr18.run.result import read

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag(
  "Folder of the runs' workdirs; default: runs/NAME[-ARGUMENT]-sweep."
)
_PARALLEL = flags.DEFINE_integer(
  "parallel", 1, "Runs at a time, which share the machine.", 1, 1024
)
_GPUS = flags.DEFINE_list(
  "gpus", [], "A run at a time on each of these GPUs, such as 0,1,2,3."
)
_ARRAY = flags.DEFINE_string(
  "array", None, "Write the commands to this file, one a line; run none."
)
_STOPPED = 75  # the status that a run is asked to end with when it is stopped


def main(argv: list[str]) -> None:
  del argv
  if _CONFIG.file is None:
    raise app.UsageError("give --config=FILE whose file has sweep(add)")
  folder = _WORKDIR.value or f"{cli.default_workdir(_CONFIG.file)}-sweep"
  runs = commands(_CONFIG.file, _CONFIG.fields, paths.folder(folder))
  if _ARRAY.value:
    lines = [shlex.join(["python", *command]) for command in runs.values()]
    if any("\n" in line for line in lines):
      raise ConfigError(
        f"--array={_ARRAY.value} has a command a line, and a value of this"
        " sweep has a line's end; write it without one"
      )
    path = paths.folder(_ARRAY.value)
    write_atomically(path, "\n".join(lines) + "\n", "--array")
    print(
      f"{len(lines)} commands in {_ARRAY.value}; on Slurm:\n"
      f"sbatch --array=1-{len(lines)} launch/slurm.sbatch {_ARRAY.value}"
    )
    return
  slots = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in _GPUS.value]
  sys.exit(run_all(runs, slots or [{}] * _PARALLEL.value))


def commands(
  file: str, fields: list[str], folder: pathlib.Path
) -> dict[pathlib.Path, list[str]]:
  """What comes after `python`, by workdir, all checked.

  Args:
    file: of the config, with its argument.
    fields: 'NAME=VALUE' of all runs.

  Raises:
    ConfigError: a config cannot be run.
  """
  from jaxr18.config.reading import parse

  out = {}
  for run in configfile.sweep(file):
    assignments = [*fields, *(f"{k}={_text(v)}" for k, v in run.items())]
    values = configfile.load(file)
    configfile.override(values, assignments)
    name = workdir_name(run)
    try:
      parse(values)
    except ConfigError as e:
      raise ConfigError(f"{name}: {e}") from e
    out[folder / name] = [
      "-m",
      "jaxr18.main",
      f"--config={file}",
      *(f"--config.{a}" for a in assignments),
      f"--workdir={folder / name}",
    ]
  return out


def workdir_name(run: dict[str, Any]) -> str:
  """'prune.density=0.1,seed=1'; what a folder cannot be called gets a hash."""
  text = ",".join(f"{k}={_text(v)}" for k, v in run.items())
  name = re.sub(r"[^\w.=,+-]+", "_", text)
  if name == text and len(name) <= 100:
    return name
  return f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
  return value if isinstance(value, str) else repr(value)


def run_all(
  runs: dict[pathlib.Path, list[str]], slots: list[dict[str, str]]
) -> int:
  """Runs each command, one at a time in each slot; the exit status of all.

  Args:
    runs: what comes after `python`, by workdir.
    slots: what each adds to the environment.
  """
  free, lock = list(slots), threading.Lock()
  started: dict[pathlib.Path, subprocess.Popen] = {}
  stopped = threading.Event()

  def stop(number, frame) -> None:
    stopped.set()
    for process in list(started.values()):
      if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # a second one kills, as ever

  def one(workdir: pathlib.Path) -> int | None:
    with lock:
      if stopped.is_set():
        return None
      slot = free.pop()
      log = _log(workdir)
      # In a session of its own: the terminal's Ctrl-C comes by `stop` alone.
      process = started[workdir] = subprocess.Popen(
        [os.environ.get("PYTHON", sys.executable), *runs[workdir]],
        env=os.environ | slot | {"JAXR18_STOPPED_STATUS": str(_STOPPED)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    if stopped.is_set():  # between the look and the start
      process.send_signal(signal.SIGTERM)
    status = process.wait()
    log.close()
    said = f"{workdir}: {_outcome(workdir, status)}"
    with lock:  # two runs that end at once would share a line
      free.append(slot)
      print(said, flush=True)
    return status

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
  with concurrent.futures.ThreadPoolExecutor(len(slots)) as pool:
    waiting = [pool.submit(one, workdir) for workdir in runs]
    statuses = [w.result() for w in waiting]
  left = sum(s in (None, _STOPPED) for s in statuses)
  failed = [
    w
    for w, s in zip(runs, statuses, strict=True)
    if s not in (None, 0, _STOPPED)
  ]
  print(f"{statuses.count(0)} of {len(runs)} runs are finished", end="")
  print(f", {left} stopped or not begun" if left else "", end="")
  print(f", {len(failed)} failed" if failed else "")
  for workdir in failed:
    print(
      f"  {workdir}: {_outcome(workdir, statuses[list(runs).index(workdir)])}"
    )
  return 1 if failed else 0


def _log(workdir: pathlib.Path):
  workdir.mkdir(parents=True, exist_ok=True)
  return (workdir / "log.txt").open("a")


def _outcome(workdir: pathlib.Path, status: int) -> str:
  if status == _STOPPED:
    return "stopped and saved"
  if status:
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"failed with {how}; {workdir}/log.txt says why"
  result = read(workdir)
  return (
    f"test accuracy {result.test.accuracy:.2%}, per-layer score"
    f" {result.score.per_layer.total:.6f}"
  )


if __name__ == "__main__":
  cli.run(main)
