"""One small phase of training: 3 epochs of 6 steps on 96 digits of 8x8."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxr18.config import base
from jaxr18.data import dataset as data
from jaxr18.data.augment import Augment, normalize
from jaxr18.host.stop import StopSignal
from jaxr18.nn import network, spec
from jaxr18.train import checkpoint, loop, state
from jaxr18.train import terms as terms_lib
from jaxr18.train.average import Average
from jaxr18.train.evaluate import Validation
from jaxr18.train.feed import Feed
from jaxr18.train.hooks import Hook
from jaxr18.train.mesh import make_mesh, replicate
from jaxr18.train.step import Teachers, make_gradients, make_train_step
from jaxr18.train.store import PhaseStore
from jaxr18.train.teacher_table import CachedTeacher

EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE = 3, 6, 16
STEPS = EPOCHS * STEPS_PER_EPOCH


@functools.cache
def dataset() -> data.Dataset:
  return data.load("digits", validation=50, limit=96)


def tiny_network(seed: int = 0, bits: int = 32) -> network.Network:
  """Three convolutions and a head: 12 channels at most, 8x8 pixels."""
  tiny = spec.resnet((4, 12), (1, 1), (1, 2), (1, 1), (False, False),
                     classes=10, resolution=8)  # fmt: skip
  tiny = spec.with_bits(tiny, (("stem", 32, 32), (".*", bits, bits)))
  return network.init(jax.random.key(seed), tiny)


def half_pruned(net: network.Network) -> network.Network:
  """Every second weight of every kernel is masked."""

  def mask(path, p):
    if path[-1].key != "kernel":
      return jnp.array(True)
    return (jnp.arange(p.size) % 2 == 0).reshape(p.shape)

  masks = jax.tree_util.tree_map_with_path(mask, net.params)
  return net.replace(masks=masks)


def optimizer(
  name: str = "sgd", learning_rate=0.05, steps=STEPS, warmup_steps=3,
  hold_from=None, hold_rate=0.0, **changes,
):  # fmt: skip
  rate = state.Rate(learning_rate, steps, warmup_steps, hold_from, hold_rate)
  how = dict(weight_decay=1e-2, clip_norm=1.0)
  return state.make_optimizer(name, rate, **(how | changes))


def terms(
  taught: bool = False,
  *,
  loss: str = "kd",
  kd_weight: float = 0.9,
  temperature: float = 4.0,
  label_smoothing: float = 0.1,
  dkd_beta: float = 8.0,
  more: tuple[terms_lib.Term, ...] = (),
) -> tuple[terms_lib.Term, ...]:
  """Cross entropy, or with what a teacher says beside it."""
  hard = functools.partial(terms_lib.cross_entropy, label_smoothing)
  decoupled = functools.partial(terms_lib.decoupled, temperature, dkd_beta)
  if not taught:
    return (hard(), *more)
  if loss == "dkd":
    return (hard(), decoupled(20.0), *more)
  soft = {
    "kd": functools.partial(terms_lib.soft, temperature),
    "mse": terms_lib.squared,
    "dkd_mixed": functools.partial(decoupled, 0.0),
  }[loss]
  return (hard(1 - kd_weight), soft(kd_weight), *more)


def augmentation(flip: str = "none", **how) -> Augment:
  digits = dataset()
  return Augment(1, flip, mean=digits.mean, std=digits.std, **how)


def train_step(tx, *, dtype=jnp.float32, members=(), **changes):
  """The step of `_parts`."""
  terms, augment, average = _parts(**changes)
  mesh = make_mesh()
  return make_train_step(terms, tx, augment, average, mesh, dtype, members)


def gradients(**changes):
  """The gradients of the same step."""
  terms, augment, average = _parts(**changes)
  return make_gradients(terms, augment, average, make_mesh())


def _parts(
  ema_decay=0.9, flip="none", cutout=0, mixup=0.0, cutmix=0.0,
  mean_from=None, mean_every=1, self_teach=False, **losses,
):  # fmt: skip
  """Terms, augmentation and average from what a test changes."""
  return (
    terms(**losses),
    augmentation(flip, cutout=cutout, mixup=mixup, cutmix=cutmix),
    Average(ema_decay, mean_from, mean_every, self_teach),
  )


@functools.cache
def _default(learning_rate: float, dtype: str):
  tx = optimizer(learning_rate=learning_rate, clip_norm=0.0)
  return tx, train_step(tx, dtype=jnp.dtype(dtype), taught=True)


def run_phase(
  directory: pathlib.Path,
  *,
  learning_rate: float = 0.05,
  dtype: str = "float32",
  bits: int = 32,
  every_seconds: float = 1e9,
  stop: StopSignal | None = None,
  hooks: Callable[[loop.Training], list[Hook]] = lambda t: [],
):
  """Trains or goes on in a directory: a pruned net with a teacher and EMA."""
  tx, step = _default(learning_rate, dtype)
  net = half_pruned(tiny_network(bits=bits))
  return train(
    state.create(net, tx, average=True, estimated=True),
    step,
    directory,
    nets=(tiny_network(seed=1),),
    epochs=EPOCHS,
    every_seconds=every_seconds,
    estimate=_estimate,
    stop=stop,
    hooks=hooks,
  )


def train(
  start: state.TrainState,
  step: Callable,
  directory: pathlib.Path,
  *,
  nets: tuple[network.Network, ...] = (),
  key=None,
  seed: int | tuple[int, ...] = 5,
  epochs: int = 2,
  table: CachedTeacher | None = None,
  every_seconds: float = 1e9,
  estimate: Callable | None = None,
  stop: StopSignal | None = None,
  hooks: Callable[[loop.Training], list[Hook]] = lambda t: [],
):
  """Trains or goes on in a directory.

  Returns:
    The best network, and what is known of it.
  """
  mesh = make_mesh()
  key = jax.random.key(3) if key is None else key
  teachers, key = replicate((Teachers(nets), key), mesh)
  feed = Feed(dataset().train, BATCH_SIZE, seed, key, mesh, table)
  t = loop.Training(
    "tiny", step, feed, teachers, epochs, mesh,
    Validation(dataset(), 20, mesh), estimate,
  )  # fmt: skip
  meta = {
    "phase": "tiny",
    "network": "net" if start.average is None else "average",
    "spec": start.net.spec.to_json(),
    "data": dataset().fingerprint,
  }
  store = PhaseStore(directory, meta, every_seconds=every_seconds)
  loop.train(t, start, store, hooks(t), stop or StopSignal())
  info = store.close()
  best = directory / "checkpoints" / str(info["step"])
  return checkpoint.network_from(*checkpoint.read(best)), info


def _estimate(net: network.Network) -> network.Network:
  digits = dataset()
  images = digits.train.images[:BATCH_SIZE]
  x = normalize(images, digits.mean, digits.std, net.spec.resolution)
  return network.recalibrate(net, [x])


def phases(*names: str):
  """A config of such phases, an epoch of 2 steps each on 8x8 digits."""
  config = base(names)
  config.data.name, config.data.limit, config.data.validation = "digits", 64, 32
  config.progress, config.eval_batch_size = "none", 32
  for name in names:
    c = config[name]
    n = c.network
    n.widths, n.blocks, n.strides = (4, 8), (1, 1), (1, 2)
    n.groups, n.depthwise, n.resolution = (1, 1), (False, False), 8
    c.epochs, c.batch_size, c.optimizer.warmup_epochs = 1, 32, 0.0
    c.augment.pad = 1
  return config


class StopAfter(StopSignal):
  """A stop signal that comes during the n-th step, and is only noted."""

  def __init__(self, n):
    self.left = n
    super().__init__()

  alone = property(lambda self: False, lambda self, value: None)

  @property
  def received(self):
    self.left -= 1
    return self.left <= 0

  @received.setter
  def received(self, value):
    del value
