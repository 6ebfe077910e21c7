"""Memory that is freed serves the next allocation."""

import platform
import subprocess
import sys

import pytest

# XLA's own use of memory differs from run to run, so the C library is asked.
CODE = """
import ctypes, resource, sys
from jaxr18.host.memory import keep_freed_memory
if sys.argv[1] == 'keep':
  assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use(size=1 << 26):
  block = libc.malloc(size)
  libc.memset(block, 1, size)
  libc.free(block)
def faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
before = faults()
for _ in range(10):
  use()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_is_freed_is_not_asked_of_the_kernel_again():
  def faults(argument):
    command = [sys.executable, "-c", CODE, argument]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)

  # 10 times 64 MiB are 320 huge pages, or 163,840 of 4 KiB.
  assert faults("keep") * 10 < faults("return")
