"""Small files: whole or not at all, and nothing is followed or waited for."""

import json
import multiprocessing
import os
import pathlib

import pytest

from jaxr18.config.faults import ConfigError
from jaxr18.config.file import from_json
from jaxr18.host.errors import FileError
from jaxr18.host.files import try_writing, write_atomically
from jaxr18.host.inputs import read_bytes
from jaxr18.host.workdir import WorkdirError, read_result
from jaxr18.train import starts
from jaxr18.train.files import CheckpointError, MetricsFile, read_phase


@pytest.fixture
def path(tmp_path):
  (tmp_path / "a").mkdir()
  return tmp_path / "a" / "file"


@pytest.fixture
def full(no_file_above):
  with no_file_above(1000):
    yield


def names(folder):
  return sorted(p.name for p in folder.iterdir())


class TestPart:
  @pytest.mark.parametrize("link", [os.symlink, os.link])
  def test_a_link_is_not_followed(self, path, tmp_path, link):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link(victim, f"{path}.part")
    write_atomically(path, "new")
    assert victim.read_text() == "precious" and path.read_text() == "new"
    assert not path.is_symlink() and names(path.parent) == ["file"]

  def test_a_pipe_is_not_waited_for(self, path):
    os.mkfifo(f"{path}.part")
    write_atomically(path, "new")
    assert path.read_text() == "new"

  def test_one_that_a_kill_left_is_written_over(self, path):
    pathlib.Path(f"{path}.part").write_text("half of something longer")
    write_atomically(path, "new")
    assert path.read_text() == "new" and names(path.parent) == ["file"]

  def test_writers_at_once_write_whole_files(self, path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
      pool.starmap(_write_often, [(path, i) for i in range(4)])
    text = path.read_text()
    assert len(text) == 100_000 and len(set(text)) == 1
    assert names(path.parent) == ["file"]


def _write_often(path, i):
  for _ in range(10):
    write_atomically(path, str(i) * 100_000)


class TestTrial:
  def test_leaves_nothing(self, path):
    try_writing(path.parent / "new" / "file")
    assert names(path.parent) == ["new"] and not names(path.parent / "new")
    path.write_text("before")
    try_writing(path)
    assert path.read_text() == "before"

  def test_a_full_disk(self, path, full):
    with pytest.raises(FileError, match="cannot write .*make room"):
      try_writing(path, "--out")
    assert names(path.parent) == []

  @pytest.mark.parametrize("function", [try_writing, None])
  def test_what_no_file_can_be(self, path, function):
    function = function or (lambda p: write_atomically(p, "x"))
    path.write_text("a file")
    os.mkfifo(path.parent / "pipe")
    for wrong in (path.parent, path / "below", path.parent / "pipe",
                  pathlib.Path("/dev/null")):  # fmt: skip
      with pytest.raises(FileError, match="cannot write .*give another"):
        function(wrong)
    assert names(path.parent) == ["file", "pipe"]
    assert not pathlib.Path("/dev/null.part").exists()


class TestReading:
  @pytest.mark.parametrize("make", [os.mkfifo, None])
  def test_no_pipe_and_no_device(self, tmp_path, make):
    for name in ("config.json", "result.json", "phase.json", "starts.jsonl",
                 "metrics.jsonl"):  # fmt: skip
      if make:
        make(tmp_path / name)
      else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="expected a file"):
      read_phase(tmp_path)
    with pytest.raises(WorkdirError, match="expected a file"):
      read_result(tmp_path)
    with pytest.raises(ConfigError, match="expected a file"):
      from_json(tmp_path / "config.json")
    told = f"cannot read {tmp_path}/.*expected a file"
    with pytest.raises(FileError, match=told):
      starts.read(tmp_path)
    with pytest.raises(FileError, match=told):
      MetricsFile(tmp_path / "metrics.jsonl", writes=False)

  def test_what_is_nested_too_deeply(self, tmp_path):
    for name in ("config.json", "result.json", "phase.json"):
      (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
      read_phase(tmp_path)
    with pytest.raises(WorkdirError, match="nested too deeply"):
      read_result(tmp_path)
    with pytest.raises(ConfigError, match="nested too deeply"):
      from_json(tmp_path / "config.json")

  def test_a_file_behind_a_link(self, tmp_path):
    (tmp_path / "there").write_text(json.dumps({"a": 1}))
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert json.loads(read_bytes(tmp_path / "link")) == {"a": 1}
