"""The three figures against hand counts, and the relations between them."""

import dataclasses
import json
import math
import pathlib
import time

import forked
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.config import file as configfile
from jaxr18.config.reading import parse
from jaxr18.cost.macs import count_macs
from jaxr18.cost.score import per_network_score, score
from jaxr18.cost.solve import scale_widths, score_many, solve
from jaxr18.nn import network
from jaxr18.nn.spec import ConvSpec, resnet, resnet18, with_bits

ROOT = pathlib.Path(__file__).parents[2]
PARAMS, MACS = 11_173_962, 555_422_720
BATCH_NORM_SCALES = 4800  # channels after a convolution in ResNet-18
# kernels in 32 bits, a folded bias a channel and the head's
EXACT_PARAMS = PARAMS - BATCH_NORM_SCALES


@st.composite
def specs(draw):
  """Small networks of every kind of layer, with mixed bits."""
  stages = draw(st.integers(1, 3))
  each = lambda s: tuple(draw(s) for _ in range(stages))
  depthwise = each(st.booleans())
  spec = resnet(
    widths=each(st.sampled_from([4, 8, 12])),
    blocks=each(st.integers(1, 2)),
    strides=each(st.integers(1, 2)),
    groups=tuple(1 if d else draw(st.sampled_from([1, 4])) for d in depthwise),
    depthwise=depthwise,
    stem_features=draw(st.sampled_from([4, 8])),
    classes=draw(st.integers(2, 10)),
    resolution=draw(st.sampled_from([8, 9, 16])),
  )
  block = spec.stages[0][0]
  if block.conv2.groups == 1 and not block.conv2.depthwise:
    ranks = draw(st.sampled_from([(0, 0), (2, 0), (0, 2), (3, 2)]))
    conv2 = dataclasses.replace(block.conv2, ranks=ranks)
    first = (dataclasses.replace(block, conv2=conv2), *spec.stages[0][1:])
    spec = dataclasses.replace(spec, stages=(first, *spec.stages[1:]))
  bits = st.sampled_from([2, 4, 8, 32])
  rules = [(pattern, draw(bits), draw(bits)) for pattern in ("stem", ".*")]
  return with_bits(spec, rules)


def parameters(spec):
  net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  return net.params


def masks_like(spec, seed, density):
  """Random masks of every parameter; some stay scalars."""
  rng = np.random.default_rng(seed)

  def mask(p):
    if rng.random() < 0.2 or not p.shape:
      return np.array(True)
    return rng.random(p.shape) < density

  return jax.tree.map(mask, parameters(spec))


def all_true(spec):
  return jax.tree.map(lambda p: np.ones(p.shape, bool), parameters(spec))


def one_image(spec):
  shape = (1, spec.resolution, spec.resolution, spec.channels)
  return jax.ShapeDtypeStruct(shape, jnp.float32)


class TestGolden:
  def test_resnet18(self):
    s = score(resnet18())
    assert (s.per_network.w, s.per_network.f, s.macs) == (PARAMS, MACS, MACS)
    assert f"{s.per_network.total:.6f}" == "3.979003"
    assert s.per_layer.params_term == pytest.approx(
      EXACT_PARAMS / 5.6e6, rel=1e-12
    )
    assert s.per_layer.ops_term == pytest.approx(MACS / 2.8e8, rel=1e-12)
    assert s.on_disk.total == pytest.approx(s.per_layer.total, rel=1e-12)

  def test_what_others_print(self):
    # thop charges 4 MACs for each of the 614,400 elements of batch norm.
    others = per_network_score(PARAMS, MACS + 4 * 614_400)
    assert f"{others.total:.6f}" == "3.987780"

  @pytest.mark.parametrize(
    ("p_s", "p_u", "q_w", "q_a", "expected"),
    [
      (0.0, 0.0, 16, 16, 1.5),  # half of 1 + 2
      (0.5, 0.0, 32, 32, 1.5),
      (0.25, 0.5, 32, 32, 0.25 + 1.5),
      (0.0, 0.5, 4, 8, 0.5 / 8 + 2 / 4),
      (0.0, 1.0, 32, 32, 2.0),
      (1.0, 0.0, 32, 32, 0.0),
    ],
  )
  def test_formula_by_hand(self, p_s, p_u, q_w, q_a, expected):
    s = per_network_score(
      5_600_000, 560_000_000, p_s=p_s, p_u=p_u, q_w=q_w, q_a=q_a
    )
    assert s.total == pytest.approx(expected, abs=1e-12)

  def test_a_sign_has_no_zero(self):
    spec = resnet((4,), (1,), (1,), (1,), (False,), classes=2)
    spec = with_bits(spec, [(".*", 1, 32)])
    masks = all_true(spec)
    # All but one of 144: bits for all would be smallest, but for the zero.
    masks["stage1_block1"]["conv1"]["kernel"] = (
      np.arange(144).reshape(3, 3, 4, 4) > 0
    )
    _, conv1, conv2, _ = score(spec, masks=masks).rows
    assert (conv1.encoding, conv2.encoding) == ("bitmask", "dense")
    assert conv1.stored_bits == 144 + 143 + 4 * 32 + 4 * 32
    assert conv2.stored_bits == 144 + 4 * 32 + 4 * 32

  def test_on_disk_by_hand(self):
    spec = resnet((4,), (1,), (1,), (1,), (False,), classes=2)
    spec = with_bits(spec, [("stem", 4, 8), ("head", 32, 32), (".*", 8, 32)])
    masks = all_true(spec)
    # 3 of 108 weights: 4 bits and an index of 7 each.
    masks["stem"]["kernel"] = np.arange(108).reshape(3, 3, 3, 4) < 3
    # 72 of 144 weights: one bit each, and 8 for those kept.
    masks["stage1_block1"]["conv1"]["kernel"] = (
      np.arange(144).reshape(3, 3, 4, 4) < 72
    )
    masks["stem_bn"]["bias"] = np.array([True, False, True, True])
    s = score(spec, masks=masks)
    stem, conv1, conv2, head = s.rows
    assert [row.encoding for row in s.rows] == [
      "indices", "bitmask", "dense", "dense"]  # fmt: skip
    # Every bias, a scale a channel, and a scale of the quantized image.
    assert stem.stored_bits == 3 * (4 + 7) + 4 * 32 + 4 * 32 + 32
    assert conv1.stored_bits == 144 + 72 * 8 + 4 * 32 + 4 * 32
    assert conv2.stored_bits == 144 * 8 + 4 * 32 + 4 * 32
    assert head.stored_bits == 8 * 32 + 2 * 32
    assert (stem.kept, stem.biases, stem.biases_kept) == (3, 4, 3)
    exact = 3 * 4 + 3 * 32 + (72 + 144) * 8 + 8 * 32 + 8 * 32 + 2 * 32
    assert s.per_layer.params_term == pytest.approx(
      exact / 32 / 5.6e6, rel=1e-12
    )
    # The stem's image has 8 bits, the others' inputs 32.
    ops = 1024 * (108 * 8 + 2 * 144 * 32) + 8 * 32
    assert s.per_layer.ops_term == pytest.approx(ops / 32 / 2.8e8, rel=1e-12)


class TestAgainstTheNetwork:
  @hypothesis.settings(max_examples=12, deadline=None)
  @hypothesis.given(specs())
  def test_closed_form_is_the_traced_count(self, spec):
    net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
    counted = count_macs(network.forward, net, one_image(spec))
    s = score(spec, counted=counted)  # raises where a layer differs
    assert counted.total == s.macs == s.per_network.f
    leaves = jax.tree_util.tree_leaves_with_path(net.params)
    sizes = [
      math.prod(leaf.shape)
      for path, leaf in leaves
      if path[-1].key != "input_bound"
    ]
    assert s.per_network.w == sum(sizes)

  def test_passes_that_are_not_charged(self):
    spec = resnet((4, 8), (1, 1), (1, 2), (1, 1), (False, True))
    net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
    image = one_image(spec)

    def flipped(net, x):
      mirrored = network.forward(net, x[:, :, ::-1])
      return network.forward(net, x) + mirrored

    counted = count_macs(flipped, net, image)
    with pytest.raises(ValueError, match="stem: .*2 times.*views="):
      score(spec, counted=counted)
    assert score(spec, views=2, counted=counted).macs == 2 * score(spec).macs

    stack = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), net
    )
    vote = lambda nets, x: jax.vmap(network.forward, (0, None))(nets, x).sum(0)
    counted = count_macs(vote, stack, image)
    with pytest.raises(ValueError, match="stem: .*3 times.*members="):
      score(spec, counted=counted)
    score(spec, members=3, counted=counted)
    other = resnet((4,), (1,), (1,), (1,), (False,))
    with pytest.raises(ValueError, match="stage2_block1.*belong to no layer"):
      score(other, counted=counted)


class TestRelations:
  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(specs(), st.integers(0, 99), st.floats(0, 1))
  def test_per_layer_is_at_most_on_disk(self, spec, seed, density):
    s = score(spec, masks=masks_like(spec, seed, density))
    assert s.per_layer.params_term <= s.on_disk.params_term * (1 + 1e-12)
    assert s.per_layer.ops_term == s.on_disk.ops_term
    for name in ("params_term", "ops_term"):
      total = sum(getattr(row.per_layer, name) for row in s.rows)
      assert total == pytest.approx(getattr(s.per_layer, name), rel=1e-12)
    left = 1 - s.per_network.p_s  # which masks may take to 0
    assert s.per_layer.ops_term * left <= s.per_network.ops_term * (1 + 1e-12)

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
    specs(), st.sampled_from([2, 4, 8, 32]), st.integers(0, 99),
    st.floats(0.3, 1))  # fmt: skip
  def test_uniform_and_unstructured_per_layer_is_the_formula(
    self, spec, bits, seed, density
  ):
    spec = with_bits(spec, [(".*", bits, bits)])
    rng = np.random.default_rng(seed)
    masks = jax.tree.map(
      # Vectors stay whole; the last weight keeps each channel alive.
      lambda p: (
        np.array(True)
        if len(p.shape) < 2
        else (rng.random(p.shape) < density)
        | (np.arange(math.prod(p.shape)).reshape(p.shape) % 2 == 0)
      ),
      parameters(spec),
    )
    s = score(spec, masks=masks)
    kernels = sum(row.weights for row in s.rows)
    kept = sum(row.kept for row in s.rows)
    biases = sum(row.biases for row in s.rows)
    formula = per_network_score(
      kernels, s.macs, p_u=1 - kept / kernels, q_w=bits, q_a=bits
    )
    folded = biases / 5.6e6
    assert s.per_layer.total == pytest.approx(formula.total + folded, rel=1e-9)
    # The formula counts batch norm's scales too, and all at the same bits.
    both = s.per_network.w - kernels
    extra = (both * bits / 32 - biases) / 5.6e6
    if s.per_network.p_s == 0:
      assert s.per_network.total - s.per_layer.total == pytest.approx(
        extra, abs=1e-12
      )

  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(specs(), st.integers(1, 4), st.integers(1, 3))
  def test_an_ensemble_costs_its_members(self, spec, members, views):
    one, many = score(spec), score(spec, members=members, views=views)
    for name in ("per_network", "per_layer", "on_disk"):
      a, b = getattr(one, name), getattr(many, name)
      assert b.params_term == pytest.approx(members * a.params_term)
      assert b.ops_term == pytest.approx(members * views * a.ops_term)

  def test_members_may_have_masks_of_their_own(self):
    spec = resnet((4,), (1,), (1,), (1,), (False,))
    each = [masks_like(spec, seed, 0.5) for seed in range(3)]
    full = [
      jax.tree.map(
        lambda m, p: np.broadcast_to(m, p.shape), m, parameters(spec)
      )
      for m in each
    ]
    stack = jax.tree.map(lambda *m: np.stack(m), *full)
    s = score(spec, masks=stack, members=3)
    alone = [score(spec, masks=m) for m in each]
    assert s.per_layer.params_term == pytest.approx(
      sum(a.per_layer.params_term for a in alone)
    )
    with pytest.raises(ValueError, match="stack of 3 networks.*members=3"):
      score(spec, masks=stack)
    scalars = jax.tree.map(lambda p: np.ones(3, bool), parameters(spec))
    assert score(spec, masks=scalars, members=3) == score(spec, members=3)

  def test_all_true_masks_change_nothing(self):
    spec = with_bits(resnet18(), [("stem", 8, 8), (".*", 4, 4)])
    plain = score(spec)
    assert score(spec, masks=all_true(spec)) == plain
    scalars = jax.tree.map(lambda _: jnp.array(True), parameters(spec))
    assert score(spec, masks=scalars) == plain

  def test_masked_channels_are_the_formula_s_p_s(self):
    # The middle half of a block: conv1's outputs, bn1, conv2's inputs.
    spec = resnet((8,), (1,), (1,), (1,), (False,))
    masks = all_true(spec)
    block = masks["stage1_block1"]
    block["conv1"]["kernel"][..., 4:] = False
    block["conv2"]["kernel"][:, :, 4:] = False
    for name in ("scale", "bias"):
      block["bn1"][name][4:] = False
    s = score(spec, masks=masks)
    by_params = (2 * 9 * 8 * 4 + 2 * 4) / s.per_network.w
    by_macs = 2 * 9 * 8 * 4 * 1024 / s.per_network.f
    assert s.per_network.p_s == pytest.approx(min(by_params, by_macs))
    assert s.per_network.p_s + s.per_network.p_u == pytest.approx(by_params)
    # Masks remove no MACs from what is really there; shrinking does.
    assert s.per_layer.ops_term == score(spec).per_layer.ops_term
    conv1 = dataclasses.replace(spec.stages[0][0].conv1, features=4)
    shrunk = dataclasses.replace(
      spec, stages=((dataclasses.replace(spec.stages[0][0], conv1=conv1),),)
    )
    after = score(shrunk, shrunk_from=spec)
    assert after.per_network.p_s == 0
    assert after.per_network.w == sum(np.sum(m) for m in jax.tree.leaves(masks))
    assert after.per_layer.params_term == pytest.approx(s.per_layer.params_term)
    assert after.per_layer.ops_term < s.per_layer.ops_term
    with pytest.raises(ValueError, match="conv1/kernel.*shape.*shrunk"):
      score(shrunk, masks=masks)

  @pytest.mark.parametrize(
    ("layer", "smaller"), [("stem", "params"), ("stage2_block1/conv2", "macs")]
  )
  def test_p_s_is_the_smaller_share(self, layer, smaller):
    spec = resnet((4, 16), (1, 1), (1, 2), (1, 1), (False, False))
    masks = all_true(spec)
    node = masks
    for key in layer.split("/"):
      node = node[key]
    node["kernel"][..., 0] = False
    s = score(spec, masks=masks)
    row = next(row for row in s.rows if row.path == layer)
    removed = row.weights // row.kernel_shape[-1]
    shares = {
      "params": removed / s.per_network.w,
      "macs": row.macs / row.kernel_shape[-1] / s.per_network.f,
    }
    assert min(shares, key=shares.get) == smaller
    assert s.per_network.p_s == pytest.approx(shares[smaller])

  def test_dead_input_channels_are_those_of_their_group(self):
    spec = resnet((8,), (1,), (1,), (2,), (False,), stem_features=8)
    masks = all_true(spec)
    # The second input of the first group: 9 taps x 4 outputs.
    masks["stage1_block1"]["conv1"]["kernel"][:, :, 1, :4] = False
    s = score(spec, masks=masks)
    assert s.per_network.p_s == pytest.approx(36 / s.per_network.w)

  def test_a_separable_block_has_one_bias_a_unit(self):
    spec = resnet((8,), (1,), (1,), (1,), (True,))
    assert [(row.path, row.biases) for row in score(spec).rows[1:3]] == [
      ("stage1_block1/conv1/depthwise", 0),
      ("stage1_block1/conv1/pointwise", 8),
    ]

  def test_sparsity_is_masks_of_that_density(self):
    spec = resnet((8,), (1,), (1,), (1,), (False,))
    masks = jax.tree.map(
      lambda p: (
        np.arange(math.prod(p.shape)).reshape(p.shape) % 2 == 0
        if len(p.shape) > 1
        else np.array(True)
      ),
      parameters(spec),
    )
    assert (
      score(spec, sparsity=0.5).per_layer == score(spec, masks=masks).per_layer
    )


class TestRefusals:
  @pytest.mark.parametrize(
    ("numbers", "message"),
    [
      (dict(p_s=0.6, p_u=0.5), r"p_s \+ p_u \(=0.6 \+ 0.5\) must be at most 1"),
      (dict(p_s=-0.1), r"p_s \(=-0.1\) must be within \[0, 1\]"),
      (dict(p_u=1.5), r"p_u \(=1.5\) must be within"),
      (dict(p_u=math.nan), r"p_u \(=nan\) must be within"),
      (dict(q_w=0), r"q_w \(=0\) must be an int from 1 to 32"),
      (dict(q_a=33), r"q_a \(=33\) must be"),
      (dict(q_a=4.5), r"q_a \(=4.5\) must be an int"),
      (dict(p_s=0.3, shrunk=True), r"p_s \(=0.3\) must be 0 on a shrunk"),
    ],
  )
  def test_formula(self, numbers, message):
    with pytest.raises(ValueError, match=message):
      per_network_score(100, 100, **numbers)
    with pytest.raises(ValueError, match="w .=-1. must not be negative"):
      per_network_score(-1, 100)

  def test_p_s_again_on_a_shrunk_network(self):
    before, after = resnet18(), scale_widths(resnet18(), 0.5)
    assert score(before, p_s=0.5).per_network.p_s == 0.5
    assert score(after, shrunk_from=before).per_network.p_s == 0
    with pytest.raises(ValueError, match="p_s .=0.5. must be 0 on a shrunk"):
      score(after, p_s=0.5, shrunk_from=before)

  def test_p_s_beside_masks_that_say_it(self):
    spec = resnet((8,), (1,), (1,), (1,), (False,))
    masks = all_true(spec)
    masks["stem"]["kernel"][..., 0] = False
    with pytest.raises(ValueError, match="charged already: the masks"):
      score(spec, masks=masks, p_s=0.1)

  @pytest.mark.parametrize(
    ("options", "message"),
    [
      (dict(members=0), r"members \(=0\) must be an int, at least 1"),
      (dict(views=1.5), r"views \(=1.5\)"),
      (dict(sparsity=1.1), r"sparsity \(=1.1\)"),
      (dict(p_s=2.0), r"p_s \(=2.0\)"),
      (dict(p_s=0.7, sparsity=0.7), r"p_s \+ p_u"),
      (dict(masks={}), "masks have no 'stem/kernel'"),
      (dict(masks={}, sparsity=0.5), "drop them or sparsity"),
    ],
  )
  def test_score(self, options, message):
    with pytest.raises(ValueError, match=message):
      score(resnet((8,), (1,), (1,), (1,), (False,)), **options)

  def test_masks_of_another_type_or_shape(self):
    spec = resnet((8,), (1,), (1,), (1,), (False,))
    masks = all_true(spec)
    masks["head"]["kernel"] = np.ones((8, 10), np.float32)
    with pytest.raises(ValueError, match="'head/kernel' has dtype float32"):
      score(spec, masks=masks)
    masks["head"]["kernel"] = np.ones((10, 8), bool)
    with pytest.raises(ValueError, match=r"head/kernel.*\(10, 8\).*\(8, 10\)"):
      score(spec, masks=masks)

  @pytest.mark.parametrize("bits", [0, 33, 4.0])
  def test_bits_out_of_range(self, bits):
    spec = resnet((8,), (1,), (1,), (1,), (False,))
    spec = dataclasses.replace(spec, stem=ConvSpec(8, w_bits=bits))
    with pytest.raises(ValueError, match="stem: w_bits .*int from 1 to 32"):
      score(spec)


class TestSearch:
  def test_a_thousand_specs_a_minute(self):
    candidates = [scale_widths(resnet18(), 0.1 + i / 200) for i in range(200)]
    before = len(jax.live_arrays())
    start = time.perf_counter()
    scores = score_many(candidates)
    assert time.perf_counter() - start < 200 / 1000 * 60
    assert len(jax.live_arrays()) == before  # no weight was initialized
    totals = [s.per_layer.total for s in scores]
    assert totals == sorted(totals)

  @pytest.mark.parametrize("figure", ["per_network", "per_layer", "on_disk"])
  @pytest.mark.parametrize("target", [0.02, 0.5, 5.0])
  def test_width(self, figure, target):
    found = solve(resnet18(), target, "width", figure=figure, multiple=4)
    assert getattr(found.score, figure).total <= target
    assert found.score == score(found.spec)
    wider = scale_widths(resnet18(), found.value + 1e-3, multiple=4)
    steps = [w.features % 4 for _, w in wider.units() if hasattr(w, "features")]
    assert not any(steps)
    if wider != found.spec:
      assert score(wider).per_network.w > found.score.per_network.w
    much = scale_widths(resnet18(), found.value * 1.2 + 0.02, multiple=4)
    assert getattr(score(much), figure).total > target

  def test_the_examples_of_the_page(self):
    spec = resnet18()
    assert round(solve(spec, 0.6, "width").value, 3) == 0.387
    assert solve(spec, 0.6, "bits").value == 4
    assert round(solve(spec, 2.2, "sparsity").value, 3) == 0.892

  def test_width_keeps_groups(self):
    spec = resnet((16, 32), (1, 1), (1, 2), (8, 1), (False, True))
    found = solve(spec, 0.01, "width")
    assert all(layer.features % 8 == 0 for layer in found.spec.layers()[:-1])

  def test_width_scales_ranks(self):
    spec = resnet((16,), (1,), (1,), (1,), (False,))
    block = spec.stages[0][0]
    conv1 = dataclasses.replace(block.conv1, ranks=(8, 0))
    block = dataclasses.replace(block, conv1=conv1)
    spec = dataclasses.replace(spec, stages=((block,),))
    half = scale_widths(spec, 0.5)
    assert half.stages[0][0].conv1.ranks == (4, 0)
    assert half.stages[0][0].conv2.ranks == (0, 0)

  def test_bits(self):
    found = solve(resnet18(), 1.0, "bits")
    assert found.value == 8
    four = with_bits(resnet18(), [(".*", 4, 4)])
    target = score(four).per_layer.total
    assert solve(resnet18(), target, "bits").spec == four
    assert solve(resnet18(), target * 0.999, "bits").value == 3

  @pytest.mark.parametrize("figure", ["per_network", "per_layer", "on_disk"])
  def test_sparsity(self, figure):
    found = solve(resnet18(), 2.5, "sparsity", figure=figure)
    assert getattr(found.score, figure).total <= 2.5
    less = score(resnet18(), sparsity=found.value - 1e-4)
    assert getattr(less, figure).total > 2.5
    assert solve(resnet18(), 4.0, "sparsity", figure=figure).value == 0

  @pytest.mark.parametrize(
    ("knob", "target", "message"),
    [
      ("sparsity", 1.0, "no sparsity brings the per_layer score to 1.0.*1.98"),
      ("bits", 0.1, "no bits brings.*the lowest is 0.24.*at bits 2"),
      ("width", 1e-9, "no width brings"),
      ("depth", 1.0, "knob .='depth'. must be one of"),
      ("width", 0.0, "target .=0.0. must be above 0"),
    ],
  )
  def test_refusals(self, knob, target, message):
    with pytest.raises(ValueError, match=message):
      solve(resnet18(), target, knob)
    with pytest.raises(ValueError, match="figure .='fancy'. must be one of"):
      solve(resnet18(), 1.0, "bits", figure="fancy")


class TestReport:
  def test_json_and_tables(self):
    s = score(with_bits(resnet18(), [("stem", 8, 8), (".*", 4, 4)]))
    data = json.loads(s.to_json())
    assert data["per_network"]["total"] == s.per_network.total
    assert data["per_network"]["q_w"] == 8
    assert data["macs"] == MACS
    assert len(data["rows"]) == 21
    assert data["rows"][0]["kernel_shape"] == [3, 3, 3, 64]
    assert s.table().row_count == 22
    assert s.summary().row_count == 3


class TestCommand:
  @staticmethod
  def run(*flags):
    return forked.run("jaxr18.score", *flags, cwd=ROOT)

  def test_prints_the_table(self):
    done = self.run("--config=configs/baseline.py")
    assert done.returncode == 0, done.stderr
    for text in ("3.979003", "555,422,720", "stage4_block2/conv2", "512x10"):
      assert text in done.stdout

  def test_json_of_another_phase_and_an_ensemble(self):
    flags = ("--config=configs/kd_quant.py", "--phase=teacher", "--json")
    one = json.loads(self.run(*flags).stdout)
    five = json.loads(self.run(*flags, "--members=5").stdout)
    assert one["per_network"]["q_w"] == 32
    assert five["macs"] == 5 * one["macs"]

  def test_bounds_say_that_they_are(self):
    flags = ["--config=configs/prune_quant.py"]
    done = self.run(*flags)
    assert done.returncode == 0, done.stderr
    for text in ("bounds, not the score", "'global'", "0.027575", "279,622"):
      assert text in done.stdout
    found = json.loads(self.run(*flags, "--json").stdout)
    assert found["bounds"] is True
    # The finished run's, of docs/results/prune_quant.
    assert found["per_layer"]["low"] == found["per_layer"]["high"]
    assert found["per_layer"]["low"]["total"] == pytest.approx(
      0.02757531026785714
    )
    low, high = (found["per_network"][end]["total"] for end in ("low", "high"))
    assert low < 0.0274 < high == pytest.approx(0.027426482142857145)

  def test_an_ensemble_is_charged_whole(self):
    found = self.run("--config=configs/ensemble.py", "--json")
    found = json.loads(found.stdout)
    assert found["per_network"]["total"] == pytest.approx(0.21092713)
    assert found["members"] == 3

  @pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
      (["--config=configs/quant.py:4"], 2, "runs/dense_narrow"),
      (["--config=configs/search.py"], 2, "describes a search"),
      (["--config=configs/ensemble.py:runs/x,runs/y"], 2, "runs/y"),
      (["--config=configs/baseline.py", "--config.train.epochs=-1"], 2,
       "config.train.epochs"),
      (["--config=configs/baseline.py", "--phase=other"], 2, "--phase=other"),
      (["--config=configs/ensemble.py", "--latency"], 2, "3 are asked for"),
      (["--workdir=/nonexistent"], 1, "/nonexistent holds no run"),
      ([], 2, "--config=FILE"),
    ],
  )  # fmt: skip
  def test_errors_are_plain(self, flags, status, message):
    done = self.run(*flags)
    assert done.returncode == status
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_industrys_own_network():
  """MLPerf Tiny's ResNet-8, by its published counts."""
  values = configfile.load("configs/resnet8.py")
  (outlook,) = parse(values).phases[-1].outlooks
  found = score(outlook.spec)
  assert sum(row.weights for row in found.rows) == 77_360
  assert found.macs == 12_501_632
  assert {(row.w_bits, row.a_bits) for row in found.rows} == {(8, 8)}
  assert round(found.per_layer.total, 4) == 0.0147
