"""Compares hls4ml's C simulation of a QONNX file with QONNX's own executor.

    python -m benchmarks.hls network.qonnx.onnx --images=test.npz --limit=100

Needs hls4ml, qonnx and g++. Exits with 1 where an answer differs. hls4ml takes
neither uint8 images nor their normalization: its part starts at what the first
Quant reads, channels last.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import hls4ml
import numpy as np
from onnx import ModelProto, TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.general import GiveUniqueNodeNames
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.cleanup import cleanup_model

# Sixteen bits, the default, hold neither one over a step of the images nor
# what decides between two codes.
PRECISION = "fixed<48,16>"


def opened(path: pathlib.Path, batch: int = 1) -> ModelWrapper:
  """Reads a file of `export --format=qonnx` for a number of images."""
  model = ModelProto.FromString(path.read_bytes())
  for value in (*model.graph.input, *model.graph.output):
    value.type.tensor_type.shape.dim[0].dim_value = batch
  return ModelWrapper(model).transform(InferShapes())


def start(model: ModelWrapper) -> str:
  """Names what the first Quant of activations reads."""
  constants = {x.name for x in model.graph.initializer}
  quants = (x for x in model.graph.node if x.op_type == "Quant")
  return next(x.input[0] for x in quants if x.input[0] not in constants)


def prepared(path: pathlib.Path) -> ModelWrapper:
  """The part of a network that hls4ml takes, in its order of axes."""
  model = opened(path)
  first = x = start(model)
  shape = model.get_tensor_shape(first)
  while (node := model.find_producer(x)) is not None:
    x = node.input[0]
    model.graph.node.remove(node)
  images = helper.make_tensor_value_info(first, TensorProto.FLOAT, shape)
  model.graph.input[0].CopyFrom(images)
  del model.graph.value_info[:]
  model = cleanup_model(model)
  model = model.transform(ConvertToChannelsLastAndClean(True))
  model = model.transform(GiveUniqueNodeNames())
  _pool_channels_last(model)
  return ModelWrapper(model.model)  # which gives each constant a shape


def _pool_channels_last(model: ModelWrapper) -> None:
  """Puts hls4ml's average pooling where QONNX turns for GlobalAveragePool.

  hls4ml 1.3.0 reads GlobalAveragePool's sizes channels first, and its values
  channels last.
  """
  (pool,) = model.get_nodes_by_op_type("GlobalAveragePool")
  turn = model.find_producer(pool.input[0])
  n, *sides, channels = model.get_tensor_shape(turn.input[0])
  pool.op_type, pool.domain = "AveragePool", "qonnx.custom_op.channels_last"
  pool.input[0] = turn.input[0]
  how = dict(kernel_shape=sides, strides=sides, pads=[0] * 4)
  pool.attribute.extend(helper.make_attribute(*x) for x in how.items())
  model.set_tensor_shape(pool.output[0], [n, 1, 1, channels])
  model.graph.node.remove(turn)


def converted(path: pathlib.Path, folder: str, io_type: str = "io_stream"):
  """hls4ml's model of a file, compiled by g++, with `predict`."""
  model = prepared(path).model
  config = hls4ml.utils.config_from_onnx_model(
    model, "name", backend="Vitis", default_precision=PRECISION
  )
  simulated = hls4ml.converters.convert_from_onnx_model(
    model, folder, io_type=io_type, backend="Vitis", hls_config=config
  )
  simulated.compile()
  return simulated


def compare(path: pathlib.Path, images: np.ndarray, simulated) -> dict:
  """Counts answers that differ, and finds the largest difference of a logit.

  Args:
    path: of the QONNX file.
    images: uint8 [n, size, size, channels].
    simulated: of `converted`.
  """
  model = opened(path, len(images))
  found = execute_onnx(model, {"images": images}, return_full_exec_context=True)
  expected = found["logits"]
  inputs = np.ascontiguousarray(found[start(model)].transpose(0, 2, 3, 1))
  logits = simulated.predict(inputs).reshape(expected.shape)
  return {
    "images": len(images),
    "other answers": int((logits.argmax(-1) != expected.argmax(-1)).sum()),
    "largest difference": float(np.abs(logits - expected).max()),
    "largest logit": float(np.abs(expected).max()),
  }


def main(argv: list[str] | None = None) -> int:
  """Prints what it finds; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.hls", description=__doc__.splitlines()[0]
  )
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("--images", required=True, help="an .npz, see packed.py")
  parser.add_argument("--limit", type=int, help="of images; all by default")
  parser.add_argument("--io_type", default="io_stream")
  args = parser.parse_args(argv)
  with np.load(args.images) as data:
    images = data["test_images"][: args.limit]
  began = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    simulated = converted(args.file, folder, args.io_type)
    seconds = {"seconds to compile": round(time.perf_counter() - began)}
    found = compare(args.file, images, simulated) | seconds
  print(found)
  return int(found["other answers"] > 0)


if __name__ == "__main__":
  sys.exit(main())
