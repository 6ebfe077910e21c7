"""Networks read back from ONNX and QONNX files, ours and others'."""

import dataclasses

import numpy as np
import odd_nets
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, reference

from jaxr18.deploy import saved, torch_weights
from jaxr18.deploy.to_onnx import to_onnx
from jaxr18.deploy.to_qonnx import to_qonnx
from jaxr18.nn.network import unfold_batch_norm
from jaxr18.nn.spec import has_four_levels

HOW = dict(
  mean=odd_nets.MEAN, std=odd_nets.STD, size=odd_nets.SIDE, provenance={}
)
BOTH = (to_onnx, to_qonnx)


def read(data: bytes, tmp_path):
  path = tmp_path / "net.onnx"
  path.write_bytes(data)
  return torch_weights.load(path)


def layers(spec):
  """What a file tells of each layer; how scales were found is not there."""
  return [
    dataclasses.replace(
      x, scales="lsq", w_scales="learned", two_bits=str(has_four_levels(x))
    )
    for x in spec.layers()
  ]


@pytest.mark.parametrize(
  "write, bits",
  [(w, b) for w in BOTH for b in ("float", "4 bits", "binary", "learned")]
  + [(to_onnx, "four_levels learned"), (to_qonnx, "learned_channel")],
)
def test_ours_come_back(write, bits, tmp_path):
  net = odd_nets.net(bits)
  back = read(write(net, **HOW), tmp_path)
  assert layers(back.spec) == layers(net.spec)
  x = odd_nets.images(16)
  np.testing.assert_allclose(
    odd_nets.forward(back, x), odd_nets.forward(net, x), atol=2e-4, rtol=2e-4
  )


@pytest.mark.parametrize("write", BOTH)
def test_quantized_sums(write, tmp_path):
  spec = dataclasses.replace(odd_nets.spec("4 bits"), sum_bits=6)
  net = odd_nets.numbers(spec)
  back = read(write(net, **HOW), tmp_path)
  assert back.spec.sum_bits == 6
  x = odd_nets.images(4)
  np.testing.assert_allclose(
    odd_nets.forward(back, x), odd_nets.forward(net, x), atol=2e-4, rtol=2e-4
  )


class Graph:
  """A graph as another exporter writes it: NCHW floats, batch norm, Gemm."""

  def __init__(self, bits: int = 0):
    self.bits, self.nodes, self.constants = bits, [], []
    self.rng = np.random.default_rng(7)

  def constant(self, value, dtype=np.float32) -> str:
    name = f"c{len(self.constants)}"
    value = np.asarray(value, dtype)
    self.constants.append(numpy_helper.from_array(value, name))
    return name

  def __call__(self, op: str, *inputs: str, **attributes) -> str:
    out = f"{op.lower()}{len(self.nodes)}"
    self.nodes.append(
      helper.make_node(op, inputs, [out], name=out, **attributes)
    )
    return out

  def held(self, x: str, step, signed: bool, narrow: bool) -> str:
    if not self.bits:
      return x
    args = (x, self.constant(step), self.constant(0), self.constant(self.bits))
    how = dict(signed=int(signed), narrow=int(narrow), rounding_mode="ROUND")
    return self("Quant", *args, domain="qonnx.custom_op.general", **how)

  def conv(self, x: str, inputs: int, features: int, side: int, stride=1):
    kernel = self.rng.normal(size=(features, inputs, side, side))
    kernel = self.held(self.constant(kernel), 0.3, True, True)
    how = dict(kernel_shape=[side] * 2, strides=[stride] * 2)
    x = self("Conv", x, kernel, pads=[side // 2] * 4, **how)
    scale, shift, mean = self.rng.normal(size=(3, features))
    var = self.rng.uniform(0.5, 2, features)
    norm = (self.constant(v) for v in (scale, shift, mean, var))
    return self("BatchNormalization", x, *norm, epsilon=1e-3)

  def model(self, logits: str) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    return helper.make_model(
      helper.make_graph(
        self.nodes, "another's",
        [value("images", TensorProto.FLOAT, [2, 3, 8, 8])],
        [value(logits, TensorProto.FLOAT, [2, 5])],
        self.constants,
      ),
      opset_imports=[
        helper.make_opsetid("", 18),
        helper.make_opsetid("qonnx.custom_op.general", 1),
      ],
      ir_version=9,
    )  # fmt: skip


def another(bits=0, act="Relu", shared=False, narrow=True) -> onnx.ModelProto:
  """A stem, a block with a projection and one without, and a head."""
  g = Graph(bits)
  relu = lambda x: g.held(g(act, x), 0.4, False, False)
  x = relu(g.conv(g.held("images", 0.2, True, narrow), 3, 4, 3))
  y = g.conv(relu(g.conv(x, 4, 6, 3, 2)), 6, 6, 3)
  x = g("Relu", g("Add", y, g.conv(x, 4, 6, 1, 2)))
  held = g.held(x, 0.4, False, False)
  y = g.conv(relu(g.conv(held, 6, 6, 3)), 6, 6, 3)
  x = g("Relu", g("Add", held if shared else x, y))
  x = g("Flatten", g("GlobalAveragePool", x))
  x = g.held(x, 0.3, False, False)
  weights = g.held(g.constant(g.rng.normal(size=(5, 6))), 0.3, True, True)
  bias = g.constant(g.rng.normal(size=5))
  return g.model(g("Gemm", x, weights, bias, transB=1))


@pytest.mark.parametrize("bits", [0, 4])
def test_anothers_comes_back(bits, tmp_path):
  model, images = another(bits), odd_nets.images(2)
  net = read(model.SerializeToString(), tmp_path)
  spec = net.spec
  assert [len(stage) for stage in spec.stages] == [2]
  assert (spec.resolution, spec.channels, spec.head.classes) == (8, 3, 5)
  assert spec.stem.w_bits == spec.stages[0][0].proj.a_bits == (bits or 32)
  x = odd_nets.normalized(images)
  inputs = {"images": np.asarray(x).transpose(0, 3, 1, 2)}
  if bits:
    onnx_exec = pytest.importorskip("qonnx.core.onnx_exec")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    wrapped = ModelWrapper(model).transform(InferShapes())
    (expected,) = onnx_exec.execute_onnx(wrapped, inputs).values()
  else:
    expected = reference.ReferenceEvaluator(model).run(None, inputs)[0]
  np.testing.assert_allclose(
    odd_nets.forward(net, images), expected, rtol=2e-4, atol=2e-4
  )
  # It trains on: batch norm gets statistics, and evaluation stays as it was.
  unfolded = unfold_batch_norm(net, x)
  assert not saved.is_folded(unfolded)


def changed(model: onnx.ModelProto, op: str, change) -> bytes:
  """The model with the last node of an operation changed."""
  change([n for n in model.graph.node if n.op_type == op][-1], model)
  return model.SerializeToString()


def set_pads(node, model):
  del node.attribute[:]
  node.attribute.extend(
    [
      helper.make_attribute("kernel_shape", [3, 3]),
      helper.make_attribute("pads", [0] * 4),
    ]
  )


def other_operand(node, model):
  first = next(n for n in model.graph.node if n.op_type == "Relu")
  node.input[0] = first.output[0]


def twice(node, model):
  for name in ("alpha", "beta"):
    node.attribute.append(helper.make_attribute(name, 2.0))


def no_step(node, model):
  node.input[1] = "images"


@pytest.mark.parametrize(
  "data, text",
  [
    (another(act="Sigmoid").SerializeToString(), "Sigmoid .* Relu is expected"),
    (another(4, shared=True).SerializeToString(), "operands on two grids"),
    (changed(another(), "Conv", set_pads), "padded by half"),
    (changed(another(), "Add", other_operand), "sums what comes from"),
    (changed(another(), "Gemm", twice), "has transA, alpha or beta"),
    (another(12).SerializeToString(), "weights to 12 bits, expected 8"),
    (changed(another(4), "Quant", no_step), "scale, zero point or bit width"),
    (to_onnx(odd_nets.net("mixed"), **HOW), "another grid|no constant step"),
    (another().SerializeToString()[:-40], "cannot be read"),
    (b"", "cannot be read"),
  ],
  ids="relu shared pads sum gemm bits step dynamic cut empty".split(),
)  # fmt: skip
def test_the_node_that_does_not_fit(data, text, tmp_path):
  with pytest.raises(torch_weights.WeightsError, match=text):
    read(data, tmp_path)


def test_an_asymmetric_level_is_told(tmp_path, caplog):
  read(another(4, narrow=False).SerializeToString(), tmp_path)
  assert "has levels from -8 to 7; -8 becomes -7 here" in caplog.text
