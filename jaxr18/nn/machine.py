"""What of a machine decides a run's bits, beside its config."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

from jaxr18.nn import onednn

# From the widest down, as the flags of /proc/cpuinfo call them.
_INSTRUCTIONS = ("amx_tile", "avx512f", "avx2", "avx")
_PACKAGES = ("jax", "jaxlib", onednn.LIBRARY)


def arithmetic() -> dict[str, Any]:
  """Describes how numbers are computed here, on which results may depend.

  Returns:
    JSON: the devices; `convolutions`, their path; `instructions`, the widest
    set of the processor, and `onednn_instructions`, the set that oneDNN uses;
    `threads`, the cores by affinity, and `onednn_threads`; XLA_FLAGS
    and JAX's own settings; the versions of what compiles and computes.
  """
  path = os.environ.get("JAXR18_CONV") or "auto"
  on_cpu = jax.default_backend() == "cpu"
  serves = path in ("auto", "onednn") and on_cpu and onednn.ready()
  if path == "auto":
    path = "onednn" if serves else "xla"
  device = jax.devices()[0]
  return {
    "devices": f"{jax.device_count()} x {device.device_kind}",
    "processes": jax.process_count(),
    "convolutions": path,
    "instructions": _instructions(),
    "onednn_instructions": onednn.isa() if serves else None,
    "threads": threads(),
    "onednn_threads": onednn.threads() if serves else None,
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "optimized": not jax.config.read("jax_disable_most_optimizations"),
    "x64": jax.config.values["jax_enable_x64"],
    "matmul_precision": jax.config.values["jax_default_matmul_precision"],
    **{name: _version(name) for name in _PACKAGES},
  }


def threads() -> int:
  """Counts the cores that this process may run on."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _instructions() -> str:
  flags = onednn.instructions().split()
  known = (name for name in _INSTRUCTIONS if name in flags)
  return next(known, platform.machine())


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None
