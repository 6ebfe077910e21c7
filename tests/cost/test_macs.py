"""The counter against closed forms, relations and XLA."""

import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import flax_nets
import hypothesis
import hypothesis.strategies as st
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive

from jaxr18.cost import macs as counter
from jaxr18.cost import primitives
from jaxr18.cost.macs import count_macs
from jaxr18.data.augment import Augment
from jaxr18.nn import network
from jaxr18.nn.spec import resnet, resnet18, with_bits
from jaxr18.train import state, step, terms
from jaxr18.train.average import Average
from jaxr18.train.mesh import make_mesh

ROOT = pathlib.Path(__file__).parents[2]
RESNET18_MACS = 555_422_720  # by hand, by PyTorch's FlopCounterMode


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def total(fn, *args, **options):
  return count_macs(fn, *args, **options).total


def resnet_shapes(spec, batch=1):
  net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  return net, f32(batch, spec.resolution, spec.resolution, 3)


def module_shapes(module, *shape):
  x = f32(*shape)
  return jax.eval_shape(module.init, jax.random.key(0), x), x


class TestNetworks:
  def test_resnet18(self):
    net, images = resnet_shapes(resnet18())
    report = count_macs(network.forward, net, images)
    assert report.total == RESNET18_MACS
    assert len(report.rows) == 21
    assert report.rows[0].path == "ResNet/stem"
    assert report.rows[0].macs == 32 * 32 * 27 * 64

  def test_a_batch_costs_its_images(self):
    net, images = resnet_shapes(resnet18(), batch=7)
    assert total(network.forward, net, images) == 7 * RESNET18_MACS

  def test_the_training_pass_of_lenet(self):
    # By hand: the second convolution's data gradient has 14x14 outputs, and
    # costs the 10x10 of its own.
    module = flax_nets.LeNet()
    variables, x = module_shapes(module, 1, 32, 32, 3)
    assert total(module.apply, variables, x) == 651_720
    loss = lambda v, x: jnp.sum(module.apply(v, x) ** 2)
    assert total(jax.grad(loss), variables, x) == 1_602_360

  # PyTorch's FlopCounterMode / 2, by `python -m benchmarks.count_macs`, in
  # training without its excess for grouped convolutions.
  @pytest.mark.parametrize(
    ("module", "shape", "forward", "training"),
    [
      (flax_nets.MobileNetV2(), (1, 224, 224, 3), 300_774_272, 891_484_800),
      (flax_nets.DenseNet(), (1, 32, 32, 3), 287_929_692, 863_125_524),
      (flax_nets.Encoder(), (1, 16, 64), 1_638_400, 4_915_200),
    ],
  )
  def test_like_pytorch(self, module, shape, forward, training):
    variables, x = module_shapes(module, *shape)
    assert total(module.apply, variables, x) == forward
    loss = lambda v, x: jnp.sum(module.apply(v, x) ** 2)
    assert total(jax.grad(loss), variables, x) == training

  @pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch"
  )
  def test_side_by_side_with_pytorch(self):
    out = subprocess.run(
      [sys.executable, "-m", "benchmarks.count_macs", "--json"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    rows = json.loads(out.stdout)
    assert {row["network"] for row in rows} >= {
      "ResNet-18",
      "MobileNetV2",
      "DenseNet",
      "transformer",
    }
    for row in rows:
      assert row["pytorch"] - row["ours"] in (0, row["excess"]), row


@st.composite
def convolutions(draw, dilated_input=False):
  """Sizes of a convolution whose output is not empty."""
  dims = draw(st.integers(1, 3))
  side = lambda low, high: draw(
    st.lists(st.integers(low, high), min_size=dims, max_size=dims)
  )
  kernel, rhs_dilation = side(1, 4), side(1, 3)
  lhs_dilation = side(1, 3) if dilated_input else [1] * dims
  reach = [(k - 1) * d + 1 for k, d in zip(kernel, rhs_dilation, strict=True)]
  sizes = [draw(st.integers(r, r + 5)) for r in reach]
  groups, batch_groups = draw(
    st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 2), (1, 3)])
  )
  return dict(
    batch=batch_groups * draw(st.integers(1, 3)),
    sizes=sizes,
    kernel=kernel,
    strides=side(1, 3),
    pads=side(0, 3),
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    inputs=draw(st.integers(1, 4)),
    features=groups * batch_groups * draw(st.integers(1, 4)),
    groups=groups,
    batch_groups=batch_groups,
  )


def trace_conv(c):
  dims = "DHW"[-len(c["sizes"]) :]
  x = f32(c["batch"], *c["sizes"], c["inputs"] * c["groups"])
  kernel = f32(*c["kernel"], c["inputs"], c["features"])
  conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=c["strides"],
    padding=[(p, p) for p in c["pads"]],
    lhs_dilation=c["lhs_dilation"],
    rhs_dilation=c["rhs_dilation"],
    dimension_numbers=(f"N{dims}C", f"{dims}IO", f"N{dims}C"),
    feature_group_count=c["groups"],
    batch_group_count=c["batch_groups"],
  )
  return conv, x, kernel


def each_pass_costs(conv, x, k, want):
  """The forward pass and both gradients, however they are transformed."""
  assert total(conv, x, k) == want
  loss = lambda x, k: conv(x, k).sum()  # linear: no forward in its gradient
  for wrap in (lambda f: f, jax.jit, jax.checkpoint):
    assert total(jax.grad(wrap(loss), argnums=0), x, k) == want
    assert total(jax.jit(jax.grad(wrap(loss), argnums=1)), x, k) == want
  members = (f32(3, *x.shape), f32(3, *k.shape))
  both = jax.vmap(jax.grad(loss, argnums=(0, 1)))
  assert total(both, *members) == 6 * want


class TestConvolution:
  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(convolutions())
  def test_closed_form(self, c):
    macs = c["batch"] // c["batch_groups"] * c["inputs"] * c["features"]
    for n, k, s, p, d in zip(
      c["sizes"],
      c["kernel"],
      c["strides"],
      c["pads"],
      c["rhs_dilation"],
      strict=True,
    ):
      macs *= k * ((n + 2 * p - d * (k - 1) - 1) // s + 1)
    (row,) = count_macs(*trace_conv(c)).rows
    assert row.macs == macs
    assert row.groups == c["groups"] * c["batch_groups"]

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(convolutions(dilated_input=True))
  def test_a_dilated_input_meets_each_tap(self, c):
    # Every pair (input, tap) that a stride does not leave out, one at a time.
    macs = c["batch"] // c["batch_groups"] * c["inputs"] * c["features"]
    for n, k, s, p, h, d in zip(
      c["sizes"],
      c["kernel"],
      c["strides"],
      c["pads"],
      c["lhs_dilation"],
      c["rhs_dilation"],
      strict=True,
    ):
      macs *= sum(
        (i * h + p - t * d) % s == 0 for i in range(n) for t in range(k)
      )
    hypothesis.assume(any(h > 1 for h in c["lhs_dilation"]))
    assert total(*trace_conv(c)) == macs

  @pytest.mark.parametrize("stride", [1, 2, 3])
  @pytest.mark.parametrize("groups", [1, 4])
  @pytest.mark.parametrize("kernel", [1, 2, 3, 5])
  @pytest.mark.parametrize("pad", [0, 1, 2])
  def test_each_gradient_costs_the_convolution(
    self, stride, groups, kernel, pad
  ):
    def conv(x, k):
      return lax.conv_general_dilated(
        x,
        k,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
      )

    x, k = f32(2, 8, 8, 8), f32(kernel, kernel, 8 // groups, 12)
    out = (8 + 2 * pad - kernel) // stride + 1
    each_pass_costs(conv, x, k, 2 * (out * kernel) ** 2 * 8 * 12 // groups)

  @pytest.mark.parametrize("stride", [1, 2, 3])
  @pytest.mark.parametrize("kernel", [1, 2, 3, 5])
  @pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (2, 1))])
  @pytest.mark.parametrize("reverse", [False, True])
  def test_a_transposed_convolution_and_its_gradients(
    self, stride, kernel, padding, reverse
  ):
    conv = functools.partial(
      lax.conv_transpose,
      strides=(stride, stride),
      padding=padding,
      transpose_kernel=reverse,
    )
    x = f32(2, 7, 7, 4)
    k = f32(kernel, kernel, *((6, 4) if reverse else (4, 6)))
    each_pass_costs(conv, x, k, 2 * (7 * kernel) ** 2 * 4 * 6)

  def test_transposed_by_hand(self):
    conv = functools.partial(
      lax.conv_transpose, strides=(2, 2), padding="VALID"
    )
    assert total(conv, f32(1, 8, 8, 4), f32(3, 3, 4, 6)) == 13_824

  def test_a_gradient_among_other_gradients(self):
    # Reversed twice, the kernel is what it was; strides tell the rest.
    def penalty(k, x):
      conv = lambda x: lax.conv(x, k, (2, 2), "VALID")
      return (jax.grad(lambda x: (conv(x) ** 2).sum())(x) ** 2).sum()

    x, k = f32(1, 3, 9, 9), f32(4, 3, 3, 3)
    once = 4**2 * 9 * 3 * 4
    # Value and gradient, and of either one both operands' gradients, without
    # that of the images.
    assert total(jax.grad(penalty), k, x) == (2 + 3) * once

  def test_sizes_of_zero(self):
    conv = lambda x, k: lax.conv(x, k, (1, 1), "VALID")
    assert total(conv, f32(0, 3, 8, 8), f32(4, 3, 3, 3)) == 0
    assert total(conv, f32(2, 3, 8, 8), f32(0, 3, 3, 3)) == 0


class TestDot:
  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
    st.permutations("abcd"),
    st.permutations("cdef"),
    st.data(),
    st.lists(st.integers(1, 5), min_size=6, max_size=6),
  )
  def test_einsum(self, lhs, rhs, data, sizes):
    # An index in one operand only stays, so nothing is summed beforehand.
    out = [c for c in "abef" if c in {*lhs, *rhs}]
    out += [c for c in "cd" if data.draw(st.booleans())]
    size = dict(zip("abcdef", sizes, strict=True))
    equation = f"{''.join(lhs)},{''.join(rhs)}->{''.join(out)}"
    shapes = (f32(*(size[c] for c in operand)) for operand in (lhs, rhs))
    assert total(functools.partial(jnp.einsum, equation), *shapes) == math.prod(
      sizes
    )

  def test_matmul_with_batch(self):
    (row,) = count_macs(jnp.matmul, f32(5, 2, 3), f32(5, 3, 7)).rows
    assert row.macs == 5 * 2 * 3 * 7
    assert row.shapes == ((5, 2, 3), (5, 3, 7), (5, 2, 7))

  def test_ragged_rows(self):
    sizes = jax.ShapeDtypeStruct((4,), jnp.int32)
    assert total(lax.ragged_dot, f32(10, 3), f32(4, 3, 7), sizes) == 10 * 3 * 7

  def test_ragged_contraction(self):
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    dot = functools.partial(
      lax.ragged_dot_general, ragged_dot_dimension_numbers=numbers
    )
    sizes = jax.ShapeDtypeStruct((4,), jnp.int32)
    assert total(dot, f32(10, 3), f32(10, 7), sizes) == 10 * 3 * 7


W, X = f32(4, 4), f32(3, 4)


def layer(x, w):
  return jnp.tanh(x @ w)


ONE = 3 * 4 * 4


@pytest.mark.versions
class TestTransformations:
  @pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.jit(f)), jax.jvp]
  )
  def test_wrapping_changes_nothing(self, wrap):
    if wrap is jax.jvp:  # a tangent costs two products, the value one
      tangents = lambda x, w: jax.jvp(layer, (x, w), (x, w))
      assert total(tangents, X, W) == 3 * ONE
    else:
      assert total(wrap(layer), X, W) == ONE

  def test_custom_vjp(self):
    f = jax.custom_vjp(layer)
    f.defvjp(
      lambda x, w: (layer(x, w), (x, w)),
      lambda res, g: ((g @ res[1].T) @ res[1], jnp.zeros_like(res[1])),
    )
    assert total(f, X, W) == ONE
    loss = lambda x, w: f(x, w).sum()
    assert total(jax.grad(loss), X, W) == 2 * ONE  # the backward's two
    assert total(jax.value_and_grad(loss), X, W) == 3 * ONE

  def test_custom_jvp(self):
    f = jax.custom_jvp(layer)
    f.defjvp(lambda primals, tangents: (layer(*primals), layer(*tangents)))
    assert total(f, X, W) == ONE

  @pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
  def test_vmap(self, axes):
    args = [
      x if axis is None else f32(5, *x.shape)
      for x, axis in zip((X, W), axes, strict=True)
    ]
    assert total(jax.vmap(layer, in_axes=axes), *args) == 5 * ONE

  @pytest.mark.parametrize("members", [3, 20])
  @pytest.mark.parametrize("depthwise", [False, True])
  def test_vmapped_networks(self, members, depthwise):
    # More than 16 kernels go to XLA as groups of one convolution.
    spec = resnet((4, 8), (1, 1), (1, 2), (1, 1), (depthwise,) * 2)
    net, images = resnet_shapes(spec)
    one = total(network.forward, net, images)
    stack = jax.tree.map(lambda x: f32(members, *x.shape), net)
    many = jax.vmap(network.forward, in_axes=(0, None))
    assert total(many, stack, images) == members * one
    batches = f32(members, *images.shape)
    each = jax.vmap(network.forward, in_axes=(None, 0))
    assert total(each, net, batches) == members * one

  def test_scan_is_its_unrolled_loop(self):
    scan = lambda x, ws: lax.scan(lambda x, w: (layer(x, w), None), x, ws)[0]
    loop = lambda x, ws: functools.reduce(layer, ws, x)
    ws = f32(6, 4, 4)
    assert total(scan, X, ws) == total(loop, X, ws) == 6 * ONE
    nested = lambda x, ws: lax.scan(
      lambda x, _: (scan(x, ws), None), x, None, length=5
    )
    (row,) = count_macs(nested, X, ws).rows
    assert (row.repeats, row.macs) == (30, 30 * ONE)
    grad = jax.grad(lambda x, ws: scan(x, ws).sum(), argnums=(0, 1))
    unrolled = jax.grad(lambda x, ws: loop(x, ws).sum(), argnums=(0, 1))
    assert total(grad, X, ws) == total(unrolled, X, ws) == 18 * ONE

  def test_fori_loop_with_constant_bounds(self):
    loop = lambda x, w: lax.fori_loop(0, 7, lambda _, x: layer(x, w), x)
    assert total(loop, X, W) == 7 * ONE

  def test_a_training_step(self):
    def loss(w, x):
      return (layer(layer(x, w), w) ** 2).sum()

    # 2 forward, 2 kernel gradients, 1 input gradient: none for the images.
    assert total(jax.grad(loss), W, X) == 5 * ONE

  def test_a_training_step_of_resnet18(self):
    net, images = resnet_shapes(resnet18())

    def loss(params, net, images):
      logits, _ = network.forward_train(net.replace(params=params), images)
      return (logits**2).sum()

    report = count_macs(jax.grad(loss), net.params, net, images)
    stem = 32 * 32 * 27 * 64
    assert report.total == 3 * RESNET18_MACS - stem
    forward = sum(
      row.macs for row in report.rows if "transpose" not in row.transforms
    )
    assert forward == RESNET18_MACS

  def test_the_training_step_of_an_experiment(self):
    # Augmentation, teacher, quantized student, optimizer, averages, sharding.
    student, teacher = (
      resnet((4, 8), (1, 1), (1, 2), (1, groups), (False, False))
      for groups in (2, 1)
    )
    student = with_bits(student, [(".*", 4, 4)])
    optimizer = state.make_optimizer(
      "sgd", state.Rate(0.1, 9, 1), weight_decay=5e-4, clip_norm=1.0
    )
    augment = Augment(4, "random", 8, mean=(0.5,) * 3, std=(0.2,) * 3)
    answers = terms.cross_entropy(0.1, 0.1), terms.soft(4.0, 0.9)
    train_step = step.make_train_step(
      answers, optimizer, augment, Average(0.99), make_mesh()
    )
    key = jax.random.key(0)
    create = lambda k: state.create(network.init(k, student), optimizer, True)
    int32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8)
    nets = [resnet_shapes(spec, batch=4) for spec in (student, teacher)]
    once = [total(network.forward, *net) for net in nets]
    batch = step.Batch(images, int32(4), int32(4))
    teachers = step.Teachers((nets[1][0],))
    args = jax.eval_shape(create, key), teachers, batch, key, int32()
    # The stem's input has a gradient too: that of its learned bound.
    assert total(train_step, *args) == 3 * once[0] + once[1]

  def test_remat_computes_again(self):
    inner = lambda x, w: layer(layer(x, w), w)
    loss = lambda f: jax.grad(lambda w, x: (f(x, w) ** 2).sum())
    plain = total(loss(inner), W, X)
    report = count_macs(loss(jax.checkpoint(inner)), W, X)
    again = [row for row in report.rows if "remat" in row.transforms]
    assert report.total == plain + sum(row.macs for row in again)
    assert len(again) >= 1

  @pytest.mark.parametrize("axes", ["Auto", "Explicit"])
  def test_shard_map(self, axes):
    p, named = jax.sharding.PartitionSpec, jax.sharding.NamedSharding
    types = (jax.sharding.AxisType[axes],) * 2
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "other"), types)
    images = jax.ShapeDtypeStruct(
      (12, 4), jnp.float32, sharding=named(mesh, p("data"))
    )
    split = jax.shard_map(
      layer, mesh=mesh, in_specs=(p("data"), p()), out_specs=p("data")
    )
    report = count_macs(split, images, W)
    # Both axes are split over: the second one computes everything twice.
    assert report.per_device == ONE
    assert report.total == 8 * ONE
    assert report.rows[0].devices == 8
    data = jax.shard_map(
      layer,
      mesh=mesh,
      in_specs=(p("data"), p()),
      out_specs=p("data"),
      axis_names={"data"},
    )
    report = count_macs(data, images, W)
    assert (report.per_device, report.total) == (ONE, 4 * ONE)

  def test_pallas(self):
    from jax.experimental import pallas as pl

    def kernel(x_ref, w_ref, o_ref):
      o_ref[...] = x_ref[...] @ w_ref[...]

    call = pl.pallas_call(
      kernel,
      grid=(5,),
      in_specs=[
        pl.BlockSpec((3, 4), lambda i: (i, 0)),
        pl.BlockSpec((4, 4), lambda i: (0, 0)),
      ],
      out_specs=pl.BlockSpec((3, 4), lambda i: (i, 0)),
      out_shape=f32(15, 4),
      interpret=True,
    )
    assert total(call, f32(15, 4), W) == 5 * ONE


@pytest.mark.versions
class TestControlFlow:
  def test_equal_branches(self):
    f = lambda c, x, w: lax.cond(c, layer, lambda x, w: x @ w, x, w)
    assert total(f, jnp.array(True), X, W) == ONE

  def test_unequal_branches(self):
    twice = lambda x, w: layer(layer(x, w), w)
    f = lambda c, x, w: lax.cond(c, layer, twice, x, w)
    with pytest.raises(ValueError, match=r"cond.*test_macs.py.*\[96, 48\]"):
      count_macs(f, jnp.array(True), X, W)
    assert total(f, jnp.array(True), X, W, branches="largest") == 2 * ONE
    with pytest.raises(ValueError, match="branches .='most'"):
      count_macs(f, jnp.array(True), X, W, branches="most")

  def test_branches_by_platform(self):
    f = lambda x, w: lax.platform_dependent(
      x, w, cpu=layer, default=lambda x, w: layer(layer(x, w), w)
    )
    there = ONE if jax.default_backend() == "cpu" else 2 * ONE
    assert total(f, X, W) == there

  @pytest.mark.parametrize(("constant", "macs"), [(True, ONE), (False, 0)])
  def test_a_constant_predicate_chooses(self, constant, macs):
    f = lambda x, w: lax.cond(constant, layer, lambda x, w: x, x, w)
    assert total(f, X, W) == macs

  @pytest.mark.parametrize("trips", [-5, 2.5, True, "3", {"search": -1}])
  def test_trips_are_whole_numbers(self, trips):
    f = lambda x, w: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)
    with pytest.raises(ValueError, match=r"while_trips.*must be a whole numb"):
      count_macs(f, X, W, while_trips=trips)

  def test_trips_of_a_loop_that_is_not_there(self):
    with pytest.raises(ValueError, match=r"while_trips names \['serach'\]"):
      count_macs(layer, X, W, while_trips={"serach": 3})

  def test_while(self):
    @jax.named_scope("search")
    def f(x, w):
      return lax.while_loop(lambda x: x.sum() < 9, lambda x: layer(x, w), x)

    message = r"'while' at search .*test_macs.py.*while_trips=.'search'"
    with pytest.raises(ValueError, match=message):
      count_macs(f, X, W)
    assert total(f, X, W, while_trips=6) == 6 * ONE
    assert total(f, X, W, while_trips={"search": 3}) == 3 * ONE
    with pytest.raises(ValueError, match="while_trips"):
      count_macs(f, X, W, while_trips={"elsewhere": 3})

  def test_a_while_tests_once_more_than_it_runs(self):
    f = lambda x, w: lax.while_loop(
      lambda x: (x @ w).sum() < 9, lambda x: layer(x, w), x
    )
    assert total(f, X, W, while_trips=6) == 13 * ONE

  def test_while_that_does_not_multiply(self):
    f = lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x)
    assert total(f, X) == 0


@pytest.mark.versions
class TestWhatIsNotCounted:
  def test_dead_code(self):
    def f(x, w):
      layer(x, w)
      return x

    assert total(f, X, W) == 0
    assert (
      total(jax.jit(lambda x, w: (jax.jit(f)(x, w), x @ w)[1]), X, W) == ONE
    )
    pair = jax.jit(lambda x, w: (layer(x, w), x + 1))
    assert total(lambda x, w: pair(x, w)[1], X, W) == 0

  def test_elementwise_is_listed_when_asked(self):
    f = lambda x: (x * x).sum()
    assert count_macs(f, X).other == ()
    report = count_macs(f, X, other=True)
    assert report.total == 0
    assert {(row.primitive, row.elements) for row in report.other} == {
      ("mul", 12),
      ("reduce_sum", 12),
    }

  def test_scans_multiply_elementwise_work_too(self):
    f = lambda x: lax.scan(lambda x, _: (x * x, None), x, None, length=5)[0]
    (row,) = count_macs(f, X, other=True).other
    assert row.elements == 60

  def test_pooling_normalization_and_random_bits_are_free(self):
    class Net(nn.Module):
      @nn.compact
      def __call__(self, x):
        x = nn.max_pool(nn.avg_pool(x, (2, 2)), (2, 2))
        x = nn.LayerNorm()(nn.BatchNorm(use_running_average=True)(x))
        x = nn.Dropout(0.5, deterministic=False)(nn.softmax(x))
        return jnp.sort(jnp.cumsum(nn.gelu(x), -1), -1)

    net = Net()
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(net.init, rngs, f32(2, 8, 8, 3))
    f = lambda v, x: net.apply(v, x, rngs={"dropout": jax.random.key(2)})
    assert total(f, variables, f32(2, 8, 8, 3)) == 0
    grad = jax.grad(lambda v, x: (f(v, x) ** 2).sum())
    assert total(grad, variables, f32(2, 8, 8, 3)) == 0


@pytest.mark.versions
class TestWhatIsNotUnderstood:
  @pytest.mark.parametrize(
    ("fn", "name"),
    [
      (jnp.fft.fft, "fft"),
      (jnp.linalg.cholesky, "cholesky"),
      (jnp.linalg.svd, "svd"),
      (jnp.linalg.eigh, "eigh"),
      (lambda x: jnp.linalg.solve(x, x), "lu"),
      (lambda x: jax.ffi.ffi_call("blackbox", f32(4, 4))(x), "ffi_call"),
      (lambda x: jax.pure_callback(lambda x: x, f32(4, 4), x), "pure_callback"),
    ],
  )
  def test_raises_with_name_and_line(self, fn, name):
    def f(x):
      with jax.named_scope("spectrum"):
        return fn(x)

    with pytest.raises(
      ValueError, match=f"'{name}' at spectrum.*test_macs.py:[0-9]+"
    ):
      count_macs(f, W)

  def test_a_kernel_that_runs_once_a_core(self):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu

    @pl.run_state
    def product(refs):
      @pl.core_map(tpu.create_tensorcore_mesh("core", num_cores=2))
      def _():
        x, w, out = refs
        out[...] = x[...] @ w[...]

    f = lambda x, w: product((x, w, jnp.zeros(X.shape)))[2]
    with pytest.raises(ValueError, match="no rule.*'(core_map|mpmd_map)' at"):
      count_macs(f, X, W)

  def test_a_primitive_that_holds_a_jaxpr(self):
    # Nobody but its author knows how often it runs it.
    again = Primitive("again")
    again.def_abstract_eval(lambda x, *, jaxpr: x)
    f = lambda x: again.bind(x, jaxpr=jax.make_jaxpr(lambda x: x @ x)(W))
    with pytest.raises(ValueError, match="no rule.*'again' at"):
      count_macs(f, W)


@pytest.mark.versions
class TestXla:
  """XLA's own estimate, where it can be right and where it is not."""

  @staticmethod
  def flops(fn, *args):
    cost = jax.jit(fn).lower(*args).cost_analysis()
    return (cost if isinstance(cost, dict) else cost[0])["flops"]

  def test_products_agree(self):
    assert self.flops(jnp.matmul, f32(5, 2, 3), f32(5, 3, 7)) == 2 * 210

  @pytest.mark.parametrize("stride", [1, 2])
  def test_convolutions_without_padding_agree(self, stride):
    conv = lambda x, k: lax.conv(x, k, (stride, stride), "VALID")
    args = f32(2, 3, 9, 9), f32(4, 3, 3, 3)
    assert self.flops(conv, *args) == 2 * total(conv, *args)

  def test_it_skips_the_taps_on_the_padding(self):
    conv = lambda x, k: lax.conv(x, k, (1, 1), "SAME")
    args = f32(1, 1, 8, 8), f32(1, 1, 3, 3)
    ours = total(conv, *args)
    # Along an axis 24 pairs (output, tap), 22 of them on the image.
    assert ours == 24**2
    assert self.flops(conv, *args) == 2 * 22**2

  def test_it_counts_a_loop_once(self):
    scan = lambda x, ws: lax.scan(lambda x, w: (x @ w, None), x, ws)[0]
    args = X, f32(6, 4, 4)
    assert total(scan, *args) == 6 * ONE
    assert self.flops(scan, *args) < 2 * 2 * ONE


@pytest.mark.versions
class TestReport:
  def test_table_json_and_paths(self):
    variables, x = module_shapes(flax_nets.Encoder(layers=1), 1, 4, 8)
    report = count_macs(flax_nets.Encoder(layers=1).apply, variables, x)
    data = json.loads(report.to_json())
    assert data["total"] == report.total == sum(report.by_path().values())
    assert len(data["rows"]) == len(report.rows)
    assert report.by_path()["Encoder/up0"] == 4 * 8 * 32
    table = report.table()
    assert table.row_count == len(set(report.rows)) + 1

  def test_numpys_integers_and_symbolic_sizes(self):
    f = lambda x, w: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)
    report = count_macs(f, f32(np.int64(3), 4), W, while_trips=np.int64(6))
    data = json.loads(report.to_json())
    assert (data["total"], data["rows"][0]["repeats"]) == (6 * ONE, 6)

    (batch,) = jax.export.symbolic_shape("batch")
    report = count_macs(jnp.matmul, f32(batch, 4), W)
    assert report.total == 16 * batch
    data = json.loads(report.to_json())
    assert data["total"] == "16*batch"
    assert data["rows"][0]["shapes"] == [["batch", 4], [4, 4], ["batch", 4]]
    assert report.table().row_count == 2

  def test_paths_survive_transformations(self):
    module = nn.Dense(4, name="dense")

    def loss(v, x):
      with jax.named_scope("net"):
        return jnp.tanh(module.apply(v, x)).sum()

    variables, _ = module_shapes(module, 3, 4)
    f = jax.vmap(jax.grad(jax.jit(loss)), in_axes=(None, 0))
    report = count_macs(f, variables, f32(5, 3, 4))
    assert len({row.path for row in report.rows}) == 1
    assert {row.transforms[0] for row in report.rows} == {"vmap"}
    assert report.rows[0].path.startswith("net")

  def test_nothing_runs(self):
    # 4 TB of operands: only shapes can be at work.
    big = f32(10**6, 10**6)
    assert total(jnp.matmul, big, big) == 10**18


# Imports all of JAX, which this process must not: some of it changes what is
# traced.
PRIMITIVES = """
import gc, importlib, pkgutil
import jax
from jax.extend.core import Primitive
for module in pkgutil.walk_packages(jax.__path__, "jax.", lambda name: None):
  try:
    importlib.import_module(module.name)
  except Exception:
    pass  # needs a GPU's libraries, or a package that is not here
print(*{x.name for x in gc.get_objects() if isinstance(x, Primitive)})
"""


@pytest.mark.versions
def test_every_primitive_of_this_jax_is_known():
  out = subprocess.run(
    [sys.executable, "-c", PRIMITIVES],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
  )  # fmt: skip
  names = set(out.stdout.split())
  assert len(names) > 350
  ruled = {"dot_general", "conv_general_dilated", "cond", "while", "scan"}
  ruled |= {"shard_map", "pallas_call", *counter._RULES_BY_NAME}
  sets = (
    primitives.MOVEMENT, primitives.ARITHMETIC, primitives.ONCE,
    primitives.REFUSED, ruled,
  )  # fmt: skip
  for a, b in itertools.combinations(sets, 2):
    assert a.isdisjoint(b), a & b
  unknown = names - set().union(*sets)
  assert not unknown, f"add to jaxr18.cost.primitives: {sorted(unknown)}"
