"""Two devices, and two processes, train what one does."""

import random
import signal
import socket

import command
import numpy as np
import pytest

from jaxr18 import cluster

FLAGS = ("--config.train.learning_rate=0.002",)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache):
  """The workdir of one process with one device."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  command.finish(command.start(workdir, *FLAGS, cache=cache))
  return workdir


def assert_close(workdir, one):
  for row, expected in zip(
    command.metrics(workdir), command.metrics(one), strict=True
  ):
    np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-4)
  got, want = command.last_arrays(workdir), command.last_arrays(one)
  assert got.keys() == want.keys()
  for name, array in want.items():
    if name not in ("totals.correct", "totals.loss"):
      np.testing.assert_allclose(
        got[name], array, rtol=1e-3, atol=1e-4, err_msg=name
      )


def test_two_devices(tmp_path, one, cache):
  devices = "--xla_force_host_platform_device_count=2"
  workdir = tmp_path / "run"
  command.finish(command.start(workdir, *FLAGS, cache=cache, XLA_FLAGS=devices))
  assert_close(workdir, one)


def explicit(i):
  """What a person sets."""
  return {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}


def slurms(i):
  """What srun sets in the tasks of a step."""
  return {
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": str(i),
    "SLURM_LOCALID": str(i),
  }


def both(workdir, environment, cache):
  """The same command in two processes of one cluster."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
  if environment is slurms:
    where = {"SLURM_JOB_ID": str(random.randrange(4096))}  # makes the port
  flags = (*FLAGS, "--config.checkpoint.every_seconds=0.01")
  return [
    command.start(workdir, *flags, cache=cache, **where, **environment(i))
    for i in range(2)
  ]


def test_two_processes_stop_together_and_go_on(tmp_path, one, cache):
  """Only the second is asked to stop; both save at one step, and resume."""
  workdir = tmp_path / "run"
  pair = both(workdir, explicit, cache)
  command.wait_for(workdir / "train" / "checkpoints", pair[1])
  pair[1].send_signal(signal.SIGTERM)
  texts = [command.finish(p) for p in pair]
  stopped = [t.splitlines()[-1] for t in texts]
  assert stopped[0] == stopped[1]
  assert "train stopped at step" in stopped[0] and "of 18" in stopped[0]
  assert not (workdir / "result.json").exists()
  texts = [command.finish(p) for p in both(workdir, slurms, cache)]
  assert "Process 1 of 2, joined at Slurm's job" in texts[1]
  assert "train: goes on at step" in texts[0]
  assert "train: " not in texts[1]
  assert_close(workdir, one)


def test_nothing_to_join():
  for env in (
    {},
    {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    {
      "JAX_COORDINATOR_ADDRESS": "host:1",
      "JAX_NUM_PROCESSES": "1",
      "JAX_PROCESS_ID": "0",
    },
  ):
    assert cluster.initialize_cluster(env) is None


@pytest.mark.parametrize(
  ("env", "message"),
  [
    (
      {"JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "2"},
      "JAX_COORDINATOR_ADDRESS is not; set all three",
    ),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_NUM_PROCESSES": "two",
        "JAX_PROCESS_ID": "0",
      },
      "JAX_NUM_PROCESSES .='two'. must be a whole number",
    ),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "2",
      },
      "process 2 of 2: the first is 0 and the last 1",
    ),
  ],
)
def test_a_cluster_that_cannot_be(env, message):
  with pytest.raises(cluster.ClusterError, match=message):
    cluster.initialize_cluster(env)
