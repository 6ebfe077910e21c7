"""A batch that CPU devices share: fast calls on each, results as of one."""

from command import run_python

SCRIPT = """
import types
import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import AxisType
import jaxr18
from jaxr18.compress import ensemble
from jaxr18.data.augment import Augment
from jaxr18.nn import network, onednn
from jaxr18.nn.spec import with_bits
from jaxr18.train import state as state_lib, terms
from jaxr18.train.evaluate import predict
from jaxr18.train.mesh import replicate, shard
from jaxr18.train.step import Batch, Member, Teachers, make_train_step

meshes = [jax.make_mesh((n,), ('data',), axis_types=(AxisType.Auto,),
                        devices=jax.devices()[:n]) for n in (1, 2)]
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
labels, index = rng.integers(0, 10, 16, np.int32), np.arange(16, dtype=np.int32)
channels = types.SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3)
augment = Augment(2, 'random', mean=channels.mean, std=channels.std)
optimizer = state_lib.make_optimizer('sgd', state_lib.Rate(0.01, 100))
flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

def start(seed, spec):
  net = network.init(jax.random.key(seed), spec)
  return network.calibrate(net, jnp.asarray(images / 128 - 1, jnp.float32))

def stepped(nets, mesh, alone):
  'Statistics and loss after a step, and by how much it moved the parameters.'
  data, key, make = Batch(images, labels, index), jax.random.key(5), None
  net = nets[0] if alone else ensemble.stack(nets)
  create = lambda net: state_lib.create(net, optimizer, False)
  if not alone:
    key, create = jax.random.split(key, len(nets)), jax.vmap(create)
    data = jax.tree.map(lambda x: np.stack([x] * len(nets)), data)
  members = () if alone else (Member(1.0),) * len(nets)
  step = make_train_step(
    (terms.cross_entropy(),), optimizer, augment, None, mesh, members=members)
  before = flat(jax.device_get(net.params))
  args = (replicate(create(net), mesh), Teachers(),
          shard(data, mesh, 0 if alone else 1), replicate(key, mesh), 0)
  text = step.lower(*args).as_text()
  assert ('@jaxr18_conv_grad_kernel' in text) == onednn.ready()
  assert ('@jaxr18_batch_norm' in text) == onednn.ready()
  assert ('stablehlo.convolution' in text) != onednn.ready()
  new, loss = jax.device_get(step(*args))
  return flat((new.net.batch_stats, loss)), flat(new.net.params) - before

dense = jaxr18.resnet((8, 16), blocks=1)
for spec, alone, bound in (
  (dense, True, 1e-4),
  (jaxr18.resnet((8, 16), blocks=1, groups=2), True, 1e-4),
  (jaxr18.resnet((8, 16), blocks=1, depthwise=True), True, 1e-4),
  (dense, False, 1e-4),
  (with_bits(dense, [('.*', 8, 8)]), True, 1e-2),  # codes in the middle move
):
  nets = [start(0, spec), start(1, spec)]
  logits = [predict(nets[0], images, channels, 16, m) for m in meshes]
  np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)
  (one, moved), (two, likewise) = (
    stepped([start(0, spec), start(1, spec)], m, alone) for m in meshes)
  np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
  off = np.linalg.norm(moved - likewise) / np.linalg.norm(moved)
  assert off < bound, (spec, alone, off)
print('equal')
"""


def test_two_devices_train_as_one():
  flags = "--xla_force_host_platform_device_count=2"
  assert run_python(SCRIPT, XLA_FLAGS=flags).split() == ["equal"]


def test_two_devices_train_as_one_without_fast_calls():
  script = SCRIPT.replace("onednn.ready()", "False")
  flags = "--xla_force_host_platform_device_count=2"
  got = run_python(script, XLA_FLAGS=flags, JAXR18_CONV="xla")
  assert got.split() == ["equal"]
