"""What several tests share."""

import contextlib
import gc
import importlib.metadata
import os
import resource
import tempfile

import pytest

# Compiled programs are shared by all tests and the commands that they start,
# and by the processes that test side by side, which inherit the variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _programs = tempfile.TemporaryDirectory(prefix="jaxr18-tests-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
  # Even small ones: reading one takes a tenth of the time to compile it.
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# They run for less time here than it takes to optimize them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older way to compile loops takes two thirds of the time: a test of four
# phases 20 s, with the emitters of jaxlib 0.10 30 s. XLA ends a process whose
# flags it does not know, so other releases get none.
os.environ["XLA_FLAGS"] = (
  "--xla_cpu_use_fusion_emitters=false"
  if importlib.metadata.version("jaxlib").startswith("0.10.")
  else ""
)
# Python looks for cycles after every 700 new objects, of which tracing makes
# millions that live on: a sixth of the time, which frees next to nothing.
gc.set_threshold(100_000, 50, 50)
# Several processes test side by side, each on a core.
if "PYTEST_XDIST_WORKER" in os.environ:
  os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="module")
def _programs_that_are_done():
  """Frees compiled programs before the process has too many of them.

  Each takes some maps of memory, of which Linux allows a process 65,530. One
  process that tests everything would end in a segmentation fault in XLA.
  """
  yield
  with open("/proc/self/maps", "rb") as maps:
    count = sum(1 for _ in maps)
  if count > 30_000:
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def no_file_above():
  """A context in which no file grows beyond so many bytes, as on a full disk.

  Processes that are started in it inherit that.
  """

  @contextlib.contextmanager
  def limited(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)

  return limited
