"""What an ONNX file's network costs, read from its nodes alone."""

import json
import subprocess
import sys

import numpy as np
import odd_nets
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from jaxr18.cost.score import score  # noqa: E402
from jaxr18.data.dataset import Split  # noqa: E402
from jaxr18.deploy.fold import fold  # noqa: E402
from jaxr18.deploy.judge import JudgeError, accuracy, judge  # noqa: E402
from jaxr18.deploy.to_onnx import to_onnx  # noqa: E402

RNG = np.random.default_rng(2)


def exported(bits, density, folder):
  net = odd_nets.net(bits, density)
  path = folder / "network.onnx"
  path.write_bytes(
    to_onnx(
      net,
      mean=odd_nets.MEAN,
      std=odd_nets.STD,
      size=odd_nets.SIDE,
      provenance={},
    )  # fmt: skip
  )
  return net, path


def model(nodes, constants, shape=(1, 4, 8, 8)):
  """A graph from `x` to `y`; constants are arrays by name."""
  graph = helper.make_graph(
    nodes,
    "test",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_empty_tensor_value_info("y")],
    [numpy_helper.from_array(v, n) for n, v in constants.items()],
  )
  opsets = [helper.make_opsetid("", 21)]
  opsets += [helper.make_opsetid("qonnx.custom_op.general", 1)]
  return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def judged(tmp_path):
  def of(nodes, constants, shape=(1, 4, 8, 8), sizes=None):
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, constants, shape), path)
    return judge(path, shape=sizes)

  return of


def kernel(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def rows_of(found):
  return [
    (r.w_bits, r.a_bits, r.weights, r.kept, r.biases, r.macs, r.stored_bits)
    for r in found.rows
  ]


class TestOurs:
  @pytest.mark.parametrize("bits", ["float", "4 bits", "binary", "learned"])
  def test_equal_to_our_count(self, bits, tmp_path):
    net, path = exported(bits, 1.0, tmp_path)
    found, own = judge(path).score, score(net.spec)
    assert rows_of(found) == rows_of(own)
    assert found.per_layer == own.per_layer and found.on_disk == own.on_disk

  def test_half_precision(self, tmp_path):
    net, path = exported("mixed", 1.0, tmp_path)
    own = {r.path: r for r in score(net.spec).rows}
    for row in judge(path).score.rows:
      ours = own[row.path.removesuffix("/sums")]
      assert row.macs == ours.macs and row.weights == ours.weights
      # Few weights may leave codes of their grid unused.
      assert row.w_bits == ours.w_bits or row.weights < 30, row.path
      assert row.w_bits <= ours.w_bits, row.path
      # Each image's own grid is found when it runs; no node says how many.
      expected = 32 if ours.path.endswith("proj") else ours.a_bits
      assert row.a_bits == expected, row.path

  def test_zeros_of_floats_are_removed(self, tmp_path):
    net, path = exported("float", 0.3, tmp_path)
    found = judge(path).score
    kept = [np.count_nonzero(x["kernel"]) for x in fold(net).values()]
    assert [r.kept for r in found.rows] == kept
    own = score(net.spec, masks=net.masks)
    assert found.per_layer.total <= own.per_layer.total
    assert found.per_network.p_u > 0.5

  def test_zeros_of_integers_as_they_are_said_to_be(self, tmp_path):
    net, path = exported("4 bits", 0.3, tmp_path)
    own = score(net.spec, masks=net.masks)
    levels, removed = judge(path), judge(path, zeros_removed=True)
    assert all(r.kept == r.weights for r in levels.score.rows)
    assert all(
      a.kept <= b.kept
      for a, b in zip(removed.score.rows, own.rows, strict=True)
    )
    kept = sum(r.kept for r in removed.score.rows)
    weights = sum(r.weights for r in removed.score.rows)
    assert weights - kept == removed.zeros == levels.zeros > 0


class TestOthers:
  def test_static_int8_by_onnx_runtime(self, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    net, path = exported("float", 1.0, tmp_path)

    class Reader(quantization.CalibrationDataReader):
      left = [{"images": odd_nets.images(4)}]

      def get_next(self):
        return self.left.pop() if self.left else None

    macs = [r.macs for r in score(net.spec).rows]
    for form in (
      quantization.QuantFormat.QDQ,
      quantization.QuantFormat.QOperator,
    ):
      out = tmp_path / f"{form}.onnx"
      Reader.left = [{"images": odd_nets.images(4)}]
      quantization.quantize_static(
        path, out, Reader(), quant_format=form,
        op_types_to_quantize=["Conv"],
      )  # fmt: skip
      found = judge(out).score
      assert sorted(r.macs for r in found.rows) == sorted(macs)
      assert {r.w_bits for r in found.rows} == {8}
      assert {r.a_bits for r in found.rows} <= {7, 8}

  def test_qonnx(self, judged):
    weights = kernel(6, 4, 3, 3)
    f32 = lambda x: np.array(x, np.float32)
    quant = lambda x, s, b, out, signed: helper.make_node(
      "Quant", [x, s, "zero", b], [out], domain="qonnx.custom_op.general",
      signed=signed, narrow=signed, rounding_mode="ROUND",
    )  # fmt: skip
    found = judged(
      [
        helper.make_node("Relu", ["x"], ["r"]),
        quant("r", "xs", "three", "q", 0),
        quant("w", "ws", "four", "wq", 1),
        helper.make_node("Conv", ["q", "wq"], ["y"], pads=[1] * 4),
      ],
      {"w": weights, "zero": f32(0), "xs": f32(0.1), "three": f32(3),
       "ws": np.full((6, 1, 1, 1), 0.2, np.float32), "four": f32(4)},
    )  # fmt: skip
    (row,) = found.score.rows
    assert (row.w_bits, row.a_bits) == (4, 3)
    assert row.macs == 8 * 8 * 6 * 4 * 9
    assert found.zeros == (np.abs(weights / 0.2) <= 0.5).sum()

  def test_bipolar(self, judged):
    found = judged(
      [
        helper.make_node("BipolarQuant", ["w", "s"], ["wq"],
                         domain="qonnx.custom_op.general"),
        helper.make_node("Conv", ["x", "wq"], ["y"]),
      ],
      {"w": kernel(6, 4, 1, 1), "s": np.array(0.5, np.float32)},
    )  # fmt: skip
    assert (found.score.rows[0].w_bits, found.zeros) == (1, 0)

  @pytest.mark.parametrize("own", [["four"], ["xs", "four"]])
  def test_trunc_keeps_the_bits_that_it_names_last(self, own, judged):
    here = dict(domain="qonnx.custom_op.general")
    scalars = {"zero": 0, "xs": 0.1, "four": 4, "eight": 8}
    scalars = {k: np.array(v, np.float32) for k, v in scalars.items()}
    found = judged(
      [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Quant", ["r", "xs", "zero", "eight"], ["q"],
                         signed=0, narrow=0, rounding_mode="ROUND", **here),
        helper.make_node("Trunc", ["q", "xs", "zero", "eight", *own], ["t"],
                         signed=0, rounding_mode="FLOOR", **here),
        helper.make_node("Conv", ["t", "w"], ["y"]),
      ],
      {"w": kernel(6, 4, 1, 1), **scalars},
    )  # fmt: skip
    assert found.score.rows[0].a_bits == 4

  @pytest.mark.parametrize(
    "codes, bits",
    [([-7, 7, 0, 1], 4), ([-8, 7, 0], 4), ([-1, 0, 1], 2), ([-1, 1, 1], 1),
     ([-3, -1, 3], 2), ([0, 15, 4], 4), ([-6, 0, 6], 2), ([0, 1, 0], 1)],
  )  # fmt: skip
  def test_integers_by_the_range_of_their_codes(self, codes, bits, judged):
    values = np.resize(np.array(codes, np.int8), (6, 4, 1, 1))
    found = judged(
      [
        helper.make_node("DequantizeLinear", ["c", "s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
      ],
      {"c": values, "s": np.array(0.5, np.float32)},
    )
    assert found.score.rows[0].w_bits == bits

  def test_a_grid_that_no_node_applies_is_not_credited(self, judged):
    values = np.resize(np.float32([-0.5, 0, 0.5]), (6, 4, 3, 3))
    found = judged([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": values})
    assert found.score.rows[0].w_bits == 32
    assert "3 levels only" in found.remarks[0]

  def test_shared_weights_are_charged_once(self, judged):
    nodes = [
      helper.make_node("Conv", ["x", "w"], ["h"], name="one"),
      helper.make_node("Conv", ["h", "w"], ["y"], name="two"),
    ]
    found = judged(nodes, {"w": kernel(4, 4, 1, 1)})
    assert [r.weights for r in found.score.rows] == [16, 0]
    assert [r.macs for r in found.score.rows] == [8 * 8 * 16] * 2
    assert found.remarks == ("two shares its weights: they are charged once",)


class TestMacs:
  @pytest.mark.parametrize(
    "how, weights, macs",
    [
      (dict(strides=[2, 2], pads=[1] * 4), (6, 4, 3, 3), 4 * 4 * 6 * 4 * 9),
      (dict(group=2, pads=[1] * 4), (6, 2, 3, 3), 8 * 8 * 6 * 2 * 9),
      (dict(dilations=[2, 2]), (6, 4, 3, 3), 4 * 4 * 6 * 4 * 9),
    ],
  )
  def test_convolutions(self, how, weights, macs, judged):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **how)]
    found = judged(nodes, {"w": kernel(*weights)})
    assert found.score.macs == macs

  def test_transposed(self, judged):
    nodes = [
      helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    ]
    found = judged(nodes, {"w": kernel(4, 6, 3, 3)})
    assert found.score.macs == 8 * 8 * 4 * 6 * 9

  def test_products(self, judged):
    found = judged(
      [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
      ],
      {"w": kernel(10, 256), "b": kernel(10), "v": kernel(10, 5)},
    )
    assert [r.macs for r in found.score.rows] == [2560, 50]
    assert [r.biases for r in found.score.rows] == [10, 0]

  def test_of_activations_alone(self, judged):
    found = judged([helper.make_node("MatMul", ["x", "x"], ["y"])], {})
    (row,) = found.score.rows
    assert (row.macs, row.weights) == (4 * 8**3, 0)

  def test_one_image_of_a_batch(self, judged):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    found = judged(nodes, {"w": kernel(6, 4, 1, 1)}, shape=(16, 4, 8, 8))
    assert found.score.macs == 8 * 8 * 24

  def test_batch_norm_behind_and_before(self, judged):
    c = {n: np.ones(4, np.float32) for n in ("s", "b", "m", "v")}
    norm = lambda x, y: helper.make_node(
      "BatchNormalization", [x, "s", "b", "m", "v"], [y]
    )
    found = judged(
      [
        norm("x", "n"),
        helper.make_node("Conv", ["n", "w"], ["h"]),
        norm("h", "y"),
      ],
      c | {"w": kernel(4, 4, 1, 1)},
    )
    before, conv = found.score.rows
    assert (before.weights, before.biases, before.macs) == (4, 4, 0)
    assert (conv.weights, conv.biases) == (16, 4)
    assert found.score.per_network.w == 16 + 2 * 8

  def test_of_pytorch(self, tmp_path):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, 3, 64, 64)
    for make in (models.resnet18, models.mobilenet_v2, models.densenet121):
      net, path = make(num_classes=10).eval(), tmp_path / "torch.onnx"
      with FlopCounterMode(display=False) as counter:
        net(x)
      torch.onnx.export(net, (x,), path, dynamo=False)
      found = judge(path).score
      assert 2 * found.macs == counter.get_total_flops(), make.__name__
      kernels = [p for p in net.parameters() if p.ndim > 1]
      layers = [r for r in found.rows if r.macs]
      assert sum(r.weights for r in layers) == sum(p.numel() for p in kernels)


class TestRefused:
  def test_an_operation_that_is_not_understood(self, judged):
    nodes = [
      helper.make_node("Einsum", ["x", "w"], ["y"], name="odd", equation="a,b")
    ]
    with pytest.raises(JudgeError, match="Einsum 'odd' is no operation"):
      judged(nodes, {"w": kernel(4)})

  def test_an_open_size(self, judged):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    constants = {"w": kernel(6, 4, 1, 1)}
    with pytest.raises(JudgeError, match="leaves its size 2 open"):
      judged(nodes, constants, shape=("n", 4, "h", "w"))
    found = judged(nodes, constants, ("n", 4, "h", "w"), sizes=(1, 4, 6, 6))
    assert found.score.macs == 6 * 6 * 24

  def test_a_shape_that_the_file_contradicts(self, judged, tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, {"w": kernel(6, 4, 1, 1)}), path)
    with pytest.raises(JudgeError, match="has 9 at 2, where the model's input"):
      judge(path, shape=(1, 4, 9, 8))

  def test_no_layers(self, judged):
    with pytest.raises(JudgeError, match="no layer that multiplies"):
      judged([helper.make_node("Relu", ["x"], ["y"])], {})

  @pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" * 40])
  def test_another_file(self, content, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(JudgeError, match="cannot be read as ONNX"):
      judge(path)

  def test_no_file(self, tmp_path):
    with pytest.raises(JudgeError, match="cannot be read as ONNX"):
      judge(tmp_path / "none.onnx")


class TestAccuracy:
  SPLIT = Split(
    odd_nets.images(7), np.arange(7, dtype=np.int32) % 10, np.arange(7)
  )

  def test_is_the_networks(self, tmp_path):
    _, path = exported("4 bits", 1.0, tmp_path)
    expected = odd_nets.forward(odd_nets.net("4 bits"), self.SPLIT.images)
    right = int((expected.argmax(-1) == self.SPLIT.labels).sum())
    got = accuracy(path, self.SPLIT, odd_nets.MEAN, odd_nets.STD)
    assert got == (right, 7)

  @pytest.mark.parametrize("batch", [1, 3, "n"])
  def test_normalizes_for_floats(self, batch, tmp_path):
    nodes = [
      helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0),
    ]
    path = tmp_path / "model.onnx"
    made = model(nodes, {"axes": np.array([2, 3])}, (batch, 3, 8, 8))
    made.graph.output[0].CopyFrom(
      helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    )
    onnx.save(made, path)
    x = odd_nets.images(7)
    labels = ((x / 255 - 0.5) / [0.1, 0.2, 0.3]).max((1, 2)).argmax(-1)
    split = Split(x, labels.astype(np.int32), np.arange(7))
    assert accuracy(path, split, (0.5,) * 3, (0.1, 0.2, 0.3)) == (7, 7)

  def test_images_that_do_not_fit(self, tmp_path):
    _, path = exported("float", 1.0, tmp_path)
    big = Split(
      odd_nets.images(2, side=16), np.zeros(2, np.int32), np.arange(2)
    )
    with pytest.raises(JudgeError, match="give images that fit"):
      accuracy(path, big, odd_nets.MEAN, odd_nets.STD)


def test_command(tmp_path):
  net, path = exported("4 bits", 1.0, tmp_path)
  command = [sys.executable, "-m", "jaxr18.score", f"--onnx={path}", "--json"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  got = json.loads(done.stdout)
  assert got["macs"] == score(net.spec).macs and got["remarks"] == []
  done = subprocess.run(
    [*command[:3], f"--onnx={tmp_path}/none.onnx"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1 and "cannot be read as ONNX" in done.stderr
