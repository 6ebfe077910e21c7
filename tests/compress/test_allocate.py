"""Bits by layer: measured losses, and the best choice at a score."""

import dataclasses
import itertools
import json

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config

from jaxr18.compress import allocate
from jaxr18.config.network import network_spec
from jaxr18.cost.score import score
from jaxr18.nn import network
from jaxr18.nn.spec import resnet, with_bits
from jaxr18.run import experiment

SPEC = resnet((4, 8), (1, 1), (1, 2), (2, 1), (False, True), resolution=8)
UNITS = [unit for unit, _ in SPEC.units()]
BITS = (8, 4, 2)


def random_losses(seed):
  rng = np.random.default_rng(seed)
  return {
    unit: dict(zip(BITS, np.sort(rng.random(len(BITS))), strict=True))
    for unit in UNITS
  }


def per_layer(bits):
  spec = with_bits(SPEC, [(u, b, b) for u, b in bits.items()])
  return score(spec).per_layer.total


def bits_of(spec):
  return {u: x.w_bits for u, x in spec.units()}


class TestAllocate:
  @pytest.fixture(scope="class")
  @classmethod
  def everything(cls):
    """Every choice of bits, with its score."""
    choices = itertools.product(BITS, repeat=len(UNITS))
    each = [dict(zip(UNITS, choice, strict=True)) for choice in choices]
    return [(bits, per_layer(bits)) for bits in each]

  @pytest.mark.parametrize("seed", range(3))
  @pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
  def test_is_the_best_of_all_choices(self, everything, seed, share):
    losses = random_losses(seed)
    scores = [s for _, s in everything]
    target = min(scores) + share * (max(scores) - min(scores))

    def least(target):
      return min(
        sum(losses[u][b] for u, b in bits.items())
        for bits, s in everything
        if s <= target
      )

    bits = bits_of(allocate.allocate(SPEC, losses, target))
    assert per_layer(bits) <= target
    found = sum(losses[u][b] for u, b in bits.items())
    rounded = target * (1 - len(UNITS) / 20_000)
    assert least(target) - 1e-12 <= found <= least(rounded) + 1e-12

  def test_weights_and_activations_have_the_same(self):
    losses = random_losses(0)
    spec = allocate.allocate(SPEC, losses, 1.0)
    assert bits_of(spec) == {u: min(v, key=v.get) for u, v in losses.items()}
    assert all(x.a_bits == x.w_bits for _, x in spec.units())

  def test_what_has_no_losses_has_8_bits(self):
    losses = random_losses(0)
    inner = {u: v for u, v in losses.items() if u not in allocate.EDGES}
    lowest = per_layer({u: 8 if u in allocate.EDGES else 2 for u in UNITS})
    bits = bits_of(allocate.allocate(SPEC, inner, lowest * 1.001))
    assert bits["stem"] == bits["head"] == 8
    assert {b for u, b in bits.items() if u in inner} == {2}

  def test_masks_lower_the_score(self):
    net = network.init(jax.random.key(0), SPEC)
    half = jax.tree.map(
      lambda p: (jnp.arange(p.size) % 2 == 0).reshape(p.shape), net.params
    )
    losses = random_losses(0)
    target = per_layer(dict.fromkeys(UNITS, 2)) * 0.9
    with pytest.raises(ValueError, match="the lowest is"):
      allocate.allocate(SPEC, losses, target)
    spec = allocate.allocate(SPEC, losses, target, masks=half)
    assert score(spec, masks=half).per_layer.total <= target

  def test_a_target_that_cannot_be(self):
    lowest = per_layer(dict.fromkeys(UNITS, 2))
    with pytest.raises(ValueError, match=f"lowest is {lowest:.6f}"):
      allocate.allocate(SPEC, random_losses(0), lowest * 0.99)
    with pytest.raises(ValueError, match="must be above 0"):
      allocate.allocate(SPEC, random_losses(0), 0)

  @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
  def test_a_loss_that_is_not_finite(self, bad):
    losses = random_losses(0)
    unit = list(losses)[2]
    losses[unit] = losses[unit] | {4: bad}
    with pytest.raises(ValueError, match=f"{unit}: the loss by bits must be"):
      allocate.allocate(SPEC, losses, 0.004)

  def test_rules_say_the_same(self):
    bits = bits_of(allocate.allocate(SPEC, random_losses(1), 0.004))
    rules = allocate.rules_for(bits)
    assert len(rules) == len(set(bits.values()))
    assert bits_of(with_bits(SPEC, rules)) == bits
    same = dict.fromkeys(UNITS, 4)
    assert allocate.rules_for(same) == ((".*", 4, 4),)


class TestLosses:
  @pytest.fixture(scope="class")
  @classmethod
  def measured(cls):
    net = network.init(jax.random.key(0), SPEC)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 8, 3))
    before = allocate._divergence._cache_size()
    losses = allocate.bit_losses(net, BITS, list(images)).losses
    return net, images, losses, allocate._divergence._cache_size() - before

  def test_every_layer_and_number_of_bits(self, measured):
    losses = measured[2]
    assert list(losses) == UNITS
    for row in losses.values():
      assert list(row) == list(BITS)
      assert 0 < row[8] < row[2]
    assert np.mean([row[8] < row[4] < row[2] for row in losses.values()]) > 0.7

  def test_one_compiled_evaluation(self, measured):
    assert measured[3] == 1

  def test_8_bits_are_the_divergence_of_the_8_bit_network(self, measured):
    net, images, losses, _ = measured
    spec = with_bits(SPEC, [(".*", 8, 8)])
    new = network.init(jax.random.key(0), spec)  # the same kernels
    eight = network.calibrate(new, images[0])
    # There, bounds are of inputs that quantized kernels gave: nearly the same.
    logits = [
      np.concatenate([network.forward(n, x) for x in images])
      for n in (net, eight)
    ]
    p, q = (np.asarray(jax.nn.log_softmax(x)) for x in logits)
    expected = np.mean(np.sum(np.exp(p) * (p - q), axis=1))
    found = [row[8] for row in losses.values()]
    np.testing.assert_allclose(found, found[0], rtol=1e-6)
    assert found[0] == pytest.approx(expected, rel=0.3)

  def test_of_four_levels(self, measured):
    net, images, losses, _ = measured
    found = allocate.bit_losses(net, BITS, list(images), "four_levels").losses
    for unit, row in found.items():
      assert row[8] == losses[unit][8] and row[2] != losses[unit][2]
    masks = jax.tree.map(lambda m: m, net.masks)
    masks["head"]["kernel"] = jnp.zeros_like(net.params["head"]["kernel"], bool)
    pruned = net.replace(masks=masks)
    with pytest.raises(ValueError, match="masked in head"):
      allocate.bit_losses(pruned, BITS, list(images), "four_levels")

  @pytest.mark.parametrize(
    "change, bits, images, told",
    [
      ({}, (), 1, "from 2 to 8"),
      ({}, (8, 1), 1, "from 2 to 8"),
      ({}, (4,), 0, "no images"),
      ({"spec": with_bits(SPEC, [(".*", 4, 4)])}, (4,), 1, "in 32 bits"),
    ],
  )
  def test_what_cannot_be_measured(self, change, bits, images, told, measured):
    net = dataclasses.replace(measured[0], **change)
    with pytest.raises(ValueError, match=told):
      allocate.bit_losses(net, bits, list(measured[1][:images]))


def test_what_is_not_told_apart():
  losses = {"a": {8: 0.0, 4: 0.5}, "b": {8: 0.1, 4: 0.12}, "c": {8: 0.1}}
  errors = {"a": {8: 0.01, 4: 0.1}, "b": {8: 0.01, 4: 0.01}, "c": {8: 9.0}}
  found = allocate.Measured(losses, errors)
  assert found.undecided({"a": 4, "b": 4, "c": 8, "unmeasured": 8}) == ["b"]


def run_command(*flags):
  return forked.run("jaxr18.allocate", *flags, cwd=".")


@pytest.mark.slow
def test_the_command(tmp_path):
  config = tiny_config.get_config("0")
  config.train.optimizer.warmup_epochs = 0.0
  config.progress = "none"
  experiment.run(config, tmp_path)
  net = config.train.network
  net.inner_bits = 4
  target = (
    score(network_spec(net)).per_layer.total * 1.1
  )  # little above the lowest
  done = run_command(f"--workdir={tmp_path}", "--bits=8,4",
                     f"--target={target}")  # fmt: skip
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "sensitivity" / "bits.json").read_text())
  rules = tuple(map(tuple, result["bits"]))
  assert f"network.bits = {rules!r}" in done.stdout
  net.inner_bits, net.bits = 0, rules
  assert (
    result["per_layer"] == score(network_spec(net)).per_layer.total <= target
  )
  assert {b for _, b, _ in rules} == {8, 4}
  assert set(result["losses"]) >= {"stem", "head", "stage2_block1/proj"}

  path = tmp_path / "sensitivity" / "bits.json"
  path.unlink()
  path.mkdir()
  done = run_command(f"--workdir={tmp_path}", f"--target={target}")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert f"cannot write {path}: it is a folder" in done.stderr
  assert "KL divergence" not in done.stdout  # known before the work


@pytest.mark.parametrize(
  "flags, told",
  [
    ([], "give --workdir=DIR"),
    (["--workdir=x"], "and --target"),
    (["--workdir=x", "--target=1", "--bits=8,1"], "from 2 to 8"),
    (["--workdir=x", "--target=1", "--bits=eight"], "from 2 to 8"),
  ],
)
def test_a_wrong_command_line(flags, told):
  done = run_command(*flags)
  assert done.returncode == 2 and told in done.stderr


def test_the_picture_is_the_same_each_time():
  draw = pytest.importorskip("jaxr18.report.draw")
  if draw.missing():
    pytest.skip(draw.missing())
  from benchmarks import charts

  curves = {"calibrated": {8: 0.9, 4: 0.8}, "trained": {4: 0.85, 2: 0.7}}
  one, two = (draw.markup(charts.bits(curves, 0.91)) for _ in range(2))
  assert one == two and one.startswith("<svg")
