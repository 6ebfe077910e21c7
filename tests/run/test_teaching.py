"""What a step is taught: its loss against the losses of the same images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from odd_nets import fast_jit

from jaxr18.compress import dampen, distill
from jaxr18.config import build
from jaxr18.config.faults import ConfigError
from jaxr18.data.augment import (
  Augment,
  augment,
  draw_cutmix,
  draw_mixup,
  normalize,
)
from jaxr18.host.stop import StopSignal
from jaxr18.nn import network
from jaxr18.run import experiment
from jaxr18.train import loop, state, terms
from jaxr18.train.average import Average
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.step import Batch, Teachers

DIGITS = tiny_run.dataset()
KEY = jax.random.key(3)
NET = tiny_run.tiny_network(seed=0)
TEACHERS = tuple(tiny_run.tiny_network(seed=i) for i in (1, 2))
# Whole: op by op, each shape of each operation would be compiled by itself.
forward, forward_train = map(fast_jit, (network.forward, network.forward_train))
forward_stages = fast_jit(network.forward_stages, static_argnames="train")
PART = DIGITS.train.take(slice(0, tiny_run.BATCH_SIZE))


def first_step(teacher, projections=None, epoch=0, net=NET, **how):
  """The state after the first step, and its loss."""
  how = dict(label_smoothing=0.0, flip="random", taught=True) | how
  tx = tiny_run.optimizer(clip_norm=0.0)
  start = state.create(net, tx, average=True, projections=projections)
  batch = shard(Batch(PART.images, PART.labels, PART.index), make_mesh())
  return tiny_run.train_step(tx, **how)(
    replicate(start, make_mesh()), teacher, batch, KEY, np.int32(epoch)
  )


@functools.cache
def inputs(mix=lambda images: images):
  """The images that the first step sees."""
  images = mix(augment(KEY, PART.images, 0, Augment(1, "random")))
  return normalize(images, DIGITS.mean, DIGITS.std, 8)


def soft(logits, teacher_logits, t=4.0):
  return distill.soft_loss(logits, teacher_logits, t)


def test_several_teachers_teach_by_their_mean_probability():
  _, loss = first_step(Teachers(TEACHERS), kd_weight=1.0)
  x = inputs()
  logits, _ = forward_train(NET, x)
  p = np.mean([jax.nn.softmax(forward(t, x)) for t in TEACHERS], 0)
  assert loss == pytest.approx(float(soft(logits, jnp.log(p))), rel=1e-4)
  assert loss != pytest.approx(
    float(soft(logits, forward(TEACHERS[0], x))), rel=1e-3
  )


def test_several_teachers_teach_by_their_mean_logits():
  weight = 0.25
  _, loss = first_step(Teachers(TEACHERS), kd_weight=weight, loss="mse")
  x = inputs()
  logits, _ = forward_train(NET, x)
  mean = np.mean([forward(t, x) for t in TEACHERS], 0)
  soft = float(np.mean((logits - mean) ** 2)) / 2
  hard = distill.cross_entropy(logits, PART.labels)
  expected = weight * soft + (1 - weight) * float(hard)
  assert loss == pytest.approx(expected, rel=1e-4)


def test_weights_are_drawn_to_their_grids():
  net = tiny_run.tiny_network(bits=3)
  how = dict(net=net, taught=False, epoch=1)
  _, plain = first_step(Teachers(), **how)
  drawn = (terms.dampening(0.1, 3),)
  _, drawn = first_step(Teachers(), more=drawn, **how)
  pull = 0.1 * (1 - np.cos(np.pi * 2 / 3)) / 2
  expected = pull * dampen.dampening_loss(net.params, net.spec)
  assert float(drawn - plain) == pytest.approx(float(expected), rel=1e-3)
  assert expected > 0.01


def test_the_average_teaches():
  _, loss = first_step(Teachers(), kd_weight=1.0, self_teach=True)
  x = inputs()
  logits, _ = forward_train(NET, x)  # by the batch's statistics
  expected = soft(logits, forward(NET, x))  # by the running ones
  assert loss == pytest.approx(float(expected), rel=1e-4)
  assert loss > 1e-3


@pytest.mark.parametrize("mixes", ["mixup", "cutmix"])
def test_teacher_and_student_see_the_same_mixture(mixes):
  how = {"kd_weight": 0.5, mixes: 0.5}
  _, loss = first_step(Teachers(TEACHERS[:1]), **how)
  x = inputs()
  if mixes == "mixup":
    share, partner = draw_mixup(KEY, 0, 0.5, len(PART))
    x = share * x + (1 - share) * x[partner]
  else:
    size = PART.images.shape[1:3]
    inside, share, partner = draw_cutmix(KEY, 0, 0.5, len(PART), size)
    x = inputs(lambda images: jnp.where(inside, images[partner], images))
  assert 0 < share < 1 and sorted(partner) == list(range(len(PART)))
  labels = jax.nn.one_hot(PART.labels, 10)
  labels = share * labels + (1 - share) * labels[partner]
  logits, _ = forward_train(NET, x)
  hard = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), -1))
  expected = 0.5 * hard + 0.5 * soft(logits, forward(TEACHERS[0], x))
  assert loss == pytest.approx(float(expected), rel=1e-4)


def test_hints_train_the_projections():
  channels = network.stage_features(NET.spec)
  projections = distill.init_projections(KEY, channels, channels)
  before = jax.device_get(projections)
  after, loss = first_step(
    Teachers(TEACHERS[:1]), projections, kd_weight=0.0,
    more=(terms.fitnets(3.0),),
  )  # fmt: skip
  x = inputs()
  logits, stages, _ = forward_stages(NET, x, train=True)
  hints = forward_stages(TEACHERS[0], x)[1]
  expected = distill.cross_entropy(logits, PART.labels)
  expected += 3 * distill.fitnets_loss(stages, hints, before)
  assert loss == pytest.approx(float(expected), rel=1e-4)
  for name, kernel in before.items():
    assert np.any(after.projections[name]["kernel"] != kernel["kernel"])


@pytest.mark.parametrize("epoch, share", [(0, 0.05), (2, 0.15), (25, 1.0)])
def test_dkd_grows_over_the_first_epochs(epoch, share):
  # As mdistiller's, whose first epoch is 1: min(epoch / 20, 1).
  _, loss = first_step(Teachers(TEACHERS[:1]), epoch=epoch, loss="dkd")
  x = inputs()
  logits, _ = forward_train(NET, x)
  one = forward(TEACHERS[0], x)
  expected = distill.cross_entropy(logits, PART.labels)
  expected += share * distill.decoupled_loss(logits, one, PART.labels, 4.0, 8.0)
  assert loss == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("diversity", distill.DIVERSITIES)
def test_it_differs_from_the_others(diversity):
  teachers = Teachers(TEACHERS[:1], TEACHERS[1:])
  _, loss = first_step(
    teachers, kd_weight=0.9, loss="dkd_mixed", dkd_beta=2.0,
    more=(terms.diversity(diversity, 0.7),),
  )  # fmt: skip
  x = inputs()
  logits, _ = forward_train(NET, x)
  one, other = (forward(t, x) for t in TEACHERS)
  expected = 0.1 * distill.cross_entropy(logits, PART.labels)
  expected += 0.9 * distill.decoupled_loss(logits, one, PART.labels, 4.0, 2.0)
  likeness = distill.DIVERSITIES[diversity]
  expected += 0.7 * likeness(logits, other[None], PART.labels)
  assert loss == pytest.approx(float(expected), rel=1e-4)


def test_swa_is_its_papers():
  """The rate falls to where the mean begins, stays, and ends no epoch at 0."""
  c = tiny_run.phases("train").train
  c.epochs, c.average.swa_from = 4, 0.5
  c.optimizer.learning_rate = 0.1
  # After 2, 3 and 4 epochs, which are steps 5, 8 and 11 from 0.
  assert build.average(c, 3) == Average(0.0, 5, 3)
  assert build.hold_from(c, 3) == 6
  how = dict(steps=12, warmup_steps=0, momentum=0.0, weight_decay=0.0)
  tx = tiny_run.optimizer(
    learning_rate=0.1, clip_norm=0.0, hold_from=6,
    hold_rate=c.average.swa_rate, **how,
  )  # fmt: skip
  one = {"kernel": jnp.ones(1)}
  opt_state, rates = tx.init(one), []
  for _ in range(12):
    updates, opt_state = tx.update(one, opt_state, one)
    rates.append(-float(updates["kernel"][0]))
  np.testing.assert_allclose(rates[:7:3], [0.1, 0.075, 0.05], rtol=1e-5)
  np.testing.assert_allclose(rates[6:], 0.05, rtol=1e-5)
  # Without it: the mean of a run's tail, under the rate of every run.
  c.average.swa_rate = 0.0
  assert build.average(c, 3) == Average(0.0, 6, 1)
  assert build.hold_from(c, 3) is None
  c.average.swa_from = 1.0
  assert build.average(c, 3) is None and build.hold_from(c, 3) is None


def test_the_cyclic_rate_of_swa_is_its_papers():
  """t = (mod(i - 1, c) + 1) / c of the paper's section 3.1, and its ends."""
  c = tiny_run.phases("train").train
  c.epochs, c.average.swa_from, c.average.swa_cycle = 6, 1 / 3, 2
  start, cycle = build.hold_from(c, 3), 6
  # After 2, 4 and 6 epochs, which are steps 5, 11 and 17 from 0.
  assert build.average(c, 3) == Average(0.0, start - 1, cycle)
  tx = build.optimizer(c, 3, movement=False)
  one = {"kernel": jnp.ones(1)}
  state_, moves = tx.init(one), []
  for _ in range(18):
    updates, state_ = tx.update({"kernel": jnp.zeros(1)}, state_, one)
    moves.append(-float(updates["kernel"][0]))
  # Weight decay and Nesterov's momentum alone make the first move.
  decay = c.optimizer.weight_decay
  i = np.arange(1, 13)
  t = ((i - 1) % cycle + 1) / cycle
  high, low = c.average.swa_rate, c.average.swa_low
  rates = c.optimizer.learning_rate * ((1 - t) * high + t * low)
  velocity, want = 0.0, []
  for _ in range(18):
    velocity = 0.9 * velocity + decay
    want.append(decay + 0.9 * velocity)
  np.testing.assert_allclose(
    np.divide(moves, want)[6:], rates, rtol=1e-5, atol=1e-8
  )


@pytest.mark.parametrize("every", [1, 2])
def test_the_mean_of_weights_since(every):
  """The average is NumPy's mean of those after step 2 and every so many."""
  tx = tiny_run.optimizer(clip_norm=0.0)
  step = tiny_run.train_step(tx, ema_decay=0.0, mean_from=2, mean_every=every)
  now = replicate(state.create(NET, tx, average=True), make_mesh())
  batch = shard(Batch(PART.images, PART.labels, PART.index), make_mesh())
  kernels = []
  for i in range(5):
    now, _ = step(now, Teachers(), batch, KEY, np.int32(0))
    kernels.append(np.asarray(now.net.params["stem"]["kernel"]))
    got = now.average.params["stem"]["kernel"]
    want = np.mean(kernels[2::every], 0) if i >= 2 else kernels[i]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_from_a_config_to_a_table_and_back(tmp_path):
  """Two teachers, their table filled at once, and a second run that reads."""
  config = tiny_run.phases("one", "two", "student")
  config.one.epochs = config.two.epochs = 0
  config.student.teacher.source, config.student.teacher.cache = (
    "one, two",
    "full",
  )
  result = experiment.run(config, tmp_path)
  (folder,) = (tmp_path / "teacher_logits").iterdir()
  checks = np.fromfile(folder / "checks.u32", np.uint32)
  assert np.count_nonzero(checks) == 64 * 18
  before = {p: p.read_bytes() for p in folder.iterdir()}
  (tmp_path / "result.json").unlink()
  (tmp_path / "student" / "phase.json").unlink()
  again = experiment.run(config, tmp_path)
  assert again.test.correct == result.test.correct
  assert {p: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.slow
def test_stages_that_do_not_fit_are_refused(tmp_path):
  config = tiny_run.phases("teacher", "student")
  config.teacher.epochs = 0
  config.teacher.network.strides = (1, 1)
  config.teacher.network.resolution = 12
  config.student.teacher.source, config.student.teacher.features = (
    "teacher",
    "attention",
  )
  with pytest.raises(ConfigError, match=r"\[8, 4\] and \[12, 12\]"):
    experiment.run(config, tmp_path)


@pytest.mark.slow
def test_a_signal_is_seen_before_a_table_is_filled(tmp_path):
  config = tiny_run.phases("teacher", "student")
  config.teacher.epochs = 0
  config.student.teacher.source, config.student.teacher.cache = (
    "teacher",
    "full",
  )

  class Later(StopSignal):
    """Received only once the teacher is there."""

    @property
    def received(self):
      return (tmp_path / "teacher" / "phase.json").exists()

    @received.setter
    def received(self, value):
      del value

  with pytest.raises(loop.Stopped, match=r"config\.student stopped"):
    experiment.run(config, tmp_path, Later())
  assert not (tmp_path / "teacher_logits").exists()
