"""Epochs in TensorBoard and Weights & Biases: each once, never in the way."""

import json
import os
import pathlib
import secrets
import struct
import subprocess
import sys
import types

import pytest
from event_files import events

from jaxr18.config import base
from jaxr18.config.experiment import Place
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.train.files import MetricsFile
from jaxr18.train.writers import Writer

RESULT = {
  "test_accuracy": 0.75,
  "test_loss": 0.5,
  "score/per_network": 0,
  "score/per_layer": 1,
  "score/on_disk": 2,
}


def row(step, **more):
  return {
    "phase": "train", "step": step, "epoch": step // 6, "loss": 1 / (step + 1),
    "train_accuracy": None, "validation_accuracy": 0.5,
  } | more  # fmt: skip


def test_tensorboard_has_each_epoch_once_after_a_resume(tmp_path):
  pytest.importorskip("tensorboardX")
  first = Writer(tmp_path, ["tensorboard"], {})
  first.begin("train", [])
  for step in (6, 12, 18):  # killed: not closed; 18 is to be made again
    first.row("train", row(step))
  again = Writer(tmp_path, ["tensorboard"], {})
  again.begin("train", [row(6), row(12)])
  again.row("train", row(18, loss=0.25, validation_accuracies=[0.25, 0.75]))
  again.result(RESULT)
  again.close()
  got = events(tmp_path / "tensorboard" / "train")
  losses = [(step, value) for tag, step, value in got if tag == "loss"]
  assert losses == [
    (6, pytest.approx(1 / 7)), (12, pytest.approx(1 / 13)), (18, 0.25)
  ]  # fmt: skip
  assert ("validation_accuracies/1", 18, 0.75) in got
  assert {tag for tag, _, _ in got} == {
    "loss", "epoch", "validation_accuracy", "validation_accuracies/0",
    "validation_accuracies/1",
  }  # fmt: skip
  assert sorted(events(tmp_path / "tensorboard")) == [
    ("score/on_disk", 18, 2), ("score/per_layer", 18, 1),
    ("score/per_network", 18, 0),
    ("test_accuracy", 18, 0.75), ("test_loss", 18, 0.5),
  ]  # fmt: skip


class StubRun:
  """What is used of a run of wandb, and what its server keeps by step."""

  def __init__(self, server, **how):
    self.how, self.summary, self.fails = how, {}, False
    self.offline = os.environ.get("WANDB_MODE") == "offline"
    self.kept = {} if self.offline else server
    self.step = max(self.kept, default=-1) + 1
    folder = pathlib.Path(how["dir"], "wandb")
    name = f"offline-run-{secrets.token_hex(4)}-{how['id']}"
    self.dir = str(folder / name / "files")
    if self.offline:
      pathlib.Path(self.dir).mkdir(parents=True)

  def define_metric(self, name, step_metric):
    self.metric = name, step_metric

  def log(self, numbers, step):
    if self.fails:
      raise OSError("no\nnetwork")
    assert step == max(self.kept, default=-1) + 1
    self.kept[step] = numbers

  def finish(self):
    self.how["finished"] = True


@pytest.fixture
def wandb_runs(monkeypatch):
  """The runs that a stub of the package begins; the real one is slow."""
  runs, server = [], {}

  def init(**how):
    runs.append(StubRun(server, **how))
    return runs[-1]

  stub = types.SimpleNamespace(init=init, Settings=dict)
  monkeypatch.setitem(__import__("sys").modules, "wandb", stub)
  return runs


def test_wandb_goes_on_with_the_same_run(tmp_path, wandb_runs):
  for rows, new in (([], (6, 12)), ([row(6)], (12, 18))):
    writer = Writer(tmp_path, ["wandb"], {"seed": 3})
    writer.begin("train", rows)
    for step in new:
      writer.row("train", row(step))
  writer.result(RESULT)
  writer.close()
  before, after = wandb_runs
  assert before.how["id"] == after.how["id"] and after.how["resume"] == "allow"
  assert after.how["config"] == {"seed": 3} and after.how["finished"]
  assert after.metric == ("train/*", "train/step")
  logged = [n["train/step"] for n in after.kept.values()]
  assert logged == [6, 12, 18]
  assert after.kept[0]["train/loss"] == 1 / 7
  assert "train/train_accuracy" not in after.kept[0]
  assert after.summary["test_accuracy"] == 0.75
  assert after.summary["score/per_layer"] == 1


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_has_each_line_once(tmp_path, wandb_runs, monkeypatch, mode):
  """Over two phases and three processes, one of them killed."""
  monkeypatch.setenv("WANDB_MODE", mode)
  metrics = {}

  def process(phase, last, killed=False):
    path = tmp_path / phase / "metrics.jsonl"
    path.parent.mkdir(exist_ok=True)
    file = metrics[phase] = MetricsFile(path, True)
    writer = Writer(tmp_path, ["wandb"], {})
    writer.begin(phase, file.rows)
    for step in range(file.last_step + 6, last + 6, 6):
      file.write(row(step))
      writer.row(phase, row(step))
    if killed:  # before the line has left the machine
      del wandb_runs[-1].kept[max(wandb_runs[-1].kept)]
    else:
      writer.close()

  process("teacher", 12, killed=True)
  process("teacher", 18)
  process("student", 12)
  found = [
    (phase, numbers[f"{phase}/step"])
    for _, numbers in sorted(wandb_runs[-1].kept.items())
    for phase in ("teacher", "student")
    if f"{phase}/step" in numbers
  ]
  assert found == [
    ("teacher", 6), ("teacher", 12), ("teacher", 18), ("student", 6),
    ("student", 12),
  ]  # fmt: skip
  assert len({run.how["id"] for run in wandb_runs}) == 1
  folders = list((tmp_path / "wandb").glob("offline-run-*"))
  assert len(folders) == (mode == "offline")  # the last, which has all


def test_one_that_fails_is_left_and_the_other_goes_on(
  tmp_path, wandb_runs, caplog
):
  pytest.importorskip("tensorboardX")
  writer = Writer(tmp_path, ["tensorboard", "wandb"], {})
  writer.begin("train", [])
  wandb_runs[0].fails = True
  for step in (6, 12):
    writer.row("train", row(step))
  assert len(caplog.records) == 1
  text = caplog.records[0].getMessage()
  assert text.startswith("wandb is not written to any more")
  assert text.endswith("no network")
  got = events(tmp_path / "tensorboard" / "train")
  assert [s for tag, s, _ in got if tag == "loss"] == [6, 12]


def test_a_folder_that_cannot_be_made(tmp_path, caplog):
  pytest.importorskip("tensorboardX")
  (tmp_path / "tensorboard").write_text("")
  writer = Writer(tmp_path, ["tensorboard"], {})
  writer.begin("train", [])
  writer.row("train", row(6))
  writer.close()
  assert len(caplog.records) == 1
  assert "tensorboard is not written to" in caplog.records[0].getMessage()


class TestConfig:
  @pytest.mark.parametrize(
    "value, texts",
    [
      ("tensorbord", ["'tensorbord'", "write 'tensorboard'"]),
      ("tensorboard, tensorboard", ["'tensorboard' only once"]),
      ("nowhere", ["one of tensorboard, wandb"]),
    ],
  )
  def test_what_cannot_be(self, value, texts):
    config = base()
    config.writers = value
    with pytest.raises(ConfigError) as error:
      parse(config)
    for text in ("config.writers", *texts):
      assert text in str(error.value)

  def test_a_package_that_is_missing(self):
    config = base()
    config.writers = "wandb"
    with pytest.raises(ConfigError, match=r"pip install 'jaxr18\[wandb\]'"):
      parse(config, Place(installed=lambda package: package != "wandb"))
    parse(config)  # a finished run needs none

  def test_no_phase_takes_their_folder(self):
    with pytest.raises(ConfigError, match="'wandb', which must not be"):
      parse(base(("wandb",)))


def _logged(path):
  """(step, numbers) of the lines in a file of wandb's, which is LevelDB's log.

  Records of at most a block of 32 kB follow one another, each behind its
  checksum, its length and whether it is whole, a begin, a middle or an end.
  """
  from wandb.proto import wandb_internal_pb2 as pb

  data, at, record, out = path.read_bytes(), 7, b"", []
  while at + 7 <= len(data):
    if (left := 32768 - at % 32768) < 7:
      at += left
      continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    record += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind not in (1, 4):
      continue
    parsed = pb.Record.FromString(record)
    if parsed.WhichOneof("record_type") == "history":
      values = {
        (x.key or "/".join(x.nested_key)): json.loads(x.value_json)
        for x in parsed.history.item
      }
      out.append((values["_step"], values))
    record = b""
  return out


@pytest.mark.slow
def test_the_real_wandb_offline(tmp_path):
  """The last process's folder alone is left, and it has each line once."""
  pytest.importorskip("wandb")
  code = """
import os, pathlib, sys
from jaxr18.train.files import MetricsFile
from jaxr18.train.writers import Writer
workdir, phase, last, end = pathlib.Path(sys.argv[1]), *sys.argv[2:]
(workdir / phase).mkdir(exist_ok=True)
file = MetricsFile(workdir / phase / "metrics.jsonl", True)
writer = Writer(workdir, ["wandb"], {"seed": 3})
writer.begin(phase, file.rows)
for step in range(file.last_step + 6, int(last) + 6, 6):
  row = {"step": step, "loss": 1 / step, "validation_accuracy": 0.5}
  file.write(row)
  writer.row(phase, row)
assert writer._sinks, "it was left out"
if end == "killed":
  os.kill(os.getpid(), 9)
writer.close()
"""
  for phase, last, end in (
    ("teacher", 12, "killed"), ("teacher", 18, "closed"),
    ("student", 12, "closed"),
  ):  # fmt: skip
    done = subprocess.run(
      [sys.executable, "-c", code, str(tmp_path), phase, str(last), end],
      env=os.environ | {"WANDB_MODE": "offline"}, timeout=200,
      capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == (-9 if end == "killed" else 0), done.stderr
  (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
  lines = _logged(path)
  assert [step for step, _ in lines] == [0, 1, 2, 3, 4]
  assert [(v.get("teacher/step"), v.get("student/step")) for _, v in lines] == [
    (6, None), (12, None), (18, None), (None, 6), (None, 12),
  ]  # fmt: skip
  assert [v["teacher/loss"] for _, v in lines[:3]] == [1 / 6, 1 / 12, 1 / 18]
