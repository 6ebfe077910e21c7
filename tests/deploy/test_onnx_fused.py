"""What ONNX Runtime makes of our ONNX files: integers, and the same answers."""

import collections
import dataclasses

import numpy as np
import odd_nets
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from jaxr18.cost.score import score  # noqa: E402
from jaxr18.deploy import from_onnx, onnx_bias  # noqa: E402
from jaxr18.deploy.fold import fold  # noqa: E402
from jaxr18.deploy.judge import judge  # noqa: E402
from jaxr18.deploy.onnx_bias import Grid, hold  # noqa: E402
from jaxr18.deploy.onnx_fused import Fused  # noqa: E402
from jaxr18.deploy.to_onnx import EXACT, saturates, to_onnx  # noqa: E402
from jaxr18.nn.spec import with_bits  # noqa: E402

HOW = dict(
  mean=odd_nets.MEAN, std=odd_nets.STD, size=odd_nets.SIDE, provenance={}
)
EIGHTS = [(".*", 8, 8)]


def network(bits, sum_bits=32):
  """Dense, grouped, depthwise, low-rank, 1x1 and strided layers."""
  spec = with_bits(odd_nets.spec("float"), bits)
  return odd_nets.numbers(dataclasses.replace(spec, sum_bits=sum_bits))


def run(net, folder, **entries):
  """Logits of `odd_nets.images`, and the nodes of the optimized graph."""
  options = ort.SessionOptions()
  options.log_severity_level = 3
  options.intra_op_num_threads = 1
  options.optimized_model_filepath = str(folder / "optimized.onnx")
  for key, value in entries.items():
    options.add_session_config_entry(f"session.{key}", value)
  session = ort.InferenceSession(
    to_onnx(net, **HOW), options, providers=["CPUExecutionProvider"]
  )
  (logits,) = session.run(None, {"images": odd_nets.images()})
  graph = onnx.load(folder / "optimized.onnx").graph
  return logits, graph.node


def count(nodes):
  return collections.Counter(node.op_type for node in nodes)


@pytest.mark.parametrize("sum_bits", [8, 6])
@pytest.mark.parametrize(
  "bits", [[(".*", 4, 4)], [(".*", 2, 3)], [("stem|head", 8, 8), (".*", 3, 3)]]
)
def test_sums_of_integers_are_fused(bits, sum_bits, tmp_path):
  """Every convolution but the stem, and the answers stay the network's."""
  net = network(bits, sum_bits)
  logits, nodes = run(net, tmp_path)
  ops, layers = count(nodes), net.spec.layers()
  assert ops["QLinearConv"] == len(layers) - 2  # and the head is a product
  floats = [n for n in nodes if n.op_type in ("Conv", "FusedConv")]
  assert [n.name.startswith("stem") for n in floats] == [True]
  assert not {"ConvInteger", "Add", "GlobalAveragePool"} & ops.keys()
  assert ops["QLinearGlobalAveragePool"] == 1
  # The image's codes and the stem's output; the image's values and the head's.
  assert ops["QuantizeLinear"] == ops["DequantizeLinear"] == 2
  expected = odd_nets.forward(net, odd_nets.images())
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sum_bits", [8, 6])
def test_it_is_judged_and_read_as_the_network(sum_bits, tmp_path):
  """Multiples of codes are no more bits, nor are sums that go below."""
  net = network([("stem|head", 8, 8), (".*", 3, 3)], sum_bits)
  held = Fused(net.spec, fold(net)).held.values()
  assert any(x.times > 1 for x in held) == (sum_bits == 8)
  path = tmp_path / "net.onnx"
  path.write_bytes(to_onnx(net, **HOW))
  found, own = judge(path).score, score(net.spec)
  assert [(r.a_bits, r.macs, r.weights) for r in found.rows] == [
    (r.a_bits, r.macs, r.weights) for r in own.rows
  ]
  # Few weights may leave codes of their grid unused.
  assert all(
    f.w_bits == o.w_bits or (f.weights < 30 and f.w_bits < o.w_bits)
    for f, o in zip(found.rows, own.rows, strict=True)
  )
  back = from_onnx.load(path)
  assert back.spec.sum_bits == sum_bits
  x = odd_nets.images(4)
  np.testing.assert_allclose(
    odd_nets.forward(back, x), odd_nets.forward(net, x), atol=2e-4, rtol=2e-4
  )


def test_eights_are_fused(tmp_path):
  """Where all inputs have 8 bits, a code beside the network's moves little."""
  net = network(EIGHTS, 8)
  logits, nodes = run(net, tmp_path)
  assert count(nodes)["QLinearConv"] == len(net.spec.layers()) - 2
  expected = odd_nets.forward(net, odd_nets.images())
  apart = np.abs(logits - expected).max(-1)
  assert np.median(apart) < 3e-3 * np.abs(expected).max()


def test_sums_of_floats_stay_floats(tmp_path):
  """What feeds no sum is fused."""
  net = network([(".*", 4, 4)])
  logits, nodes = run(net, tmp_path)
  ops = count(nodes)
  # conv1 of both blocks, and each part of a convolution but its last.
  inside = [x.path for x in net.spec.layers() if "conv1" in x.path]
  parts = [x.path for x in net.spec.layers() if "conv2" in x.path]
  units = {x.unit for x in net.spec.layers() if "conv2" in x.path}
  assert ops["QLinearConv"] == len(inside) + len(parts) - len(units)
  expected = odd_nets.forward(net, odd_nets.images())
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [[(".*", 4, 4)], EIGHTS])
def test_exact_products_give_the_same(bits, tmp_path):
  """The entry that machines without VNNI need."""
  net, key = network(bits, 8), EXACT.removeprefix("session.")
  plain, _ = run(net, tmp_path)
  exact, _ = run(net, tmp_path, **{key: "1"})
  np.testing.assert_array_equal(exact, plain)


def test_two_products_fit_in_16_bits():
  """So that machines without VNNI add them rightly, whatever their settings."""
  for w_bits in (2, 3, 4, 5, 7):
    for a_bits in (2, 3, 4, 5, 8):
      net = network([(".*", w_bits, a_bits)], 8)
      held = Fused(net.spec, fold(net)).held
      assert held
      for layer in net.spec.layers():
        if layer.path not in held:
          continue
        one = held[layer.path]
        high = 2 ** (a_bits - layer.signed_input) - 1
        largest = one.times * high + 128 * layer.signed_input
        assert 2 * largest * np.abs(one.kernel.astype(int)).max() < 2**15


def test_machines_that_saturate():
  assert saturates("flags: sse4_1 avx avx2 avx512f")
  assert not saturates("flags: avx2 avx512f avx512_vnni")
  assert not saturates("flags: avx2 avx_vnni")
  assert not saturates("")  # no x86, or not known


class TestBias:
  """Integers against the codes of the network, sum by sum."""

  def codes(self, held, x, y, sums):
    """As QLinearConv computes them."""
    multiple = held.times * np.abs(held.kernel.astype(int)).max()
    factor = np.float32(held.step * held.scale) / np.float32(y.step)
    value = np.float32(sums * multiple + held.bias) * factor
    return np.clip(np.rint(value), y.low, y.high)

  @pytest.mark.parametrize(
    "y", [Grid(np.float32(0.31), 0, 7), Grid(np.float32(0.05), -127, 127)]
  )
  def test_each_sum_gives_the_networks_code(self, y):
    rng = np.random.default_rng(0)
    kernel = np.ones((3, 3, 2, 40), np.int8)
    scale = rng.uniform(0.05, 0.4, 40).astype(np.float32)
    bias = rng.normal(size=40).astype(np.float32)
    numbers = {"codes": kernel, "scale": scale, "bias": bias}
    x = Grid(np.float32(0.3), 0, 7)
    held = hold(numbers, 1, x, y)
    sums = np.arange(0, 18 * 7 + 1)[:, None]
    real = np.float32(sums * np.float64(scale * x.step) + bias)
    expected = np.rint(np.clip(real * (1 / y.step), y.low, y.high))
    np.testing.assert_array_equal(self.codes(held, x, y, sums), expected)
    assert not held.apart.any()
    # Rounded biases alone would not do: this is no test of easy numbers.
    nearest = np.rint(bias / (scale * x.step))
    rounded = np.float32((sums + nearest) * (scale * x.step)) / y.step
    assert (np.rint(np.clip(rounded, y.low, y.high)) != expected).any()

  def test_what_is_apart_is_told(self):
    """8 bits everywhere leave no room for a finer bias."""
    rng = np.random.default_rng(1)
    numbers = {
      "codes": rng.integers(-127, 128, (3, 3, 4, 8)).astype(np.int8),
      "scale": rng.uniform(1e-4, 2e-4, 8).astype(np.float32),
      "bias": rng.normal(size=8).astype(np.float32),
    }
    x, y = Grid(np.float32(0.01), 0, 255), Grid(np.float32(0.01), -127, 127)
    held = hold(numbers, 127, x, y)
    assert held.times == 1 and (0 < held.apart).any()
    assert held.apart.max() < 0.1

  def test_a_bias_beside_which_products_are_nothing(self):
    numbers = {
      "codes": np.ones((1, 1, 2, 3), np.int8),
      "scale": np.float32([1e-12, 0, 0.1]),
      "bias": np.float32([0.5, 0.4, 0.3]),
    }
    x, y = Grid(np.float32(0.3), 0, 7), Grid(np.float32(0.1), 0, 15)
    held = hold(numbers, 1, x, y)
    assert not held.kernel[..., :2].any() and held.kernel[..., 2].all()
    assert held.bias[:2].tolist() == [5, 4]
    assert np.abs(held.bias).max() < 2**onnx_bias._BIAS_BITS
