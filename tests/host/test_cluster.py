"""Two devices and two processes train what one does; one that dies ends all."""

import os
import pathlib
import signal
import socket
import subprocess
import time

import command
import numpy as np
import pytest
from event_files import events

from jaxr18.config import file as configfile
from jaxr18.host import cluster
from jaxr18.run import experiment

FLAGS = ("--config.train.optimizer.learning_rate=0.002",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Workdirs of one process, by its number of devices; one device is here."""
  folder = tmp_path_factory.mktemp("runs")
  xla = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  two = command.start(folder / "2", *FLAGS, **xla)
  config = configfile.load(f"{command.CONFIG}:3")
  configfile.override(config, [f.removeprefix("--config.") for f in FLAGS])
  experiment.run(config, folder / "1")
  command.finish(two)
  return {n: folder / str(n) for n in (1, 2)}


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


def test_two_devices(runs):
  assert_close(runs[2], runs[1])


def explicit(i, port):
  """What a person sets."""
  return {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(i),
  }


def second_of(script):
  """The id of the process that a script has started as the second."""
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
      environment = (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
      continue
    if int(parent) == script.pid and b"SLURM_PROCID=1" in environment:
      return int(folder.name)
  raise AssertionError("there is no second process")


@pytest.mark.slow
def test_two_processes_die_stop_and_finish_together(tmp_path, runs):
  """Killed under Slurm's variables, stopped under JAX's, finished as begun."""
  workdir = tmp_path / "run"
  checkpoints = workdir / "train" / "checkpoints"
  flags = (*FLAGS, "--config.writers=tensorboard")

  script = command.start_local(workdir, *flags, PATIENCE="5")
  command.wait_for(checkpoints, script)
  began = time.monotonic()
  os.kill(second_of(script), signal.SIGKILL)
  text = command.finish(script, 128 + signal.SIGKILL)
  assert time.monotonic() - began < 15
  last = text.splitlines()[-1]
  assert "process 1 of 2 ended with signal 9, and the others with it" in last
  assert "goes on from the last checkpoint" in last
  assert not (workdir / "result.json").exists()

  # Only the second is asked to stop; both save at one step.
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  pair = [
    command.start(
      workdir, *flags, "--config.checkpoint.every_seconds=0.01",
      JAXR18_STOPPED_STATUS="75", **explicit(i, port),
    )
    for i in range(2)
  ]  # fmt: skip
  before = set(checkpoints.iterdir())
  while set(checkpoints.iterdir()) == before and pair[1].poll() is None:
    time.sleep(0.02)
  pair[1].send_signal(signal.SIGTERM)
  texts = [command.finish(p, 75) for p in pair]
  stopped = [t.splitlines()[-1] for t in texts]
  assert stopped[0] == stopped[1]
  assert "train at step" in stopped[0] and "of 18 stopped" in stopped[0]
  assert not (workdir / "result.json").exists()

  text = command.finish(command.start_local(workdir, *flags))
  assert "Process 1 of 2, joined at Slurm's job" in text
  slower = "2 processes on the CPUs of one host are some 10% slower"
  assert text.count(slower) == 1
  assert text.count("train: goes on at step") == 1
  assert_close(workdir, runs[1])
  rows = command.metrics(workdir)
  losses = [e for e in events(workdir / "tensorboard/train") if e[0] == "loss"]
  assert [step for _, step, _ in losses] == [r["step"] for r in rows]
  assert [e[0] for e in events(workdir / "tensorboard")].count(
    "score/per_layer"
  ) == 1


@pytest.mark.slow
def test_all_end_when_nobody_reads_them(tmp_path):
  """As in `launch/local.sh ... | head -1`."""
  script = command.start_local(
    tmp_path / "run", *FLAGS, kind=subprocess.Popen, PATIENCE="5"
  )
  assert script.stdout.readline()
  script.stdout.close()
  assert script.wait(timeout=300) != 0
  assert not (tmp_path / "run" / "result.json").exists()


# Of a job's script.
SLURM = {
  "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
  "SLURM_NTASKS": "1",
}  # fmt: skip


def test_nothing_to_join():
  for env in (
    {},
    SLURM,
    SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "a"},
    {
      "JAX_COORDINATOR_ADDRESS": "host:1",
      "JAX_NUM_PROCESSES": "1",
      "JAX_PROCESS_ID": "0",
    },
  ):
    assert cluster.initialize_cluster(env) is None


def test_a_job_without_srun_runs_alone_and_says_so():
  said = cluster.initialize_cluster(SLURM | {"SLURM_NTASKS": "4"})
  assert "Slurm's job 1 has 4 tasks, and this process runs alone" in said
  assert "SLURM_STEP_NUM_TASKS is not set" in said


@pytest.mark.parametrize(
  ("env", "message"),
  [
    (
      SLURM | {"SLURM_STEP_NUM_TASKS": "2"},
      "SLURM_STEP_NODELIST is not; start it with srun",
    ),
    (
      {
        "JAX_COORDINATOR_ADDRESS": "host",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
      },
      "must be HOST:PORT of process 0; add the port",
    ),
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
