"""A process that evaluates one row of benchmarks.train_step by ONNX Runtime.

Float32, and what ONNX Runtime's own static quantization makes of that, of the
same architecture with untrained numbers; see speed_serve for what it answers.
"""

import json
import sys
import time

_START = time.perf_counter()

import jax  # noqa: E402
import onnxruntime  # noqa: E402

from benchmarks.onnx_forms import own_static  # noqa: E402
from benchmarks.speed_ours import random_batch  # noqa: E402
from benchmarks.speed_rows import make_spec  # noqa: E402
from benchmarks.speed_serve import serve  # noqa: E402
from jaxr18.deploy.to_onnx import to_onnx  # noqa: E402
from jaxr18.nn import machine, network  # noqa: E402

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Sessions:
  """The forward passes of a row."""

  def __init__(self, row: dict):
    self.images = random_batch(row["batch"]).images
    self.size = len(self.images)
    net = network.init(jax.random.key(0), make_spec(row | {"bits": 32}))
    floats = to_onnx(net, mean=MEAN, std=STD, size=32, provenance={})
    self.floats = _opened(floats)
    self.quantized = _opened(own_static(floats, self.images))

  def forward(self):
    return self.floats.run(None, {"images": self.images})

  def integers(self):
    return self.quantized.run(None, {"images": self.images})

  def describe(self) -> str:
    return f"ONNX Runtime {onnxruntime.__version__}"


def _opened(content: bytes):
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = machine.threads()
  return onnxruntime.InferenceSession(
    content, options, providers=["CPUExecutionProvider"]
  )


if __name__ == "__main__":
  serve(Sessions(json.loads(sys.argv[1])), _START, "forward")
