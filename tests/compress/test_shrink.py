"""Channel groups, and the network without the channels that are masked."""

import functools
import itertools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from odd_nets import fast_jit

from jaxr18.compress import channels, density, prune, sensitivity, shrink
from jaxr18.cost import score as score_lib
from jaxr18.nn import forms, network, spec

# Whole: op by op, each shape of each operation would be compiled by itself.
forward = fast_jit(network.forward)
# Of 8x8 pixels: what is removed does not depend on them.
resnet = functools.partial(spec.resnet, resolution=8)

LOW_RANK = forms.with_forms(
  resnet((8, 16), (1, 1), (2, 2), (1, 1), (False, False)),
  (("stage2.*/conv.", "ranks=1/2,1/2"), ("stage1.*/conv1", "ranks=0,4")),
)
GRID = {
  "dense": resnet((8, 16), (2, 1), (1, 2), (1, 1), (False, False)),
  "deep": resnet((8, 8, 16), (1, 3, 2), (2, 1, 2), (1,) * 3, (False,) * 3),
  "grouped": resnet((8, 16), (2, 2), (2, 2), (2, 8), (False, False)),
  "depthwise": resnet((8, 16), (1, 2), (2, 2), (1, 1), (True, True)),
  "mixed": resnet((8, 16), (2, 2), (2, 2), (4, 1), (False, True)),
  "low rank": LOW_RANK,
  "quantized": spec.with_bits(
    resnet((8, 16), (1, 2), (2, 2), (2, 1), (False, False)),
    (("stem|head", 8, 8), (".*", 4, 4)),
  ),
  "stem of its own": resnet(
    (8, 16), (1, 1), (1, 2), (1, 1), (False, False), stem_features=12
  ),
}
grid = pytest.mark.parametrize("net_spec", GRID.values(), ids=GRID)


@functools.cache
def _net(net_spec):
  """Random in batch norm too, running statistics included."""
  net = network.init(jax.random.key(0), net_spec)
  rng = np.random.default_rng(0)

  def drawn(path, leaf):
    name = path[-1].key
    if name in ("scale", "bias", "mean"):
      return jnp.asarray(rng.normal(0.5, 0.5, leaf.shape), jnp.float32)
    if name == "var":
      return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), jnp.float32)
    return leaf

  params, stats = (
    jax.tree_util.tree_map_with_path(drawn, t)
    for t in (net.params, net.batch_stats)
  )
  net = net.replace(params=params, batch_stats=stats)
  return network.calibrate(net, _images(net_spec))


def _shapes(net_spec):
  """A network without numbers, nor a program that makes them."""
  return jax.eval_shape(
    lambda key: network.init(key, net_spec), jax.random.key(0)
  )


def _images(net_spec, n=3):
  size = net_spec.resolution
  return jax.random.normal(jax.random.key(7), (n, size, size, 3))


def _pruned(net, share=0.5, **how):
  scores = channels.importance("random", net, key=jax.random.key(5))
  keep = channels.kept_channels(net.spec, scores, share, **how)
  return channels.mask_channels(net, keep)


class TestGroups:
  def test_resnet18_has_twelve(self):
    groups = channels.channel_groups(spec.resnet18())
    names = [g.name for g in groups]
    assert len(groups) == 12
    assert sum(n.endswith("inner") for n in names) == 8
    streams = {g.name: g for g in groups if g.name.endswith("stream")}
    assert list(streams) == ["stem/stream"] + [
      f"stage{i}_block1/stream" for i in (2, 3, 4)
    ]
    assert streams["stem/stream"].writers == (
      "stem", "stage1_block1/conv2", "stage1_block2/conv2"
    )  # fmt: skip
    assert streams["stem/stream"].readers == (
      "stage1_block1/conv1", "stage1_block2/conv1", "stage2_block1/conv1",
      "stage2_block1/proj",
    )  # fmt: skip
    assert streams["stage4_block1/stream"].readers[-1] == "head"

  @grid
  def test_every_axis_of_channels_is_in_one_group(self, net_spec):
    groups = channels.channel_groups(net_spec)
    writers = [w for g in groups for w in g.writers]
    through = [t for g in groups for t in g.through]
    readers = [r for g in groups for r in g.readers]
    layers = net_spec.layers()
    ends = [x.path for x in layers if x.ends_unit and x.kind == "conv"]
    assert sorted(writers) == sorted(ends)
    assert sorted(through) == [
      x.path for x in sorted(layers, key=lambda x: x.path)
      if x.path.endswith("/depthwise")
    ]  # fmt: skip
    assert len(set(readers)) == len(readers) == len(ends)  # all but the stem

  def test_blocks_are_those_of_all_convolutions(self):
    found = {g.name: g.blocks for g in channels.channel_groups(GRID["grouped"])}
    assert found["stage1_block1/inner"] == 2
    assert found["stage1_block1/stream"] == 8  # also read in 8 groups
    assert found["stem/stream"] == 2


class TestShrink:
  # Removal sees which channels are left, and not what chose them.
  @pytest.mark.parametrize(
    "net_spec, distribution",
    [*zip(GRID.values(), itertools.cycle(channels.DISTRIBUTIONS))],
    ids=GRID,
  )
  def test_equals_the_masked_network(self, net_spec, distribution):
    net = _pruned(_net(net_spec), distribution=distribution)
    small = shrink.shrink(net)
    images = _images(net_spec)
    masked = forward(net, images)
    assert np.abs(masked - forward(_net(net_spec), images)).max() > 1e-3
    np.testing.assert_allclose(
      forward(small, images), masked, atol=1e-5, rtol=1e-5
    )
    assert small.spec != net_spec
    weights = lambda n: sum(k.size for k in jax.tree.leaves(n.params))
    assert weights(small) < weights(net)
    chex.assert_trees_all_equal_shapes(small.params, _shapes(small.spec).params)

  @pytest.mark.parametrize("w_scales", spec.W_SCALES)
  def test_of_integers_equals_the_masked_network(self, w_scales):
    few = spec.with_bits(GRID["grouped"], [(".*", 3, 8)], w_scales=w_scales)
    pruned = _pruned(_net(few))
    left = shrink.shrink(pruned)
    assert left.spec.stem.w_scales == w_scales
    logits = forward(pruned, _images(few))
    np.testing.assert_allclose(
      forward(left, _images(few)), logits, rtol=1e-4, atol=1e-4
    )
    bounds = {k: v for k, v in left.params["stem"].items() if "kernel_b" in k}
    width = left.spec.stem.features
    shapes = {"least_error": [], "learned": [()], "learned_channel": [(width,)]}
    assert [b.shape for b in bounds.values()] == shapes[w_scales]
    assert width < few.stem.features

  def test_masked_kernels_alone_are_not_enough(self):
    net = _net(GRID["dense"])
    pruned = _pruned(net)
    dead = shrink.dead_channels(pruned)
    masks = {}
    for group in channels.channel_groups(net.spec):
      for path in group.writers:
        kernel = network.at(net.params, path)["kernel"]
        masks[path] = jnp.broadcast_to(~dead[group.name], kernel.shape)
    leaky = net.replace(masks=network.with_kernels(net.masks, masks))
    images = _images(net.spec)
    gap = forward(leaky, images) - forward(pruned, images)
    assert np.abs(gap).max() > 1e-2
    assert shrink.shrink(leaky).spec == net.spec  # nothing is dead

  @grid
  def test_the_cost_of_what_is_left(self, net_spec):
    net = _pruned(_net(net_spec))
    before = score_lib.score(net.spec, masks=net.masks)
    small = shrink.shrink(net)
    after = score_lib.score(small.spec, masks=small.masks)
    assert after.macs < before.macs
    kept = lambda s: sum(row.kept for row in s.rows)
    assert kept(after) == kept(before)

  def test_single_weights_stay_masked(self):
    net = _net(GRID["dense"])
    scores = {
      p: np.abs(np.asarray(k)) for p, k in network.kernels(net.params).items()
    }
    net = _pruned(prune.prune(net, scores, 0.4))
    small = shrink.shrink(net)
    images = _images(net.spec)
    np.testing.assert_allclose(
      forward(small, images),
      forward(net, images),
      atol=1e-5,
      rtol=1e-5,
    )
    assert prune.total_density(small) < 0.6

  def test_nothing_to_remove(self):
    net = _net(GRID["dense"])
    small = shrink.shrink(net)
    assert small.spec == net.spec
    chex.assert_trees_all_equal(small.params, net.params)

  def test_unequal_groups_are_refused(self):
    net = _net(GRID["grouped"])
    keep = np.ones(8, bool)
    keep[0] = False
    bad = channels.mask_channels(net, {"stage1_block1/inner": keep})
    with pytest.raises(
      ValueError, match=r"inner: stage1_block1/conv1.*\[3, 4\]"
    ):
      shrink.shrink(bad)

  def test_an_empty_group_is_refused(self):
    net = _net(GRID["dense"])
    none = {"stage2_block1/inner": np.zeros(16, bool)}
    with pytest.raises(ValueError, match="lose all its 16 channels"):
      shrink.shrink(channels.mask_channels(net, none))


class TestKept:
  @grid
  @pytest.mark.parametrize("multiple", [1, 4])
  def test_counts(self, net_spec, multiple):
    net = _net(net_spec)
    scores = channels.importance("l2", net)
    keep = channels.kept_channels(net_spec, scores, 0.5, multiple=multiple)
    for group in channels.channel_groups(net_spec):
      by_block = keep[group.name].reshape(group.blocks, -1).sum(axis=1)
      assert by_block.min() == by_block.max() > 0
      if group.size % np.lcm(multiple, group.blocks) == 0:
        assert keep[group.name].sum() % multiple == 0

  def test_global_prefers_what_matters(self):
    net = _net(GRID["dense"])
    groups = channels.channel_groups(net.spec)
    scores = {g.name: np.ones(g.size) for g in groups}
    scores["stage1_block1/inner"] = np.array([1.0] + [1e-6] * 7)
    keep = channels.kept_channels(net.spec, scores, 0.8, distribution="global")
    total = sum(g.size for g in groups)
    assert sum(k.sum() for k in keep.values()) == round(0.8 * total)
    assert keep["stage1_block1/inner"].sum() == 1
    floor = channels.kept_channels(
      net.spec, scores, 0.8, distribution="global", floor=0.5
    )
    assert floor["stage1_block1/inner"].sum() == 4

  def test_a_floor_as_high_as_the_density(self):
    """configs/prune_structured.py:0.2, whose floor rounded up was too much."""
    net_spec = spec.resnet((16, 32, 48, 56), strides=(2, 2, 2, 1))
    groups = channels.channel_groups(net_spec)
    scores = {g.name: np.arange(1.0, 1 + g.size) for g in groups}
    keep = channels.kept_channels(
      net_spec, scores, 0.2, distribution="global", floor=0.2
    )
    kept = {name: int(k.sum()) for name, k in keep.items()}
    assert sum(kept.values()) == round(0.2 * sum(g.size for g in groups))
    # A fifth rounded up would be 4, 7, 10 and 12 channels.
    assert all(kept[g.name] >= int(0.18 * g.size) for g in groups)

  def test_what_is_gone_gives_its_group_no_advantage(self):
    net_spec = GRID["dense"]
    groups = channels.channel_groups(net_spec)
    scores = {g.name: np.ones(g.size) for g in groups}
    # 7 of 8 are gone; the last is worth as much as any other, over the mean
    # of those that are left.
    scores["stage1_block1/inner"] = np.array([1.0] + [-1.0] * 7)
    scores["stage2_block1/inner"] = np.full(16, 1.0 + 1e-9)
    total = sum(g.size for g in groups)
    keep = channels.kept_channels(
      net_spec, scores, (total - 8) / total, distribution="global"
    )
    assert keep["stage1_block1/inner"].sum() == 1
    gone = {n: s < 0 for n, s in scores.items()}
    assert sum((k & gone[n]).sum() for n, k in keep.items()) == 0

  @pytest.mark.parametrize(
    "how, message",
    [
      (dict(density=0.0), "density .=0.0. must be above 0"),
      (dict(density=0.5, floor=0.6), "floor .=0.6."),
      (dict(density=0.5, distribution="erk"), "must be one of"),
      (dict(density=0.02, distribution="global"), "need .* at least"),
    ],
  )
  def test_errors(self, how, message):
    net = _net(GRID["dense"])
    scores = channels.importance("l2", net)
    with pytest.raises(ValueError, match=message):
      channels.kept_channels(net.spec, scores, **how)

  @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
  @pytest.mark.parametrize("distribution", channels.DISTRIBUTIONS)
  def test_a_score_that_is_not_finite(self, distribution, bad):
    net = _net(GRID["dense"])
    scores = channels.importance("l2", net)
    scores["stage1_block1/inner"][3] = bad
    message = "stage1_block1/inner: scores must be finite, and 1 of its 8"
    with pytest.raises(ValueError, match=message):
      channels.kept_channels(net.spec, scores, 0.5, distribution=distribution)
    with pytest.raises(ValueError, match=message):
      sensitivity.channel_ranks(net, scores)


class TestImportance:
  def test_by_hand(self):
    net = _net(GRID["dense"])
    p = jax.tree.map(np.asarray, net.params)
    l2 = channels.importance("l2", net)["stage1_block1/inner"]
    k = p["stage1_block1"]["conv1"]["kernel"].reshape(-1, 8)
    np.testing.assert_allclose(l2, np.sqrt((k**2).sum(axis=0)), rtol=1e-5)
    median = channels.importance("geometric_median", net)
    far = np.sqrt(((k[:, :, None] - k[:, None]) ** 2).sum(axis=0)).sum(axis=0)
    np.testing.assert_allclose(median["stage1_block1/inner"], far, rtol=1e-4)
    scale = channels.importance("bn_scale", net)["stage2_block1/stream"]
    both = [p["stage2_block1"][n]["scale"] for n in ("bn2", "proj_bn")]
    mean = (np.abs(both[0]) + np.abs(both[1])) / 2
    np.testing.assert_allclose(scale, mean, rtol=1e-6)
    grads = jax.tree.map(jnp.ones_like, net.params)
    taylor = channels.importance("taylor", net, grads=grads)
    bn = p["stage1_block1"]["bn1"]
    np.testing.assert_allclose(
      taylor["stage1_block1/inner"], (bn["scale"] + bn["bias"]) ** 2, rtol=1e-5
    )

  def test_what_is_missing(self):
    net = _net(GRID["dense"])
    with pytest.raises(ValueError, match="'taylor' needs grads"):
      channels.importance("taylor", net)
    with pytest.raises(ValueError, match="'random' needs key"):
      channels.importance("random", net)
    with pytest.raises(ValueError, match="criterion .='l1'. must be one of"):
      channels.importance("l1", net)

  @pytest.mark.parametrize("criterion", ["taylor", "bn_scale"])
  def test_raw_scores_are_ranked_as_in_the_papers(self, criterion):
    """The best of all channels by |scale|, or by (g scale + g bias)^2."""
    net = _net(GRID["dense"])
    weak = jax.tree.map(lambda p: p / 4, net.params["stage2_block1"]["bn1"])
    block = net.params["stage2_block1"] | {"bn1": weak}
    net = net.replace(params=net.params | {"stage2_block1": block})
    grads = jax.tree.map(lambda p: jnp.sin(9 * p), net.params)
    scores = channels.importance(criterion, net, grads=grads)
    every = np.concatenate(list(scores.values()))
    keep = channels.kept_channels(
      net.spec, scores, 0.6, distribution="global_raw"
    )
    threshold = np.sort(every)[-round(0.6 * every.size)]
    for name, s in scores.items():
      np.testing.assert_array_equal(keep[name], s >= threshold, name)
    over_mean = channels.kept_channels(
      net.spec, scores, 0.6, distribution="global"
    )
    assert any((keep[n] != over_mean[n]).any() for n in keep)
    p = jax.tree.map(np.asarray, net.params)["stage1_block1"]["bn1"]
    g = jax.tree.map(np.asarray, grads)["stage1_block1"]["bn1"]
    of_one = {
      "bn_scale": np.abs(p["scale"]),
      "taylor": (p["scale"] * g["scale"] + p["bias"] * g["bias"]) ** 2,
    }[criterion]
    np.testing.assert_allclose(
      scores["stage1_block1/inner"], of_one, rtol=1e-4, atol=1e-7
    )

  def test_group_lasso_of_a_stream_costs_what_lone_channels_do(self):
    net = _net(GRID["dense"])
    ones = jax.tree_util.tree_map_with_path(
      lambda path, p: jnp.ones_like(p) * (path[-1].key == "scale"), net.params
    )
    scales = sum(
      p.size
      for path, p in jax.tree_util.tree_leaves_with_path(net.params)
      if path[-1].key == "scale"
    )
    value = channels.group_lasso(ones, net.spec)
    assert float(value) == pytest.approx(scales, rel=1e-5)

  def test_group_lasso(self):
    net = _net(GRID["dense"])
    value = channels.group_lasso(net.params, net.spec)
    p = jax.tree.map(np.asarray, net.params)
    total = 0.0
    for group in channels.channel_groups(net.spec):
      squares = sum(network.at(p, n)["scale"] ** 2 for n in group.norms)
      total += np.sqrt(len(group.norms)) * np.sqrt(squares).sum()
    assert float(value) == pytest.approx(total, rel=1e-5)
    zero = jax.tree.map(jnp.zeros_like, net.params)
    grads = jax.grad(channels.group_lasso)(zero, net.spec)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


class TestBlocks:
  def test_dropping_one(self):
    net = _net(GRID["deep"])
    small = shrink.drop_blocks(net, ["stage2_block2"])
    assert len(small.spec.stages[1]) == 2
    chex.assert_trees_all_equal(
      small.params["stage2_block2"], net.params["stage2_block3"]
    )
    chex.assert_trees_all_equal_shapes(small.params, _shapes(small.spec).params)
    # A block whose last batch norm gives 0 adds nothing to a stream >= 0.
    bn = net.params["stage2_block2"]["bn2"]
    zero = jax.tree.map(jnp.zeros_like, bn)
    block = net.params["stage2_block2"] | {"bn2": zero}
    silent = net.replace(params=net.params | {"stage2_block2": block})
    images = _images(net.spec)
    np.testing.assert_allclose(
      forward(silent, images), forward(small, images), atol=1e-5
    )

  @pytest.mark.parametrize(
    "names, message",
    [
      (["stage9_block1"], "no block 'stage9_block1'; there are"),
      (["stage3_block1"], "its shortcut is a projection"),
    ],
  )
  def test_what_cannot_go(self, names, message):
    with pytest.raises(ValueError, match=message):
      shrink.drop_blocks(_net(GRID["deep"]), names)

  def test_no_stage_is_emptied(self):
    net = _net(spec.resnet((8,), (2,), (1,), (1,), (False,)))
    with pytest.raises(ValueError, match="stage 1 would lose all its blocks"):
      shrink.drop_blocks(net, ["stage1_block1", "stage1_block2"])


@st.composite
def specs(draw):
  """Any network of up to three stages, with forms of its own by layer."""
  stages = draw(st.integers(1, 3))
  few = lambda choices: tuple(
    draw(st.sampled_from(choices)) for _ in range(stages)
  )
  groups = few((1, 1, 2, 4, 0))  # 0 for depthwise
  net_spec = spec.resnet(
    few((4, 8, 12)), few((1, 2)), few((1, 2)), [g or 1 for g in groups],
    [not g for g in groups], resolution=8,
    stem_features=draw(st.sampled_from((None, 8))),
  )  # fmt: skip
  form = draw(st.sampled_from(("", "depthwise", "groups=2", "ranks=2,3",
                               "ranks=1/2,0")))  # fmt: skip
  where = draw(st.sampled_from(("stage.*/conv1", "stage1.*/conv2")))
  return forms.with_forms(net_spec, ((where, form),)) if form else net_spec


def _drawn(net_spec, seed):
  """As `_net`, without a program to compile."""
  shapes = _shapes(net_spec)
  rng = np.random.default_rng(seed)
  params, stats = jax.tree.map(
    lambda x: rng.uniform(0.2, 1, x.shape).astype(np.float32),
    (shapes.params, shapes.batch_stats),
  )
  masks = jax.tree.map(lambda _: np.array(True), params)
  return network.Network(params, stats, masks, net_spec)


how_to_keep = hypothesis.given(
  specs(),
  st.integers(0, 99),
  st.floats(0.4, 1.0),
  st.sampled_from(channels.DISTRIBUTIONS),
  st.sampled_from((0.0, 0.25)),
  st.sampled_from((1, 2, 4)),
)


@hypothesis.settings(max_examples=40, deadline=None)
@how_to_keep
def test_what_is_left_of_any_network(
  net_spec, seed, share, distribution, floor, multiple
):
  net = _drawn(net_spec, seed)
  # Ties too.
  scores = {g.name: np.random.default_rng(seed).integers(1, 4, g.size)
            for g in channels.channel_groups(net_spec)}  # fmt: skip
  try:
    keep = channels.kept_channels(
      net_spec, scores, share, distribution=distribution, floor=floor,
      multiple=multiple,
    )  # fmt: skip
  except ValueError as e:
    assert distribution != "uniform" and "at least" in str(e)
    hypothesis.reject()
  small = shrink.shrink(channels.mask_channels(net, keep))
  sizes = {g.name: g.size for g in channels.channel_groups(small.spec)}
  assert sizes == {name: k.sum() for name, k in keep.items()}
  groups = channels.channel_groups(net_spec)
  steps = channels.steps_of(groups, multiple)
  widths = {g.name: g.size for g in groups}
  least = density.at_least(widths, floor, steps)
  if distribution != "uniform":
    total = round(share * sum(widths.values()))
    least = density.feasible(widths, floor, total, steps)
  for group in groups:
    assert keep[group.name].sum() >= least[group.name] * steps[group.name]
  like = _shapes(small.spec)
  chex.assert_trees_all_equal_shapes(small.params, like.params)
  chex.assert_trees_all_equal_shapes(small.batch_stats, like.batch_stats)
  if distribution != "uniform":
    total = sum(g.size for g in channels.channel_groups(net_spec))
    assert sum(sizes.values()) <= round(share * total)


@hypothesis.settings(max_examples=5, deadline=None)
@how_to_keep
def test_any_network_equals_its_masked_self(
  net_spec, seed, share, distribution, floor, multiple
):
  net = _drawn(net_spec, seed)
  scores = channels.importance("l2", net)
  try:
    keep = channels.kept_channels(
      net_spec, scores, share, distribution=distribution, floor=floor,
      multiple=multiple,
    )  # fmt: skip
  except ValueError:
    hypothesis.reject()
  masked = channels.mask_channels(net, keep)
  small = shrink.shrink(masked)
  images = _images(net_spec)
  expected = forward(masked, images)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    forward(small, images) / scale, expected / scale, atol=1e-5
  )


def test_recalibration_gives_the_batch_its_own_statistics():
  net = _net(GRID["dense"])
  images = _images(net.spec, 16)
  new = network.recalibrate(net, [images])
  in_training, _ = network.forward_train(net, images)
  np.testing.assert_allclose(
    forward(new, images), in_training, atol=2e-3, rtol=2e-3
  )
  one, other = images[:8], images[8:] * 2
  both = network.recalibrate(net, [one, other]).batch_stats
  halves = [network.recalibrate(net, [x]).batch_stats for x in (one, other)]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
  chex.assert_trees_all_close(both, mean, rtol=1e-6)
  with pytest.raises(ValueError, match="no batch"):
    network.recalibrate(net, [])


def test_spec_is_of_the_kept_widths():
  net = _pruned(_net(GRID["dense"]))
  small = shrink.shrink(net)
  widths = [c.features for _, c in forms.convolutions(small.spec)]
  before = [c.features for _, c in forms.convolutions(net.spec)]
  assert widths == [n // 2 for n in before]
