"""Runs commands in forks of a process that has imported the libraries.

The imports take 3 seconds of a processor, which a test of what a command says
need not pay each time. What JAX and Python read of the environment when they
start (JAX_*, PYTHON*) is that of the tests: a test that changes it, or that is
about the start itself, needs a process of its own.
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
  ["jaxr18.cli", "jaxr18.config.checks", "jaxr18.run.experiment"]
)


def run(
  module: str, *flags: str, cwd, timeout: float = 300
) -> subprocess.CompletedProcess:
  """Runs `python -m module flags` and returns its status and its output."""
  with tempfile.TemporaryDirectory() as folder:
    paths = [pathlib.Path(folder, name) for name in ("stdout", "stderr")]
    process = _CONTEXT.Process(
      target=_command, args=(module, flags, str(cwd), dict(os.environ), *paths)
    )
    process.start()
    process.join(timeout)
    if process.exitcode is None:
      process.kill()
      raise subprocess.TimeoutExpired([module, *flags], timeout)
    texts = [path.read_text() for path in paths]
    return subprocess.CompletedProcess(
      [module, *flags], process.exitcode, *texts
    )


def _command(module, flags, cwd, environment, *paths) -> None:
  for fd, path in enumerate(paths, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(environment)
  sys.argv = [module, *flags]
  runpy.run_module(module, run_name="__main__", alter_sys=True)
