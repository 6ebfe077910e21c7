"""A member of a population is what a run alone of its seed is."""

import fields
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxr18.compress import ensemble
from jaxr18.config import base
from jaxr18.config.faults import ConfigError
from jaxr18.data import dataset as data
from jaxr18.host.stop import Stopped
from jaxr18.run import experiment, sources
from jaxr18.run.result import read
from jaxr18.train import checkpoint, state
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.step import Batch, Member, Teachers
from jaxr18.train.teacher_table import CachedTeacher

pytestmark = pytest.mark.slow

DIGITS = tiny_run.dataset()
TEACHER = tiny_run.tiny_network(seed=9)
SEEDS, RATES, HEATS = (5, 6, 7), (1.0, 0.5, 2.0), (1.0, 2.0, 0.5)
MEMBERS = tuple(map(Member, RATES, HEATS))
KEYS = jnp.stack([jax.random.key(s) for s in SEEDS])


def member(i):
  """The last has a mask that the others have not."""
  net = tiny_run.tiny_network(seed=i)
  return tiny_run.half_pruned(net) if i == 2 else net


NETS = [member(i) for i in range(3)]


def rows(i, step):
  order = data_order(SEEDS[i])
  return order[step]


def data_order(seed):
  return data.batches(len(DIGITS.train), tiny_run.BATCH_SIZE, seed, epoch=0)


def batch(index):
  some = DIGITS.train.take(index)
  whole = Batch(some.images, some.labels, some.index)
  return shard(whole, make_mesh(), index.ndim - 1)


def assert_close(got, want):
  leaves = jax.tree_util.tree_leaves_with_path(want)
  for (path, a), b in zip(leaves, jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(
      b, np.broadcast_to(a, b.shape), rtol=2e-4, atol=2e-5,
      err_msg=jax.tree_util.keystr(path),
    )  # fmt: skip


def test_a_step_of_each_member_alone():
  """Three steps with other seeds, rates, temperatures and masks."""
  how = dict(flip="alternating", cutout=2, taught=True)
  tx = tiny_run.optimizer()
  together = tiny_run.train_step(tx, members=MEMBERS, **how)
  many = state.create(ensemble.stack(NETS), tx, average=True)
  many = replicate(many, make_mesh())
  for step in range(3):
    index = np.stack([rows(i, step) for i in range(3)])
    args = Teachers((TEACHER,)), batch(index), KEYS, np.int32(0)
    many, losses = together(many, *args)
  i = 2  # whose rate, temperature and masks are no other member's
  tx = tiny_run.optimizer(learning_rate=0.05 * RATES[i])
  alone = tiny_run.train_step(tx, temperature=4.0 * HEATS[i], **how)
  one = replicate(state.create(NETS[i], tx, average=True), make_mesh())
  for step in range(3):
    one, loss = alone(
      one, Teachers((TEACHER,)), batch(rows(i, step)), KEYS[i], np.int32(0)
    )
  assert losses[i] == pytest.approx(float(loss), rel=1e-4)
  got = jax.tree.map(lambda x: x[i], many)
  assert_close(got.net, one.net)
  assert_close(got.average, one.average)
  assert_close(got.totals, one.totals)
  # Its pruned weights stay zero, and the others' do not.
  kernel = got.net.params["stem"]["kernel"].ravel()
  assert not kernel[1::2].any() and kernel[::2].all()
  assert many.net.params["stem"]["kernel"][0].all()


TX = tiny_run.optimizer(clip_norm=0.0)
STEP = tiny_run.train_step(TX, members=MEMBERS, taught=True)


def run(directory, stop=None):
  """Three members, taught from a table."""
  table = CachedTeacher(
    (TEACHER,), DIGITS, directory / "table", pad=1, flip="none"
  )
  start = state.create(ensemble.stack(NETS), TX, average=True)
  return tiny_run.train(
    start, STEP, directory, key=KEYS, seed=SEEDS, table=table, stop=stop
  )


def test_resumed_it_has_the_same_bits(tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  _, info = run(whole)
  for n in (4, 5):
    with pytest.raises(Stopped):
      run(cut, tiny_run.StopAfter(n))
  _, again = run(cut)
  assert info | {"seconds": 0} == again | {"seconds": 0}
  assert len(info["validation_accuracies"]) == 3
  assert info["validation_accuracy"] == pytest.approx(
    np.mean(info["validation_accuracies"])
  )
  got, want = (
    checkpoint.read(d / "checkpoints" / "12")[0] for d in (cut, whole)
  )
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


def tiny_config(**train):
  """A teacher and one phase that it teaches, on 64 digits of 8x8."""
  config = base(("teacher", "train"))
  config.data.name, config.data.limit, config.data.validation = "digits", 64, 32
  config.progress, config.eval_batch_size = "none", 32
  for name in config.phases:
    c = config[name]
    c.network.widths, c.network.blocks, c.network.strides = (
      (4, 8),
      (1, 1),
      (1, 2),
    )
    c.network.groups, c.network.depthwise = (1, 1), (False, False)
    c.network.resolution = 8
    c.epochs, c.batch_size, c.optimizer.warmup_epochs = 1, 32, 0.0
    c.augment.pad, c.optimizer.learning_rate = 1, 0.05
  config.teacher.epochs = 0
  config.train.teacher.source, config.train.epochs = "teacher", 2
  for name, value in train.items():
    fields.put(config, f"train.{name.replace('__', '.')}", value)
  return config


def last_net(workdir, i, steps=4):
  """Member i as it is after its last step, whichever step was chosen."""
  arrays, meta = checkpoint.read(workdir / "train" / "checkpoints" / str(steps))
  return ensemble.unstack(checkpoint.network_from(arrays, meta))[i]


@pytest.fixture(scope="module")
def population(tmp_path_factory):
  config = tiny_config(
    population__size=2,
    population__learning_rates=(1.0, 0.5),
    teacher__cache="lazy",
    prune__density=0.5,
    prune__begin=0.5,
  )
  workdir = tmp_path_factory.mktemp("population")
  return config, workdir, experiment.run(config, workdir)


class TestExperiment:
  def test_a_member_is_the_run_of_its_seed(self, population, tmp_path):
    config, workdir, result = population
    alone = tiny_config(
      prune__density=0.5, prune__begin=0.5, optimizer__learning_rate=0.025
    )
    alone.seed = 1
    # The teacher is the phase before, of another seed here: take that one.
    alone.train.teacher.source = str(workdir / "teacher_run")
    teacher = tiny_config()
    teacher.phases = ("teacher",)
    del teacher.unlock()["train"]
    experiment.run(teacher.lock(), workdir / "teacher_run")
    experiment.run(alone, tmp_path)
    got, want = last_net(workdir, 1), last_net(tmp_path, 0)
    assert_close(got, want)
    kept = sum(int(np.sum(m)) for m in jax.tree.leaves(want.masks))
    assert kept < sum(p.size for p in jax.tree.leaves(want.params))

  def test_its_result(self, population):
    config, workdir, result = population
    assert read(workdir) == result and result.is_population
    members, saved = result.members, result.to_json()
    assert [m.seed for m in members] == [0, 1]
    assert [m.learning_rate for m in members] == [0.05, 0.025]
    found = [m.test.accuracy for m in members]
    assert [m.test.correct / 64 for m in members] == found
    assert result.test.accuracy == pytest.approx(np.mean(found))
    assert saved["members_accuracy_mean"] == pytest.approx(np.mean(found))
    assert saved["members_accuracy_std"] == pytest.approx(np.std(found, ddof=1))
    assert (result.test.count, result.images) == (128, 64)
    assert result.test.correct == sum(m.test.correct for m in members)
    assert result.disagreement[0][1] == result.disagreement[1][0] > 0
    assert result.score.members == 1

  def test_members_load_as_networks(self, population):
    _, workdir, result = population
    nets = sources.load_networks(workdir)
    assert len(nets) == 2 and nets[0].spec == nets[1].spec
    with pytest.raises(checkpoint.CheckpointError, match="holds 2 networks"):
      sources.load_network(workdir)
    masks = [np.concatenate([np.ravel(m) for m in jax.tree.leaves(n.masks)])
             for n in nets]  # fmt: skip
    assert (masks[0] != masks[1]).any()  # each was pruned by its own weights

  def test_a_next_phase_starts_each_from_its_own(self, population):
    config, workdir, _ = population
    for i in range(2):
      net = sources.load_for(workdir, "train", "here", members=2, member=i)
      assert_close(net, sources.load_networks(workdir)[i])
    with pytest.raises(ConfigError, match="here: .*same masks"):
      sources.load_for(workdir, "train", "here", members=1, member=0)
