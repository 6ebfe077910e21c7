"""What several tests share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation():
  """Programs here run for less time than it takes to optimize them."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
