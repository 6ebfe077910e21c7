"""Joins the other processes of a run, where there are others."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxr18.host.errors import ToldError

# What says everything of a cluster; a part of it is a mistake.
_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# What JAX reads of a task that srun started. A job's script has the job's id
# and a rank of 0 too, and must not wait for others.
_STEP = "SLURM_STEP_NUM_TASKS"
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)
# Seconds in which a host that is gone without a word is missed, and then all
# others end; one that is killed closes its sockets, and is missed at once.
HEARTBEAT = 60
# Seconds that a process which failed waits for others to fail alike.
PATIENCE = 10


class ClusterError(ToldError):
  """An environment that names a cluster and not all of it."""


def initialize_cluster(
  environment: Mapping[str, str] | None = None,
) -> str | None:
  """Joins the processes that the environment describes, before JAX starts.

  Either JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (from 0), or what srun sets, one task a device (JAX_LOCAL_
  DEVICE_IDS changes that). Nothing is joined where neither is there, or only
  one process.

  Args:
    environment: of the process; os.environ by default.

  Returns:
    A line that says what was joined, or what else was found and is not joined;
    None where there is nothing to say.

  Raises:
    ClusterError: a variable is missing or is no number.
  """
  env = os.environ if environment is None else environment
  if any(env.get(name) for name in _JAX):
    _need(env, _JAX, "set all three, or none to run in one process")
    address = env[_JAX[0]]
    if not address.rpartition(":")[2].isdecimal() or ":" not in address:
      raise ClusterError(
        f"{_JAX[0]} (={address!r}) must be HOST:PORT of process 0; add the port"
      )
    count, index = (_number(env, name) for name in _JAX[1:])
    method = "deactivate"
    where: dict[str, Any] = {"coordinator_address": address}
    mend = f"{_JAX[2]} or {_JAX[1]}"
  elif env.get(_STEP) and (count := _number(env, _STEP)) > 1:
    _need(env, _SLURM, "start it with srun, or unset what is left of a step")
    address = f"Slurm's job {env['SLURM_JOB_ID']}"
    index = _number(env, "SLURM_PROCID")
    method, where = "slurm", {}
    # Where Slurm shows each task its own device alone, that is the first.
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible and not env.get("JAX_LOCAL_DEVICE_IDS"):
      where["local_device_ids"] = [0]
    mend = f"SLURM_PROCID or {_STEP}"
  else:
    return _alone(env)
  if count < 2 or jax.distributed.is_initialized():
    return None
  if index >= count:
    raise ClusterError(
      f"process {index} of {count}: the first is 0 and the last {count - 1};"
      f" mend {mend}"
    )
  # Its own SIGTERM handler would take the place of ours.
  jax.config.update("jax_enable_preemption_service", False)
  # JAX's client aborts when another process is gone; its one line of text would
  # drown in the stacks of all threads.
  faulthandler.disable()
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      cluster_detection_method=method,
      heartbeat_timeout_seconds=HEARTBEAT,
      **where,
    )
  except jax.errors.JaxRuntimeError as e:
    raise ClusterError(
      f"process {index} of {count} could not join the others at {address}:"
      f" {_first_line(e)}; see that all were started and reach process 0"
    ) from e
  return _joined(env, index, count, address)


def _joined(
  env: Mapping[str, str], index: int, count: int, address: str
) -> str:
  """Tells that a process has joined, and where one would be faster."""
  joined = f"Process {index} of {count}, joined at {address}."
  if index == 0 and _one_host(env) and jax.default_backend() == "cpu":
    joined += (
      f" {count} processes on the CPUs of one host are some 10% slower than"
      " one, which has all cores; start one, unless this is a trial of joining."
    )
  return joined


def _one_host(env: Mapping[str, str]) -> bool:
  """Whether the environment says that all processes are on this host."""
  if address := env.get(_JAX[0]):
    return address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
  return env.get("SLURM_STEP_NUM_NODES") == "1"


def leave_others(error: Exception, report: Callable[[Exception], int]) -> None:
  """Ends a process that failed, where there are others; else does nothing.

  JAX would wait for the others at its exit, and they for this one in the middle
  of a step, for minutes.

  Args:
    error: what it failed with. If that is XLA's, the others are gone, or about
      to go; otherwise they may fail alike, and all leave together.
    report: says so and returns the exit status.
  """
  if not jax.distributed.is_initialized():
    return
  # What gloo, between CPUs, fails with is sometimes a ValueError.
  gone = isinstance(error, ValueError) and "Gloo" in str(error)
  lost = gone or isinstance(error, jax.errors.JaxRuntimeError)
  if lost:
    error = ClusterError(
      f"process {jax.process_index()} of {jax.process_count()} cannot go on"
      f" with the others: {_first_line(error)}; the one that ended first says"
      " why, and the same command goes on from the last checkpoint"
    )
  status = 1
  with contextlib.suppress(OSError):  # nobody reads it any more
    status = report(error)
    sys.stdout.flush()
    sys.stderr.flush()
  if not lost:
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(PATIENCE)
  os._exit(status)


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [repr(error)])[0]


def _alone(env: Mapping[str, str]) -> str | None:
  """What was found of a cluster that is not joined."""
  tasks = env.get("SLURM_NTASKS", "")
  if env.get(_STEP) or not tasks.isdecimal() or int(tasks) < 2:
    return None
  return (
    f"Slurm's job {env.get('SLURM_JOB_ID')} has {tasks} tasks, and this process"
    f" runs alone: {_STEP} is not set, so srun did not start it."
  )


def _need(env: Mapping[str, str], names: tuple[str, ...], mend: str) -> None:
  """Raises a ClusterError where one of the variables is missing."""
  missing = [name for name in names if not env.get(name)]
  if missing:
    given = [name for name in (_STEP, *names) if env.get(name)]
    raise ClusterError(
      f"{', '.join(given)} is set and {', '.join(missing)} is not; {mend}"
    )


def _number(env: Mapping[str, str], name: str) -> int:
  if not env[name].isdecimal():
    raise ClusterError(f"{name} (={env[name]!r}) must be a whole number from 0")
  return int(env[name])
