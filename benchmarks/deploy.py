"""Holds a packed network's forms against its integer definition.

    python -m benchmarks.deploy network.safetensors --images=test.npz \\
        --out docs/results/deploy/result.json

Prints a table: for each form the right answers, the answers that are not the
definition's (docs/integer.md), bytes, and images a second. The C program is
compiled with -O2; ONNX, QONNX, StableHLO and LiteRT are left out where their
packages are missing. LiteRT's grids of residual sums reach as far as those of
100 training images of the .npz do (`train_images`), or else as the weights
allow. The definition with LiteRT's sums and biases is counted too.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.bench_tables import DEPLOY_HEADER, deploy_row
from benchmarks.results import table, write
from jaxr18.cost import memory
from jaxr18.deploy import packed, saved, to_c
from jaxr18.deploy.lower import lower
from jaxr18.deploy.program import Program
from jaxr18.deploy.program_xla import lower_with_sums, runner, with_sums
from jaxr18.host.provenance import computer
from jaxr18.nn.network import Network

BATCH = 100
DEFINITION, NETWORK = "definition", "packed"  # that answers are held against


@dataclasses.dataclass(frozen=True)
class Form:
  """A network in one form.

  Attributes:
    name: as `bench_tables.FORMS` names it.
    bytes: of its file, or of its constants.
    run: from uint8 images to logits.
    memory: bytes that it takes beside its constants, where that is known.
  """

  name: str
  bytes: int
  run: Callable[[np.ndarray], Any]
  memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Source:
  """What all forms are made of.

  Attributes:
    network, arrays: of `packed.read`.
    net: the same.
    program: the definition.
    training: uint8 images, maybe none.
    folder: to write to.
  """

  network: dict
  arrays: dict
  net: Network
  program: Program
  training: np.ndarray
  folder: pathlib.Path

  @property
  def how(self) -> dict[str, Any]:
    size = self.network.get("data", {}).get("size", self.network["resolution"])
    return dict(mean=self.network["mean"], std=self.network["std"], size=size)

  def written(self, name: str, data: bytes) -> pathlib.Path:
    path = self.folder / name
    path.write_bytes(data)
    return path


def forms(file: pathlib.Path, source: Source) -> Iterator[Form]:
  """Yields each form; the definition is the first."""
  c = to_c.to_c(source.program)
  yield Form(DEFINITION, c.constants, runner(source.program))
  yield Form(NETWORK, file.stat().st_size, packed.load(file)[0])
  for more in (_stablehlo, _onnx, _litert, _qonnx):
    with contextlib.suppress(ImportError):
      yield from more(source)
  if to_c.compiler() is not None:
    to_c.write(c, source.folder)
    binary = to_c.compiled(source.folder)
    unit = 2.0**source.program.logit_bits
    yield Form(
      "c", c.constants, lambda x: to_c.logits_of(binary, x) / unit, c.memory
    )


def _stablehlo(source: Source) -> Iterator[Form]:
  from jaxr18.deploy.to_stablehlo import program_to_stablehlo, to_stablehlo

  for name, data in (
    ("stablehlo", to_stablehlo(source.net, **source.how)),
    ("stablehlo_int", program_to_stablehlo(source.program)),
  ):
    call = jax.jit(jax.export.deserialize(bytearray(data)).call)
    yield Form(name, len(data), call)


def _onnx(source: Source) -> Iterator[Form]:
  from jaxr18.deploy.onnx_fused import SUM_BITS
  from jaxr18.deploy.to_onnx import load_onnx, to_onnx

  how = source.how | {"provenance": {}}
  made = {
    "onnx": to_onnx(source.net, **how),
    "onnx4": to_onnx(source.net, **how, int4=True),
  }
  if len(source.training):
    numbers = source.network, source.arrays
    net = with_sums(source.net, *numbers, SUM_BITS, source.training)
    made["onnx_int"] = to_onnx(net, **how)
  for name, data in made.items():
    path = source.written(f"{name}.onnx", data)
    yield Form(name, len(data), load_onnx(path))


def _qonnx(source: Source) -> Iterator[Form]:
  from jaxr18.deploy.to_qonnx import load_qonnx, to_qonnx

  data = to_qonnx(source.net, **source.how, provenance={})
  yield Form("qonnx", len(data), load_qonnx(source.written("q.onnx", data)))


def _litert(source: Source) -> Iterator[Form]:
  from ai_edge_litert.interpreter import OpResolverType

  from jaxr18.deploy.to_litert import SUM_BITS, held, load_litert, to_litert

  network, arrays = source.network, source.arrays
  if len(source.training):
    program = lower_with_sums(network, arrays, SUM_BITS, source.training)
  else:
    program = lower(network, arrays, SUM_BITS)
  plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
  own = {"experimental_op_resolver_type": plain}
  for int4, suffix in ((False, ""), (True, "4")):
    data = to_litert(program, int4=int4)
    path = source.written(f"net{suffix}.tflite", data)
    yield Form(f"definition_litert{suffix}", 0, runner(held(program, int4)))
    yield Form(f"litert{suffix}", len(data), load_litert(path))
    if not int4:
      yield Form("litert_own", len(data), load_litert(path, **own))


def rows(
  file: pathlib.Path, images, labels, training, wanted=()
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each form's name and what is found of it; of some, if asked."""
  parts = np.array_split(images, -(-len(images) // BATCH))
  network, arrays = packed.read(file)
  answers: dict[str, np.ndarray] = {}
  with tempfile.TemporaryDirectory() as folder:
    source = Source(network, arrays, saved.unpack(file),
                    lower(network, arrays), training,
                    pathlib.Path(folder))  # fmt: skip
    for form in forms(file, source):
      if wanted and form.name not in (DEFINITION, *wanted):
        continue
      form.run(parts[0])  # compiles
      start = time.perf_counter()
      found = [np.asarray(form.run(part)).argmax(-1) for part in parts]
      seconds = time.perf_counter() - start
      own = np.concatenate(found)
      answers[form.name] = own
      yield (
        form.name,
        {
          "right": int(np.sum(own == labels)),
          "other_than": {
            k: int(np.sum(own != v))
            for k, v in answers.items()
            if k != form.name
          },
          "bytes": form.bytes,
          "memory": form.memory,
          "images_per_s": round(len(images) / seconds, 1),
        },
      )


def main(argv: list[str] | None = None) -> int:
  """Prints the table; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.deploy", description=__doc__.splitlines()[0]
  )
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("--images", required=True, help="an .npz, see packed.py")
  parser.add_argument("--limit", type=int, help="of images; all by default")
  parser.add_argument(
    "--forms", nargs="+", help="these again, into what --out holds"
  )
  parser.add_argument("--out", help="a JSON file for the numbers")
  args = parser.parse_args(argv)
  network, _ = packed.read(args.file)
  images, labels = packed.read_test(args.images, network)
  with np.load(args.images) as data:
    training = data["train_images"] if "train_images" in data else images[:0]
  some, found = slice(args.limit), {}
  if args.forms:
    found = json.loads(pathlib.Path(args.out).read_text())["forms"]
  result = {
    "network": args.file.parent.name,
    "images": len(images[some]),
    "peak_bytes": memory.peak(saved.unpack(args.file).spec).bytes,
    "machine": computer(),
    "forms": found,
  }
  print(table(DEPLOY_HEADER, []), end="")
  for name, row in rows(
    args.file, images[some], labels[some], training[:BATCH], args.forms or ()
  ):
    if not args.forms or name in args.forms:
      found[name] = row
    if (cells := deploy_row(name, row)) is not None:
      print("| " + " | ".join(cells) + " |", flush=True)
    write(result, args.out)  # the last form takes longest
  return 0


if __name__ == "__main__":
  sys.exit(main())
