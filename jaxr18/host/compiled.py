"""Keeps compiled programs for the next run."""

import hashlib
import os
import pathlib
import platform
import time
import zlib

import jax

from jaxr18.host import cache

_MONTH = 30 * 24 * 3600.0  # seconds


def keep_compiled() -> pathlib.Path | None:
  """Lets JAX keep what it compiles in the user's cache folder.

  A step of ResNet-18 compiles in 5 to 30 seconds on a CPU, and a run that goes
  on from a checkpoint compiles it again. The kept program is the same program:
  a run that reads it trains to the same bits. It finds oneDNN's operations by
  name, and they are there: a program is looked up by its lowered text, and
  lowering one of them registers it.

  Folders are by processor and number of cores, since a home folder may be
  shared: XLA compiles for the instructions of one and divides work by the
  other. What is older than a month is removed, and what is cut off: JAX writes
  an entry in place, so a kill or a full disk leaves a part, which would be
  reported by every later run and replaced by none.

  Returns:
    The folder; None where it cannot be written, or JAX_COMPILATION_CACHE_DIR
    or JAX_ENABLE_COMPILATION_CACHE already decides.
  """
  if (
    jax.config.values["jax_compilation_cache_dir"]
    or not jax.config.values["jax_enable_compilation_cache"]
  ):
    return None
  folder = cache.folder() / f"xla-{_machine()}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
      old = time.time() - file.stat().st_mtime > _MONTH
      if file.is_file() and (old or _cut_off(file.read_bytes())):
        file.unlink(missing_ok=True)
  except OSError:
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # JAX's own second leaves out the evaluation of a small network.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  return folder


def _cut_off(entry: bytes) -> bool:
  """Whether it is a beginning of what zlib packed (JAX without zstandard)."""
  unpack = zlib.decompressobj()
  try:
    unpack.decompress(entry)
  except zlib.error:
    return False
  return not unpack.eof


def _machine() -> str:
  """A digest of what XLA's code for this machine depends on."""
  cores = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
  )
  parts = [platform.machine(), platform.processor(), str(cores)]
  try:
    with open("/proc/cpuinfo") as f:
      parts += sorted({x for x in f if x.startswith(("flags", "model name"))})
  except OSError:
    pass
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
