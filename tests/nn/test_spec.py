"""The description of a network: counts, round trips, rules, scaling."""

import dataclasses
import json
import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxr18.nn import network
from jaxr18.nn.spec import (
  BITS,
  SCALES,
  W_BITS,
  BlockSpec,
  ConvSpec,
  HeadSpec,
  NetSpec,
  check,
  compound_scale,
  decide,
  has_bound,
  has_four_levels,
  resnet,
  resnet18,
  with_bits,
)

SMALL = resnet((4, 8), (1, 1), (1, 2), (1, 2), (False, False), resolution=8)


def shapes(spec):
  """The parameters' shapes by path."""
  net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  flat, _ = jax.tree_util.tree_flatten_with_path(net.params)
  return {"/".join(k.key for k in path): leaf.shape for path, leaf in flat}


def parameters(spec):
  return sum(math.prod(s) for s in shapes(spec).values())


@st.composite
def conv_specs(draw, in_features, stride=1, kernel=None):
  kernel = kernel or draw(st.sampled_from((1, 3, 5)))
  bits = {
    "w_bits": draw(st.sampled_from(W_BITS)),
    "a_bits": draw(st.sampled_from(BITS)),
    "scales": draw(st.sampled_from(SCALES)),
  }
  kind = draw(st.sampled_from(("dense", "grouped", "depthwise", "low-rank")))
  groups = 1
  if kind == "grouped":
    divisors = [g for g in range(1, in_features + 1) if in_features % g == 0]
    groups = draw(st.sampled_from(divisors))
  features = groups * draw(st.integers(1, 6))
  ranks = (0, 0)
  if kind == "low-rank":
    ranks = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
  return ConvSpec(
    features, kernel, stride, groups, kind == "depthwise", ranks=ranks, **bits
  )


@st.composite
def net_specs(draw):
  channels = draw(st.integers(1, 4))
  stem = draw(conv_specs(channels))
  features = stem.features
  stages = []
  for _ in range(draw(st.integers(1, 3))):
    stage = []
    for _ in range(draw(st.integers(1, 2))):
      stride = draw(st.integers(1, 3))
      conv1 = draw(conv_specs(features, stride))
      conv2 = draw(conv_specs(conv1.features))
      proj = None
      if stride != 1 or conv2.features != features or draw(st.booleans()):
        proj = dataclasses.replace(
          ConvSpec(conv2.features, 1, stride),
          w_bits=draw(st.sampled_from(W_BITS)),
        )
      stage.append(BlockSpec(conv1, conv2, proj))
      features = conv2.features
    stages.append(tuple(stage))
  head = HeadSpec(draw(st.integers(1, 12)), a_bits=draw(st.sampled_from(BITS)))
  return NetSpec(stem, tuple(stages), head, draw(st.integers(4, 33)), channels)


class TestCounts:
  # ResNet-18 and -34 as kuangliu/pytorch-cifar counts them; ResNet-20 and -56
  # (He et al., 2015, section 4.2) with projections, as pytorchcv counts them.
  @pytest.mark.parametrize(
    "spec, expected",
    [
      (resnet18(), 11_173_962),
      (resnet(blocks=(3, 4, 6, 3)), 21_282_122),
      (resnet((16, 32, 64), (3,) * 3, (1, 2, 2), (1,) * 3, (False,) * 3),
       272_474),
      (resnet((16, 32, 64), (9,) * 3, (1, 2, 2), (1,) * 3, (False,) * 3),
       855_770),
    ],
    ids=["resnet18", "resnet34", "resnet20", "resnet56"],
  )  # fmt: skip
  def test_parameters(self, spec, expected):
    assert parameters(spec) == expected

  def test_resnet18_layers(self):
    layers = resnet18().layers()
    assert sum(layer.macs for layer in layers) == 555_422_720
    assert len(layers) == 21
    assert sum(math.prod(layer.kernel_shape) for layer in layers) == 11_164_352
    by_path = {layer.path: layer for layer in layers}
    assert by_path["stem"].signed_input
    conv = by_path["stage3_block1/conv1"]
    assert (conv.in_size, conv.out_size) == (16, 8)
    assert conv.kernel_shape == (3, 3, 128, 256)
    assert conv.macs == 8 * 8 * 9 * 128 * 256
    assert not conv.signed_input
    assert by_path["head"].macs == 5120

  def test_projections_of_resnet18(self):
    names = [name for name, b in resnet18().blocks() if b.proj is not None]
    assert names == ["stage2_block1", "stage3_block1", "stage4_block1"]


class TestLayers:
  @hypothesis.given(net_specs())
  @hypothesis.settings(max_examples=25, deadline=None)
  def test_are_the_kernels_of_the_parameter_tree(self, spec):
    check(spec)
    tree = shapes(spec)
    kernels = {
      path.removesuffix("/kernel"): shape
      for path, shape in tree.items()
      if path.endswith("/kernel")
    }
    assert {n.path: n.kernel_shape for n in spec.layers()} == kernels
    bounds = {
      path.removesuffix("/input_bound")
      for path in tree
      if path.endswith("/input_bound")
    }
    assert {n.path for n in spec.layers() if has_bound(n)} == bounds

  @hypothesis.given(net_specs())
  @hypothesis.settings(max_examples=100, deadline=None)
  def test_closed_form_of_weights_and_macs(self, spec):
    features = {"stem": spec.channels}
    sizes = {"stem": spec.resolution}
    stream, size = spec.stem.features, -(-spec.resolution // spec.stem.stride)
    for name, block in spec.blocks():
      after = -(-size // block.conv1.stride)
      features |= {
        f"{name}/conv1": stream,
        f"{name}/conv2": block.conv1.features,
        f"{name}/proj": stream,
      }
      sizes |= {
        f"{name}/conv1": size, f"{name}/conv2": after, f"{name}/proj": size
      }  # fmt: skip
      stream, size = block.conv2.features, after

    for path, unit in spec.units():
      got = [n for n in spec.layers() if n.unit == path]
      if path == "head":
        weights = macs = stream * unit.classes
      else:
        inputs, k2 = features[path], unit.kernel**2
        before = sizes[path] ** 2
        after = (-(-sizes[path] // unit.stride)) ** 2
        r_in, r_out = unit.ranks
        reduce = inputs * r_in
        expand = r_out * unit.features
        if unit.depthwise:
          core, expand = k2 * inputs, inputs * unit.features
        else:
          core = (r_in or inputs) * (r_out or unit.features)
          core = core * k2 // unit.groups
        weights = reduce + core + expand
        macs = reduce * before + (core + expand) * after
      assert sum(math.prod(n.kernel_shape) for n in got) == weights, path
      assert sum(n.macs for n in got) == macs, path
      assert [n.ends_unit for n in got] == [False] * (len(got) - 1) + [True]


class TestJson:
  @hypothesis.given(net_specs())
  @hypothesis.settings(max_examples=50, deadline=None)
  def test_round_trip(self, spec):
    again = NetSpec.from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)

  def change(self, **fields):
    return json.dumps(json.loads(SMALL.to_json()) | fields)

  @pytest.mark.parametrize(
    "change, message",
    [
      (dict(stem=None), "not a network"),
      (dict(stem={"features": "4"}), r"stem: features \(='4'\) must be an int"),
      (dict(stem={"features": 4.0}), r"features \(=4.0\) must be an int"),
      (dict(stem={"features": True}), r"features \(=True\) must be an int"),
      (dict(stem={"width": 4}), "width"),
      (dict(resolution=0), r"resolution \(=0\) must be an int above 0"),
      (dict(head={"classes": -1}), r"head: classes \(=-1\)"),
      (dict(stages=[[{"conv1": {"features": 4}}]]), "conv2"),
      (dict(stages=4), "not a network"),
    ],
  )
  def test_errors(self, change, message):
    with pytest.raises(ValueError, match=message):
      NetSpec.from_json(self.change(**change))

  @pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", '"x"', "3"])
  def test_not_a_network(self, text):
    with pytest.raises(ValueError, match="not a network's description"):
      NetSpec.from_json(text)


class TestCheck:
  @pytest.mark.parametrize(
    "arguments, message",
    [
      (
        dict(groups=(1, 3, 1, 1)),
        r"stage2_block1/conv1: in_features \(=64\) must be divisible by groups"
        r" \(=3\)",
      ),
      (
        dict(widths=(64, 130, 256, 512), groups=(1, 4, 1, 1)),
        r"features \(=130\) must be divisible by groups \(=4\)",
      ),
      (dict(blocks=(1, 1)), "one entry a stage.*'blocks': 2"),
      (
        dict(widths=(), blocks=(), strides=(), groups=(), depthwise=()),
        "at least one stage",
      ),
      (dict(strides=(1, 0, 2, 2)), r"stage2_block1/conv1: stride \(=0\)"),
      (dict(groups=(0, 1, 1, 1)), r"stage1_block1/conv1: groups \(=0\)"),
      (dict(widths=(-4, 8, 8, 8)), r"stem: features \(=-4\)"),
      (
        dict(depthwise=(True,) * 4, groups=(2,) * 4),
        "depthwise convolution has groups=1 in its spec, got groups=2",
      ),
      (dict(classes=0), r"head: classes \(=0\)"),
      (dict(resolution=np.int64(32)), r"resolution \(=np.int64\(32\)\)"),
    ],
  )
  def test_resnet(self, arguments, message):
    with pytest.raises(ValueError, match=message):
      resnet(**arguments)

  def block(self, **convs):
    block = dataclasses.replace(SMALL.stages[0][0], **convs)
    stages = ((block,), *SMALL.stages[1:])
    return dataclasses.replace(SMALL, stages=stages)

  @pytest.mark.parametrize(
    "convs, message",
    [
      (
        dict(conv1=ConvSpec(4, stride=2)),
        "stage1_block1: an identity shortcut needs stride 1 and 4 features",
      ),
      (dict(conv2=ConvSpec(8)), "identity shortcut needs.*and 8; give.*a proj"),
      (dict(conv2=ConvSpec(4, stride=2)), r"conv2: stride \(=2\) must be 1"),
      (dict(proj=ConvSpec(8, 1)), "proj must have conv2's features"),
      (dict(proj=ConvSpec(4, 1, 2)), "proj must have .*conv1's stride"),
      (dict(conv1=ConvSpec(4, kernel=2)), r"conv1: kernel \(=2\) must be odd"),
      (dict(conv1=ConvSpec(4, kernel=-1)), r"conv1: kernel \(=-1\) must be an"),
      (dict(conv1=ConvSpec(4, w_bits=9)), r"w_bits \(=9\) must be one of"),
      (dict(conv1=ConvSpec(4, a_bits=1)), r"a_bits \(=1\) must be one of"),
      (
        dict(conv1=ConvSpec(4, depthwise=1)),
        r"depthwise \(=1\) must be a bool",
      ),
      (dict(conv1=ConvSpec(4, ranks=[1, 1])), r"ranks \(=\[1, 1\]\) must be"),
      (
        dict(conv1=ConvSpec(4, groups=2, ranks=(1, 1))),
        "neither grouped nor depthwise",
      ),
    ],
  )
  def test_block(self, convs, message):
    with pytest.raises(ValueError, match=message):
      check(self.block(**convs))

  def test_a_proj_may_stand_where_widths_coincide(self):
    check(self.block(proj=ConvSpec(4, 1)))


class TestBits:
  def test_first_match_wins(self):
    spec = with_bits(
      SMALL,
      [
        ("stem|head", 32, 32),
        (".*/conv1", 4, 3),
        ("stage1.*", 2, 8),
        (".*", 5, 6),
      ],
    )
    bits = {path: (unit.w_bits, unit.a_bits) for path, unit in spec.units()}
    assert bits == {
      "stem": (32, 32),
      "stage1_block1/conv1": (4, 3),
      "stage1_block1/conv2": (2, 8),
      "stage2_block1/conv1": (4, 3),
      "stage2_block1/conv2": (5, 6),
      "stage2_block1/proj": (5, 6),
      "head": (32, 32),
    }

  def test_changes_nothing_else(self):
    spec = with_bits(SMALL, [(".*", 4, 4)])
    assert spec != SMALL
    assert with_bits(spec, [(".*", 32, 32)]) == SMALL

  def test_w_scales_are_of_kernels_that_have_a_grid_to_end(self):
    for bits in (1, 8, 16, 32):
      rules = [("stem|head", bits, 8), (".*", 3, 3)]
      spec = with_bits(SMALL, rules, w_scales="learned")
      assert spec.stem.w_scales == spec.head.w_scales == "least_error"
      assert {n.w_scales for n in spec.layers()[1:-1]} == {"learned"}
    with pytest.raises(ValueError, match=r"w_scales \(='x'\) must be one"):
      with_bits(SMALL, [(".*", 3, 8)], w_scales="x")

  def test_two_bits_are_of_kernels_of_2(self):
    rules = [("stem", 3, 8), (".*", 2, 2)]
    spec = with_bits(SMALL, rules, two_bits="four_levels")
    found = {n.path: has_four_levels(n) for n in spec.layers()}
    assert not found.pop("stem") and all(found.values())
    assert spec.stem.two_bits == "ternary"
    assert with_bits(spec, [(".*", 32, 32)]) == SMALL
    assert NetSpec.from_json(spec.to_json()) == spec
    assert not any(map(has_four_levels, with_bits(SMALL, rules).layers()))
    with pytest.raises(ValueError, match=r"two_bits \(='x'\) must be one"):
      with_bits(SMALL, [(".*", 2, 8)], two_bits="x")

  def test_a_factorized_convolution_has_the_bits_of_its_unit(self):
    spec = resnet((4, 8), (1, 1), (1, 2), (1, 1), (True, False), resolution=8)
    spec = with_bits(spec, [("stage1_block1/conv1", 4, 3), (".*", 8, 8)])
    bits = {n.path: (n.w_bits, n.a_bits) for n in spec.layers()}
    assert bits["stage1_block1/conv1/depthwise"] == (4, 3)
    assert bits["stage1_block1/conv1/pointwise"] == (4, 3)
    assert bits["stage1_block1/conv2/pointwise"] == (8, 8)

  def test_rules_are_total(self):
    with pytest.raises(ValueError, match=r"no bits rule.*'head'.*'\.\*', 32"):
      with_bits(SMALL, [("stem|stage.*", 4, 4)])

  @pytest.mark.parametrize("part", ["conv1|conv2|proj", "stage"])
  def test_a_regex_matches_the_whole_path(self, part):
    with pytest.raises(ValueError, match="no bits rule matches layer 'stage1_"):
      with_bits(SMALL, [("stem|head", 32, 32), (part, 4, 4)])

  @pytest.mark.parametrize(
    "rules",
    [
      [("stage9.*", 4, 4), (".*", 32, 32)],
      [(".*", 32, 32), ("stage9.*", 4, 4)],
      [(".*/conv.", 8, 8), ("stage1_block1/conv1", 4, 4), (".*", 32, 32)],
    ],
  )
  def test_an_unused_rule_is_an_error_that_lists_the_layers(self, rules):
    with pytest.raises(ValueError) as e:
      with_bits(SMALL, rules)
    assert "decides no layer" in str(e.value)
    for path, _ in SMALL.units():
      assert path in str(e.value)

  def test_where_no_rule_is_needed(self):
    rules = [("a", 1), ("a|b", 2), ("c", 3)]
    found = decide(rules, ["b", "a", "c", "ab"])
    assert found == {"b": rules[1], "a": rules[0], "c": rules[2], "ab": None}
    with pytest.raises(ValueError, match=r"rule \('a', 1\) decides no layer"):
      decide(rules, ["b", "c"])

  def test_bits_are_checked(self):
    with pytest.raises(ValueError, match=r"stem: w_bits \(=9\) must be one"):
      with_bits(SMALL, [(".*", 9, 32)])
    with pytest.raises(ValueError, match=r"stem: scales \(='x'\) must be one"):
      with_bits(SMALL, [(".*", 8, 8)], scales="x")

  def test_scales_are_of_quantized_inputs(self):
    rules = [("stem", 8, 16), (".*", 8, 4)]
    spec = with_bits(SMALL, rules, scales="pact")
    assert spec.stem.scales == "lsq"
    assert {n.scales for n in spec.layers()[1:]} == {"pact"}
    assert with_bits(spec, [(".*", 32, 32)]) == SMALL

  def test_a_description_without_scales_can_be_read(self):
    text = with_bits(SMALL, [(".*", 4, 4)]).to_json()
    new = '(scales": "lsq|w_scales": "least_error|two_bits": "ternary)'
    old = re.sub(rf',\s*"{new}"', "", text)
    assert text.count("scales") >= 12
    assert "scales" not in old and "two_bits" not in old
    assert NetSpec.from_json(old) == NetSpec.from_json(text)


class TestCompoundScale:
  WIDTHS, BLOCKS = (16, 32, 64), (2, 3, 2)

  def scale(self, coefficient, **options):
    return compound_scale(coefficient, self.WIDTHS, self.BLOCKS, 32, **options)

  def test_zero_changes_nothing(self):
    assert self.scale(0) == (self.WIDTHS, self.BLOCKS, 32)

  # By hand, for coefficient 1: widths 17.6, 35.2, 70.4 to the nearest 8;
  # depths 2.4, 3.6, 2.4 up; 36.8 pixels. For 2: 19.36 (16 is below 0.9 of it,
  # so 24), 38.72, 77.44; 2.88, 4.32, 2.88; 42.32. For -1: 14.55, 29.09,
  # 58.18; 1.67, 2.5, 1.67; 27.83.
  @pytest.mark.parametrize(
    "coefficient, expected",
    [
      (1, ((16, 32, 72), (3, 4, 3), 37)),
      (2, ((24, 40, 80), (3, 5, 3), 42)),
      (-1, ((16, 32, 56), (2, 3, 2), 28)),
    ],
  )
  def test_by_hand(self, coefficient, expected):
    assert self.scale(coefficient) == expected

  def test_multiple(self):
    assert self.scale(1, multiple=1)[0] == (18, 35, 70)
    assert self.scale(1, multiple=32)[0] == (32, 32, 64)

  # EfficientNet's own round_filters at width 1.4 (B4), depth 1.8.
  def test_efficientnet_b4(self):
    widths, blocks, _ = compound_scale(
      1,
      (32, 16, 24, 40, 80, 112, 192, 320, 1280),
      (1, 2, 2, 3, 3, 4, 1),
      224,
      alpha=1.8,
      beta=1.4,
    )
    assert widths == (48, 24, 32, 56, 112, 160, 272, 448, 1792)
    assert blocks == (2, 4, 4, 6, 6, 8, 2)

  def test_macs_grow_as_stated(self):
    def macs(coefficient):
      widths, blocks, resolution = compound_scale(
        coefficient, (64, 128, 256), (8, 8, 8), 64, multiple=1
      )
      same = (1,) * 3
      spec = resnet(
        widths, blocks, (1, 2, 2), same, (False,) * 3, resolution=resolution
      )
      return sum(layer.macs for layer in spec.layers())

    assert macs(3) / macs(0) == pytest.approx(1.92**3, rel=0.1)

  @hypothesis.given(st.floats(-8, 8), st.integers(1, 64), st.integers(1, 600))
  def test_widths(self, coefficient, multiple, width):
    (got,), (blocks,), resolution = compound_scale(
      coefficient, (width,), (2,), 32, multiple=multiple
    )
    exact = width * 1.1**coefficient
    assert got % multiple == 0 and got >= multiple
    assert got >= 0.9 * exact
    assert abs(got - exact) <= multiple
    assert blocks >= 1 and resolution >= 1
