"""Holds a packed network's forms against its integer definition.

    python -m benchmarks.deploy network.safetensors --images=test.npz

Prints a table: for each form the right answers, the answers that are not the
definition's (docs/integer.md), bytes, and images a second. The C program is
compiled with -O2; ONNX and LiteRT are left out where their packages are
missing. LiteRT's grids of residual sums reach as far as those of 100 training
images of the .npz do (`train_images`), or else as the weights allow.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from jaxr18.deploy import packed, saved, to_c
from jaxr18.deploy.lower import lower
from jaxr18.deploy.program_xla import lower_with_sums, runner

BATCH = 100
Form = tuple[str, int, Callable[[np.ndarray], np.ndarray]]


def forms(
  file: pathlib.Path, folder: pathlib.Path, training: np.ndarray
) -> Iterator[Form]:
  """Yields name, bytes and logits of images; the definition is the first."""
  network, arrays = packed.read(file)
  program = lower(network, arrays)
  source = to_c.to_c(program)
  yield "definition, XLA", source.constants, runner(program)
  if to_c.compiler() is not None:
    to_c.write(source, folder)
    binary = to_c.compiled(folder)
    unit = 2.0**program.logit_bits
    yield "C", source.constants, lambda x: to_c.logits_of(binary, x) / unit
  yield "packed, NumPy", file.stat().st_size, packed.load(file)[0]
  with contextlib.suppress(ImportError):
    yield _onnx(file, network, folder)
  with contextlib.suppress(ImportError):
    yield from _litert(network, arrays, folder, training)


def _onnx(file: pathlib.Path, network: dict, folder: pathlib.Path) -> Form:
  from jaxr18.deploy.to_onnx import load_onnx, to_onnx

  size = network.get("data", {}).get("size", network["resolution"])
  how = dict(mean=network["mean"], std=network["std"], size=size)
  data = to_onnx(saved.unpack(file), **how, provenance={})
  path = folder / "network.onnx"
  path.write_bytes(data)
  return "ONNX Runtime", len(data), load_onnx(path)


def _litert(network, arrays, folder, training) -> Iterator[Form]:
  from jaxr18.deploy.to_litert import SUM_BITS, load_litert, to_litert

  if len(training):
    program = lower_with_sums(network, arrays, SUM_BITS, training)
  else:
    program = lower(network, arrays, SUM_BITS)
  for name, int4 in (("LiteRT", False), ("LiteRT, int4 kernels", True)):
    data = to_litert(program, int4=int4)
    path = folder / "network.tflite"
    path.write_bytes(data)
    yield name, len(data), load_litert(path)


def rows(file: pathlib.Path, images, labels, training) -> Iterator[str]:
  """Yields the table, a line at a time."""
  yield "| form | right answers | other answers | bytes | images a second |"
  yield "| --- | ---: | ---: | ---: | ---: |"
  parts = np.array_split(images, -(-len(images) // BATCH))
  reference = None
  with tempfile.TemporaryDirectory() as folder:
    for name, size, run in forms(file, pathlib.Path(folder), training):
      run(parts[0])  # compiles
      start = time.perf_counter()
      answers = np.concatenate([run(part).argmax(-1) for part in parts])
      speed = len(images) / (time.perf_counter() - start)
      reference = answers if reference is None else reference
      yield (
        f"| {name} | {np.sum(answers == labels):,} |"
        f" {np.sum(answers != reference):,} | {size:,} | {speed:,.0f} |"
      )


def main(argv: list[str] | None = None) -> int:
  """Prints the table; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.deploy", description=__doc__.splitlines()[0]
  )
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("--images", required=True, help="an .npz, see packed.py")
  parser.add_argument("--limit", type=int, help="of images; all by default")
  args = parser.parse_args(argv)
  network, _ = packed.read(args.file)
  images, labels = packed.read_test(args.images, network)
  with np.load(args.images) as data:
    training = data["train_images"] if "train_images" in data else images[:0]
  some = slice(args.limit)
  for row in rows(args.file, images[some], labels[some], training[:BATCH]):
    print(row, flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
