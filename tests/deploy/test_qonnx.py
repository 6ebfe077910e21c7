"""QONNX files, run by QONNX's own executor and counted by its own counter."""

import dataclasses
import math

import numpy as np
import odd_nets
import pytest

pytest.importorskip("qonnx")

from qonnx.core.modelwrapper import ModelWrapper  # noqa: E402
from qonnx.util.inference_cost import inference_cost  # noqa: E402

from jaxr18.cost.score import score  # noqa: E402
from jaxr18.deploy.judge import judge  # noqa: E402
from jaxr18.deploy.to_qonnx import (  # noqa: E402
  QonnxError,
  load_qonnx,
  to_qonnx,
)
from jaxr18.nn.spec import with_bits  # noqa: E402

HOW = dict(
  mean=odd_nets.MEAN, std=odd_nets.STD, size=odd_nets.SIDE, provenance={}
)


@pytest.mark.parametrize("bits", ["4 bits", "binary"])
def test_is_the_network(bits, tmp_path):
  net, path = odd_nets.net(bits), tmp_path / "net.onnx"
  path.write_bytes(to_qonnx(net, **HOW))
  got, expected = load_qonnx(path)(odd_nets.images()), odd_nets.logits(bits)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
  assert judge(path).score.per_layer == score(net.spec).per_layer


def test_quantized_sums(tmp_path):
  spec = dataclasses.replace(odd_nets.spec("4 bits"), sum_bits=6)
  net, path = odd_nets.numbers(spec), tmp_path / "net.onnx"
  path.write_bytes(to_qonnx(net, **HOW))
  images = odd_nets.images(3)
  got, expected = load_qonnx(path)(images), odd_nets.forward(net, images)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_is_written_as_hls4ml_reads_it():
  """No tensor has two Quants, and what is scaled by channel are sums."""
  model = ModelWrapper(to_qonnx(odd_nets.net("4 bits"), **HOW))
  quants = model.get_nodes_by_op_type("Quant")
  assert len({x.input[0] for x in quants}) == len(quants)
  for norm in model.get_nodes_by_op_type("BatchNormalization"):
    kernel = model.find_producer(model.find_producer(norm.input[0]).input[1])
    assert model.get_initializer(kernel.input[1]) == 1


def test_its_counter_finds_our_macs_and_bits():
  spec = with_bits(odd_nets.spec("float"), [("stem", 8, 8), (".*", 3, 5)])
  data = to_qonnx(odd_nets.numbers(spec), **HOW)
  (cost,) = inference_cost(ModelWrapper(data), discount_sparsity=False).values()
  layers = spec.layers()
  assert cost["total_macs"] == sum(x.macs for x in layers)
  assert cost["total_bops"] == sum(x.macs * x.w_bits * x.a_bits for x in layers)
  bits = sum(math.prod(x.kernel_shape) * x.w_bits for x in layers)
  assert cost["total_mem_w_bits"] == bits


@pytest.mark.parametrize(
  "bits, density, text",
  [
    ("four_levels", 1.0, "stem has: four levels"),
    ("binary", 0.5, "weights of 1 bit that are masked"),
    ("mixed", 1.0, "16 bits"),
  ],
)
def test_what_it_has_no_node_for(bits, density, text):
  with pytest.raises(QonnxError, match=text):
    to_qonnx(odd_nets.net(bits, density), **HOW)


def test_a_bound_of_each_image():
  rules = [(".*", 4, 4)]
  spec = with_bits(odd_nets.spec("float"), rules, scales="dynamic")
  with pytest.raises(QonnxError, match="stem has: a bound of each image's own"):
    to_qonnx(odd_nets.numbers(spec), **HOW)
