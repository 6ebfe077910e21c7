"""Memory that a step frees serves the next step."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from jaxr18.nn.memory import keep_freed_memory
if sys.argv[1] == 'keep':
  assert keep_freed_memory()
import jax
from jax import numpy as jnp
@jax.jit
def step(x):
  x = jax.lax.optimization_barrier(x + 1)  # working memory of 64 MiB
  return x.sum()
x = jnp.ones((1 << 12, 1 << 12))
step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_second_step_asks_the_kernel_for_little():
  def faults(argument):
    command = [sys.executable, "-c", CODE, argument]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)

  assert faults("keep") * 10 < faults("return")
