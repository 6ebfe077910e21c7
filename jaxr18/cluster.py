"""Joins the other processes of a run, where there are others."""

import os
from collections.abc import Mapping

import jax

# What says everything of a cluster; a part of it is a mistake.
_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Of a task that srun started. A job without srun has SLURM_JOB_ID too, and
# must not wait for others.
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_STEP_NUM_TASKS",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)


class ClusterError(Exception):
  """An environment that names a cluster and not all of it."""


def initialize_cluster(
  environment: Mapping[str, str] | None = None,
) -> str | None:
  """Joins the processes that the environment describes, before JAX starts.

  Either JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (from 0), or what srun sets, one task a device (JAX_LOCAL_
  DEVICE_IDS changes that for the first way). Nothing happens where neither is
  there, or only one process.

  Args:
    environment: of the process; os.environ by default.

  Returns:
    A line that says what was joined; None where there is nothing to join.

  Raises:
    ClusterError: a variable is missing or is no number.
  """
  env = os.environ if environment is None else environment
  given = [name for name in _JAX if env.get(name)]
  if given and len(given) < len(_JAX):
    missing = [name for name in _JAX if name not in given]
    raise ClusterError(
      f"{', '.join(given)} is set and {', '.join(missing)} is not; set all"
      f" three of {', '.join(_JAX)}, or none to run in one process"
    )
  if given:
    address = env[_JAX[0]]
    count, index = (_number(env, name) for name in _JAX[1:])
    how = {"coordinator_address": address, "num_processes": count}
    how |= {"process_id": index, "cluster_detection_method": "deactivate"}
  elif all(env.get(name) for name in _SLURM):
    address = f"Slurm's job {env['SLURM_JOB_ID']}"
    count, index = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, _SLURM[4])
    how = {"cluster_detection_method": "slurm"}
  else:
    return None
  if count < 2 or jax.distributed.is_initialized():
    return None
  if index >= count:
    raise ClusterError(
      f"process {index} of {count}: the first is 0 and the last {count - 1};"
      f" mend {_JAX[2]} or {_JAX[1]}"
    )
  # Its own SIGTERM handler would take the place of ours.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(**how)
  return f"Process {index} of {count}, joined at {address}."


def _number(env: Mapping[str, str], name: str) -> int:
  if not env[name].isdecimal():
    raise ClusterError(f"{name} (={env[name]!r}) must be a whole number from 0")
  return int(env[name])
