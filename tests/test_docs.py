"""README.md and docs/: their commands are accepted, their code runs."""

import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.__main__ import COMMANDS
from jaxr18.config import base
from jaxr18.nn import network, spec
from tests.test_imports import ORDER

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = (
  "python", "pip", "jaxr18", "cp",
  "mkdir", "sbatch", "docker", "kubectl", "sky",
  "tensorboard",
)  # fmt: skip

# Notes what it was called with, and does nothing.
_STUB = """#!{python}
import json, os, sys
with open({log!r}, "a") as f:
  f.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""

# Parses flags as the command does, and loads and validates the config.
_ACCEPT = """
import importlib, json, sys
from absl import flags
from jaxr18 import cli
name, lines = sys.argv[1], json.loads(sys.argv[2])
module = importlib.import_module(name)
for line in lines:
  try:
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.get_flags_for_module(module):
      flag.unparse()
    flags.FLAGS(cli._arguments(["x", *line]))
    config = getattr(module, "_CONFIG", None)
    # Those of a run are there once it has run.
    if config is None or (config.file or "runs/").startswith("runs/"):
      continue
    from jaxr18.config import parse  # and JAX with it
    parse(config.value)
  except Exception as e:
    print(json.dumps(line), "::", type(e).__name__, str(e).splitlines()[:2])
"""


def blocks(path: pathlib.Path, language: str) -> list[str]:
  """What stands between ```language and ```."""
  return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(),
                    re.DOTALL | re.MULTILINE)  # fmt: skip


@pytest.fixture(scope="module")
def called(tmp_path_factory):
  """Every command of every page, loops unrolled by the shell itself."""
  folder = tmp_path_factory.mktemp("stubs")
  log = folder / "log"
  for where in (folder / "bin", folder / ".venv" / "bin"):
    where.mkdir(parents=True)
    for name in PROGRAMS:
      stub = where / name
      stub.write_text(_STUB.format(python=sys.executable, log=str(log)))
      stub.chmod(0o755)
  (folder / ".venv" / "bin" / "activate").touch()
  (folder / "launch").mkdir()
  for script in (ROOT / "launch").glob("*.sh"):
    stub = folder / "launch" / script.name
    stub.write_text(_STUB.format(python=sys.executable, log=str(log)))
    stub.chmod(0o755)
  env = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
  out = []
  for page in PAGES:
    for block in blocks(page, "bash"):
      log.write_text("")
      # python3 -m venv would make a real one.
      text = re.sub(r"\bpython3 -m venv \S+", "true", block)
      subprocess.run(
        ["bash", "-euc", text], cwd=folder, env=env, check=True, timeout=60
      )
      lines = [json.loads(line) for line in log.read_text().splitlines()]
      assert lines or "python" not in text, f"{page.name}: {text}"
      out += [(page.name, line) for line in lines]
  return out


def _module_of(line: list[str]) -> tuple[str, list[str]]:
  """The module that a command runs in the end, and its flags."""
  program, *rest = line
  if program == "jaxr18":
    program, rest = "python", ["-m", COMMANDS[rest[0]][0], *rest[1:]]
  if program == "sbatch" and "launch/slurm.sbatch" in rest:
    rest = rest[rest.index("launch/slurm.sbatch") + 1 :]
    return ("jaxr18.main", rest) if rest[0].startswith("-") else ("", rest)
  if program == "local.sh":
    rest = [a for a in rest if not a.startswith("--processes=")]
    return "jaxr18.main", rest
  if program != "python":
    return "", rest
  if rest[0] == "launch/sweep.py":
    return "launch.sweep", rest[1:]
  assert rest[0] == "-m", line
  name, flags = rest[1], rest[2:]
  if name in ("jaxr18.report", "jaxr18.search"):
    name += ".__main__"
  # The flags of these are argparse's.
  others = (
    "jaxr18.data",
    "jaxr18.deploy.to_c",
    "jaxr18.deploy.torch_weights",
  )
  ours = name.startswith("jaxr18.") and name not in others
  return (name, flags) if ours else ("", flags)


@pytest.mark.slow
def test_commands_have_their_flags_and_configs(called, tmp_path):
  own, y = tmp_path / "own.npz", np.arange(20) % 5  # which docs/data.md makes
  x = np.zeros((20, 48, 48, 3), np.uint8)
  np.savez(own, train_images=x, train_labels=y, test_images=x, test_labels=y)
  modules: dict[str, list[list[str]]] = {}
  for _, line in called:
    name, flags = _module_of(line)
    flags = [flag.replace(":own.npz", f":{own}") for flag in flags]
    if name and flags not in modules.setdefault(name, []):
      modules[name].append(flags)
  assert modules.keys() >= {"jaxr18.search.__main__", "jaxr18.report.__main__",
                            "jaxr18.export", "launch.sweep"}  # fmt: skip
  assert len(modules["jaxr18.main"]) > 20
  refused = []
  for name, lines in modules.items():
    done = subprocess.run(
      [sys.executable, "-c", _ACCEPT, name, json.dumps(lines)],
      cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused += [f"{name} {line}" for line in done.stdout.splitlines()]
  assert not refused, "\n".join(refused)


def test_a_wrong_flag_is_seen():
  lines = [["--workdir=a"], ["--wrokdir=a"]]
  done = subprocess.run(
    [sys.executable, "-c", _ACCEPT, "jaxr18.export", json.dumps(lines)],
    cwd=ROOT, capture_output=True, text=True, timeout=400,
  )  # fmt: skip
  assert "wrokdir" in done.stdout and "Did you mean" in done.stdout
  assert len(done.stdout.splitlines()) == 1


def test_benchmarks_have_their_flags(called):
  seen = set()
  for page, (_, *rest) in called:
    if rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
      source = (ROOT / f"{rest[1].replace('.', '/')}.py").read_text()
      for word in rest[2:]:
        if word.startswith("--"):
          assert f'"{word.partition("=")[0]}"' in source, (page, rest)
          seen.add(rest[1])
  assert "benchmarks.train_step" in seen


def test_extras_are_there(called):
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())
  known = extras["project"]["optional-dependencies"].keys()
  asked = set()
  for _, (program, *rest) in called:
    if program == "pip" or rest[:2] == ["-m", "pip"]:
      for names in re.findall(r"\[([\w,-]+)\]", shlex.join(rest)):
        asked |= set(names.split(","))
  assert {"cpu", "test"} <= asked <= known


def test_every_dependency_has_a_lowest_version():
  """The continuous integration installs just these, by `==`."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"].values()
  for line in itertools.chain(project["dependencies"], *extras):
    if line.startswith("jaxr18["):  # an extra that is made of others
      continue
    assert re.match(r"[\w-]+(\[\w+\])?[>=]=\d", line), line
  assert "jax>=0.10.0" in project["dependencies"]  # jaxprs_in_params


def test_references_name_tests_that_are_there():
  """In the last cell of each row; a file goes on until another is named."""
  named, text = 0, (ROOT / "docs" / "references.md").read_text()
  for row in re.findall(r"^\| (?!name|---)(.*) \|$", text, re.M):
    cell = row.split(" | ")[-1]
    file, found = "", re.findall(r"`(?:([\w/]*test_\w+\.py)::)?([\w:]+)`", cell)
    assert found or cell == "the same", row
    for other, names in found:
      file = other or file
      there = (ROOT / "tests" / file).read_text()
      for name in names.split("::"):
        kind = "class" if name.startswith("Test") else "def"
        assert re.search(rf"^ *{kind} {name}\b", there, re.M), (file, name)
        named += 1
  assert named > 50


def test_the_house_is_the_readmes_table():
  rows = re.findall(r"^\| `jaxr18/(\w+)/` \|", PAGES[0].read_text(), re.M)
  folders = {p.name for p in (ROOT / "jaxr18").iterdir() if p.is_dir()}
  assert set(rows) == folders - {"__pycache__"}
  row_of = {name: i for i, row in enumerate(ORDER) for name in row}
  assert sorted(rows, key=row_of.__getitem__) == rows


def test_links_lead_somewhere():
  """Those between pages and to files, and to a heading where one is named."""
  for page in PAGES:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
      if "://" in link:
        continue
      file, _, heading = link.partition("#")
      target = page.parent / file if file else page
      assert target.exists(), f"{page.name}: {link}"
      if heading:
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
        slugs = [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-")
                 for t in titles]  # fmt: skip
        assert heading in slugs, f"{page.name}: {link}"


@pytest.mark.parametrize(
  "page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name
)
def test_code_runs(page):
  small = spec.resnet((8, 16), (1, 1), (1, 2), (1, 1), (False, False),
                      classes=10, resolution=8)  # fmt: skip
  net = network.init(jax.random.key(0), small)
  config = base()
  known = {
    "jax": jax, "config": config, "phase": config.train, "net": net,
    "params": net.params, "kernel": net.params["head"]["kernel"],
    "images": jnp.zeros((2, 32, 32, 3)), "shape": (2, 8, 8, 3),
    "loss": lambda p, x: network.forward(net.replace(params=p), x).sum(),
  }  # fmt: skip
  for block in blocks(page, "python"):
    # All digits take a minute to calibrate a shipped network on.
    block = block.replace('dataset("digits")', 'dataset("digits", limit=64)')
    exec(compile(block, str(page), "exec"), known)


# Networks of two stages in place of four: here it matters that the commands
# find each other's files, and tests/run/test_experiment.py runs the configs.
SMALLER = {
  "configs/quant.py:tiny": ("dense", "quant"),
  "configs/prune_structured.py:tiny": ("dense", "prune", "shrink"),
}
SEARCHED = """train.network.widths=(8,8) train.network.strides=(2,2)
  train.epochs=2 search.rungs=(1,)
  search.widths=((8,16),(8,16)) search.blocks=((1,),(1,))
  search.groups=((1,2),(1,2)) search.resolution=(16,)
  search.bits=(("stem|head",(8,)),(".*",(2,3,4)))"""


def _smaller(block: str) -> str:
  """The same commands, with flags after those that they have."""
  for config, phases in SMALLER.items():
    fields = [f"{p}.network.{f}" for p in phases
              for f in ("widths=8,8", "strides=4,2")]  # fmt: skip
    more = " ".join(f"--config.{field}" for field in fields)
    block = block.replace(f"--config={config}", f"--config={config} {more}")
  config = "--config=configs/search.py:digits"
  more = " ".join(f"--config.{f}" for f in map(shlex.quote, SEARCHED.split()))
  return block.replace(config, f"{config} {more}")


@pytest.mark.slow
def test_the_tour(tmp_path):
  """Each command, in a folder with nothing else in it."""
  tour = ROOT / "docs" / "tour.md"
  env = os.environ | {
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
  }
  seen = 0
  for block in blocks(tour, "bash"):
    smaller = _smaller(block)
    seen += smaller != block
    done = subprocess.run(
      ["bash", "-euc", smaller], cwd=tmp_path, env=env, timeout=400,
      capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
  assert seen == 3
