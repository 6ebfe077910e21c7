"""Ensembles: stacked, voting, disagreeing, averaged, charged in full."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxr18.compress import ensemble
from jaxr18.config import file as configfile
from jaxr18.config import parse
from jaxr18.cost.score import score
from jaxr18.cost.several import ensemble_score
from jaxr18.nn import network
from jaxr18.run import experiment, export, members, sources
from jaxr18.run.result import read
from jaxr18.train import evaluate
from jaxr18.train.mesh import make_mesh

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)

# Probabilities of two members and a third, of 3 images and 3 classes.
P = np.array([
  [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]],
  [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]],
  [[0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.1, 0.5, 0.4]],
])  # fmt: skip
LOGITS = np.log(P) + np.arange(9).reshape(3, 3, 1)  # a constant changes nothing


@functools.cache
def three():
  return [tiny_run.tiny_network(seed=i) for i in range(3)]


@functools.cache
def quantized():
  return tiny_run.tiny_network(seed=3, bits=4)


class TestStack:
  def test_and_back(self):
    for net, again in zip(
      three(), ensemble.unstack(ensemble.stack(three())), strict=True
    ):
      jax.tree.map(np.testing.assert_array_equal, again, net)
    assert ensemble.unstack(three()[0]) == [three()[0]]
    assert ensemble.members(three()[0]) is None
    assert ensemble.members(ensemble.stack(three())) == 3

  def test_masks_of_some_members_only(self):
    pruned = tiny_run.half_pruned(three()[1])
    one, two = ensemble.unstack(ensemble.stack([three()[0], pruned]))
    for net, again in ((three()[0], one), (pruned, two)):
      got, want = (network.apply_masks(n.params, n.masks) for n in (again, net))
      jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_what_does_not_stack(self):
    with pytest.raises(ValueError, match="2 networks of 2 specs.*groups"):
      ensemble.stack([three()[0], quantized()])
    with pytest.raises(ValueError, match="at least one"):
      ensemble.stack([])

  def test_one_program_equals_a_loop(self):
    nets = [*three()[:2], tiny_run.half_pruned(three()[2])]
    got = jax.jit(ensemble.forward_members)(ensemble.stack(nets), IMAGES)
    forward = jax.jit(network.forward)
    want = [forward(n, IMAGES) for n in nets]
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-5, atol=1e-6)

  def test_its_gradient_equals_a_loop(self):
    def loss(params, net):
      logits = network.forward(net.replace(params=params), IMAGES)
      return jnp.sum(logits[:, 0] ** 2)

    many = ensemble.stack(three())
    total = lambda p: jax.vmap(loss)(p, many).sum()  # through the batching
    got = jax.jit(jax.grad(total))(many.params)
    of_one = jax.jit(jax.grad(loss))
    want = [of_one(n.params, n) for n in three()]
    want = jax.tree.map(lambda *x: np.stack(x), *want)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      got, want,
    )  # fmt: skip

  def test_groups_by_spec(self):
    one, two, _ = three()
    nets, digits = [one, quantized(), two], tiny_run.dataset()
    found = ensemble.groups(nets)
    assert [positions for positions, _ in found] == [(0, 2), (1,)]
    logits = members.predict_members(nets, digits.test, digits, 20, make_mesh())
    for got, net in zip(logits, nets, strict=True):
      want = evaluate.predict(net, digits.test.images, digits, 20, make_mesh())
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


class TestVote:
  def test_mean_probability(self):
    np.testing.assert_allclose(ensemble.vote(LOGITS), P.mean(0))

  def test_mean_logit_is_the_geometric_mean(self):
    geometric = np.prod(P, 0) ** (1 / 3)
    np.testing.assert_allclose(
      ensemble.vote(LOGITS, "logit"),
      geometric / geometric.sum(-1, keepdims=True),
    )

  def test_majority(self):
    got = ensemble.vote(LOGITS, "majority")
    # 0, 0, 1 -> 0, where the mean says 1; 0, 1, 0 -> 0; 2, 1, 1 -> 1.
    np.testing.assert_array_equal(got.argmax(-1), [0, 0, 1])
    assert ensemble.vote(LOGITS).argmax(-1)[0] == 1
    # Of equal shares the more probable.
    tied = ensemble.vote(LOGITS[[0, 1]], "majority")
    np.testing.assert_array_equal(tied.argmax(-1), [0, 1, 1])

  def test_weighted(self):
    weights = [0.7, 0.2, 0.1]
    np.testing.assert_allclose(
      ensemble.vote(LOGITS, "weighted", weights), np.tensordot(weights, P, 1)
    )

  @pytest.mark.parametrize(
    "how, weights, told",
    [
      ("median", None, "vote .='median'. must be one of"),
      ("weighted", None, "weights go with"),
      ("logit", [1, 0, 0], "weights go with"),
      ("weighted", [0.5, 0.4, 0.3], "3 numbers of sum 1"),
      ("weighted", [0.5, 0.5], "3 numbers of sum 1"),
    ],
  )
  def test_refuses(self, how, weights, told):
    with pytest.raises(ValueError, match=told):
      ensemble.vote(LOGITS, how, weights)

  def test_fitted_weights_are_the_best(self):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits = rng.normal(size=(3, 400, 3))
    for i, strength in enumerate((2.0, 1.0, 0.0)):
      logits[i, np.arange(400), labels] += strength
    w = ensemble.fit_weights(logits, labels, steps=2000)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = p[:, np.arange(400), labels]
    # Optimal on the simplex: no member's gradient is above 1, and that of each
    # with a weight is 1.
    gradient = (p / (w @ p)).mean(1)
    assert w.sum() == pytest.approx(1) and w[0] > w[1] >= w[2] >= 0
    assert gradient.max() < 1 + 1e-3
    np.testing.assert_allclose(gradient[w > 1e-2], 1, atol=1e-3)

  def test_disagreement(self):
    # Answers 0 0 2, 0 1 1, 1 0 1.
    third = 1 / 3
    np.testing.assert_allclose(
      ensemble.disagreement(LOGITS),
      [[0, 2 * third, 2 * third], [2 * third, 0, 2 * third],
       [2 * third, 2 * third, 0]],
    )  # fmt: skip


class TestSoup:
  def test_is_the_mean_of_weights(self):
    got = ensemble.soup(three())
    for part in ("params", "batch_stats"):
      want = jax.tree.map(
        lambda *x: np.mean(x, 0), *(getattr(n, part) for n in three())
      )
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        getattr(got, part), want,
      )  # fmt: skip
    one, two, _ = three()
    weighted = ensemble.soup([one, two], [1.0, 0.0])
    jax.tree.map(np.testing.assert_array_equal, weighted.params, one.params)

  def test_needs_the_same_masks(self):
    with pytest.raises(ValueError, match="same masks"):
      ensemble.soup([three()[0], tiny_run.half_pruned(three()[1])])
    pruned = [tiny_run.half_pruned(n) for n in three()]
    kernel = ensemble.soup(pruned).params["stem"]["kernel"].ravel()
    assert not kernel[1::2].any() and kernel[::2].any()

  def test_recalibrated_it_has_the_statistics_of_its_own_weights(self):
    soup = ensemble.soup(three())
    net = network.recalibrate(soup, [IMAGES])
    y = np.asarray(  # what the stem gives, by hand
      jax.lax.conv_general_dilated(
        IMAGES, soup.params["stem"]["kernel"], (1, 1), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    )  # fmt: skip
    got = net.batch_stats["stem_bn"]
    np.testing.assert_allclose(got["mean"], y.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(got["var"], y.var((0, 1, 2)), rtol=1e-4)
    averaged = soup.batch_stats["stem_bn"]["var"]
    assert np.abs(averaged - got["var"]).max() > 0.1


class TestScore:
  def test_of_one_spec_it_is_score_of_members(self):
    stack = ensemble.stack([three()[0], tiny_run.half_pruned(three()[1])])
    want = score(stack.spec, masks=stack.masks, members=2)
    got = ensemble_score([(n.spec, n.masks) for n in ensemble.unstack(stack)])
    assert got.per_layer.params_term == pytest.approx(
      want.per_layer.params_term
    )
    # Each member's kernels are stored in the best way for it.
    assert got.on_disk.params_term < want.on_disk.params_term
    plain = ensemble_score([(stack.spec, None)] * 2).on_disk.params_term
    assert plain == score(stack.spec, members=2).on_disk.params_term
    assert got.per_layer.ops_term == pytest.approx(want.per_layer.ops_term)
    assert (got.macs, got.members) == (want.macs, 2)
    # p_s = 0 here, so the formula's terms are linear in the members as well.
    assert got.per_network.total == pytest.approx(want.per_network.total)
    assert got.per_network.p_u == pytest.approx(want.per_network.p_u)

  def test_of_several_it_is_the_sum(self):
    parts = [score(n.spec, masks=n.masks) for n in (three()[0], quantized())]
    got = ensemble_score([(n.spec, n.masks) for n in (three()[0], quantized())])
    for name in ("per_network", "per_layer", "on_disk"):
      for term in ("params_term", "ops_term"):
        want = sum(getattr(getattr(p, name), term) for p in parts)
        assert getattr(getattr(got, name), term) == pytest.approx(want)
    assert got.per_network.f == got.macs == sum(p.macs for p in parts)
    assert (got.per_network.q_w, got.per_network.q_a) == (32, 32)
    assert got.rows[0].path == "member0/stem"
    assert len(got.rows) == sum(len(p.rows) for p in parts)


def tiny_config(*phases):
  config = tiny_run.phases(*phases)
  for name in phases:
    config[name].optimizer.learning_rate = 0.05
  return config


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
  """A population of two and a run in 4 bits, then their ensemble."""
  root = tmp_path_factory.mktemp("voted")
  config = tiny_config("few", "vote")
  config.few.network.bits = ((".*", 4, 4),)
  config.vote.ensemble.members = "few"
  other = tiny_config("train")
  other.train.population.size = 2
  experiment.run(other, root / "other")
  config.vote.ensemble.members = f"few,{root / 'other'}"
  return config, root / "run", experiment.run(config, root / "run")


@pytest.mark.slow
class TestExperiment:
  def test_its_result(self, voted):
    _, workdir, result = voted
    assert read(workdir) == result
    assert len(result.members) == len(result.specs) == 3
    assert result.specs[1] == result.specs[2] != result.specs[0]
    assert np.shape(result.disagreement) == (3, 3)
    assert set(result.votes) == set(ensemble.VOTES)
    assert sum(result.weights) == pytest.approx(1)
    phase = result.phases["vote"]
    votes = result.votes.items()
    accuracies = {how: v.validation_accuracy for how, v in votes}
    assert accuracies == phase.votes
    assert accuracies[result.vote] == max(accuracies.values())
    assert result.validation_accuracy == accuracies[result.vote]
    assert result.test.accuracy == result.votes[result.vote].accuracy
    assert result.test.count == 64
    each = [m.score["per_layer"] for m in result.members]
    assert result.score.per_layer.total == pytest.approx(sum(each))
    assert result.score.members == 3 and each[0] < each[1] == each[2]

  def test_against_its_members(self, voted, tmp_path):
    config, workdir, result = voted
    nets = sources.load_networks(workdir)
    dataset = experiment.load_data(parse(config).data)
    x = [
      evaluate.predict(n, dataset.test.images, dataset, 32, make_mesh())
      for n in nets
    ]
    labels = dataset.test.labels
    for row, logits in zip(result.members, x, strict=True):
      assert row.test.correct == np.sum(logits.argmax(-1) == labels)
    p = np.mean([jax.nn.softmax(logits) for logits in x], 0)
    assert result.votes["probability"].accuracy == np.mean(
      p.argmax(-1) == labels
    )
    # Copies: the members' own runs are needed no more.
    originals = sources.load_networks(workdir, "few")
    jax.tree.map(np.testing.assert_array_equal, nets[0], originals[0])

  def test_without_result_it_is_tested_anew(self, voted):
    config, workdir, result = voted
    (workdir / "result.json").unlink()
    again = experiment.run(config, workdir)
    assert again.made.starts[:-1] == result.made.starts
    assert dataclasses.replace(again, made=result.made) == result

  def test_a_given_vote(self, voted, tmp_path):
    config, _, _ = voted
    config = copy.deepcopy(config)
    config.phases = ("vote",)
    members = config.vote.ensemble.members.split(",")[1]
    config.vote.ensemble.members = members
    config.vote.ensemble.vote = "logit"
    del config.unlock()["few"]
    result = experiment.run(config.lock(), tmp_path)
    assert result.vote == "logit"
    assert result.test.accuracy == result.votes["logit"].accuracy

  def test_init_of_several_is_their_soup(self, voted, tmp_path):
    _, workdir, _ = voted
    other = workdir.parent / "other"
    config = tiny_config("train")
    config.train.start.init, config.train.epochs = str(other), 0
    config.train.optimizer.warmup_epochs = 0.0
    config.train.start.recalibrate = 2
    experiment.run(config, tmp_path)
    got = sources.load_network(tmp_path)
    want = ensemble.soup(sources.load_networks(other))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      got.params, want.params,
    )  # fmt: skip
    stats = got.batch_stats["stem_bn"]["mean"]
    assert np.abs(stats - want.batch_stats["stem_bn"]["mean"]).max() > 1e-4

  def test_exported_its_vote_is_in_the_file(self, voted, tmp_path):
    _, workdir, result = voted
    for name, module in (("onnx", "onnxruntime"), ("stablehlo", "flatbuffers")):
      pytest.importorskip(module)
      _, found = export.export_run(workdir, name, tmp_path / name)
      assert found.same_answers == found.count == 64
      assert found.correct == result.test.correct
      assert found.largest_difference < 1e-3
    told = (
      "an ensemble of 3 networks, and --format=packed one.*onnx or .*litert"
    )
    with pytest.raises(export.ExportError, match=told):
      export.export_run(workdir, "packed", tmp_path / "packed")

  def test_workdirs_after_the_colon(self, voted):
    _, workdir, _ = voted
    config = configfile.load(f"configs/ensemble.py:{workdir},runs/b")
    assert config["ensemble"]["ensemble"]["members"] == f"{workdir},runs/b"
    assert config["phases"] == ("ensemble",)
