"""Images a second of the forms of ONNX files, by ONNX Runtime on one thread.

    python -m benchmarks.onnx_forms --out docs/results/onnx_forms/result.json

Networks are ResNet-18 of width 16 and 64 with untrained numbers and 4 bits
between stem and head, and docs/results/three_bits. Of each there are our file
of float32, `onnx4`, `onnx`, `onnx_int`, and what ONNX Runtime's own static
quantization makes of our float32 file (uint8 inputs, int8 kernels by channel).
They run by turns, and the best of all turns counts, since other work on a
machine only ever takes time. Of three_bits, answers on test images are counted.
"""

import argparse
import dataclasses
import importlib.metadata
import pathlib
import platform
import tempfile
import time

import jax
import numpy as np

from benchmarks.bench_tables import onnx_forms_table
from benchmarks.results import RESULTS, write
from jaxr18.data import dataset as data
from jaxr18.deploy import packed, saved
from jaxr18.deploy.program_xla import with_sums
from jaxr18.deploy.to_onnx import load_onnx, to_onnx
from jaxr18.nn import network
from jaxr18.nn.spec import resnet, with_bits

BITS = [("stem|head", 8, 8), (".*", 4, 4)]
TRAINED = "three_bits"


def untrained(width: int, how: dict) -> dict[str, bytes]:
  """The files of a ResNet-18, by form."""
  spec = with_bits(resnet(tuple(width * 2**i for i in range(4))), BITS)
  init = lambda spec: network.init(jax.random.key(0), spec)
  return files(init(spec), init(dataclasses.replace(spec, sum_bits=8)), how)


def files(net, with_sums_of_8, how: dict) -> dict[str, bytes]:
  """The files of a network, by form."""
  floats = with_bits(net.spec, [(".*", 32, 32)])
  return {
    "float32": to_onnx(network.init(jax.random.key(0), floats), **how),
    "onnx4": to_onnx(net, **how, int4=True),
    "onnx": to_onnx(net, **how),
    "onnx_int": to_onnx(with_sums_of_8, **how),
  }


def own_static(floats: bytes, images: np.ndarray) -> bytes:
  """ONNX Runtime's static quantization of a file of floats."""
  from onnxruntime import quantization
  from onnxruntime.quantization.shape_inference import quant_pre_process

  class Reader(quantization.CalibrationDataReader):
    left = [{"images": images}]

    def get_next(self):
      return self.left.pop() if self.left else None

  with tempfile.TemporaryDirectory() as folder:
    paths = [f"{folder}/{name}.onnx" for name in ("floats", "ready", "made")]
    pathlib.Path(paths[0]).write_bytes(floats)
    quant_pre_process(paths[0], paths[1])
    quantization.quantize_static(
      paths[1], paths[2], Reader(), per_channel=True,
      activation_type=quantization.QuantType.QUInt8,
      weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    return pathlib.Path(paths[2]).read_bytes()


def opened(forms: dict[str, bytes]) -> dict:
  """What runs each file on one thread."""
  out = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, content in forms.items():
      path = pathlib.Path(folder, "network.onnx")
      path.write_bytes(content)
      out[name] = load_onnx(path, 1)
  return out


def rates(runs: dict, images: np.ndarray, rounds: int) -> dict[str, float]:
  """Images a second of each, at best, by turns."""
  best = dict.fromkeys(runs, float("inf"))
  for _ in range(rounds):
    for name, run in runs.items():
      run(images)  # others' data leave the caches
      start = time.perf_counter()
      run(images)
      best[name] = min(best[name], time.perf_counter() - start)
  return {name: len(images) / seconds for name, seconds in best.items()}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=30)
  parser.add_argument("--answers", type=int, default=1000, help="images")
  parser.add_argument("--data_dir", default="", help="TFDS's folder")
  parser.add_argument("--out", help="a file for all numbers")
  args = parser.parse_args()
  cifar = data.load("cifar10", data_dir=args.data_dir)
  how = dict(mean=cifar.mean, std=cifar.std, size=32, provenance={})
  file = RESULTS / TRAINED / "network.safetensors"
  net, some = saved.unpack(file), cifar.train.images[:100]
  sums = with_sums(net, *packed.read(file), 8, some)
  made = {
    "ResNet-18, width 16": (untrained(16, how), 50),
    "ResNet-18, width 64": (untrained(64, how), 10),
    TRAINED: (files(net, sums, how), 50),
  }
  out, answers = {}, {}
  for name, (forms, batch) in made.items():
    forms["static"] = own_static(forms["float32"], some)
    runs = opened(forms)
    out[name] = {
      "batch": batch,
      "images_per_s": rates(runs, cifar.test.images[:batch], args.rounds),
      "bytes": {k: len(v) for k, v in forms.items()},
    }
  images, labels = (x[: args.answers] for x in
                    (cifar.test.images, cifar.test.labels))  # fmt: skip
  parts = np.array_split(images, -(-len(images) // 100))
  whole = np.concatenate([packed.load(file)[0](x) for x in parts]).argmax(-1)
  for name in ("onnx4", "onnx", "onnx_int"):
    found = np.concatenate([runs[name](x) for x in parts]).argmax(-1)
    answers[name] = {
      "right": int((found == labels).sum()),
      "others": int((found != whole).sum()),
    }
  versions = ("jax", "numpy", "onnx", "onnxruntime")
  result = {
    "networks": out,
    "answers": {"count": len(images), "right": int((whole == labels).sum()),
                "of": answers},
    "rounds": args.rounds,
    "platform": platform.machine(),
    "versions": {v: importlib.metadata.version(v) for v in versions},
  }  # fmt: skip
  print(onnx_forms_table(result))
  write(result, args.out)


if __name__ == "__main__":
  main()
