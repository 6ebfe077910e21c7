"""Starts the real command on the tiny config, in processes of its own."""

import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

from jaxr18.host import sealed
from jaxr18.train import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("tiny_config.py")
# With a limit on the size of files: what a full disk looks like.
_CODE = """
import os, resource, runpy
if "LARGEST_FILE" in os.environ:
  limit = int(os.environ["LARGEST_FILE"])
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("jaxr18.main", run_name="__main__")
"""


class Running(subprocess.Popen):
  """A command whose output is read as it comes: a full pipe would stop it.

  XLA of jaxlib 0.10.0 warns of each program that it reads from a cache.
  """

  def __init__(self, *args, **options):
    super().__init__(*args, **options)
    self.said = []
    self.reader = threading.Thread(
      target=self.said.extend, args=[self.stdout], daemon=True
    )
    self.reader.start()

  def communicate(self, input=None, timeout=None):
    self.wait(timeout)
    self.reader.join(timeout)
    if self.reader.is_alive():  # what it started holds the pipe
      raise subprocess.TimeoutExpired(self.args, timeout)
    return "".join(self.said), None


def start(workdir, *flags, epochs=3, cache=None, **environment):
  """A running command."""
  return _start(
    [sys.executable, "-c", _CODE], workdir, flags, epochs, cache, environment
  )


def start_local(
  workdir, *flags, epochs=3, cache=None, kind=Running, **environment
):
  """The same in two processes, through launch/local.sh."""
  environment["PYTHON"] = sys.executable
  script = ["bash", str(ROOT / "launch" / "local.sh"), "--processes=2"]
  return _start(script, workdir, flags, epochs, cache, environment, kind)


def _start(command, workdir, flags, epochs, cache, environment, kind=Running):
  env = os.environ | {"PYTHONWARNINGS": "ignore"} | environment
  if cache is not None:
    env |= {
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
  config = f"--config={CONFIG}:{epochs}"
  return kind(
    [*command, config, f"--workdir={workdir}", *flags],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
  )


def finish(process, status=0, seconds=300):
  """What it printed, once it has ended with that status."""
  text, _ = process.communicate(timeout=seconds)
  assert process.returncode == status, text
  assert "Traceback" not in text, text
  return text


def wait_for(path, process, seconds=300):
  """Until the file is there and not empty."""
  end = time.monotonic() + seconds
  while not (path.exists() and (path.is_dir() or path.stat().st_size)):
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < end, f"{path} did not come"
    time.sleep(0.02)


def metrics(workdir):
  """The lines of metrics.jsonl without their timings."""
  rows = sealed.read_lines(workdir / "train" / "metrics.jsonl", True).rows
  for row in rows:
    del row["seconds"], row["images_per_second"]
  return rows


def last_arrays(workdir):
  folder = workdir / "train" / "checkpoints"
  last = max(int(p.name) for p in folder.iterdir())
  return checkpoint.read(folder / str(last))[0]


def run_python(code, **env):
  """Runs code in a new process; returns what it printed."""
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    env=os.environ | env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout
