"""Times of a run's exported files, or of a network that is not trained yet."""

import pathlib

import jax
import numpy as np

from jaxr18.deploy.speed import BATCH, Speed, measure
from jaxr18.nn import network
from jaxr18.nn.spec import NetSpec
from jaxr18.run import export
from jaxr18.run.result import read


def of_exports(
  workdir: pathlib.Path, spec: NetSpec, phase: str = ""
) -> dict[str, Speed]:
  """Times each file of a phase's network that is where export writes it.

  Args:
    workdir: of a finished run.
    spec: of the network.
    phase: whose network, one of the run's; '' is the last.

  Raises:
    WorkdirError: the run is not finished, or damaged.
  """
  result = read(workdir)
  is_last = phase in ("", [*result.phases][-1])
  folder, seen = workdir / "export" / ("" if is_last else phase), result.seen
  size = seen.size if seen else 32
  shape = BATCH, size, size, spec.channels
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  found = {}
  for name, suffix in export.SUFFIXES.items():
    path = folder / f"network.{suffix}"
    if path.is_file():
      found[name] = measure(export.load(name, path), images)
  return found


def of_spec(spec: NetSpec) -> dict[str, Speed]:
  """Times a new network of a spec as JAX simulates it."""
  net = network.init(jax.random.key(0), spec)
  shape = BATCH, spec.resolution, spec.resolution, spec.channels
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  forward = jax.jit(network.forward)
  return {"jax": measure(lambda x: forward(net, x), images)}
