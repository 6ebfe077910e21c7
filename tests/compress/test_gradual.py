"""Pruning in phases: schedules, resuming, shrinking, rewinding."""

import shutil

import chex
import fields
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config
from tiny_run import StopAfter

from jaxr18.compress import criteria, gradual, prune
from jaxr18.config.faults import ConfigError
from jaxr18.host.stop import Stopped
from jaxr18.nn import network
from jaxr18.nn.quantize import quantize_kernel
from jaxr18.run import experiment, sources
from jaxr18.train import checkpoint


def _config(**changes):
  """One phase of 3 epochs of 6 steps; `a__b=value` sets config.train.a.b."""
  config = tiny_config.get_config()
  config.progress = "none"
  for name, value in changes.items():
    node = config.train
    *path, last = name.split("__")
    for p in path:
      node = node[p]
    node[last] = value
  return config


CUBIC = dict(
  prune__density=0.2, prune__schedule="cubic", prune__every=2,
  prune__distribution="uniform", prune__floor=0.05,
)  # fmt: skip


def _arrays(workdir, phase="train"):
  folder = workdir / phase / "checkpoints"
  last = max(int(p.name) for p in folder.iterdir())
  return checkpoint.read(folder / str(last))[0]


class TestPlan:
  @pytest.mark.parametrize(
    "how, steps",
    [
      (dict(schedule="one_shot", begin=3, end=9), [3]),
      (dict(schedule="cubic", begin=2, end=9, every=3), [2, 5, 8, 9]),
      (dict(schedule="one_shot", regrow="set", end=4, every=2), [0, 2, 4]),
    ],
  )
  def test_what_is_due(self, how, steps):
    plan = gradual.Plan(density=0.1, **how)
    assert [s for s in range(20) if plan.due(s)] == steps
    assert plan.last == steps[-1]
    assert plan.progress(steps[-1]) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cubic")
  result = experiment.run(_config(**CUBIC), workdir)
  return workdir, result


@pytest.mark.slow
class TestWeights:
  def test_a_stopped_run_ends_with_the_same_bits(self, whole, tmp_path):
    for n in (2, 5, 2):  # at an update, between two, and at the last, step 9
      with pytest.raises(Stopped):
        experiment.run(_config(**CUBIC), tmp_path, StopAfter(n))
    experiment.run(_config(**CUBIC), tmp_path)
    chex.assert_trees_all_equal(_arrays(tmp_path), _arrays(whole[0]))

  @pytest.mark.parametrize(
    "how",
    [
      dict(prune__density=0.3, prune__regrow="rigl", prune__every=3),
      dict(prune__density=0.3, prune__criterion="movement", prune__begin=0.4),
    ],
    ids=["rigl", "movement"],
  )
  def test_what_looks_at_training_resumes_with_the_same_bits(
    self, how, tmp_path
  ):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    how = how | dict(epochs=2)
    experiment.run(_config(**how), whole)
    for n in (3, 4):  # just before an update, and after it
      with pytest.raises(Stopped):
        experiment.run(_config(**how), cut, StopAfter(n))
    experiment.run(_config(**how), cut)
    chex.assert_trees_all_equal(_arrays(cut), _arrays(whole))
    net = sources.load_network(whole)
    assert prune.total_density(net) == pytest.approx(0.3, abs=0.01)

  @pytest.mark.parametrize("how", ["rigl", "movement"])
  def test_members_of_a_population_look_at_their_own(self, how, tmp_path):
    config = _config(epochs=2, prune__density=0.3, prune__every=3)
    config.train.population.size = 2
    if how == "rigl":
      config.train.prune.regrow = "rigl"
    else:
      config.train.prune.criterion, config.train.prune.begin = "movement", 0.4
    experiment.run(config, tmp_path / "two")
    one = config.copy_and_resolve_references()
    one.train.population.size, one.seed = 1, 1
    experiment.run(one, tmp_path / "one")
    net = sources.load_network(tmp_path / "one")
    two = sources.load_networks(tmp_path / "two")
    for member in two:
      assert prune.total_density(member) == pytest.approx(0.3, abs=0.01)
    # Sums in another order may move a weight or two across a threshold.
    same = [
      np.mean([np.mean(a == b) for a, b in zip(
        jax.tree.leaves(network.kernels(member.masks)),
        jax.tree.leaves(network.kernels(net.masks)), strict=True)])
      for member in two
    ]  # fmt: skip
    assert same[1] > 0.99 > same[0]

  def test_nothing_masked_comes_back(self, whole):
    arrays = _arrays(whole[0])
    for of in ("net", "average"):
      kernels = [n for n in arrays if n.startswith(f"{of}.params") and
                 n.endswith(".kernel")]  # fmt: skip
      assert kernels
      for name in kernels:
        mask = arrays[name.replace(".params.", ".masks.")]
        assert mask.sum() == round(0.2 * mask.size), name
        assert not arrays[name][~mask].any()

  def test_the_chosen_network_is_of_the_final_density(self, whole):
    workdir, result = whole
    net = sources.load_network(workdir)
    assert prune.total_density(net) == pytest.approx(0.2, abs=0.01)
    assert result.phases["train"].step > 9  # the last update is at 9
    assert result.score.per_network.p_u > 0.5

  @pytest.mark.parametrize(
    "how",
    [
      dict(prune__density=0.3, prune__criterion="random", prune__regrow="rigl",
           prune__distribution="erk", prune__every=3),
      dict(prune__density=0.3, prune__regrow="set", prune__every=3),
      dict(prune__density=0.3, prune__criterion="wanda"),
      dict(prune__pattern="2:4", prune__layers="stage2.*/conv."),
      dict(prune__distribution="explicit", prune__rules=(("stage.*", 0.5),)),
    ],
    ids=lambda how: "-".join(map(str, how.values()))[:40],
  )  # fmt: skip
  def test_other_ways(self, how, tmp_path):
    experiment.run(_config(epochs=2, **how), tmp_path)
    net = sources.load_network(tmp_path)
    found = prune.densities(net)
    if "prune__pattern" in how:
      assert found["stage2_block1/conv2"] == 0.5 and found["stem"] == 1
    elif "prune__rules" in how:
      assert found["stage1_block1/conv1"] == 0.5 and found["head"] == 1
    else:
      assert prune.total_density(net) == pytest.approx(0.3, abs=0.01)

  def test_what_would_empty_a_layer(self, tmp_path):
    how = dict(prune__distribution="uniform", prune__density=0.001,
               prune__floor=0.0)  # fmt: skip
    with pytest.raises(ConfigError, match=r"train.prune.density .* would keep"):
      experiment.run(_config(**how), tmp_path)


def _two_phases(**second):
  config = tiny_config.base(("first", "second"))
  one = _config()
  for name in ("data", "eval_batch_size", "progress"):
    config[name] = one[name]
  for phase in ("first", "second"):
    config[phase] = one.train.copy_and_resolve_references()
    config[phase].epochs = 2
  config.second.start.init = "first"
  for name, value in second.items():
    fields.put(config.second, name.replace("__", "."), value)
  return config


@pytest.mark.slow
class TestPhases:
  @pytest.fixture(scope="class")
  @classmethod
  def trained(cls, tmp_path_factory):
    """The first phase, and a second of which nothing is left."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = _two_phases(epochs=0)
    experiment.run(config, workdir)
    shutil.rmtree(workdir / "second")
    (workdir / "result.json").unlink()
    return workdir

  @pytest.fixture
  def begun(self, trained, tmp_path):
    """A copy, of which the second phase may be any."""
    return shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

  def test_structured_then_shrunk(self, tmp_path):
    config = _two_phases(start__shrink=True, start__recalibrate=2)
    config.first.prune.structured = True
    config.first.prune.criterion = "l2"
    config.first.prune.distribution = "uniform"
    config.first.prune.density = 0.5
    config.second.network.bits = (("stem", 8, 8), (".*", 4, 4))
    result = experiment.run(config, tmp_path)
    net = sources.load_network(tmp_path)
    assert net.spec.stem.features == 2
    assert net.spec.stages[1][0].conv1.features == 6
    assert net.spec.stages[1][0].conv1.w_bits == 4
    first = sources.load_network(tmp_path, "first")
    full = network.init(jax.random.key(0), first.spec)
    count = lambda n: sum(x.size for x in jax.tree.leaves(n.params))
    assert result.score.macs < 4 / 9 * sum(
      layer.macs for layer in first.spec.layers()
    )
    assert count(net) < count(full) / 2
    assert first.spec != result.spec

  def test_distilled_pruned_and_quantized_at_once(self, begun):
    config = _two_phases(teacher__source="first", teacher__weight=0.5)
    second = config.second
    second.network.bits = ((".*", 4, 4),)
    second.prune.density, second.prune.schedule = 0.3, "linear"
    second.prune.every = 2
    result = experiment.run(config, begun)
    arrays = _arrays(begun, "second")
    for of in ("net", "average"):
      names = [n for n in arrays if n.startswith(f"{of}.params") and
               n.endswith(".kernel")]  # fmt: skip
      kept = total = 0
      for name in names:
        mask = arrays[name.replace(".params.", ".masks.")]
        assert not np.any(quantize_kernel(arrays[name], 4)[~mask]), name
        kept, total = kept + mask.sum(), total + mask.size
      assert kept == round(0.3 * total)
    rows = result.score.rows
    assert {row.w_bits for row in rows} == {4}
    assert sum(row.kept for row in rows) == kept

  def test_from_another_run_without_training_it_again(self, whole, tmp_path):
    dense, before = whole
    config = _two_phases(epochs=1)
    config.first.start.init, config.first.epochs = str(dense), 0
    config.second.prune.density = 0.1
    result = experiment.run(config, tmp_path)
    first = sources.load_network(tmp_path, "first")
    chex.assert_trees_all_equal(first, sources.load_network(dense))
    phase = result.phases["first"]
    assert phase.step == 0
    assert phase.validation_accuracy == before.validation_accuracy

  def test_blocks_that_go(self, tmp_path):
    config = _two_phases(start__shrink=True, start__drop_blocks=".*_block2",
                         start__recalibrate=1,
                         epochs=0)  # fmt: skip
    for phase in (config.first, config.second):
      phase.network.blocks, phase.epochs = (1, 2), 0
    result = experiment.run(config, tmp_path)
    source = sources.load_network(tmp_path, "first")
    left = sources.load_network(tmp_path)
    names = lambda net: [n for n, _ in net.spec.blocks()]
    assert names(source) == [*names(left), "stage2_block2"]
    chex.assert_trees_all_equal(
      left.params, {k: source.params[k] for k in left.params}
    )
    assert result.score.macs < sum(x.macs for x in source.spec.layers())

  def test_no_epochs_only_transform(self, begun):
    config = _two_phases(epochs=0)
    config.second.prune.density = 0.5
    result = experiment.run(config, begun)
    before = sources.load_network(begun, "first")
    after = sources.load_network(begun)
    scores = criteria.score("magnitude_l1", before)
    expected = prune.prune(before, scores, 0.5, floor=0.01)
    chex.assert_trees_all_equal(after.params, expected.params)
    phase = result.phases["second"]
    assert phase.step == 0 and phase.validation_accuracy is not None
    again = experiment.run(config, begun)
    assert again == result

    # Stopped before the phase was validated.
    for name in ("result.json", "second/phase.json", "second/metrics.jsonl"):
      (begun / name).unlink()
    again = experiment.run(config, begun)
    assert again.test.correct == result.test.correct
    found = again.phases["second"].validation_accuracy
    assert found == phase.validation_accuracy

  def test_masks_carry_over(self, tmp_path):
    config = _two_phases()
    config.first.prune.density = 0.3
    experiment.run(config, tmp_path)
    first = sources.load_network(tmp_path, "first")
    last = sources.load_network(tmp_path)
    chex.assert_trees_all_equal(
      network.kernels(last.masks), network.kernels(first.masks)
    )
    for path, mask in network.kernels(last.masks).items():
      assert not np.any(np.where(mask, 0, network.kernels(last.params)[path]))

  @pytest.mark.parametrize(
    "how",
    [
      dict(pattern="2:4", layers="stage2.*/conv2"),
      dict(density=0.1, regrow="set", every=2),
      dict(density=0.1, regrow="rigl", every=2),
    ],
    ids=lambda how: how.get("pattern", how.get("regrow")),
  )
  def test_a_pruned_source_is_not_unmasked(self, how, tmp_path):
    config = _two_phases()
    config.first.prune.density = 0.1
    config.first.epochs = 0
    config.second.prune.update(how)
    experiment.run(config, tmp_path)
    first = sources.load_network(tmp_path, "first")
    last = sources.load_network(tmp_path)
    assert prune.total_density(first) == pytest.approx(0.1, abs=1e-3)
    assert prune.total_density(last) <= prune.total_density(first)
    if "pattern" in how:
      old, new = (network.kernels(n.masks) for n in (first, last))
      for path, mask in new.items():
        assert not np.any(np.asarray(mask) & ~np.asarray(old[path])), path
    else:
      assert prune.densities(last) == prune.densities(first)

  def test_more_than_is_left_is_refused_before_training(self, tmp_path):
    config = _two_phases()
    config.first.prune.density, config.first.epochs = 0.1, 0
    config.second.prune.density, config.second.prune.begin = 0.5, 0.9
    with pytest.raises(
      ConfigError, match=r"config.second.prune.density .* left; lower it"
    ):
      experiment.run(config, tmp_path)
    assert not list(tmp_path.iterdir())  # nor has the first phase begun

  def test_an_even_schedule_from_uneven_layers(self, tmp_path):
    """Its first target is more than some layers have left; its last is not."""
    config = _two_phases()
    config.first.prune.density, config.first.epochs = 0.5, 0
    second = config.second.prune
    second.density, second.distribution = 0.1, "uniform"
    second.schedule, second.every = "linear", 2
    experiment.run(config, tmp_path)
    first = sources.load_network(tmp_path, "first")
    assert max(prune.densities(first).values()) > 0.6  # uneven
    last = prune.densities(sources.load_network(tmp_path))
    assert all(d == pytest.approx(0.1, abs=0.02) for d in last.values())

  def test_a_ticket(self, tmp_path):
    config = tiny_config.base(("early", "dense", "sparse"))
    two = _two_phases()
    for name in ("data", "eval_batch_size", "progress"):
      config[name] = two[name]
    for name, init in (("early", ""), ("dense", "early"), ("sparse", "dense")):
      config[name] = two.first.copy_and_resolve_references()
      config[name].start.init = init
    config.sparse.start.rewind = "early"
    config.sparse.prune.density = 0.3
    config.sparse.epochs = 0
    experiment.run(config, tmp_path)
    early = sources.load_network(tmp_path, "early")
    ticket = sources.load_network(tmp_path)
    chex.assert_trees_all_equal(
      ticket.params, network.apply_masks(early.params, ticket.masks)
    )

  def test_a_block_that_is_not_there(self, tmp_path):
    config = _two_phases(start__shrink=True, start__drop_blocks="stage7.*")
    with pytest.raises(ConfigError, match="matches no block; there are"):
      experiment.run(config, tmp_path)


@pytest.mark.slow
def test_group_lasso_shrinks_scales(tmp_path):
  found = []
  for weight in (0.0, 0.5):
    workdir = tmp_path / str(weight)
    experiment.run(_config(loss__group_lasso=weight), workdir)
    arrays = _arrays(workdir)
    scales = [a for n, a in arrays.items() if n.startswith("net.params") and
              n.endswith(".scale")]  # fmt: skip
    found.append(float(sum(jnp.abs(s).sum() for s in scales)))
  assert found[1] < 0.9 * found[0]
