"""Batch norm folds away, and quantized layers run as integers."""

import jax
import jax.numpy as jnp
import numpy as np
import odd_nets
import odd_programs
import pytest

from jaxr18.compress.channels import at
from jaxr18.deploy import integer, packed
from jaxr18.deploy.fold import fold
from jaxr18.nn import network, onednn
from jaxr18.nn.quantize import kernel_codes
from jaxr18.nn.resnet import BATCH_NORM_EPSILON
from jaxr18.nn.spec import resnet, with_bits

INTEGERS = ("4 bits", "binary", "mixed", "four_levels", "four_levels learned")


run = odd_nets.folded_forward


def close(got, expected, tolerance=1e-5):
  size = np.abs(expected).max()
  assert size > 0.1
  np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * size)


class TestFold:
  @pytest.mark.parametrize("density", [1.0, 0.5])
  @pytest.mark.parametrize("bits", odd_nets.BITS)
  def test_is_the_network(self, bits, density):
    net = odd_nets.net(bits, density)
    close(run(fold(net), net.spec), odd_nets.logits(bits, density))

  def test_what_each_number_does(self):
    net = odd_nets.net("4 bits")
    expected = odd_nets.logits("4 bits")
    for path, name in (("stem", "bias"), ("stage2_block1/proj", "scale"),
                       ("head", "bias"), ("head", "input_bound")):  # fmt: skip
      other = fold(net)
      other[path] = other[path] | {name: other[path][name] * 1.1}
      apart = np.abs(run(other, net.spec) - expected).max()
      assert apart > 1e-3, (path, name)

  def test_codes_stay_as_they_were_trained(self):
    net = odd_nets.net("4 bits", 0.5)
    norm = net.params["stem_bn"]
    other = net.params | {"stem_bn": norm | {"scale": 3 * norm["scale"]}}
    before, after = fold(net), fold(net.replace(params=other))
    for path, numbers in before.items():
      np.testing.assert_array_equal(numbers["codes"], after[path]["codes"])
      assert numbers["codes"].dtype == np.int8
    factor = 3 * before["stem"]["scale"]
    np.testing.assert_allclose(after["stem"]["scale"], factor, 1e-6)
    params = network.apply_masks(net.params, net.masks)
    codes, _ = odd_nets.fast_jit(lambda k: kernel_codes(k, 4))(
      params["stem"]["kernel"]
    )
    np.testing.assert_array_equal(before["stem"]["codes"], codes)
    assert np.abs(codes).max() == 7

  def test_a_factorized_convolution_takes_it_in_its_last_part(self):
    net = odd_nets.net("4 bits")
    folded = fold(net)
    block = "stage1_block1/conv2"
    assert "bias" not in folded[f"{block}/reduce"]
    assert "bias" not in folded[f"{block}/core"]
    assert "bias" in folded[f"{block}/expand"]
    # Its scales are those of its kernel, whatever batch norm does.
    norm = at(net.params, "stage1_block1/bn2")
    block_params = net.params["stage1_block1"] | {
      "bn2": norm | {"scale": 3 * norm["scale"]}
    }
    other = fold(
      net.replace(params=net.params | {"stage1_block1": block_params})
    )
    for part, factor in (("reduce", 1), ("core", 1), ("expand", 3)):
      scale = folded[f"{block}/{part}"]["scale"]
      got = other[f"{block}/{part}"]["scale"]
      np.testing.assert_allclose(got, factor * scale, 1e-6)

  def test_is_batch_norm_as_pytorch_has_it(self):
    torch = pytest.importorskip("torch")
    net = odd_nets.net("float")
    norm, stats = net.params["stem_bn"], net.batch_stats["stem_bn"]
    y = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = torch.nn.functional.batch_norm(
      torch.from_numpy(y),
      *(
        torch.from_numpy(np.array(a))
        for a in (stats["mean"], stats["var"], norm["scale"], norm["bias"])
      ),
      eps=BATCH_NORM_EPSILON,
    )
    folded = fold(net)["stem"]
    kernel = np.asarray(net.params["stem"]["kernel"])
    m = folded["kernel"][0, 0, 0] / kernel[0, 0, 0]
    np.testing.assert_allclose(y * m + folded["bias"], expected, atol=1e-5)

  def test_four_levels_are_never_0(self):
    net = odd_nets.net("four_levels")
    codes = {p: set(n["codes"].flat) for p, n in fold(net).items()}
    assert 0 in codes.pop("stage2_block1/proj")  # of 3 bits
    assert set.union(*codes.values()) == {-3, -1, 1, 3}

  def test_four_levels_cannot_be_masked(self):
    net = odd_nets.net("four_levels")
    stem = net.masks["stem"] | {"kernel": np.zeros((3, 3, 3, 4), bool)}
    with pytest.raises(ValueError, match="masked in stem, whose four levels"):
      fold(net.replace(masks=net.masks | {"stem": stem}))

  def test_one_at_a_time(self):
    net = odd_nets.net("float")
    with pytest.raises(ValueError, match="2 networks are stacked"):
      fold(jax.tree.map(lambda x: np.stack([x, x]), net))


class TestInteger:
  @pytest.mark.parametrize("bits", INTEGERS)
  def test_is_the_simulation(self, bits):
    net = odd_nets.net(bits, 0.5)
    got = run(fold(net), net.spec, "int8")
    close(got, odd_nets.logits(bits, 0.5))

  @pytest.mark.skipif(not onednn.ready(), reason=f"oneDNN: {onednn.reason()}")
  @pytest.mark.parametrize("bits", sorted({*INTEGERS} - {"mixed"}))
  def test_our_own_code_has_the_bits_of_numpy(self, bits):
    """Exact sums, one multiply-add, and the same order of all else."""
    net, images = odd_nets.net(bits, 0.5), odd_nets.images(7)
    (about, _), by_numpy = odd_programs.description(bits, 0.5)
    x = packed.normalize(images, about)
    run = odd_nets.fast_jit(integer.forward, static_argnums=(1, 3))
    assert "jaxr18_int8_float" in run.lower(fold(net), net.spec, x).as_text()
    got = run(fold(net), net.spec, x, "int8")
    np.testing.assert_array_equal(got, by_numpy(images))

  def test_multiplies_integers(self):
    def convolutions(arithmetic):
      net = odd_nets.net("4 bits")
      x = odd_nets.normalized(odd_nets.images())
      jaxpr = jax.make_jaxpr(integer.forward, static_argnums=(1, 3))(
        fold(net), net.spec, x, arithmetic
      )
      return str(jaxpr).count("preferred_element_type=int32")

    assert convolutions("int8") == len(odd_nets.spec("4 bits").layers())
    assert convolutions("float32") == 0

  @pytest.mark.parametrize("signed", [False, True])
  @pytest.mark.parametrize("kernel, stride, groups", [(3, 2, 1), (3, 1, 4)])
  def test_sums_are_exact(self, kernel, stride, groups, signed):
    rng = np.random.default_rng(0)
    low, high = (-127, 128) if signed else (0, 256)
    x = rng.integers(low, high, (2, 5, 5, 8))
    k = rng.integers(-127, 128, (kernel, kernel, 8 // groups, 12))
    layer = odd_nets.spec("mixed").layers()[0]
    layer = type(layer)(
      **vars(layer)
      | dict(kernel=kernel, stride=stride, groups=groups, signed_input=signed)
    )
    x8 = jnp.asarray(x, jnp.int8 if signed else jnp.uint8)
    got = integer._int_sums(x8, jnp.asarray(k, jnp.int8), layer)
    np.testing.assert_array_equal(got, packed.convolve(x, k, stride, groups))
    assert np.abs(got).max() > 2**15

  def test_the_check_finds_nothing_here(self):
    found = integer.wrong_layers(*self._small())
    assert set(found) == {x.path for x in self._small()[1].layers()}
    assert not any(found.values())
    assert integer.choose_arithmetic(*self._small()) == "int8"

  def test_a_device_that_is_wrong(self, monkeypatch, caplog):
    right = integer._int_sums

    def wrong(x, codes, layer, path):  # as XLA's on GPUs once
      sums = right(x, codes, layer, path)
      return sums[..., ::-1] if layer.groups > 1 else sums

    monkeypatch.setattr(integer, "_int_sums", wrong)
    integer.wrong_layers.clear_cache()
    assert integer.choose_arithmetic(*self._small()) == "float32"
    integer.wrong_layers.clear_cache()
    (record,) = caplog.records
    said = record.getMessage()
    assert "wrong" in said and "stage1_block1/conv2" in said
    assert "stem" not in said and "head" not in said

  def _small(self):
    spec = resnet((4,), (1,), (1,), (2,), (False,), resolution=8)
    spec = with_bits(spec, [("head", 8, 8), (".*", 4, 4)])
    net = network.init(jax.random.key(0), spec)
    return fold(net), spec, odd_nets.normalized(odd_nets.images())
