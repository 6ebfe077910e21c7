"""A network as a pytree: masks, chains, stacks, both forwards."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxr18.nn import network, quantize
from jaxr18.nn.calibrate import initial_bound
from jaxr18.nn.conv import conv
from jaxr18.nn.resnet import ResNet
from jaxr18.nn.spec import FLOAT_BITS, ConvSpec, resnet, with_bits

SPEC = resnet((4, 8), (1, 1), (1, 2), (2, 1), (False, True), resolution=8)
QUANTIZED = with_bits(SPEC, [("stem", 8, 8), ("head", 32, 32), (".*", 4, 3)])
IMAGES = jnp.asarray(
  np.random.default_rng(9).normal(size=(4, 8, 8, 3)), jnp.float32
)


def trained(spec=SPEC, seed=0):
  """A network as after training: no statistic and no bias at its default."""
  net = network.init(jax.random.key(seed), spec)
  rng = np.random.default_rng(seed)

  def moved(path, leaf):
    if path[-1].key in ("var", "scale"):
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
    if path[-1].key in ("mean", "bias"):
      return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return leaf

  move = functools.partial(jax.tree_util.tree_map_with_path, moved)
  return net.replace(params=move(net.params), batch_stats=move(net.batch_stats))


def random_masks(net, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.uniform(size=p.shape) < 0.5), net.params
  )


def filled_masks(net, value):
  return jax.tree.map(lambda p: jnp.full(p.shape, value), net.params)


forward = jax.jit(network.forward)
forward_train = jax.jit(network.forward_train)


@pytest.fixture(scope="module")
def net():
  return trained()


@pytest.mark.versions
class TestInit:
  def test_nothing_is_pruned(self):
    net = network.init(jax.random.key(0), SPEC)
    assert jax.tree.structure(net.masks) == jax.tree.structure(net.params)
    for mask in jax.tree.leaves(net.masks):
      assert mask.shape == () and mask.dtype == bool and mask

  def test_same_key_same_network(self):
    a, b, c = (network.init(jax.random.key(k), SPEC) for k in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
    assert not np.array_equal(
      a.params["stem"]["kernel"], c.params["stem"]["kernel"]
    )

  def test_kernels_are_he_normal(self):
    spec = resnet((64,), (1,), (1,), (1,), (False,), resolution=4)
    params = network.init(jax.random.key(0), spec).params
    kernel = params["stage1_block1"]["conv1"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)

  def test_bounds_are_one(self):
    params = network.init(jax.random.key(0), QUANTIZED).params
    assert params["stem"]["input_bound"] == 1
    assert "input_bound" not in params["head"]

  def test_a_spec_that_is_no_network(self):
    spec = dataclasses.replace(SPEC, stem=ConvSpec(6))
    with pytest.raises(ValueError, match="stage1_block1: an identity shortcut"):
      network.init(jax.random.key(0), spec)


@pytest.mark.versions
class TestMasks:
  def test_all_true_is_the_identity(self, net):
    everything = net.replace(masks=filled_masks(net, True))
    np.testing.assert_allclose(
      forward(everything, IMAGES), forward(net, IMAGES), atol=1e-6
    )
    params = network.apply_masks(net.params, everything.masks)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, net.params))

  def test_false_is_zero(self, net):
    masks = random_masks(net)
    params = network.apply_masks(net.params, masks)
    expected = jax.tree.map(lambda p, m: np.asarray(p) * m, net.params, masks)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))

  def test_both_forwards_apply_them(self, net):
    masked = net.replace(masks=random_masks(net))
    zeroed = net.replace(params=network.apply_masks(net.params, masked.masks))
    for run in (forward, lambda *a: forward_train(*a)[0]):
      expected = run(zeroed, IMAGES)
      # Masks of another shape are another compilation, so not bit for bit.
      np.testing.assert_allclose(run(masked, IMAGES), expected, atol=1e-5)
      assert np.abs(run(net, IMAGES) - expected).max() > 0.1

  def test_what_is_masked_does_not_matter(self, net):
    masks = random_masks(net)
    broken = jax.tree.map(
      lambda p, m: jnp.where(m, p, jnp.nan), net.params, masks
    )
    got = forward(net.replace(params=broken, masks=masks), IMAGES)
    np.testing.assert_array_equal(
      got, forward(net.replace(masks=masks), IMAGES)
    )
    assert np.all(np.isfinite(got))

  def test_all_false_leaves_nothing(self, net):
    logits = forward(net.replace(masks=filled_masks(net, False)), IMAGES)
    assert not np.any(logits)

  def test_no_gradient_where_masked(self, net):
    masks = random_masks(net)

    def loss(params):
      masked = net.replace(params=params, masks=masks)
      return jnp.sum(network.forward_train(masked, IMAGES)[0] ** 2)

    grads, masks = jax.device_get((jax.jit(jax.grad(loss))(net.params), masks))
    assert jax.tree.all(
      jax.tree.map(lambda g, m: not np.any(g[~m]), grads, masks)
    )
    assert np.any(grads["stem"]["kernel"])


class TestChain:
  def add(self, x):
    return lambda n: n.replace(params=jax.tree.map(lambda p: p + x, n.params))

  def double(self, n):
    return n.replace(params=jax.tree.map(lambda p: 2 * p, n.params))

  def test_the_first_is_applied_first(self, net):
    got = network.chain(self.add(1), self.double)(net)
    expected = 2 * (net.params["head"]["bias"] + 1)
    np.testing.assert_array_equal(got.params["head"]["bias"], expected)

  def test_chains_chain(self, net):
    a, b, c = self.add(1), self.double, self.add(3)
    flat = network.chain(a, b, c)(net)
    nested = network.chain(a, network.chain(b, c))(net)
    assert jax.tree.all(jax.tree.map(np.array_equal, flat, nested))

  def test_of_nothing_is_the_identity(self, net):
    assert network.chain()(net) is net


@pytest.mark.versions
class TestForward:
  def test_shape_and_type(self, net):
    logits = forward(net, IMAGES)
    assert logits.shape == (4, 10) and logits.dtype == jnp.float32

  def test_training_moves_the_statistics_by_a_tenth(self, net):
    _, stats = forward_train(net, IMAGES)
    y = np.asarray(conv(IMAGES, net.params["stem"]["kernel"]))
    old, new = net.batch_stats["stem_bn"], stats["stem_bn"]
    for name, batch in (("mean", y.mean((0, 1, 2))), ("var", y.var((0, 1, 2)))):
      expected = 0.9 * old[name] + 0.1 * batch
      np.testing.assert_allclose(new[name], expected, rtol=1e-4, atol=1e-5)

  def test_equals_training_at_the_statistics_of_the_batch(self, net):
    logits, stats = forward_train(net, IMAGES)
    batch = jax.tree.map(
      lambda new, old: (new - 0.9 * old) / 0.1, stats, net.batch_stats
    )
    at_batch = forward(net.replace(batch_stats=batch), IMAGES)
    np.testing.assert_allclose(at_batch, logits, rtol=1e-3, atol=1e-3)
    assert np.abs(forward(net, IMAGES) - logits).max() > 0.1

  def test_an_image_does_not_see_its_batch(self, net):
    logits = forward(net, IMAGES)
    alone = jnp.concatenate([forward(net, x[None]) for x in IMAGES])
    np.testing.assert_allclose(alone, logits, atol=1e-5)

  def test_another_spec_is_another_trace(self, net):
    traces = []

    @jax.jit
    def f(n):
      traces.append(n.spec)
      return n.params["stem"]["kernel"]

    f(net), f(jax.tree.map(lambda x: x, net)), f(trained(seed=1))
    assert len(traces) == 1
    f(trained(with_bits(SPEC, [(".*", 4, 32)])))
    assert len(traces) == 2


class TestStages:
  @pytest.mark.parametrize("resolution", [7, 8, 33])
  def test_feature_maps_are_those_of_the_layers(self, resolution):
    spec = resnet(
      (4, 6, 8),
      (1, 2, 1),
      (1, 2, 3),
      (2, 1, 1),
      (False, False, True),
      resolution=resolution,
    )

    def run(net, images):
      variables = {"params": net.params, "batch_stats": net.batch_stats}
      _, state = ResNet(spec).apply(
        variables, images, capture_intermediates=lambda m, _: "Conv" in str(m)
      )
      return state["intermediates"]

    net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, resolution, resolution, 3), jnp.float32)
    seen, _ = jax.tree_util.tree_flatten_with_path(
      jax.eval_shape(run, net, images)
    )
    shapes = {
      "/".join(k.key for k in path[:-2]): leaf.shape for path, leaf in seen
    }
    for layer in spec.layers()[:-1]:
      size = layer.out_size
      assert shapes[layer.path] == (2, size, size, layer.features), layer.path

  def test_resnet18_halves_three_times(self):
    sizes = {n.path: n.out_size for n in resnet().layers()}
    assert [sizes[f"stage{i}_block2/conv2"] for i in (1, 2, 3, 4)] == [
      32, 16, 8, 4
    ]  # fmt: skip


@pytest.mark.versions
class TestStack:
  def test_vmap_equals_loop(self, net):
    nets = [net, trained(seed=1), trained(seed=2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *nets)
    assert stacked.spec == SPEC
    vmapped = jax.jit(jax.vmap(network.forward, in_axes=(0, None)))
    loop = jnp.stack([forward(n, IMAGES) for n in nets])
    np.testing.assert_allclose(vmapped(stacked, IMAGES), loop, atol=1e-4)
    assert np.abs(loop[0] - loop[1]).max() > 0.1

  def test_of_different_specs_fails(self, net):
    other = net.replace(spec=with_bits(SPEC, [(".*", 4, 32)]))
    with pytest.raises(ValueError, match="NetSpec"):
      jax.tree.map(lambda *x: jnp.stack(x), net, other)


@pytest.mark.versions
class TestBfloat16:
  def test_all_convolutions(self, net):
    def types(dtype):
      run = functools.partial(network.forward_train, dtype=dtype)
      eqns = jax.make_jaxpr(run)(net, IMAGES).jaxpr.eqns
      return [
        tuple(v.aval.dtype for v in (*e.invars, *e.outvars))
        for e in eqns
        if e.primitive.name == "conv"
      ]

    # Kernels are rounded as they are used, and their gradients are not.
    mixed = ("bfloat16", "float32", "bfloat16")
    assert types(jnp.bfloat16) == [mixed] * 8
    assert types(jnp.float32) == [("float32",) * 3] * 8

  def test_logits_and_statistics_are_float32_and_close(self, net):
    logits, stats = jax.jit(
      functools.partial(network.forward_train, dtype=jnp.bfloat16)
    )(net, IMAGES)
    expected, expected_stats = forward_train(net, IMAGES)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    assert 0 < np.abs(logits - expected).max() < 0.1 * np.std(expected)
    np.testing.assert_allclose(
      stats["stem_bn"]["var"], expected_stats["stem_bn"]["var"], rtol=1e-2
    )


@pytest.fixture(scope="module")
def calibrated():
  net = trained(QUANTIZED)
  return net, network.calibrate(net, IMAGES)


@pytest.mark.versions
class TestCalibrate:
  def test_the_stem_sees_the_images(self, calibrated):
    _, after = calibrated
    expected = initial_bound(IMAGES, 127, True, "mse")
    got = after.params["stem"]["input_bound"]
    assert got == pytest.approx(float(expected), rel=1e-6)

  def test_the_first_block_sees_the_quantized_stem(self, calibrated):
    _, after = calibrated
    stem, bn = after.params["stem"], after.params["stem_bn"]
    x = quantize.quantize_input(IMAGES, stem["input_bound"], 8, signed=True)
    y = conv(x, quantize.quantize_kernel(stem["kernel"], 8))
    y = (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5)
    y = nn.relu(y * bn["scale"] + bn["bias"])
    expected = initial_bound(y, 7, False, "mse")
    got = after.params["stage1_block1"]["conv1"]["input_bound"]
    assert got == pytest.approx(float(expected), rel=1e-3)

  def test_only_bounds_change_and_all_of_them(self, calibrated):
    before, after = calibrated
    assert after.spec == before.spec
    for name in ("batch_stats", "masks"):
      assert jax.tree.all(
        jax.tree.map(
          np.array_equal, getattr(before, name), getattr(after, name)
        )
      )
    old, _ = jax.tree_util.tree_flatten_with_path(before.params)
    new = jax.tree.leaves(after.params)
    changed = [
      path[-1].key
      for (path, a), b in zip(old, new, strict=True)
      if not np.array_equal(a, b)
    ]
    layers = [n for n in QUANTIZED.layers() if n.a_bits != FLOAT_BITS]
    assert changed == ["input_bound"] * len(layers)

  def test_masks_are_applied(self, calibrated):
    before, after = calibrated
    masked = network.calibrate(
      before.replace(masks=filled_masks(before, False)), IMAGES
    )
    bound = masked.params["stage1_block1"]["conv1"]["input_bound"]
    assert 0 < bound < 1e-4  # of zeros: the smallest there is
    assert after.params["stage1_block1"]["conv1"]["input_bound"] > 0.1

  def test_no_image(self, calibrated):
    with pytest.raises(ValueError, match="no images to calibrate"):
      network.calibrate(calibrated[0], IMAGES[:0])

  def test_leaves_a_float_network_alone(self, net):
    after = network.calibrate(net, IMAGES)
    assert jax.tree.all(jax.tree.map(np.array_equal, net, after))
