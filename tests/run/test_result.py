"""Results: types and JSON, older formats, what made them."""

import dataclasses
import json
import math
import pathlib
import shutil
import subprocess

import pytest
from results import member, result, values

from jaxr18.cost.figures import FIGURES
from jaxr18.host import provenance, sealed
from jaxr18.host.checked import OddValueError
from jaxr18.host.workdir import WorkdirError
from jaxr18.run.result import FORMAT, Result, read
from jaxr18.run.summary import summary

PUBLISHED = sorted(
  path.parent
  for path in pathlib.Path(__file__).parents[2].glob("docs/results/*/*.json")
  if path.name == "result.json" and "spec" in json.loads(path.read_text())
)
OLD = {"per_network": "course", "per_layer": "exact", "on_disk": "stored"}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda path: path.name)
def test_published_results_open(folder):
  found, saved = read(folder), json.loads((folder / "result.json").read_text())
  assert found.test.accuracy == saved["test_accuracy"]
  names = (
    OLD if "course" in saved["score"] else dict(zip(OLD, OLD, strict=True))
  )
  for name in FIGURES:
    total = saved["score"][names[name]]["total"]
    assert getattr(found.score, name).total == total
  assert found.score.macs == saved["score"]["macs"]
  again = found.to_json()
  assert Result.from_json(again) == found
  for key in saved.keys() - {"score", "members", "format", "spec", "specs",
                             "hash"}:  # fmt: skip
    assert again[key] == saved[key], key


class TestFormat:
  def test_old_names_are_lifted(self):
    new = values(members=[member(0, 80)])
    old = json.loads(json.dumps(new))
    for score in (old["score"], old["members"][0]["score"]):
      for name, before in OLD.items():
        score[before] = score.pop(name)
    assert Result.from_json(old) == Result.from_json(new)
    old["format"] = "jaxr18 result 2"
    assert Result.from_json(old) == Result.from_json(new)

  @pytest.mark.parametrize("name", [f"jaxr18 result {FORMAT + 1}", "else", 3])
  def test_what_a_newer_release_wrote_is_refused(self, name):
    with pytest.raises(OddValueError, match=f"{name}.*newer jaxr18"):
      result(format=name)

  def test_the_hash_is_of_the_content(self, tmp_path):
    found = result()
    kept = sealed.seal(found.to_json())
    assert kept["hash"] == found.hash
    assert dataclasses.replace(found, seed=1).hash != found.hash
    (tmp_path / "result.json").write_text(json.dumps(kept))
    assert read(tmp_path) == found
    del kept["hash"]  # what has a format has a hash
    (tmp_path / "result.json").write_text(json.dumps(kept))
    with pytest.raises(WorkdirError, match="hash is missing") as e:
      read(tmp_path)
    assert e.value.why.startswith("damaged")


@pytest.mark.parametrize(
  "change, said",
  [
    ({"test_loss": math.nan}, "test_loss is nan"),
    ({"test_correct": 101}, "test_correct is 101"),
    ({"test_accuracy": 0.7}, "test_accuracy is 0.7, and not 80 of 100"),
    ({"seed": True}, "seed is True"),
    ({"score": {}}, "it lacks score.per_network"),
    ({"members": []}, "members is empty"),
    ({"votes": {"logit": {"test_accuracy": 2}}}, "votes.logit.test_accuracy"),
    ({"config": {"data": {"name": "x"}, "phases": []}}, "config.phases is"),
    ({"versions": {"jax": 1}}, "versions.jax is 1, and no str"),
    ({"spec": {}}, "spec: not a network's description"),
  ],
)  # fmt: skip
def test_odd_values_are_named(change, said, tmp_path):
  (tmp_path / "result.json").write_text(json.dumps(values(**change)))
  with pytest.raises(WorkdirError) as e:
    read(tmp_path)
  assert e.value.why.startswith(said) and str(tmp_path) in str(e.value)


def test_the_last_lines_have_the_numbers():
  found = result(test_count=200, members=[member(0, 70), member(1, 10)])
  text = summary(found)
  assert "test accuracy 40.00% (80 of 200)" in text and "seed 1" in text
  assert "mean 40.00%, standard deviation 42.43 points" in text
  for name in FIGURES:
    assert f"score, {name}: {getattr(found.score, name).total:.6f} =" in text


class TestProvenance:
  @pytest.fixture
  def checkout(self, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c",
           "user.email=a@b.c"]  # fmt: skip
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
      subprocess.run([*git, *command], check=True)
    return tmp_path

  @pytest.mark.skipif(shutil.which("git") is None, reason="no git")
  def test_of_a_checkout(self, checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    first = provenance.commit()
    assert len(first.name) == 40 and first.changed is False
    (checkout / "other").write_text("not git's")
    assert provenance.commit() == first
    (checkout / "file").write_text("2")
    assert provenance.commit() == (first.name, True)

  def test_of_a_folder_that_is_no_repository(self, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    assert provenance.commit() == (None, None)

  @pytest.mark.parametrize(
    "text, name",
    [
      ('{"vcs_info": {"vcs": "git", "commit_id": "abc"}}', "abc"),
      ('{"url": "file:///x", "dir_info": {}}', None),
      (None, None),
    ],
  )
  def test_of_an_install(self, text, name, tmp_path, monkeypatch):
    folder = tmp_path / "jaxr18-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: jaxr18\nVersion: 9\n")
    if text:
      (folder / "direct_url.json").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit() == (name, None)
