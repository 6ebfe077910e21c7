"""launch/: what the scripts start, with stubs in the place of Python and Slurm.

tests/host/test_cluster.py has the real thing in two processes.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxr18 import cli
from jaxr18.run.result import read

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
# Slurm's variables of this machine, if any, are none of the tests' business.
CLEAN = {
  k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_"))
}


def stub(folder, name, code):
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{code}\n")
  path.chmod(0o755)
  return path


def run(*command, **environment):
  return subprocess.run(
    command, env=CLEAN | environment, capture_output=True, text=True, timeout=60
  )


@pytest.mark.parametrize(
  "name", ["local.sh", "queue.sh", "slurm.sbatch", "../.ci/run"]
)
def test_shellcheck(name):
  if not (tool := shutil.which("shellcheck")):
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    if not beside.exists():
      pytest.skip("shellcheck is not here; the extra `test` brings it")
    tool = str(beside)
  done = run(tool, "--enable=quote-safe-variables", str(LAUNCH / name))
  assert done.returncode == 0, done.stdout


def start(tmp_path, script, code, *arguments, **environment):
  """A script of launch/ with a stub for Python, its output in one pipe."""
  python = stub(tmp_path, "python", code)
  return subprocess.Popen(
    ["bash", str(LAUNCH / script), *arguments],
    # Where the tests run behind nohup it is ignored, and bash leaves it so.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    env=CLEAN | {"PYTHON": str(python)} | environment,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
  )  # fmt: skip


class TestLocal:
  def local(self, tmp_path, code, *flags, **environment):
    return start(tmp_path, "local.sh", code, *flags, **environment)

  def test_one_process_is_the_command_itself(self, tmp_path):
    code = 'echo "$@ in ${SLURM_PROCID-no} step"; exit 7'
    process = self.local(tmp_path, code, "--config=a b.py", "--workdir=x")
    text, _ = process.communicate(timeout=60)
    assert text == "-m jaxr18.main --config=a b.py --workdir=x in no step\n"
    assert process.returncode == 7

  def test_several_have_what_srun_sets(self, tmp_path):
    code = 'env | grep ^SLURM_ >"$SLURM_PROCID.txt"; echo "$@"'
    process = self.local(tmp_path, code, "--config=c.py", "--processes=3")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert text == "-m jaxr18.main --config=c.py\n" * 3
    found = []
    for i in range(3):
      lines = (tmp_path / f"{i}.txt").read_text().split()
      found.append(dict(line.split("=") for line in lines))
      assert found[i].pop("SLURM_PROCID") == found[i].pop("SLURM_LOCALID")
    assert found[0] == found[1] == found[2]
    assert 0 <= int(found[0].pop("SLURM_JOB_ID")) < 4096
    assert found[0] == {
      "SLURM_NTASKS": "3", "SLURM_STEP_NUM_TASKS": "3",
      "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "127.0.0.1",
    }  # fmt: skip

  @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
  def test_a_signal_reaches_each_once(self, tmp_path, number):
    code = """
trap 'echo got it >>"$SLURM_PROCID.txt"; sleep 0.5; exit 0' TERM
touch "$SLURM_PROCID.ready"
for _ in {1..300}; do sleep 0.1; done"""
    process = self.local(tmp_path, code, NPROC="2")
    ready = [tmp_path / f"{i}.ready" for i in range(2)]
    while not all(path.exists() for path in ready):
      assert process.poll() is None
      time.sleep(0.02)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and not text
    for i in range(2):
      assert (tmp_path / f"{i}.txt").read_text() == "got it\n"

  def test_the_others_end_with_one_that_fails(self, tmp_path):
    code = """
if ((SLURM_PROCID == 1)); then exit 3; fi
trap '' TERM
for _ in {1..300}; do sleep 0.1; done"""
    began = time.monotonic()
    process = self.local(tmp_path, code, "--processes=2", PATIENCE="1")
    text, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert process.returncode == 3
    assert "process 1 of 2 ended with status 3, and the others with it" in text

  def test_a_kill_is_the_reason_of_the_others_failures(self, tmp_path):
    # Both have ended by the time the script looks, the first of the second.
    code = """
if ((SLURM_PROCID == 1)); then kill -KILL $$; fi
exit 1"""
    process = self.local(tmp_path, code, "--processes=2")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with signal 9, and the others with" in text

  @pytest.mark.parametrize("flag", ["--processes=0", "--processes=two"])
  def test_what_is_no_number(self, tmp_path, flag):
    process = self.local(tmp_path, "exit 0", flag)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and flag[2:] in text.replace(" (=", "=")


class TestQueue:
  def queue(self, tmp_path, code, lines, **environment):
    (tmp_path / "runs.txt").write_text(lines)
    return start(tmp_path, "queue.sh", code, "runs.txt", **environment)

  def test_runs_follow_each_other_with_their_arguments(self, tmp_path):
    code = 'printf "%s|" "$@" >>log; echo >>log; nice >>log'
    lines = "# mine\n--config=a.py --workdir='b c'\n\n--config=d.py"
    process = self.queue(tmp_path, code, lines)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    first, nice, second, _ = (tmp_path / "log").read_text().splitlines()
    assert first == "-m|jaxr18.main|--config=a.py|--workdir=b c|"
    assert second == "-m|jaxr18.main|--config=d.py|"
    assert nice == "19"

  def test_a_line_that_is_added_is_run(self, tmp_path):
    code = 'echo "$3" >>log; [[ $3 == a ]] && echo b >>runs.txt; true'
    process = self.queue(tmp_path, code, "a\n", PRIORITY="normal")
    process.communicate(timeout=60)
    assert (tmp_path / "log").read_text().split() == ["a", "b"]

  def test_one_that_is_killed_goes_on_and_one_that_fails_is_told(
    self, tmp_path
  ):
    code = """
echo "$3" >>log
case $3 in
  killed) if (($(grep -c killed log) < 3)); then kill -KILL $$; fi ;;
  failing) exit 2 ;;
  always) kill -KILL $$ ;;
esac
"""
    process = self.queue(
      tmp_path, code, "killed\nfailing\nalways\nlast\n", ATTEMPTS="4"
    )
    text, _ = process.communicate(timeout=60)
    ran = (tmp_path / "log").read_text().split()
    assert ran == ["killed"] * 3 + ["failing"] + ["always"] * 4 + ["last"]
    assert process.returncode == 1
    assert "status 2: failing" in text and "status 137: always" in text
    assert "killed" not in text.rpartition("not finished")[2]

  @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
  def test_a_signal_saves_the_run_and_ends(self, tmp_path, number):
    code = """
trap 'echo saved >>log; exit 0' TERM
touch ready
for _ in {1..300}; do sleep 0.1; done
"""
    process = self.queue(tmp_path, code, "one\ntwo\n")
    while not (tmp_path / "ready").exists():
      assert process.poll() is None
      time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "log").read_text() == "saved\n"

  def test_without_a_list(self, tmp_path):
    done = run("bash", str(LAUNCH / "queue.sh"), str(tmp_path / "none"))
    assert done.returncode == 2 and "one file of runs" in done.stderr

  def test_a_quote_that_is_not_closed(self, tmp_path):
    process = self.queue(tmp_path, "touch ran", "--workdir='a\n")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "a quote is not closed" in text
    assert not (tmp_path / "ran").exists()


class TestSlurm:
  @pytest.fixture
  def slurm(self, tmp_path):
    """Runs the script as a job, whose steps end with a status."""
    stub(
      tmp_path, "srun",
      'printf "%s\\n" "$@" >srun.txt; echo "$JAXR18_STOPPED_STATUS" >>srun.txt;'
      ' exit "$STATUS"',
    )  # fmt: skip
    stub(tmp_path, "scontrol", 'echo "$@" >scontrol.txt')

    def job(*arguments, status=0, **environment):
      for name in ("srun.txt", "scontrol.txt"):
        (tmp_path / name).unlink(missing_ok=True)
      environment |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "8", "STATUS": str(status),
      }  # fmt: skip
      done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), *arguments],
        env=CLEAN | environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=60,
      )  # fmt: skip
      wrote = tmp_path / "srun.txt"
      lines = wrote.read_text().splitlines() if wrote.exists() else None
      requeued = tmp_path / "scontrol.txt"
      return done, lines, requeued.read_text() if requeued.exists() else None

    return job

  SRUN = ["--kill-on-bad-exit=1", "--gpu-bind=none", "--cpus-per-task=8"]

  def test_a_run(self, slurm):
    done, srun, requeued = slurm("--config=c.py", "--workdir=a b")
    assert done.returncode == 0 and requeued is None
    assert srun == [
      *self.SRUN, "python", "-m", "jaxr18.main", "--config=c.py",
      "--workdir=a b", "75",
    ]  # fmt: skip

  def test_one_that_was_stopped_is_requeued(self, slurm):
    done, _, requeued = slurm("--config=c.py", status=75)
    assert done.returncode == 0 and requeued == "requeue 77\n"

  def test_a_task_that_was_stopped_is_requeued_alone(self, slurm):
    # The last task's SLURM_JOB_ID is the array's, which would requeue all.
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "4"}
    done, _, requeued = slurm("--config=c.py", status=75, **array)
    assert done.returncode == 0 and requeued == "requeue 77_4\n"
    done, _, _ = slurm("--config=c.py", status=3, **array)
    assert "job 77_4 failed with status 3" in done.stderr

  def test_one_that_failed_is_not(self, slurm):
    done, _, requeued = slurm("--config=c.py", status=137)
    assert done.returncode == 137 and requeued is None
    assert "job 77 failed with status 137" in done.stderr

  def test_the_line_of_an_array(self, slurm, tmp_path):
    line = "python -m jaxr18.main '--config.train.start.init=a b' --workdir=y"
    (tmp_path / "sweep.txt").write_text(f"python first\n{line}\n")
    done, srun, _ = slurm("sweep.txt", SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 0
    assert srun[len(self.SRUN) : -1] == [
      "python", "-m", "jaxr18.main", "--config.train.start.init=a b",
      "--workdir=y"
    ]  # fmt: skip
    done, srun, _ = slurm("sweep.txt", SLURM_ARRAY_TASK_ID="3")
    assert done.returncode == 2 and srun is None
    assert "has no line 3" in done.stderr and "--array=1-2" in done.stderr
    done, srun, _ = slurm("sweep.txt")
    assert done.returncode and srun is None and "--array=1-N" in done.stderr

  def test_a_worker_of_a_search(self, slurm):
    command = ["python", "-m", "jaxr18.search", "--trials=9"]
    _, srun, _ = slurm(*command, SLURM_ARRAY_TASK_ID="2")
    assert srun == [*self.SRUN, *command, "75"]

  def test_without_a_command(self, slurm):
    done, srun, _ = slurm()
    assert done.returncode == 2 and srun is None

  def test_what_it_asks_slurm_for(self):
    text = (LAUNCH / "slurm.sbatch").read_text()
    asked = re.findall(r"^#SBATCH (\S+)$", text, re.M)
    # To the steps, not "B:" to the batch script, which would not pass it on.
    assert "--signal=TERM@300" in asked and "--requeue" in asked
    assert text.index("#SBATCH") < text.index("set -euo")


CONFIG = """
from jaxr18.config import base

def get_config(arg=""):
  config = base()
  config.data.name, config.data.validation = "digits", 200
  return config

def sweep(add):
  for rate in (0.1, 0.2):
    add({"train.optimizer.learning_rate": rate}, seed=3)
  add({"train.network.bits": (("stem|head", 8, 8), (".*", 4, 4))})
"""


class TestSweep:
  @pytest.fixture
  def config(self, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG)
    return path

  def sweep(self, tmp_path, *flags, start=subprocess.run, **environment):
    how = {"timeout": 120} if start is subprocess.run else {}
    return start(
      [sys.executable, str(LAUNCH / "sweep.py"), *flags],
      env=CLEAN | {"PYTHONPATH": str(LAUNCH.parent)} | environment,
      cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      **how,
    )  # fmt: skip

  def test_an_array(self, tmp_path, config):
    done = self.sweep(tmp_path, f"--config={config}", "--array=all.txt",
                      "--config.train.epochs=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sbatch --array=1-3 launch/slurm.sbatch all.txt" in done.stdout
    lines = (tmp_path / "all.txt").read_text().splitlines()
    assert lines[1] == (
      f"python -m jaxr18.main --config={config} --config.train.epochs=2"
      " --config.train.optimizer.learning_rate=0.2 --config.seed=3"
      " --workdir=runs/mine-sweep/train.optimizer.learning_rate=0.2,seed=3"
    )
    assert """'--config.train.network.bits=(('"'"'stem|head'""" in lines[2]
    workdirs = [line.rpartition("--workdir=")[2] for line in lines]
    assert len(set(workdirs)) == 3
    assert re.fullmatch(r"[\w./=,-]+", workdirs[2])

  def test_one_fails_and_the_others_go_on(self, tmp_path, config):
    finished = LAUNCH.parent / "docs" / "results" / "kd_quant"
    result = read(finished)
    python = stub(
      tmp_path, "python",
      'workdir=${*: -1}; workdir=${workdir#*=}; echo "$@"\n'
      'if [[ $* == *rate=0.1* ]]; then exit 3; fi\n'
      f"cp '{finished}/result.json' \"$workdir\"",
    )  # fmt: skip
    done = self.sweep(tmp_path, f"--config={config}", "--parallel=2",
                      PYTHON=str(python))  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    said = (
      f"test accuracy {result.test.accuracy:.2%}, per-layer score"
      f" {result.score.per_layer.total:.6f}"
    )
    assert sum(said in x for x in lines) == 2
    assert "2 of 3 runs are finished, 1 failed" in lines
    first = "runs/mine-sweep/train.optimizer.learning_rate=0.1,seed=3"
    assert f"{first}: failed with status 3; {first}/log.txt" in lines[-1]
    assert "-m jaxr18.main" in (tmp_path / first / "log.txt").read_text()

  def test_a_signal_stops_all(self, tmp_path, config):
    python = stub(
      tmp_path, "python",
      """trap 'exit "$JAXR18_STOPPED_STATUS"' TERM
touch "started$CUDA_VISIBLE_DEVICES"
for _ in {1..300}; do sleep 0.1; done""",
    )  # fmt: skip
    process = self.sweep(
      tmp_path, f"--config={config}", "--gpus=4,5", PYTHON=str(python),
      start=subprocess.Popen,
    )  # fmt: skip
    while not all((tmp_path / f"started{i}").exists() for i in (4, 5)):
      assert process.poll() is None, process.communicate()
      time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert text.count("stopped and saved") == 2
    assert "0 of 3 runs are finished, 3 stopped or not begun" in text

  def test_a_config_that_cannot_be_run(self, tmp_path, config):
    config.write_text(
      CONFIG.replace("train.optimizer.learning_rate", "train.rate")
    )
    done = self.sweep(tmp_path, f"--config={config}")
    assert done.returncode == 2
    assert "config.train.rate" in done.stderr
    assert not (tmp_path / "runs").exists()


def differences(value, schema, where=""):
  """Where a YAML value is not what a schema of launch_schemas.yaml says."""
  if isinstance(schema, dict) and isinstance(value, dict):
    fields = {k.rstrip("?"): v for k, v in schema.items()}
    for k in value.keys() - fields.keys():
      yield f"{where}.{k} is no field"
    for k in schema.keys() - value.keys():
      if not k.endswith("?"):
        yield f"{where}.{k} is missing"
    for k in value.keys() & fields.keys():
      yield from differences(value[k], fields[k], f"{where}.{k}")
  elif isinstance(schema, list) and isinstance(value, list):
    for i, entry in enumerate(value):
      yield from differences(entry, schema[0], f"{where}[{i}]")
  else:
    types = {"str": str, "int": int, "bool": bool}
    right = type(value) is types[schema] if schema in types else value == schema
    if not right:
      yield f"{where} (={value!r}) must be {schema}"


@pytest.fixture(scope="module")
def manifests():
  yaml = pytest.importorskip("yaml")
  paths = (
    *LAUNCH.glob("*.yaml"),
    LAUNCH.parent / "tests" / "support" / "launch_schemas.yaml",
  )
  return {p.stem: yaml.safe_load(p.read_text()) for p in paths}


class TestManifests:
  @pytest.mark.parametrize("name", ["jobset", "search", "skypilot"])
  def test_schema(self, manifests, name):
    found = list(
      differences(manifests[name], manifests["launch_schemas"][name])
    )
    assert not found, "\n".join(found)

  def test_a_wrong_field_is_found(self, manifests):
    schema = manifests["launch_schemas"]["skypilot"]
    wrong = {**manifests["skypilot"], "num_nodes": "2", "nodes": 1}
    del wrong["run"]
    assert sorted(differences(wrong, schema)) == [
      ".nodes is no field", ".num_nodes (='2') must be int", ".run is missing"
    ]  # fmt: skip

  def test_a_jobset_gives_each_pod_all_that_joining_needs(self, manifests):
    spec = manifests["jobset"]["spec"]
    (job,) = spec["replicatedJobs"]
    assert spec["coordinator"]["replicatedJob"] == job["name"]
    pods = job["template"]["spec"]
    container = pods["template"]["spec"]["containers"][0]
    env = {e["name"]: e for e in container["env"]}
    assert pods["parallelism"] == pods["completions"]
    assert env["JAX_NUM_PROCESSES"]["value"] == str(pods["parallelism"])
    port = container["ports"][0]["containerPort"]
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"$(COORDINATOR):{port}"
    names = list(env)  # Kubernetes expands only what stands above
    assert names.index("COORDINATOR") < names.index("JAX_COORDINATOR_ADDRESS")
    assert "JAX_PROCESS_ID" in env
    assert container["command"] == ["python", "-m", "jaxr18.main"]

  def test_a_searchs_pods_share_a_study(self, manifests):
    spec = manifests["search"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    env = {e["name"]: e for e in container["env"]}
    assert "--storage=$(STORAGE)" in container["args"]
    secret = env["STORAGE"]["valueFrom"]["secretKeyRef"]
    about = (LAUNCH / "search.yaml").read_text()
    assert f"secret generic {secret['name']}" in about
    assert f"--from-literal={secret['key']}=" in about
    command = [sys.executable, *container["command"][1:], "--helpfull"]
    flags = run(*command).stdout
    for arg in container["args"]:
      assert f"{arg.partition('=')[0]} " in f"{flags} "

  def test_skypilots_scripts(self, manifests, tmp_path):
    """What `run` starts on the second of two nodes."""
    home = tmp_path / "venv" / "bin"
    home.mkdir(parents=True)
    stub(home, "python", 'echo "$@"; env | grep ^JAX_ | sort')
    done = run(
      "bash", "-c", manifests["skypilot"]["run"], HOME=str(tmp_path),
      CONFIG="c.py", NAME="n", SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK="1",
      SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
      f"-m jaxr18.main --config=c.py --workdir={tmp_path}/runs/n",
      "JAX_COORDINATOR_ADDRESS=10.0.0.1:8476", "JAX_NUM_PROCESSES=2",
      "JAX_PROCESS_ID=1",
    ]  # fmt: skip

  @pytest.mark.parametrize(
    "config",
    ["configs/kd_quant.py", "configs/kd_quant.py:digits", "my.py:0.2,a b"],
  )
  def test_a_run_in_the_cloud_is_named_by_its_config(
    self, manifests, tmp_path, config
  ):
    home = tmp_path / "venv" / "bin"
    home.mkdir(parents=True)
    stub(home, "python", 'echo "${@: -1}"')
    task = manifests["skypilot"]
    environment = task["envs"] | {"CONFIG": config, "HOME": str(tmp_path)}
    done = run("bash", "-c", task["run"], SKYPILOT_NUM_NODES="1", **environment)
    name = cli.default_workdir(config)  # runs/NAME
    assert done.stdout == f"--workdir={tmp_path}/{name}\n"


def test_the_image_holds_the_package_and_no_data():
  text = (LAUNCH / "Dockerfile").read_text()
  copied = {w for line in re.findall(r"^COPY (.*)$", text, re.M)
            for w in line.split()[:-1]}  # fmt: skip
  allowed = (LAUNCH / "Dockerfile.dockerignore").read_text().split()
  assert copied == {a[1:] for a in allowed if a.startswith("!")}
  assert 'ENTRYPOINT ["python", "-m", "jaxr18.main"]' in text
  user = re.search(r"^USER (\d+)$", text, re.M)[1]
  assert f"--uid {user}" in text
