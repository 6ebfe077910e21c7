"""Any phase of a run, not the last alone, is opened and exported."""

import json
import re
import shlex
import shutil

import forked
import pytest
import tiny_run

from jaxr18.deploy import packed
from jaxr18.deploy.speed import measure
from jaxr18.run import experiment, latency, sources
from jaxr18.run.export import export_run
from jaxr18.run.finished import PhaseError, reopen

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  config = tiny_run.phases("float", "four", "three")
  config.four.start.init, config.four.network.inner_bits = "float", 4
  config.three.start.init, config.three.network.inner_bits = "four", 3
  config.four.epochs = config.three.epochs = 0
  experiment.run(config, folder)
  return folder


def test_a_quantized_network_goes_back_to_its_float_one(workdir):
  run = reopen(str(workdir))
  assert run.phase.name == "three" and run.is_last
  net, whose = sources.load_float(workdir, run.experiment, run.phase)
  assert whose == "float"
  assert all(x.w_bits == 32 for x in net.spec.layers())
  four = reopen(str(workdir), phase="four")
  assert not four.is_last
  assert sources.load_float(workdir, run.experiment, four.phase)[1] == "float"


def test_a_phase_that_is_not_there(workdir):
  with pytest.raises(
    PhaseError, match="of float, four, three; did you mean fo"
  ):
    reopen(str(workdir), phase="flour")


def test_exports_a_phase_beside_the_runs_own(workdir, monkeypatch):
  # Two calls of each, and none for a second.
  monkeypatch.setattr(latency, "measure", lambda run, x: measure(run, x, 0.0))
  spec = sources.load_network(workdir, "four").spec
  before = (workdir / "result.json").read_bytes()
  path, found = export_run(str(workdir), "packed", phase="four")
  assert path == workdir / "export" / "four" / "network.safetensors"
  assert (workdir / "result.json").read_bytes() == before
  run, network = packed.load(path)
  assert network["provenance"]["test_correct"] == found.correct
  bits = {r["w_bits"] for rows in network["units"].values() for r in rows}
  assert bits == {8, 4}
  timed = latency.of_exports(workdir, spec, "four")
  assert timed.keys() == {"packed"} and timed["packed"].milliseconds > 0
  assert latency.of_exports(workdir, spec) == {}  # the last has no file yet
  _, last = export_run(str(workdir), "packed")
  kept = json.loads((workdir / "result.json").read_text())["export"]["packed"]
  assert kept["bytes"] == last.bytes < found.bytes
  assert kept["milliseconds"] > 0 and kept["images_per_second"] > 0
  shutil.rmtree(workdir / "export" / "four")
  assert latency.of_exports(workdir, spec, "four") == {}
  assert latency.of_exports(workdir, spec, "three").keys() == {"packed"}


def test_what_is_to_be_timed_is_written_by_the_command_that_is_told(workdir):
  flags = f"--workdir={workdir}", "--phase=float", "--latency"
  refused = forked.run("jaxr18.score", *flags, cwd=workdir)
  assert refused.returncode == 2, refused.stderr
  (command,) = re.findall(r"`python -m ([^`]+)`", refused.stderr)
  assert forked.run(*shlex.split(command), cwd=workdir).returncode == 0
  done = forked.run("jaxr18.score", *flags, cwd=workdir)
  assert done.returncode == 0 and "packed: " in done.stdout, done.stderr
