"""The commands as people run them: what they print, and how they end."""

import json
import os
import pathlib
import re
import subprocess
import sys

import forked
import pytest

from jaxr18 import cli
from jaxr18.config.schema import fields
from jaxr18.host import sealed

# One epoch of a network of 40 thousand MACs.
TINY = (
  "--config.data.limit=64",
  "--config.data.validation=32",
  "--config.train.batch_size=32",
  "--config.train.epochs=1",
  "--config.train.network.widths=(4,8)",
  "--config.train.network.blocks=(1,1)",
  "--config.train.network.strides=(4,2)",
  "--config.train.network.groups=(1,1)",
  "--config.train.network.depthwise=(False,False)",
)
CONFIG = "--config=configs/baseline.py:tiny"


def _run(module, *flags, cwd):
  return forked.run(f"jaxr18.{module}", *flags, cwd=cwd)


def _run_alone(module, *flags, cwd):
  """As `_run`, in a new process, as people do."""
  return subprocess.run(
    [sys.executable, "-m", f"jaxr18.{module}", *flags],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=300,
  )


def _assert_fails(done, status, *texts):
  assert done.returncode == status, done.stderr
  assert "Traceback" not in done.stderr
  assert not done.stdout
  for text in texts:
    assert text in done.stderr


class TestCommandLine:
  """What needs no training."""

  def test_nothing(self, tmp_path):
    done = _run("main", cwd=tmp_path)
    _assert_fails(done, 2, "--config=FILE", "configs/baseline.py", "--help")

  def test_a_flagfile(self, tmp_path):
    """Its fields were unknown flags, unlike those beside it."""
    (tmp_path / "more").write_text("--config.seed=-3\n")
    (tmp_path / "flags").write_text(
      f"# of a test\n{CONFIG}\n--config.train.epochs=-1\n--flagfile=more\n"
    )
    done = _run("main", "--flagfile=flags", cwd=tmp_path)
    _assert_fails(done, 2, "config.train.epochs (=-1)", "config.seed (=-3)")
    done = _run("main", "--flagfile", "flags", "--config.seed=-4", cwd=tmp_path)
    _assert_fails(done, 2, "config.train.epochs (=-1)", "config.seed (=-4)")
    done = _run("main", "--flagfile=none", cwd=tmp_path)
    _assert_fails(done, 2, "none")

  @pytest.mark.parametrize(
    "module, flags, told",
    [
      ("main", [CONFIG, "--workdir=gs://bucket/x"], "--workdir (=gs://"),
      ("main", ["--config=s3://bucket/config.json"], "--config (=s3://"),
      ("main", [CONFIG, "--config.train.start.init=gs://bucket/x"],
       "config.train.start.init (='gs://"),
      ("main", [CONFIG, "--config.data.dir=gs://bucket/x"],
       "config.data.dir (='gs://"),
      ("report", ["gs://bucket/runs"], "the argument (=gs://"),
      ("evaluate", ["--workdir=gs://bucket/x"], "--workdir (=gs://"),
    ],
  )  # fmt: skip
  def test_a_remote_folder(self, module, flags, told, tmp_path):
    """Was a folder named gs: below the current one."""
    done = _run(module, *flags, cwd=tmp_path)
    _assert_fails(done, 2, told, "mount it")
    assert not list(tmp_path.iterdir())

  @pytest.mark.parametrize("flag", ["--help", "-h"])
  def test_help(self, flag, tmp_path):
    done = _run("main", CONFIG, flag, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 110 and max(map(len, lines)) < 80
    for text in ("python -m jaxr18.main --config=", "--workdir", "Exit status",
                 "configs/kd_quant.py", "--config.PHASE.epochs",
                 "--helpfull"):  # fmt: skip
      assert text in done.stdout
    for field in fields(()):
      assert f"  {field.name}=" in done.stdout
    assert "logtostderr" not in done.stdout

  def test_help_that_nobody_reads(self, tmp_path):
    """As in `--helpfull | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, "-m", "jaxr18.main", "--helpfull"], stdout=writer,
      stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")

  def test_full_help(self, tmp_path):
    done = _run("main", "--helpfull", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    assert max(map(len, done.stdout.splitlines())) < 80
    for field in fields(("train",)):
      assert f"  {field.name.removeprefix('train.')}=" in done.stdout
      assert all(choice in done.stdout for choice in field.choices)
    assert "logtostderr" not in done.stdout

  @pytest.mark.parametrize("module", ["main", "evaluate"])
  def test_help_is_short_and_quick(self, module, tmp_path):
    code = (
      "import sys, runpy; sys.argv = ['x', '--help']\n"
      f"try: runpy.run_module('jaxr18.{module}', run_name='__main__')\n"
      "except SystemExit: pass\n"
      "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)

  @pytest.mark.parametrize(
    "flags, texts",
    [
      (["--wokdir=x", CONFIG], ["wokdir", "Did you mean", "workdir"]),
      ([CONFIG, "run"], ["unexpected run", "--name=value"]),
      (["--config=configs/nope.py"],
       ["configs/nope.py", "no such file", "configs/kd_quant.py"]),
      (["--config=configs/baseline.py:huge"], ["huge", "'tiny'"]),
      (["--config.train.epochs=3"], ["--config=FILE"]),
      # All at once; values with = or a space; before the config or after it.
      (["--config.train.epoch=3", CONFIG, "--config.train.epochs", "-1",
        "--config.seed=x", "--config.train.teacher.source=a=b"],
       ["config.train.epoch (=3)", "did you mean config.train.epochs?",
        "config.train.epochs (=-1)", "config.seed (='x')",
        "config.train.teacher.source (='a=b')"]),
    ],
    ids=lambda x: re.sub(r"\W+", "-", str(x))[:40],
  )  # fmt: skip
  def test_what_cannot_be_run(self, flags, texts, tmp_path):
    _assert_fails(_run("main", *flags, cwd=tmp_path), 2, *texts)
    assert not list(tmp_path.iterdir())  # nothing was touched

  def test_a_workdir_that_is_a_file(self, tmp_path):
    (tmp_path / "file").write_text("")
    done = _run("main", CONFIG, "--workdir=file", cwd=tmp_path)
    _assert_fails(done, 1, "cannot use file as a workdir", "--workdir")

  def test_evaluate(self, tmp_path):
    _assert_fails(_run("evaluate", cwd=tmp_path), 2, "--workdir=DIR")
    done = _run("evaluate", "--config.seed=3", cwd=tmp_path)
    _assert_fails(done, 2, "config.seed")
    done = _run("evaluate", "--workdir=nope", cwd=tmp_path)
    _assert_fails(done, 1, "nope holds no run")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  folder = tmp_path_factory.mktemp("elsewhere")
  done = _run_alone("main", CONFIG, *TINY, cwd=folder)
  assert done.returncode == 0, done.stderr
  return folder, done


@pytest.mark.slow
class TestRun:
  """One run, from another folder than the project's."""

  def test_it_ends_with_its_result(self, first):
    folder, done = first
    result = json.loads(
      (folder / "runs" / "baseline-tiny" / "result.json").read_text()
    )
    share = f"({result['test_correct']} of {result['test_count']})"
    assert share in done.stdout and "score, per_network:" in done.stdout
    assert "finished already" not in done.stdout

  def test_only_progress_is_on_stderr(self, first):
    _, done = first
    assert [s[:16] for s in done.stderr.splitlines()] == ["train: epoch 1/1"]

  @pytest.mark.parametrize(
    "flags",
    [
      (CONFIG, *TINY),
      (CONFIG, *TINY, "--config.progress=plain", "--config.data.dir=/other"),
      ("--config=runs/baseline-tiny/config.json",),
      ("--config", "runs/baseline-tiny/config.json"),
    ],
    ids=["same", "free", "json", "two-words"],
  )
  def test_again_it_is_finished_already(self, first, flags):
    folder, done = first
    again = _run("main", *flags, cwd=folder)
    assert again.returncode == 0 and not again.stderr
    assert again.stdout == (
      f"runs/baseline-tiny was finished already:\n{done.stdout}"
    )

  def test_64_bits_are_left_aside(self, first, tmp_path, monkeypatch):
    folder, done = first
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    again = _run_alone("main", CONFIG, *TINY, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "JAX_ENABLE_X64" in again.stderr
    result = "runs/baseline-tiny/result.json"
    one, two = (
      json.loads((place / result).read_text()) for place in (folder, tmp_path)
    )
    for name in ("test_loss", "test_correct", "score"):
      assert one[name] == two[name]

  def test_another_config_is_refused(self, first):
    folder, _ = first
    flags = (
      CONFIG,
      *TINY,
      "--config.seed=1",
      "--config.train.optimizer.clip_norm=1",
    )
    _assert_fails(
      _run("main", *flags, cwd=folder),
      1,
      "runs/baseline-tiny was begun with another config",
      "seed was 0 and is 1",
      "train.optimizer.clip_norm was 0.0 and is 1.0",
      "--workdir",
    )

  def test_evaluate_gives_the_same(self, first):
    folder, done = first
    again = _run("evaluate", "--workdir=runs/baseline-tiny", cwd=folder)
    assert again.returncode == 0 and not again.stderr
    assert again.stdout.splitlines() == [
      done.stdout.splitlines()[0],
      "the same as in runs/baseline-tiny/result.json",
    ]

  def test_evaluate_tells_a_difference(self, first):
    folder, _ = first
    path = folder / "runs" / "baseline-tiny" / "result.json"
    text = path.read_text()
    result = json.loads(text)
    correct = result["test_correct"]
    changed = {
      "test_correct": correct + 1,
      "test_accuracy": (correct + 1) / result["test_count"],
    }
    other = sealed.seal(result | changed)
    try:
      path.write_text(json.dumps(other))
      done = _run("evaluate", "--workdir=runs/baseline-tiny", cwd=folder)
    finally:
      path.write_text(text)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"({correct} of 64)" in done.stdout
    assert f"has {correct + 1} of 64" in done.stderr


def test_warnings_are_shown_without_noise(tmp_path):
  code = """
import warnings
from absl import app, logging
from jaxr18 import cli

def main(_):
  logging.info('nothing to see')
  logging.warning('the disk is slow')
  warnings.warn('an old file')
  for noise in cli.NOISE:
    logging.warning('%s in some place', noise)
    warnings.warn(f'So: {noise} (twice).')

cli.run(main)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 0
  lines = done.stderr.splitlines()
  assert lines[0] == "WARNING: the disk is slow"
  assert "an old file" in lines[1]
  assert not any(noise in done.stderr for noise in cli.NOISE)


def test_other_errors_keep_their_traceback(tmp_path):
  code = """
from jaxr18 import cli

def main(_):
  raise ValueError('a bug')

cli.run(main)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "a bug" in done.stderr


@pytest.mark.parametrize(
  "file, expected",
  [
    ("configs/kd_quant.py", "runs/kd_quant"),
    ("configs/kd_quant.py:digits", "runs/kd_quant-digits"),
    ("/a/b/mine.py:x=1,y/../z", "runs/mine-x=1,y_.._z"),
    ("runs/mine/config.json", "runs/mine"),
    ("/a/b/saved.json", "runs/saved"),
  ],
)
def test_the_default_workdir(file, expected):
  assert cli.default_workdir(file) == pathlib.Path(expected)
