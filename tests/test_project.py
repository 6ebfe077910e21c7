"""The command `jaxr18`, and the project's facts that stand in several files."""

import pathlib
import subprocess
import sys
import tomllib

import pytest

import jaxr18
from jaxr18.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]


def call(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "jaxr18", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
  )


def test_the_console_script_is_this_module():
  text = (ROOT / "pyproject.toml").read_text()
  scripts = tomllib.loads(text)["project"]["scripts"]
  assert scripts == {"jaxr18": "jaxr18.__main__:main"}


def test_every_command_is_a_module_and_is_listed():
  listed = call("--help")
  assert listed.returncode == 0
  for name, (module, does) in COMMANDS.items():
    path = ROOT / module.replace(".", "/")
    assert (
      path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    ), module
    assert f"  {name} " in listed.stdout and does in listed.stdout


@pytest.mark.parametrize("name", ["train", "report", "data"])
def test_a_command_has_the_help_of_its_module(name):
  module = subprocess.run(
    [sys.executable, "-m", COMMANDS[name][0], "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert module.returncode == 0 and len(module.stdout) > 200
  assert call(name, "--help").stdout == module.stdout


@pytest.mark.parametrize("arguments", [[], ["trian"]])
def test_no_command(arguments):
  done = call(*arguments)
  assert done.returncode == 2 and not done.stdout
  for text in ["usage:", "  train ", *arguments]:
    assert text in done.stderr


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_version(arguments):
  done = call(*arguments, "--version")
  assert (done.returncode, done.stdout) == (0, f"jaxr18 {jaxr18.__version__}\n")


def test_the_citation_names_this_version():
  lines = (ROOT / "CITATION.cff").read_text().splitlines()
  assert f"version: {jaxr18.__version__}" in lines
  readme = (ROOT / "README.md").read_text()
  assert f"version = {{{jaxr18.__version__}}}" in readme


def test_the_license_is_whole():
  text = (ROOT / "LICENSE").read_text()
  assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
