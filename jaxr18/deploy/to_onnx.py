"""The folded network as an ONNX model, for ONNX Runtime and others.

Quantized inputs pass QuantizeLinear and DequantizeLinear; quantized kernels are
stored as integers, with one scale for each output channel in a
DequantizeLinear. `onnx_fused` has the form that ONNX Runtime computes with
int8, and `onnx_values` the one with kernels of int4, which is smaller, and
which it computes with floats.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime

from jaxr18.deploy.onnx_fused import Fused
from jaxr18.deploy.onnx_graph import build
from jaxr18.deploy.onnx_values import Values
from jaxr18.nn import onednn
from jaxr18.nn.network import Network

EXACT = "session.x64quantprecision"


def to_onnx(
  net: Network,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  size: int,
  provenance: dict[str, Any],
  int4: bool = False,
) -> bytes:
  """Makes the serialized model, for any number of images at once.

  Args:
    net: not stacked.
    mean, std, size, provenance: as `onnx_graph.build` takes them.
    int4: whether kernels of up to 4 bits are stored as int4, smaller and
      slower.

  Raises:
    ValueError: stacked networks.
  """
  model = build(
    net,
    (lambda *_: Values(int4=True)) if int4 else Fused,
    mean=mean,
    std=std,
    size=size,
    batch="n",
    provenance=provenance,
  )
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def saturates(instructions: str) -> bool:
  """Whether ONNX Runtime cuts sums of two int8 products at 16 bits here.

  It does on x86 without VNNI, unless the entry `EXACT` of a session is "1", and
  then takes twice the time, with VNNI too. Sums of this package's files are
  small enough, but for layers whose inputs and weights both have 8 bits.

  Args:
    instructions: the processor's, as /proc/cpuinfo lists them; '' if unknown.
  """
  return "avx" in instructions and "vnni" not in instructions


def load_onnx(
  path: str | os.PathLike, threads: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from images to logits by ONNX Runtime on the CPU.

  Its threads sleep when they wait: others on the machine are measured too.
  """
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  if saturates(onednn.instructions()):
    options.add_session_config_entry(EXACT, "1")
  session = onnxruntime.InferenceSession(
    str(path), options, providers=["CPUExecutionProvider"]
  )

  def run(images: np.ndarray) -> Any:
    return session.run(None, {"images": images})[0]

  return run
