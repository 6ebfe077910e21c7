"""What a GPU is given to compile; none is needed to look at it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxr18.compress import ensemble
from jaxr18.nn import network, spec
from jaxr18.train import state
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.step import Batch, Member, Teachers

PART = tiny_run.dataset().train.take(slice(0, tiny_run.BATCH_SIZE))
# Convolutions and their results' types, as StableHLO writes them.
CONVOLUTION = re.compile(r"stablehlo\.convolution.*->\s*tensor<[\dx]*x(\w+)>")


def lowered(net, dtype, members=0) -> str:
  """A taught training step for CUDA, as StableHLO."""
  tx = tiny_run.optimizer()
  arrays, key = (PART.images, PART.labels, PART.index), jax.random.key(0)
  if members:
    net = ensemble.stack([net] * members)
    arrays = [np.stack([x] * members) for x in arrays]
    key = jax.random.split(key, members)
  start = replicate(state.create(net, tx, average=True), make_mesh())
  step = tiny_run.train_step(
    tx, dtype=dtype, members=(Member(1.0),) * members, taught=True
  )
  teachers = Teachers((tiny_run.tiny_network(1),))
  batch = shard(Batch(*arrays), make_mesh(), int(members > 0))
  traced = step.trace(start, teachers, batch, key, np.int32(0))
  return traced.lower(lowering_platforms=("cuda",)).as_text()


def depthwise():
  tiny = spec.resnet((4, 12), (1, 1), (1, 2), (1, 2), (True, False),
                     classes=10, resolution=8)  # fmt: skip
  return network.init(jax.random.key(0), tiny)


@pytest.mark.parametrize(
  "net, members",
  [
    (tiny_run.tiny_network(), 0),
    (tiny_run.tiny_network(bits=3), 0),
    (depthwise(), 0),
    (tiny_run.tiny_network(bits=4), 2),
  ],
  ids=["float", "3 bits", "depthwise and grouped", "population of 4 bits"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolutions_are_of_its_type_and_no_call_is_the_cpus(
  net, members, dtype
):
  text = lowered(net, jnp.dtype(dtype), members)
  assert not re.search(r"jaxr18_|onednn|xla_ffi|callback", text)
  types = CONVOLUTION.findall(text)
  # Forward, of the teacher too, and both gradients of all but the images'.
  assert len(types) >= 4 * sum(
    layer.groups == 1 and layer.kernel > 1 for layer in net.spec.layers()
  )
  # A kernel's gradient is summed in float32; nothing else is wider.
  short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
  wide = [t for t in types if t != short]
  assert set(wide) <= {"f32"} and len(wide) <= len(types) / 2
