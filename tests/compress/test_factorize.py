"""Grouped, depthwise-separable and low-rank convolutions, and conversions."""

import dataclasses
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.compress import factorize
from jaxr18.compress.kernels import dense_kernel, project
from jaxr18.config import base
from jaxr18.config.faults import ConfigError
from jaxr18.cost.macs import count_macs
from jaxr18.cost.score import score
from jaxr18.nn import network
from jaxr18.nn.conv import conv
from jaxr18.nn.forms import (
  BLOCK_CONVS,
  convolutions,
  dense,
  form_of,
  rule_faults,
  with_forms,
  with_forms_of,
)
from jaxr18.nn.spec import ConvSpec, resnet, resnet18, with_bits
from jaxr18.run import experiment, sources

TINY = resnet((8, 16), (1, 1), (1, 2), (1, 1), (False,) * 2, resolution=8)
EVERY = (
  ("stage1_block1/conv1", "groups=4"),
  ("stage1_block1/conv2", "depthwise"),
  ("stage2_block1/conv1", "ranks=3,5"),
  ("stage2_block1/proj", "ranks=0,4"),
)
FORMS = ("groups=4", "depthwise", "ranks=3,5", "ranks=0,5", "ranks=3,0")


forward = jax.jit(network.forward)


@functools.cache
def made(bits=32):
  """A network with batch norm that does something; compiled once."""
  spec = with_bits(TINY, ((".*", bits, bits),))
  net = network.init(jax.random.key(0), spec)
  rng = np.random.default_rng(0)

  def vary(x):
    return jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype)

  params, batch_stats = jax.tree.map(
    lambda x: vary(x) if x.ndim == 1 else x, (net.params, net.batch_stats)
  )
  return net.replace(params=params, batch_stats=batch_stats)


def tiny(rules=(), bits=32):
  net = jax.tree.map(lambda x: x, made(bits))  # tests may write to its dicts
  return factorize.convert(net, rules)


def images(n=4):
  return jax.random.normal(jax.random.key(9), (n, 8, 8, 3))


def kernel_of(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def as_dense(kernels, conv_spec, in_features):
  node = {n: {"kernel": k} for n, k in kernels.items() if n}
  node = node or {"kernel": kernels[""]}
  return dense_kernel(node, conv_spec, in_features)


def in_form(form, in_features=8, features=12):
  spec = resnet((in_features, features), (1, 1), (1, 1), (1, 1), (False,) * 2)
  path = "stage2_block1/conv1"
  return dict(convolutions(with_forms(spec, ((path, form),))))[path]


class TestCounts:
  """ResNet-18's counts, added up by hand."""

  # (in, out, side of the output) of the blocks' 3x3 convolutions.
  CONVS = (
    [(64, 64, 32)] * 4
    + [(64, 128, 16)] + [(128, 128, 16)] * 3
    + [(128, 256, 8)] + [(256, 256, 8)] * 3
    + [(256, 512, 4)] + [(512, 512, 4)] * 3
  )  # fmt: skip
  # Stem, projections, head; batch norm: two by channel.
  OTHER_PARAMS = (
    27 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 10 + 10
    + 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
  )  # fmt: skip
  OTHER_MACS = (
    27 * 64 * 32**2
    + 64 * 128 * 16**2 + 128 * 256 * 8**2 + 256 * 512 * 4**2
    + 512 * 10
  )  # fmt: skip

  @pytest.mark.parametrize(
    "form, params, macs",
    [
      ("dense", 11_173_962, 555_422_720),
      ("groups=2", 5_681_226, 281_744_384),
      ("groups=4", 2_934_858, 144_905_216),
      ("groups=8", 1_561_674, 76_485_632),
      ("groups=16", 875_082, 42_275_840),
      ("depthwise", 1_439_626, 73_049_088),
    ],
  )
  def test_resnet18(self, form, params, macs):
    if form == "depthwise":
      kernels = [9 * i + i * o for i, o, _ in self.CONVS]
    else:
      groups = 1 if form == "dense" else int(form.partition("=")[2])
      kernels = [9 * (i // groups) * o for i, o, _ in self.CONVS]
    by_hand = sum(
      k * side**2 for k, (_, _, side) in zip(kernels, self.CONVS, strict=True)
    )
    assert sum(kernels) + self.OTHER_PARAMS == params
    assert by_hand + self.OTHER_MACS == macs

    charged = score(with_forms(resnet18(), ((BLOCK_CONVS, form),)))
    assert charged.per_network.w == params
    assert charged.macs == macs

  def test_by_stage_and_by_rule_are_the_same(self):
    by_stage = resnet(groups=(2, 4, 1, 1), depthwise=(False,) * 3 + (True,))
    rules = (
      ("stage1_.*/conv.", "groups=2"),
      ("stage2_.*/conv.", "groups=4"),
      ("stage4_.*/conv.", "depthwise"),
    )
    assert with_forms(resnet18(), rules) == by_stage

  def test_low_rank_layer(self):
    spec = with_forms(TINY, EVERY)
    found = {x.path: (x.kernel_shape, x.macs) for x in spec.layers()
             if x.unit == "stage2_block1/conv1"}  # fmt: skip
    assert found == {
      "stage2_block1/conv1/reduce": ((1, 1, 8, 3), 8 * 3 * 8 * 8),
      "stage2_block1/conv1/core": ((3, 3, 3, 5), 9 * 3 * 5 * 4 * 4),
      "stage2_block1/conv1/expand": ((1, 1, 5, 16), 5 * 16 * 4 * 4),
    }

  def test_the_score_charges_what_is_computed(self):
    net = tiny(EVERY)
    counted = count_macs(network.forward, net, images(1))
    charged = score(net.spec, masks=net.masks, counted=counted)
    assert charged.macs == counted.total
    weights = sum(x.size for x in jax.tree.leaves(net.params))
    assert charged.per_network.w == weights


class TestForms:
  def test_first_rule_wins_and_others_stay(self):
    spec = with_forms(TINY, EVERY)
    again = with_forms(
      spec, (("stage1.*/conv1", "dense"), ("stage1.*", "groups=2"))
    )
    assert {p: form_of(c) for p, c in convolutions(again)} == {
      "stem": "dense",
      "stage1_block1/conv1": "dense",
      "stage1_block1/conv2": "groups=2",
      "stage2_block1/conv1": "ranks=3,5",
      "stage2_block1/conv2": "dense",
      "stage2_block1/proj": "ranks=0,4",
    }
    assert with_forms(spec, ()) == spec
    assert dense(spec) == TINY

  def test_bits_and_strides_stay(self):
    spec = with_bits(TINY, ((".*", 4, 8),))
    assert dense(with_forms(spec, EVERY)) == spec

  @pytest.mark.parametrize(
    "share, rank", [("1/4", 2), ("1/3", 3), ("8/8", 8), ("5", 5), ("1/99", 1)]
  )
  def test_shares_of_channels_are_rounded_up(self, share, rank):
    spec = in_form(f"ranks={share},2", in_features=8)
    assert spec.ranks == (rank, 2)

  @pytest.mark.parametrize("form", ("dense", *FORMS))
  def test_form_of_inverts(self, form):
    assert form_of(in_form(form)) == form

  def test_json(self):
    spec = with_forms(TINY, EVERY)
    assert type(spec).from_json(spec.to_json()) == spec

  def test_forms_of_another_network(self):
    spec = with_forms(TINY, EVERY)
    bits = with_bits(TINY, ((".*", 4, 4),))
    assert with_forms_of(bits, spec) == with_bits(spec, ((".*", 4, 4),))
    wide = resnet((8, 32), (1, 1), (1, 2), (1, 1), (False,) * 2)
    with pytest.raises(
      ValueError, match=r"stage2_block1/conv1: features \(=32\) is 16"
    ):
      with_forms_of(wide, spec)
    with pytest.raises(ValueError, match="only one .* has stage3_block1/conv1"):
      with_forms_of(resnet((8, 16, 16), (1,) * 3, (1, 2, 1), (1,) * 3,
                           (False,) * 3), spec)  # fmt: skip

  @pytest.mark.parametrize(
    "rules, message",
    [
      ((("stage3.*", "groups=2"),), r"decides no layer.*'stage2_block1/proj'"),
      ((("head", "depthwise"),), "decides no layer"),
      (((".*", "dense"), ("stem", "depthwise")), r"\('stem', 'depthwise'\)"),
      (((".*", "groups=2"),), r"stem: in_features \(=3\)"),
      ((("stage.*", "groups=3"),), r"stage1_block1/conv1: .* groups \(=3\)"),
      ((("stem", "grouped"),), r"stem: form 'grouped' must be 'dense', 'group"),
      ((("stem", "ranks=0,0"),), "stem: form 'ranks=0,0' has no rank"),
      ((("stem", "ranks=4,0"),), "stem: rank 4 is more than the 3 channels"),
      ((("stem", "ranks=4/3,0"),), "stem: rank 4/3 is more than the 3"),
    ],
  )
  def test_errors(self, rules, message):
    with pytest.raises(ValueError, match=message):
      with_forms(TINY, rules)

  def test_rules_by_themselves(self):
    assert not list(rule_faults(EVERY)) and not list(rule_faults(()))
    [(must, _)] = rule_faults((("stem", "ranks=1,1/0"),))
    assert "ranks=1,1/0" in must

  @pytest.mark.parametrize(
    "change, message",
    [
      (dict(ranks=[2, 2]), r"ranks \(=\[2, 2\]\) must be two ints"),
      (dict(ranks=(2, -1)), "must be two ints"),
      (dict(ranks=(2, 2), groups=2), "neither grouped nor depthwise"),
    ],
  )
  def test_ranks_are_checked(self, change, message):
    conv2 = dataclasses.replace(TINY.stages[0][0].conv2, **change)
    block = dataclasses.replace(TINY.stages[0][0], conv2=conv2)
    text = dataclasses.replace(TINY, stages=((block,), TINY.stages[1]))
    with pytest.raises(ValueError, match=f"stage1_block1/conv2: .*{message}"):
      with_forms(text, (("stem", "dense"),))


class TestKernels:
  @pytest.mark.parametrize("form", FORMS)
  @pytest.mark.parametrize("stride", [1, 2])
  def test_the_dense_kernel_computes_the_same(self, form, stride):
    spec = dataclasses.replace(in_form(form), stride=stride)
    x = jnp.asarray(kernel_of((2, 7, 7, 8), 1), jnp.float32)
    kernels = project(kernel_of((3, 3, 8, 12)), spec)
    y = x
    for name, part in spec.parts(8):
      y = conv(y, jnp.asarray(kernels[name], jnp.float32), stride=part.stride,
               padding=part.kernel // 2, groups=part.groups)  # fmt: skip
    whole = jnp.asarray(as_dense(kernels, spec, 8), jnp.float32)
    expected = conv(x, whole, stride=stride, padding=1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)

  @hypothesis.given(
    form=st.sampled_from(FORMS), kernel=st.sampled_from((1, 3)),
    seed=st.integers(0, 99),
  )  # fmt: skip
  @hypothesis.settings(max_examples=40, deadline=None)
  def test_a_kernel_of_the_form_is_kept(self, form, kernel, seed):
    spec = dataclasses.replace(in_form(form), kernel=kernel)
    there = as_dense(
      project(kernel_of((kernel, kernel, 8, 12), seed), spec), spec, 8
    )
    again = as_dense(project(there, spec), spec, 8)
    np.testing.assert_allclose(again, there, rtol=0, atol=1e-9)

  def test_grouped_is_the_block_diagonal(self):
    k = kernel_of((3, 3, 8, 12))
    out = project(k, in_form("groups=4"))[""]
    assert out.shape == (3, 3, 2, 12)
    for g in range(4):
      i, o = slice(2 * g, 2 * g + 2), slice(3 * g, 3 * g + 3)
      np.testing.assert_array_equal(out[..., o], k[:, :, i, o])

  def test_depthwise_misses_what_rank_1_misses(self):
    k = kernel_of((3, 3, 8, 12))
    spec = in_form("depthwise")
    missed = np.linalg.norm(k - as_dense(project(k, spec), spec, 8)) ** 2
    expected = sum(
      np.sum(np.linalg.svd(k[:, :, i].reshape(9, 12))[1][1:] ** 2)
      for i in range(8)
    )
    assert missed == pytest.approx(expected, rel=1e-12)

  @pytest.mark.parametrize("axis, form", [(2, "ranks=3,0"), (3, "ranks=0,5")])
  def test_one_sided_rank_misses_what_svd_misses(self, axis, form):
    k = kernel_of((3, 3, 8, 12))
    spec = in_form(form)
    missed = np.linalg.norm(k - as_dense(project(k, spec), spec, 8)) ** 2
    values = np.linalg.svd(np.moveaxis(k, axis, 0).reshape(k.shape[axis], -1))
    expected = np.sum(values[1][max(spec.ranks) :] ** 2)
    assert missed == pytest.approx(expected, rel=1e-9)

  @pytest.mark.parametrize("seed", range(4))
  def test_tucker_is_at_least_as_near_as_hosvd(self, seed):
    k = kernel_of((3, 3, 8, 12), seed)
    spec = in_form("ranks=3,5")
    missed = np.linalg.norm(k - as_dense(project(k, spec), spec, 8))
    u_in, u_out = (
      np.linalg.svd(np.moveaxis(k, a, 0).reshape(k.shape[a], -1))[0][:, :r]
      for a, r in ((2, 3), (3, 5))
    )
    hosvd = np.einsum(
      "hwio,ia,ja,ob,pb->hwjp", k, u_in, u_in, u_out, u_out, optimize=True
    )
    assert missed <= np.linalg.norm(k - hosvd)
    one_sided = max(
      np.linalg.norm(k - as_dense(project(k, s), s, 8))
      for s in (in_form("ranks=3,0"), in_form("ranks=0,5"))
    )
    assert missed >= one_sided

  @pytest.mark.parametrize("form", [f for f in FORMS if f != "ranks=3,5"])
  def test_nothing_of_the_form_is_nearer(self, form):
    k = kernel_of((3, 3, 8, 12))
    spec = in_form(form)
    kernels = project(k, spec)
    missed = np.linalg.norm(k - as_dense(kernels, spec, 8))
    rng = np.random.default_rng(1)
    for _ in range(20):
      near = {n: v + 1e-3 * rng.normal(size=v.shape)
              for n, v in kernels.items()}  # fmt: skip
      assert np.linalg.norm(k - as_dense(near, spec, 8)) > missed


class TestConvert:
  @pytest.mark.parametrize("rules", [EVERY, *(((BLOCK_CONVS, f),)
                                              for f in FORMS)])  # fmt: skip
  def test_a_network_of_the_form_comes_back(self, rules):
    net = tiny(rules)
    whole = factorize.convert(net, ((".*", "dense"),))
    assert whole.spec == TINY
    again = factorize.convert(whole, net.spec)
    assert again.spec == net.spec
    logits = forward(net, images())
    assert np.std(logits) > 0.1
    for other in (whole, again):
      np.testing.assert_allclose(
        forward(other, images()), logits, rtol=0, atol=2e-5
      )

  @pytest.mark.parametrize("bits", [4, 32])
  def test_it_is_what_init_makes(self, bits):
    net = tiny(EVERY, bits)
    fresh = network.init(jax.random.key(0), net.spec)
    assert jax.tree.structure(net) == jax.tree.structure(fresh)
    same = jax.tree.map(
      lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), net, fresh
    )
    assert jax.tree.all(same)

  def test_full_rank_loses_nothing(self):
    net = tiny()
    out = factorize.to_low_rank(net, "1/1", "1/1")
    assert max(factorize.errors(net, out).values()) < 1e-6

  def test_the_named_ones(self):
    net = tiny()
    for out, form in (
      (factorize.to_grouped(net, 4), "groups=4"),
      (factorize.to_depthwise_separable(net), "depthwise"),
      (factorize.to_low_rank(net, 3, "1/2", "stage2.*conv2"), "ranks=3,8"),
    ):
      pattern = "stage2.*conv2" if "ranks" in form else BLOCK_CONVS
      assert out.spec == with_forms(TINY, ((pattern, form),))

  def test_they_chain_and_leave_their_input_alone(self):
    net = tiny()
    before = jax.tree.map(np.asarray, net)
    out = network.chain(
      lambda n: factorize.to_grouped(n, 2, "stage1.*conv1"),
      lambda n: factorize.to_depthwise_separable(n, "stage2.*conv2"),
    )(net)
    assert jax.tree.all(jax.tree.map(np.array_equal, net, before))
    assert set(factorize.errors(net, out)) == {
      "stage1_block1/conv1",
      "stage2_block1/conv2",
    }

  def test_errors_are_those_of_the_kernels(self):
    net = tiny()
    out = factorize.to_grouped(net, 8, "stage1.*conv1")
    k = np.asarray(net.params["stage1_block1"]["conv1"]["kernel"])
    kept = np.sum([k[:, :, i, i] ** 2 for i in range(8)])
    expected = math.sqrt(1 - kept / np.sum(k**2))
    [error] = factorize.errors(net, out).values()
    assert error == pytest.approx(expected, rel=1e-5)
    # About 7/8 of random weights lie outside the blocks.
    assert error == pytest.approx(math.sqrt(7 / 8), abs=0.05)
    zero = jax.tree.map(jnp.zeros_like, net.params)
    zero = net.replace(params=zero)
    assert factorize.errors(zero, factorize.to_grouped(zero, 8))

  def test_report(self):
    net = tiny()
    out = factorize.convert(net, EVERY)
    header, *lines = factorize.report(net, out).splitlines()
    assert header.split() == [
      "layer", "before", "after", "weights", "MACs", "error",
    ]  # fmt: skip
    assert len(lines) == 4
    assert lines[0].split()[:6] == [
      "stage1_block1/conv1", "dense", "groups=4", "576", "->", "144",
    ]  # fmt: skip
    error = factorize.errors(net, out)["stage1_block1/conv1"]
    assert lines[0].endswith(f"{error:.3f}")
    assert factorize.report(net, net) == ""

  def test_gradients_reach_each_part(self):
    net = tiny(EVERY)
    loss = lambda p: jnp.sum(forward(net.replace(params=p), images()) ** 2)
    grads = jax.jit(jax.grad(loss))(net.params)
    assert all(np.any(g != 0) for g in jax.tree.leaves(grads))

  def test_a_bound_stays_with_the_first_layer(self):
    net = tiny(bits=8)
    for block in ("stage1_block1", "stage2_block1"):
      for i, name in enumerate(net.params[block]):
        if "input_bound" in net.params[block][name]:
          net.params[block][name]["input_bound"] = jnp.float32(i + 2)
    out = factorize.convert(net, EVERY).params
    for (block, conv_), first in {
      ("stage1_block1", "conv2"): "depthwise",
      ("stage2_block1", "conv1"): "reduce",
      ("stage2_block1", "proj"): "core",
    }.items():
      bound = net.params[block][conv_]["input_bound"]
      assert bound != 1
      assert out[block][conv_][first]["input_bound"] == bound
    assert out["stage2_block1"]["conv1"]["core"]["input_bound"] == 1

  def test_a_pruned_convolution_is_refused_and_others_keep_masks(self):
    net = tiny()
    mask = np.random.default_rng(0).random((3, 3, 8, 8)) > 0.5
    net.masks["stage1_block1"]["conv2"]["kernel"] = jnp.asarray(mask)
    out = factorize.to_grouped(net, 4, "stage1.*conv1")
    kept = out.masks["stage1_block1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kept, mask)
    with pytest.raises(ValueError, match="stage1_block1/conv2 is pruned.*'gro"):
      factorize.to_grouped(net, 4)


class TestRanksFor:
  def test_finds_the_rank_of_a_kernel(self):
    path = "stage2_block1/conv2"
    net = factorize.convert(tiny(((path, "ranks=3,5"),)), TINY)
    assert factorize.ranks_for(net, 1 - 1e-9, path) == ((path, "ranks=3,5"),)
    [(_, form)] = factorize.ranks_for(net, 0.9, path)
    assert form in {f"ranks={i},{o}" for i in (1, 2, 3) for o in range(1, 6)}

  @pytest.mark.parametrize("energy", [0.5, 0.8])
  def test_keeps_the_energy(self, energy):
    net = tiny()
    rules = factorize.ranks_for(net, energy)
    assert rules and not list(rule_faults(rules))
    out = factorize.convert(net, rules)
    # Each side loses at most 1 - energy of the squares.
    for error in factorize.errors(net, out).values():
      assert error**2 <= 2 * (1 - energy)
    macs = [sum(x.macs for x in n.spec.layers()) for n in (net, out)]
    assert macs[1] < macs[0]

  def test_leaves_out_what_gets_no_cheaper(self):
    assert factorize.ranks_for(tiny(), 0.999) == ()

  def test_errors(self):
    with pytest.raises(ValueError, match=r"energy \(=1.5\)"):
      factorize.ranks_for(tiny(), 1.5)
    with pytest.raises(ValueError, match="decides no layer"):
      factorize.ranks_for(tiny(), 0.5, "stage7.*")


class TestInit:
  """A phase that starts from a network of other forms."""

  def test_new_bounds_are_calibrated_and_learned_ones_stay(self):
    source = tiny(bits=8)
    source.params["stage1_block1"]["conv2"]["input_bound"] = jnp.array(0.37)
    net = sources.initial_network(
      jax.random.key(1),
      with_forms(source.spec, EVERY),
      images(),
      source,
      "here",
    )
    parts = net.params["stage1_block1"]["conv2"]
    assert parts["depthwise"]["input_bound"] == jnp.float32(0.37)
    assert parts["pointwise"]["input_bound"] not in (1, jnp.float32(0.37))
    expected = factorize.convert(source, EVERY)
    np.testing.assert_array_equal(
      parts["pointwise"]["kernel"],
      expected.params["stage1_block1"]["conv2"]["pointwise"]["kernel"],
    )

  def test_of_other_widths(self):
    wide = resnet((8, 32), (1, 1), (1, 2), (1, 1), (False,) * 2, resolution=8)
    with pytest.raises(
      ConfigError, match=r"here: stage2.*\(=16\) is 32 .*; start from"
    ):
      sources.initial_network(jax.random.key(1), wide, images(), tiny(), "here")

  @pytest.mark.slow
  def test_an_experiment(self, tmp_path, capsys):
    config = base(phases=("dense", "student"))
    config.data.name = "digits"
    config.data.limit, config.data.validation = 64, 50
    config.progress = "plain"
    for name in config.phases:
      config[name].network.update(
        widths=(4,), blocks=(1,), strides=(1,), groups=(1,),
        depthwise=(False,), resolution=8,
      )  # fmt: skip
      config[name].epochs, config[name].batch_size = 1, 32
      config[name].optimizer.warmup_epochs = 0.0
    config.student.start.init = "dense"
    rules = ((BLOCK_CONVS, "depthwise"),)
    config.student.network.factorize = rules
    result = experiment.run(config, tmp_path)
    printed = capsys.readouterr().err
    assert "config.student.start.init (='dense'), converted:\nlayer" in printed
    assert printed.count(" dense ") == printed.count(" depthwise ") == 2
    spec = sources.load_network(tmp_path).spec
    assert all(c.depthwise for p, c in convolutions(spec) if "conv" in p)
    assert spec == result.spec


def test_a_depthwise_layer_has_its_one_taps_kernel():
  conv_spec = ConvSpec(12, depthwise=True)
  shapes = {n: k.shape for n, k in
            project(kernel_of((3, 3, 8, 12)), conv_spec).items()}  # fmt: skip
  assert shapes == {"depthwise": (3, 3, 1, 8), "pointwise": (1, 1, 8, 12)}
