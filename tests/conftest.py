"""What several tests share."""

import os
import tempfile

# Compiled programs are shared by all tests and the commands that they start,
# and by the processes that test side by side, which inherit the variable.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _programs = tempfile.TemporaryDirectory(prefix="jaxr18-tests-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Several processes test side by side, each on a core.
if "PYTEST_XDIST_WORKER" in os.environ:
  os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module")
def quick_compilation():
  """Programs here run for less time than it takes to optimize them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
