"""Names with commas, colons, brackets, backslashes, spaces and ~."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import tiny_run
from hypothesis import given
from hypothesis import strategies as st

from jaxr18 import cli
from jaxr18.config import file as configfile
from jaxr18.config.experiment import Place
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.host import paths
from jaxr18.run import experiment, other_run, sources
from jaxr18.train.files import CheckpointError

NASTY = ("a,b", "c:d", "e [f]", "g\\h,", " i ", "~j", "k%20#?|*{}", "'\"$(l)",
         "-m=1,seed=2", "\\", "ü\n")  # fmt: skip


class TestRule:
  @given(st.lists(st.text(min_size=1), max_size=4))
  def test_what_is_escaped_comes_back(self, texts):
    assert paths.names(" , ".join(map(paths.escaped, texts))) == tuple(texts)
    for text in texts:
      both = f"{paths.escaped(text)}:a\\:b:c"
      assert paths.file_and_argument(both) == (text, "a\\:b:c")

  @pytest.mark.parametrize(
    "text, expected",
    [
      ("", ()),
      (" , ", ()),
      ("runs/a, runs/b,", ("runs/a", "runs/b")),
      (r"a\,b,c", ("a,b", "c")),
      (r"a\\,b", ("a\\", "b")),
      (r"\ a\ ", (" a ",)),
      ("a\\", ("a\\",)),
      ("~/a, ./~b", ("~/a", "./~b")),
    ],
  )
  def test_names(self, text, expected):
    assert paths.names(text) == expected

  def test_home(self, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert paths.folder("~/a") == pathlib.Path("/somewhere/a")
    here = pathlib.Path.cwd()
    assert paths.folder("./~/a") == here / "~" / "a"
    assert paths.folder("~no such body/a") == here / "~no such body" / "a"

  def test_default_workdirs(self):
    of = lambda file: str(cli.default_workdir(file))
    assert of("configs/ensemble.py:runs/a,runs/b") == (
      "runs/ensemble-runs_a,runs_b"
    )
    assert of(r"a\:b/c.py:tiny") == "runs/c-tiny"
    assert of(r"runs/a\:b/config.json") == "runs/a:b"


class TestConfigFiles:
  def test_a_colon_in_its_name(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "from jaxr18.config import base\ndef get_config(arg=''):\n"
    code += "  c = base()\n  c.train.start.init = arg\n  return c\n"
    for name in ("a:b [c].py", "d\\,e.py"):
      pathlib.Path(name).write_text(code)
      with pytest.raises(ConfigError) as e:
        configfile.load(name)
      told = str(e.value).rpartition("--config=")[2].rstrip("'")
      assert told == paths.escaped(name)  # the remedy, which works:
      assert configfile.load(told)["train"]["start"]["init"] == ""
      assert (
        configfile.load(f"{told}:x\\,y:z")["train"]["start"]["init"]
        == "x\\,y:z"
      )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A finished run of each name; the first, with all in one, was made here."""
  root = tmp_path_factory.mktemp("runs")
  config = tiny_run.phases("train")
  config.train.epochs = 0
  first = root / "".join(name.strip("\n") for name in NASTY)
  experiment.run(config, first)
  assert list(root.iterdir()) == [first]  # nothing beside it
  for name in NASTY:
    shutil.copytree(first, root / name)
  return root


@pytest.mark.slow
def test_workdirs_are_sources_whatever_their_names_are(runs, monkeypatch):
  monkeypatch.chdir(runs)
  names = ["./~j" if name == "~j" else name for name in NASTY]
  text = ", ".join(map(paths.escaped, names))
  assert len(sources.load_networks(runs / NASTY[0], text)) == len(NASTY)
  config = tiny_run.phases("vote")
  config.vote.epochs = 0
  config.vote.ensemble.members = text
  parse(config, Place(source=other_run.source))
  result = experiment.run(config, runs / "vote")
  assert list(result.phases["vote"].sources) == names
  assert len(result.members) == len(NASTY)


@pytest.mark.slow
def test_the_config_that_an_error_names_can_be_read(runs):
  config = tiny_run.phases("train")
  config.train.epochs, config.seed = 0, 1
  for name in NASTY:
    with pytest.raises(CheckpointError) as e:
      experiment.run(config, runs / name)
    told = str(e.value).partition("it is in ")[2].rpartition("), or give")[0]
    (flag,) = shlex.split(told)
    assert configfile.load(flag.removeprefix("--config="))["seed"] == 0


@pytest.mark.slow
def test_a_name_that_is_read_as_two_is_told(runs, monkeypatch):
  monkeypatch.chdir(runs)
  config = tiny_run.phases("train")
  for name in ("a,b", "-m=1,seed=2", "g\\h,"):
    config.train.start.init = name
    with pytest.raises(ConfigError) as e:
      parse(config, Place(source=other_run.source))
    told = str(e.value).partition("write ")[2].partition(", in Python")[0]
    assert e.value.args[0].startswith("config.train.start.init")
    config.train.start.init = told
    parse(config, Place(source=other_run.source))


@pytest.mark.slow
def test_commands_take_such_workdirs(runs):
  name = next(runs.glob("a,bc*")).name
  done = subprocess.run(
    [sys.executable, "-m", "jaxr18.report", f"./{name}", "--quick",
     "--out=o [x],~y"],
    capture_output=True, text=True, cwd=runs,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (runs / "o [x],~y" / "index.html").is_file()
  done = subprocess.run(
    [sys.executable, "-m", "jaxr18.main", "--workdir=~nobody here",
     "--config=" + paths.escaped(f"{runs / name}/config.json")],
    capture_output=True, text=True, cwd=runs, env=os.environ,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (runs / "~nobody here" / "result.json").is_file()
