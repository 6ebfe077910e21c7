"""Masks of single weights."""

import functools
from typing import get_args

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxr18.compress import (
  channels,
  criteria,
  density,
  prune,
  sensitivity,
  shrink,
)
from jaxr18.config import schema as config
from jaxr18.nn import network, spec
from jaxr18.nn.quantize import quantize_kernel

NARROW = spec.resnet((8, 8), (1, 1), (2, 2), (1, 1), (False, False))
GROUPED = spec.resnet((8, 16), (1, 1), (2, 2), (2, 4), (False, False))
DEPTHWISE = spec.resnet((8, 16), (1, 1), (2, 2), (1, 1), (True, True))


@functools.cache
def _net(net_spec=NARROW, seed=0):
  return network.init(jax.random.key(seed), net_spec)


def _images(n=8, seed=1):
  keys = jax.random.split(jax.random.key(seed))
  images = jax.random.normal(keys[0], (n, 32, 32, 3))
  return images, jax.random.randint(keys[1], (n,), 0, 10)


def _half_the_channels(net):
  scores = channels.importance("l2", net)
  keep = channels.kept_channels(net.spec, scores, 0.5)
  return channels.mask_channels(net, keep)


def _assert_subset(new, net):
  """Nothing is kept that was masked."""
  for path, mask in network.kernels(new.masks).items():
    old = np.asarray(network.kernels(net.masks)[path])
    assert not np.any(np.asarray(mask) & ~old), path


def _kept(net):
  return {p: int(np.sum(m)) for p, m in network.kernels(net.masks).items()}


def test_configs_know_the_same_names():
  assert config.WEIGHT_CRITERIA == criteria.NAMES
  assert config.CHANNEL_CRITERIA == channels.CRITERIA
  assert config.WEIGHT_DISTRIBUTIONS == density.NAMES
  assert config.CHANNEL_DISTRIBUTIONS == channels.DISTRIBUTIONS
  choices = config.Prune.model_fields["schedule"].annotation
  assert get_args(choices) == prune.SCHEDULES


class TestTopK:
  @hypothesis.given(
    hnp.arrays(
      np.float32,
      hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
      elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0]),  # ties
    ),
    st.integers(0, 40),
  )
  def test_is_the_head_of_a_stable_sort(self, scores, count):
    count = min(count, scores.size)
    mask = prune.top_k(scores, count)
    head = np.argsort(-scores.ravel(), kind="stable")[:count]
    assert set(np.flatnonzero(mask)) == set(head.tolist())

  @pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (4, 8), (2, 2)])
  def test_n_of_m(self, n, m):
    scores = np.random.default_rng(0).random((3, 3, 16, 5))
    mask = prune.n_of_m(scores, n, m)
    runs = mask.reshape(9, 16 // m, m, 5)
    assert (runs.sum(axis=2) == n).all()
    best = np.sort(scores.reshape(runs.shape), axis=2)[:, :, m - n]
    assert (scores.reshape(runs.shape)[runs] >= best.min()).all()
    kept = np.where(runs, scores.reshape(runs.shape), np.inf).min(axis=2)
    np.testing.assert_array_equal(kept, best)

  def test_what_n_of_m_cannot_do(self):
    with pytest.raises(ValueError, match="stem: 3 input channels a filter"):
      prune.n_of_m(np.ones((3, 3, 3, 8)), 2, 4, "stem")
    with pytest.raises(ValueError, match="pattern 5:4 must keep"):
      prune.n_of_m(np.ones((3, 3, 4, 8)), 5, 4)


class TestKthHighest:
  @hypothesis.given(
    hnp.arrays(
      np.float32,
      st.integers(1, 60),
      elements=st.floats(-4, 4, width=32),
    ),
    st.data(),
  )
  def test_of_few(self, flat, data):
    k = data.draw(st.integers(1, flat.size))
    assert density.kth_highest(flat, k) == np.sort(flat)[-k]

  @pytest.mark.parametrize(
    "kind", ["normal", "few values", "one value", "sorted", "striped", "heavy"]
  )
  def test_of_many(self, kind):
    rng = np.random.default_rng(0)
    n = 3 * 2**16 + 5
    flat = {
      "normal": lambda: rng.normal(size=n),
      "few values": lambda: rng.integers(0, 3, n),
      "one value": lambda: np.ones(n),
      "sorted": lambda: np.arange(n),
      # What the sample sees, every 13th, tells nothing of the others.
      "striped": lambda: np.where(
        np.arange(n) % (n >> 14 | 1), rng.normal(size=n), 1e6
      ),
      "heavy": lambda: rng.standard_cauchy(n),
    }[kind]().astype(np.float32)
    ordered = np.sort(flat)
    for k in (1, 2, 100, n // 10, n // 2, n - n // 10, n - 1, n):
      assert density.kth_highest(flat, k) == ordered[-k], k


class TestCounts:
  @pytest.mark.parametrize("name", ["uniform", "global", "erk", "lamp"])
  @pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.03])
  def test_the_total(self, name, share):
    scores = criteria.score("magnitude_l2", _net())
    kept = density.counts(name, scores, share)
    total = sum(s.size for s in scores.values())
    slack = 0 if name in ("global", "lamp") else len(scores) / 2
    assert abs(sum(kept.values()) - round(total * share)) <= slack
    assert all(0 < n <= scores[p].size for p, n in kept.items())

  def test_global_takes_the_largest_of_all(self):
    net = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.2)
    kept, gone = [], []
    masks = network.kernels(net.masks)
    for path, w in network.kernels(_net().params).items():
      size, mask = np.abs(w), np.asarray(masks[path])
      kept.append(size[mask].min())
      gone.append(size[~mask].max(initial=0))
    assert min(kept) >= max(gone)

  def test_lamp_of_the_paper(self):
    # Sorted u: w^2 over the sum of w^2 of itself and all larger.
    w2 = np.array([4.0, 1.0, 9.0, 2.0])
    expected = [4 / 13, 1 / 16, 1.0, 2 / 15]
    np.testing.assert_allclose(density.lamp(w2), expected)

  def test_lamp_leaves_what_is_masked_behind(self):
    # A masked weight scores below 0, and one of no use at all scores 0.
    scores = np.array([4.0, -9.0, 0.0, 1.0, -9.0, -9.0])
    found = density.lamp(scores)
    np.testing.assert_allclose(found[[0, 2, 3]], [1.0, 0.0, 1 / 5])
    assert (found[scores < 0] < 0).all()

  def test_erk_is_in_proportion(self):
    shapes = {"a": (3, 3, 64, 64), "b": (3, 3, 128, 128), "c": (1, 1, 64, 64)}
    found = density.erk(shapes, 0.1)
    ratio = (3 + 3 + 64 + 64) / (9 * 64 * 64)
    other = (3 + 3 + 128 + 128) / (9 * 128 * 128)
    assert found["a"] / found["b"] == pytest.approx(ratio / other)
    sizes = {p: np.prod(s) for p, s in shapes.items()}
    kept = sum(found[p] * sizes[p] for p in shapes)
    assert kept == pytest.approx(0.1 * sum(sizes.values()))

  def test_erk_fills_small_layers(self):
    found = density.erk({"a": (3, 3, 3, 16), "b": (3, 3, 256, 256)}, 0.5)
    assert found["a"] == 1.0 and found["b"] < 0.5

  def test_a_floor_protects_from_collapse(self):
    net = _net()
    scores = criteria.score("magnitude_l1", net)
    scores["head"] = scores["head"] * 1e-6
    total = sum(s.size for s in scores.values())
    assert density.counts("global", scores, 0.2)["head"] == 1
    kept = density.counts("global", scores, 0.2, floor=0.1)
    assert kept["head"] == round(0.1 * scores["head"].size)
    assert sum(kept.values()) == round(0.2 * total)

  def test_a_floor_that_takes_all(self):
    """Rounded up, 1% of each layer is more than 1% of all."""
    scores = criteria.score("magnitude_l1", _net())
    sizes = {p: s.size for p, s in scores.items()}
    total = round(0.01 * sum(sizes.values()))
    assert sum(density.at_least(sizes, 0.01).values()) > total
    for name in ("global", "lamp"):
      kept = density.counts(name, scores, 0.01, floor=0.01)
      assert sum(kept.values()) == total and min(kept.values()) >= 1

  @hypothesis.given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 4),
  )
  def test_a_feasible_floor(self, sizes, floor, share, step):
    """It fits, and is the floor itself where that fits."""
    sizes = {str(i): step * n for i, n in enumerate(sizes)}
    steps = dict.fromkeys(sizes, step)
    total = max(round(share * sum(sizes.values())), step * len(sizes))
    asked = density.at_least(sizes, floor, steps)
    got = density.feasible(sizes, floor, total, steps)
    assert step * sum(got.values()) <= total
    assert all(1 <= got[name] <= asked[name] for name in sizes)
    if step * sum(asked.values()) <= total:
      assert got == asked

  def test_rules(self):
    scores = criteria.score("magnitude_l1", _net())
    rules = (("stage1.*", 0.5), ("stage.*", 0.25))
    kept = density.counts("explicit", scores, 1.0, rules=rules)
    share = {p: n / scores[p].size for p, n in kept.items()}
    assert share["stage1_block1/conv1"] == 0.5
    assert share["stage2_block1/conv2"] == 0.25
    assert share["stem"] == share["head"] == 1.0

  @pytest.mark.parametrize(
    "how, message",
    [
      (dict(name="uniform", density=1e-4), "would keep none"),
      (dict(name="global", density=1e-3),
       r"of \d+ are to be kept, and \d+ layers .* raise the density to"),
      (dict(name="global", density=0.0), r"density \(=0.0\) must be above 0"),
      (dict(name="global", density=0.1, floor=0.2), r"floor \(=0.2\)"),
      (dict(name="best", density=0.1), "distribution .='best'. must be one"),
      (dict(name="explicit", density=1.0, rules=(("x", 0.5),)),
       "decides no layer"),
    ],
  )  # fmt: skip
  def test_errors(self, how, message):
    scores = criteria.score("magnitude_l1", _net())
    with pytest.raises(ValueError, match=message):
      density.counts(scores=scores, **how)


class TestNotFinite:
  """What is not finite is not ranked."""

  WAYS = {
    "counts": lambda n, s: density.counts("global", s, 0.5),
    "lamp": lambda n, s: density.counts("lamp", s, 0.5),
    "erk": lambda n, s: prune.prune(n, s, 0.5, distribution="erk"),
    "one layer": lambda n, s: prune.prune(n, s, 0.5, layers="stem"),
    "pattern": lambda n, s: prune.prune_pattern(n, s, 1, 3, "stem"),
    "regrow": lambda n, s: prune.regrow(n, s, 0.3),
    "top_k": lambda n, s: prune.top_k(s["stem"], 3),
    "n_of_m": lambda n, s: prune.n_of_m(s["stem"], 1, 3, "stem"),
    "sensitivity": lambda n, s: sensitivity.weight_ranks(s),
  }

  @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
  @pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
  def test_a_score(self, how, bad):
    scores = criteria.score("magnitude_l1", _net())
    scores["stem"] = np.array(scores["stem"])
    scores["stem"][0, 0, 1, 0] = bad
    with pytest.raises(
      ValueError,
      match=r"(stem|top_k): scores must be finite, and 1 of its 216 are not"
      rf" \(the first is {bad} at \[0, 0, 1, 0\]\)",
    ):
      how(_net(), scores)

  def test_a_weight(self):
    params = jax.tree.map(lambda p: p, _net().params)
    params["stem"]["kernel"] = params["stem"]["kernel"].at[0, 0].set(jnp.nan)
    net = _net().replace(params=params)
    scores = criteria.score("magnitude_l1", net)
    with pytest.raises(ValueError, match="stem: scores must be finite"):
      prune.prune_pattern(net, scores, 1, 3, "stem")
    # A weight that is masked already does not matter.
    masks = {"stem": np.isfinite(np.asarray(params["stem"]["kernel"]))}
    net = net.replace(masks=network.with_kernels(net.masks, masks))
    prune.prune(net, criteria.score("magnitude_l1", net), 0.5)


class TestCriteria:
  def test_gradients_against_differences(self):
    net = _net()
    images, labels = _images()
    g = criteria.dense_gradient(net, images, labels)["stage1_block1/conv1"]
    kernel = network.kernels(net.params)["stage1_block1/conv1"]

    def loss(k):
      new = network.with_kernels(net.params, {"stage1_block1/conv1": k})
      logits, _ = network.forward_train(net.replace(params=new), images)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean()

    step = 1e-3 * jnp.sign(g)
    change = float(loss(kernel + step) - loss(kernel - step)) / 2
    assert change == pytest.approx(float(jnp.sum(g * step)), rel=0.05)

  def test_formulas(self):
    net = _net()
    images, labels = _images()
    g = criteria.dense_gradient(net, images, labels)
    of = lambda name: criteria.score(name, net, images=images, labels=labels)
    taylor, snip, gradient = map(of, ("taylor", "snip", "gradient"))
    total = sum(v.sum() for v in snip.values())
    assert total == pytest.approx(1, abs=1e-4)
    for path, w in network.kernels(net.params).items():
      gw = np.asarray(g[path] * w)
      np.testing.assert_allclose(taylor[path], gw**2, rtol=1e-5)
      np.testing.assert_allclose(gradient[path], np.abs(g[path]))
    ratio = snip["head"] / np.abs(
      np.asarray(g["head"] * net.params["head"]["kernel"])
    )
    np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-4)

  @pytest.mark.parametrize("net_spec", [NARROW, GROUPED, DEPTHWISE])
  def test_wanda_by_hand(self, net_spec):
    net = _net(net_spec)
    images, _ = _images(2)
    found = criteria.score("wanda", net, images=images)
    w = np.asarray(net.params["stem"]["kernel"])
    norm = np.sqrt((np.asarray(images) ** 2).sum(axis=(0, 1, 2)))
    expected = np.abs(w) * norm[None, None, :, None]
    np.testing.assert_allclose(found["stem"], expected, rtol=1e-5)
    for path, k in network.kernels(net.params).items():
      assert found[path].shape == k.shape

  def test_wanda_pairs_groups_with_their_inputs(self):
    net = _net(GROUPED)
    images, _ = _images(2)
    norms = np.asarray(network.input_norms(net, images)["stage2_block1/conv2"])
    w = np.asarray(net.params["stage2_block1"]["conv2"]["kernel"])
    found = criteria.score("wanda", net, images=images)["stage2_block1/conv2"]
    # 16 channels in 4 groups: output 9 is of group 2, whose input 1 is 2*4+1.
    assert found[0, 0, 1, 9] == pytest.approx(abs(w[0, 0, 1, 9]) * norms[9])

  @pytest.mark.parametrize(
    "name, needs", [("random", "key"), ("movement", "movement"),
                    ("wanda", "images"), ("snip", "images and labels")]
  )  # fmt: skip
  def test_what_is_missing(self, name, needs):
    with pytest.raises(ValueError, match=f"{name}' needs {needs}"):
      criteria.score(name, _net())

  def test_unknown(self):
    with pytest.raises(ValueError, match="criterion .='size'. must be one of"):
      criteria.score("size", _net())


class TestPrune:
  @hypothesis.settings(max_examples=25, deadline=None)
  @hypothesis.given(
    seed=st.integers(0, 99),
    ties=st.booleans(),
    distribution=st.sampled_from(("uniform", "global", "erk", "lamp")),
    shares=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    floor=st.sampled_from([0.0, 0.02, 0.05]),
  )
  def test_counts_are_exact_and_nothing_comes_back(
    self, seed, ties, distribution, shares, floor
  ):
    rng = np.random.default_rng(seed)
    net = _net()
    for share in sorted(shares, reverse=True):
      scores = {p: rng.random(k.shape).astype(np.float32)
                for p, k in network.kernels(net.params).items()}  # fmt: skip
      if ties:
        scores = {p: np.round(2 * s) for p, s in scores.items()}
      if distribution == "lamp":  # it takes w^2 alone
        weights = network.apply_masks(
          network.with_kernels(net.params, scores), net.masks
        )
        net = net.replace(params=weights)
        scores = criteria.score("magnitude_l2", net)
      before = network.kernels(net.masks)
      chosen = prune.scored(net, scores)
      kept = density.counts(distribution, chosen, share, floor=floor)
      net = prune.prune(
        net, scores, share, distribution=distribution, floor=floor
      )
      assert {p: n for p, n in kept.items()} == {
        p: int(np.sum(np.broadcast_to(m, scores[p].shape)))
        for p, m in network.kernels(net.masks).items()
      }
      sizes = {path: s.size for path, s in scores.items()}
      least = density.at_least(sizes, floor)
      if distribution in ("global", "lamp"):
        least = density.feasible(
          sizes, floor, round(share * sum(sizes.values()))
        )
      for path, mask in network.kernels(net.masks).items():
        assert kept[path] >= least[path]
        assert not np.any(np.asarray(mask) & ~np.asarray(before[path]))
      if distribution in ("global", "lamp"):
        total = sum(s.size for s in scores.values())
        assert sum(kept.values()) == round(total * share)

  @pytest.mark.parametrize("criterion", ["magnitude_l1", "magnitude_l2"])
  def test_lamp_is_of_the_squares(self, criterion):
    """w^2 over the sum of w^2 of it and all larger, the best of all layers."""
    net = _net(GROUPED)
    lamp = {}
    for path, k in network.kernels(net.params).items():
      w2 = np.sort(np.asarray(k, np.float64).ravel() ** 2)
      lamp[path] = w2 / np.cumsum(w2[::-1])[::-1]
    every = np.concatenate(list(lamp.values()))
    threshold = np.sort(every)[-round(0.2 * every.size)]
    expected = {p: int((s >= threshold).sum()) for p, s in lamp.items()}
    scores = criteria.score(criterion, net)
    ours = prune.prune(net, scores, 0.2, distribution="lamp")
    assert _kept(ours) == expected
    again = criteria.score(criterion, ours)
    fewer = prune.prune(ours, again, 0.1, distribution="lamp")
    _assert_subset(fewer, ours)
    assert prune.total_density(fewer) == pytest.approx(0.1, abs=1e-3)

  def test_lamp_takes_no_other_scores(self):
    scores = criteria.score("random", _net(), key=jax.random.key(1))
    with pytest.raises(ValueError, match="'lamp' ranks by w.2, and the scores"):
      prune.prune(_net(), scores, 0.5, distribution="lamp")

  @pytest.mark.parametrize("sparsity", [0.9, 0.5, 0.3, 0.1])
  def test_wanda_by_output(self, sparsity):
    """Of each output the int(n * sparsity) lowest go, as in locuslab/wanda."""
    net = _net(GROUPED)
    scores = criteria.score("wanda", net, images=_images()[0])
    ours = prune.prune(net, scores, 1 - sparsity, distribution="per_output")
    for path, mask in network.kernels(ours.masks).items():
      rows = scores[path].reshape(-1, mask.shape[-1]).T
      expected = np.ones(rows.shape, bool)
      lowest = np.argsort(rows, axis=1, kind="stable")
      lowest = lowest[:, : int(rows.shape[1] * sparsity)]
      np.put_along_axis(expected, lowest, False, axis=1)
      np.testing.assert_array_equal(
        np.reshape(mask, rows.shape[::-1]).T, expected, path
      )

  def test_by_output_after_whole_channels(self):
    net = _half_the_channels(_net())
    scores = criteria.score("random", net, key=jax.random.key(1))
    new = prune.prune(net, scores, 0.5, distribution="per_output")
    _assert_subset(new, net)
    by_output = np.asarray(new.masks["head"]["kernel"]).sum(axis=0)
    assert (by_output == 4).all()

  def test_masks_are_those_of_pytorch(self):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune as theirs

    net = _net(GROUPED)
    layers = {}
    for path, kernel in network.kernels(net.params).items():
      layers[path] = torch.nn.Linear(1, 1)
      layers[path].weight = torch.nn.Parameter(torch.tensor(np.array(kernel)))
    total = sum(k.size for k in network.kernels(net.params).values())
    theirs.global_unstructured(
      [(layer, "weight") for layer in layers.values()],
      theirs.L1Unstructured,
      amount=total - round(0.2 * total),
    )
    ours = prune.prune(net, criteria.score("magnitude_l1", net), 0.2)
    for path, mask in network.kernels(ours.masks).items():
      np.testing.assert_array_equal(mask, layers[path].weight_mask.numpy() == 1)

  def test_scores_far_below_zero(self):
    net = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.5)
    scores = {
      p: np.full(k.shape, -1e9, np.float32)
      for p, k in network.kernels(net.params).items()
    }
    again = prune.prune(net, scores, 0.3)
    assert prune.total_density(again) == pytest.approx(0.3, abs=1e-3)

  def test_four_levels_have_no_zero(self):
    rules = [("stem", 8, 8), (".*", 2, 2)]
    few = spec.with_bits(NARROW, rules, two_bits="four_levels")
    net = _net().replace(spec=few)
    scores = criteria.score("magnitude_l1", net)
    with pytest.raises(ValueError, match="masked in stage.*have no zero"):
      prune.prune(net, scores, 0.5)
    half = prune.densities(prune.prune(net, scores, 0.5, layers="stem"))
    assert half.pop("stem") == 0.5 and set(half.values()) == {1}
    groups = channels.channel_groups(few)
    keep = {g.name: np.arange(g.size) > 0 for g in groups}
    with pytest.raises(ValueError, match="masked in stage.*have no zero"):
      channels.mask_channels(net, keep)

  def test_what_is_masked_stays_masked(self):
    net = _net()
    for share in (0.6, 0.3, 0.1):
      before = network.kernels(net.masks)
      scores = criteria.score("random", net, key=jax.random.key(int(9 * share)))
      net = prune.prune(net, scores, share)
      for path, mask in network.kernels(net.masks).items():
        assert not np.any(np.asarray(mask) & ~np.asarray(before[path]))

  def test_all_true_masks_are_the_identity(self):
    net = _net()
    images, _ = _images()
    full = prune.full_masks(net)
    chex.assert_trees_all_equal(
      network.forward(net, images), network.forward(full, images)
    )
    scores = criteria.score("magnitude_l1", net)
    chex.assert_trees_all_equal(
      prune.prune(net, scores, 1.0).params, net.params
    )

  def test_layers(self):
    net = _net()
    scores = criteria.score("magnitude_l1", net)
    found = prune.densities(prune.prune(net, scores, 0.5, layers="stage.*"))
    assert found["stem"] == found["head"] == 1.0
    assert prune.total_density(
      prune.prune(net, scores, 0.5, layers="stage.*"), "stage.*"
    ) == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="layers .='block'. matches no layer"):
      prune.prune(net, scores, 0.5, layers="block")

  def test_no_weight_comes_back(self):
    net = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.3)
    scores = criteria.score("magnitude_l1", net)
    with pytest.raises(ValueError, match="left; lower density"):
      prune.prune(net, scores, 0.9, distribution="uniform")

  def test_pattern(self):
    net = _net()
    scores = criteria.score("magnitude_l1", net)
    found = prune.prune_pattern(net, scores, 2, 4, layers="stage.*|head")
    assert prune.densities(found)["stage1_block1/conv2"] == 0.5
    with pytest.raises(ValueError, match="stem: 3 input channels"):
      prune.prune_pattern(net, scores, 2, 4)

  @pytest.mark.parametrize("n, m", [(2, 4), (1, 2), (4, 4)])
  def test_a_pattern_brings_no_weight_back(self, n, m):
    net = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.1)
    scores = criteria.score("random", net, key=jax.random.key(1))
    new = prune.prune_pattern(net, scores, n, m, "stage.*")
    assert prune.total_density(net) == pytest.approx(0.1, abs=1e-4)
    assert prune.total_density(new) <= prune.total_density(net)
    _assert_subset(new, net)
    again = prune.prune_pattern(new, scores, 1, 4, "stage.*")
    _assert_subset(again, new)
    runs = np.asarray(again.masks["stage2_block1"]["conv2"]["kernel"])
    assert (runs.reshape(9, 2, 4, 8).sum(axis=2) <= 1).all()

  def test_a_pattern_after_whole_channels(self):
    net = _half_the_channels(_net())
    scores = criteria.score("random", net, key=jax.random.key(1))
    new = prune.prune_pattern(net, scores, 2, 4, "stage.*")
    _assert_subset(new, net)
    chex.assert_trees_all_equal(
      shrink.dead_channels(new), shrink.dead_channels(net)
    )

  def test_masks_of_a_caller_bring_no_weight_back(self):
    net = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.1)
    every = {p: np.ones(k.shape, bool)
             for p, k in network.kernels(net.params).items()}  # fmt: skip
    chex.assert_trees_all_equal(prune.with_masks(net, every), net)

  @pytest.mark.parametrize("bits", [4, 8])
  def test_quantized_zeros_stay_zero(self, bits):
    quantized = spec.with_bits(NARROW, ((".*", bits, bits),))
    net = _net(quantized)
    net = prune.prune(net, criteria.score("magnitude_l1", net), 0.3)
    masks = network.kernels(net.masks)
    for path, kernel in network.kernels(criteria.masked(net).params).items():
      q = np.asarray(quantize_kernel(kernel, bits))
      assert np.any(q) and not np.any(q[~np.asarray(masks[path])]), path

  @pytest.mark.parametrize("growth", ["gradient", "random"])
  def test_regrowing_moves_so_many(self, growth):
    """The rule of google-research/rigl's sparse_optimizers_base.py."""
    images, labels = _images()
    net = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.3,
                      distribution="uniform")  # fmt: skip
    scores = criteria.score(
      growth, net, key=jax.random.key(3), images=images, labels=labels
    )
    new = prune.regrow(net, scores, 0.4)
    assert _kept(new) == _kept(net)
    before, after = (network.kernels(n.masks) for n in (net, new))
    back = 0
    for path, kept in _kept(net).items():
      old = np.asarray(network.kernels(net.params)[path]).ravel()
      mask = np.asarray(before[path]).ravel()
      # Drop the smallest of the kept, then grow the best of all that are not
      # kept now, those that were just dropped among them.
      stay = np.argsort(-np.abs(old) * mask, kind="stable")[
        : kept - int(0.4 * kept)
      ]
      lifted = scores[path].ravel().copy()
      lifted[stay] = -1
      grown = np.argsort(-lifted, kind="stable")[: int(0.4 * kept)]
      expected = np.zeros(mask.shape, bool)
      expected[stay] = expected[grown] = True
      np.testing.assert_array_equal(np.ravel(after[path]), expected, path)
      w = np.asarray(network.kernels(new.params)[path]).ravel()
      np.testing.assert_array_equal(w, np.where(expected & mask, old, 0))
      back += mask[grown].sum()
    assert back > 0  # some of the dropped grew at once

  def test_a_share_that_grows_back(self):
    """Of those that grow, so many were just dropped: about 0.3 at 0.3."""
    net = prune.prune(_net(), criteria.score("random", _net(),
                      key=jax.random.key(2)), 0.5)  # fmt: skip
    scores = criteria.score("random", net, key=jax.random.key(3))
    new = prune.regrow(net, scores, 0.3)
    dropped = sum(_kept(net).values()) - sum(
      int(np.sum(np.asarray(m) & np.asarray(n)))
      for m, n in zip(
        jax.tree.leaves(network.kernels(net.masks)),
        jax.tree.leaves(network.kernels(new.masks)),
        strict=True,
      )
    )
    moved = sum(int(0.3 * k) for k in _kept(net).values())
    # Dropped 0.15 of all, free 0.65: of the grown 0.15 / 0.65 come back.
    assert 1 - dropped / moved == pytest.approx(0.15 / 0.65, abs=0.05)

  @pytest.mark.parametrize("share", [0.3, 1.0])
  def test_dead_channels_do_not_regrow(self, share):
    net = _half_the_channels(_net())
    scores = criteria.score("random", net, key=jax.random.key(3))
    new = prune.regrow(prune.full_masks(net), scores, share)
    assert _kept(new) == _kept(prune.full_masks(net))
    chex.assert_trees_all_equal(
      shrink.dead_channels(new), shrink.dead_channels(net)
    )
    _assert_subset(new, net)  # all that is alive was kept already

  def test_rewinding(self):
    first = _net(seed=1)
    last = prune.prune(_net(), criteria.score("magnitude_l1", _net()), 0.3)
    ticket = prune.rewind(last, first)
    chex.assert_trees_all_equal(ticket.masks, last.masks)
    chex.assert_trees_all_equal(
      ticket.params, network.apply_masks(first.params, last.masks)
    )
    with pytest.raises(ValueError, match="earlier state of itself"):
      prune.rewind(last, _net(GROUPED))


class TestSchedules:
  @pytest.mark.parametrize(
    "name, points",
    [
      ("one_shot", (0.1, 0.1, 0.1)),
      ("linear", (0.9, 0.5, 0.1)),
      ("cubic", (0.9, 0.1 + 0.8 / 8, 0.1)),
      ("iterative", (0.9, 0.3, 0.1)),  # 0.9 * (1/9)^(1/2)
    ],
  )
  def test_points(self, name, points):
    found = [prune.density_at(name, 0.9, 0.1, t) for t in (0, 0.5, 1)]
    assert found == pytest.approx(list(points))

  def test_unknown(self):
    with pytest.raises(ValueError, match="schedule .='slow'. must be one of"):
      prune.density_at("slow", 1.0, 0.1, 0.5)

  def test_the_share_that_moves(self):
    found = [prune.drop_share(0.3, t) for t in (0, 0.5, 1, 2)]
    assert found == pytest.approx([0.3, 0.15, 0, 0])
