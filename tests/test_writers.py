"""Epochs in TensorBoard and Weights & Biases: each once, never in the way."""

import struct
import types

import pytest

from jaxr18 import writerconfig
from jaxr18.config import base
from jaxr18.configfile import ConfigError
from jaxr18.train.writers import Writer
from jaxr18.validate import validate

RESULT = {
  "test_accuracy": 0.75,
  "test_loss": 0.5,
  "validation_accuracy": None,
  "score": {
    "course": {"total": 0}, "exact": {"total": 1}, "stored": {"total": 2}
  },
}  # fmt: skip


def row(step, **more):
  return {
    "phase": "train", "step": step, "epoch": step // 6, "loss": 1 / (step + 1),
    "train_accuracy": None, "validation_accuracy": 0.5,
  } | more  # fmt: skip


def events(folder):
  """(tag, step, value) of all event files, by the format of their records."""
  pb = pytest.importorskip("tensorboardX.proto.event_pb2")
  out = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (length,) = struct.unpack_from("<Q", data, at)
      event = pb.Event.FromString(data[at + 12 : at + 12 + length])
      at += length + 16
      out += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
  return out


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
    ("score/course", 18, 0), ("score/exact", 18, 1), ("score/stored", 18, 2),
    ("test_accuracy", 18, 0.75), ("test_loss", 18, 0.5),
  ]  # fmt: skip


class StubRun:
  """What is used of a run of wandb."""

  def __init__(self, **how):
    self.how, self.logged, self.summary, self.fails = how, [], {}, False

  def define_metric(self, name, step_metric):
    self.metric = name, step_metric

  def log(self, numbers):
    if self.fails:
      raise OSError("no\nnetwork")
    self.logged.append(numbers)

  def finish(self):
    self.how["finished"] = True


@pytest.fixture
def wandb_runs(monkeypatch):
  """The runs that a stub of the package begins; the real one is slow."""
  runs = []

  def init(**how):
    runs.append(StubRun(**how))
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
  logged = [n["train/step"] for r in wandb_runs for n in r.logged]
  assert logged == [6, 12, 18]
  assert before.logged[0]["train/loss"] == 1 / 7
  assert "train/train_accuracy" not in before.logged[0]
  assert after.summary["test_accuracy"] == 0.75
  assert after.summary["score/exact"] == 1


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
      validate(config, sources=False)
    for text in ("config.writers", *texts):
      assert text in str(error.value)

  def test_a_package_that_is_missing(self, monkeypatch):
    monkeypatch.setitem(writerconfig.WRITERS, "wandb", "no_such_package")
    config = base()
    config.writers = "wandb"
    with pytest.raises(ConfigError, match=r"pip install 'jaxr18\[wandb\]'"):
      validate(config)
    validate(config, sources=False)  # a finished run needs none

  def test_no_phase_takes_their_folder(self):
    with pytest.raises(ConfigError, match="'wandb', which must not be"):
      validate(base(("wandb",)))
