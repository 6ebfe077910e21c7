"""Writes a program of integers as C99: one header, one source, and a main.c.

    python -m jaxr18.deploy.to_c network.safetensors --out=FOLDER

The source needs stdint.h alone: no floats, no allocation. Weights are constant
arrays at their true bits; what is written to has a place that is chosen here,
so its size is known, and tensors share bytes where they do not live at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap

import numpy as np

from jaxr18.deploy import packed
from jaxr18.deploy.lower import SUM_BITS, lower
from jaxr18.deploy.pack import pack_bits
from jaxr18.deploy.program import Program, Rescale, Step, accumulators
from jaxr18.host.errors import ToldError, writing
from jaxr18.host.files import write_atomically

_C = pathlib.Path(__file__).with_name("c")


class CompileError(ToldError):
  """A C program that cannot be compiled or run here."""


@dataclasses.dataclass(frozen=True)
class CSource:
  """The files by name, and how many bytes the program takes.

  Attributes:
    files: the text of network.h, network.c and main.c.
    memory: bytes of the static arrays that are written to.
    constants: bytes of the arrays of constants, the weights among them.
    weights: bytes of the weights.
  """

  files: dict[str, str]
  memory: int
  constants: int
  weights: int


def to_c(program: Program) -> CSource:
  """Writes a program as C."""
  width = _bytes_of_sum(program.sum_bits)
  places, size = _places(program.steps, width)
  size = -(-size // width) * width
  rows = max(
    s.kernel.shape[0] * (s.size + s.kernel.shape[0] // 2 * 2) * s.in_features
    if not s.pooled
    else s.in_features
    for s in program.steps
  )
  kernel = max(s.kernel[..., 0].size for s in program.steps)
  memory = size + 2 * rows + 2 * kernel
  constants = [_constants(i, step) for i, step in enumerate(program.steps)]
  first_table, bytes_of_table = _reading(program.steps[0])
  source = "\n".join(
    [
      '#include "network.h"\n',
      f"typedef uint{8 * width}_t sum_type;\n",
      _TYPES,
      f"static sum_type memory[{size // width}];",
      f"static int16_t rows[{rows}];",
      f"static int16_t weights[{kernel}];\n",
      first_table,
      *(c.text for c in constants),
      "static const layer layers[] = {",
      *(
        _entry(i, s, places, width, c.form)
        for i, (s, c) in enumerate(zip(program.steps, constants, strict=True))
      ),
      "};\n",
      (_C / "kernels.c").read_text(),
    ]
  )
  weights = sum(c.weights for c in constants)
  tables = bytes_of_table + sum(c.numbers for c in constants)
  files = {
    "network.h": _header(program, memory, weights + tables),
    "network.c": f"{_about(program)}\n{source}",
    "main.c": (_C / "main.c").read_text(),
  }
  return CSource(files, memory, weights + tables, weights)


_TYPES = """\
enum { IMAGE, CODES, SUMS, POOLED };                       /* reads */
enum { AS_CODES, AS_SUM, ON_PROJECTION, ON_SHORTCUT, LOGITS }; /* writes */

typedef struct {
  const uint8_t *weights;    /* [features][taps][taps][inputs / groups] */
  const int32_t *multiplier; /* by output channel, as is the offset */
  const int64_t *offset;
  int32_t smallest, largest; /* what is written; before a sum */
  int32_t pixels;            /* of what is pooled */
  int32_t source, target;    /* in memory; of sums in their own units */
  int64_t read_offset, shortcut_offset;
  int32_t read_multiplier, shortcut_multiplier;
  int16_t read_shift, shortcut_shift, shift;
  int16_t low, high; /* of the input codes */
  int16_t reads, writes;
  int16_t side, out_side, inputs, features, groups, taps, stride;
  int16_t bits, times, plus; /* of a weight */
} layer;
"""


@dataclasses.dataclass(frozen=True)
class _Constants:
  """A layer's arrays as text, how its weights are coded, and their bytes."""

  text: str
  form: tuple[int, int, int]
  weights: int
  numbers: int


def _constants(i: int, step: Step) -> _Constants:
  kernel = step.kernel.astype(np.int64)
  bits, times, plus = form = _form(step)
  fields = (kernel.transpose(3, 0, 1, 2).reshape(-1) - plus) // times
  data = pack_bits(fields, bits)
  data = np.append(data, np.uint8(0))  # a field is read with the byte behind
  channels = np.ones(step.features, np.int64)
  multiplier = step.write.multiplier * channels
  offset = step.write.offset * channels
  text = "\n".join(
    [
      f"/* {step.path} */",
      _array("uint8_t", f"weights{i}", data),
      _array("int32_t", f"multiplier{i}", multiplier),
      _array("int64_t", f"offset{i}", offset, "LL"),
      "",
    ]
  )
  return _Constants(text, form, len(data), 12 * step.features)


def _form(step: Step) -> tuple[int, int, int]:
  """Bits, times and plus: a weight is times * field + plus."""
  kernel = step.kernel
  if step.w_bits == 1:
    return (1, -2, -1) if kernel.all() else (2, 1, 0)
  if step.w_bits == 2 and np.abs(kernel).max() > 1:
    return 2, 2, 1  # four levels
  return step.w_bits, 1, 0


def _array(kind: str, name: str, values: np.ndarray, suffix: str = "") -> str:
  text = ", ".join(f"{v}{suffix}" for v in values.tolist())
  lines = textwrap.wrap(text, 78, break_long_words=False)
  body = "\n".join("  " + line for line in lines)
  return f"static const {kind} {name}[] = {{\n{body}}};"


def _reading(step: Step) -> tuple[str, int]:
  """What the first layer's codes are read by, as text, and its bytes."""
  if step.table is not None:
    about = "/* The first layer's codes of the image's bytes, by channel. */"
    rows = _rows("int8_t", "image_codes", step.table)
    return f"#define RESIZES 0\n\n{about}\n{rows}\n", step.table.size
  assert step.read is not None and step.resize is not None
  channels = np.ones(step.in_features, np.int64)
  lines = [
    "#define RESIZES 1",
    f"#define IMAGE_SHIFT {step.read.shift}\n",
    _array("int32_t", "image_multiplier", step.read.multiplier * channels),
    _array("int64_t", "image_offset", step.read.offset * channels, "LL"),
    "/* Weights of the image's rows and columns, for each of the map's. */",
    _rows("int16_t", "resizing", step.resize.T),
    "",
  ]
  return "\n".join(lines), 12 * step.in_features + 2 * step.resize.size


def _rows(kind: str, name: str, table: np.ndarray) -> str:
  rows = ",\n".join(
    "  {" + "\n   ".join(textwrap.wrap(", ".join(map(str, r)), 74)) + "}"
    for r in table.tolist()
  )
  return f"static const {kind} {name}[][{table.shape[1]}] = {{\n{rows}}};"


def _entry(i: int, step: Step, places: dict[str, int], width: int, form) -> str:
  """A layer's row of the table."""
  of_sums = step.read is not None and step.source != "image"
  reads = "CODES"
  if step.source == "image":
    reads = "IMAGE"
  elif of_sums:
    reads = "POOLED" if step.pooled else "SUMS"
  writes = _writes(step)
  source = places.get(step.source, 0) // (width if of_sums else 1)
  target = places.get(step.target, 0)
  target //= 1 if writes == "AS_CODES" else width
  numbers = {
    "smallest": step.write.low,
    "largest": step.write.high,
    "pixels": step.size**2 if step.pooled else 0,
    "source": source,
    "target": target,
    **_rescaling("read", step.read if of_sums else None),
    **_rescaling("shortcut", step.shortcut),
    "shift": step.write.shift,
    "low": step.low,
    "high": step.high,
    "reads": reads,
    "writes": writes,
    "side": 1 if step.pooled else step.size,
    "out_side": step.out_size,
    "inputs": step.in_features,
    "features": step.features,
    "groups": step.groups,
    "taps": step.kernel.shape[0],
    "stride": step.stride,
    **dict(zip(("bits", "times", "plus"), form, strict=True)),
  }
  fields = [f".{n} = {n}{i}" for n in ("weights", "multiplier", "offset")]
  fields += [f".{name} = {value}" for name, value in numbers.items()]
  lines = textwrap.wrap(", ".join(fields), 75)
  return f"  /* {step.path} */\n  {{" + "\n   ".join(lines) + "},"


def _writes(step: Step) -> str:
  if step.target == "logits":
    return "LOGITS"
  if step.plus:
    return "ON_PROJECTION" if step.shortcut is None else "ON_SHORTCUT"
  return "AS_SUM" if step.to_sums else "AS_CODES"


def _rescaling(name: str, by: Rescale | None) -> dict[str, str | int]:
  if by is None:
    return {}
  return {
    f"{name}_multiplier": int(by.multiplier[0]),
    f"{name}_offset": f"{int(by.offset[0])}LL",
    f"{name}_shift": by.shift,
  }


def _bytes_of_sum(bits: int) -> int:
  return 1 if bits <= 8 else 2 if bits <= 16 else 4


def _places(steps: tuple[Step, ...], width: int) -> tuple[dict[str, int], int]:
  """Each tensor's first byte, and the bytes of all.

  A sum takes the place of the tensor that it is added to. Large tensors are
  placed first, each at the lowest place where it meets none that lives at the
  same time.
  """
  roots, lives, sizes = {}, {}, {}
  for i, step in enumerate(steps):
    if step.source in roots:
      lives[roots[step.source]][1] = i
    if step.plus:
      root = roots[step.target] = roots[step.plus]
      lives[root][1] = i
    elif step.target != "logits":
      root = roots[step.target] = step.target
      lives[root] = [i, i]
      size = step.out_size**2 * step.features
      size *= width if step.to_sums else 1
      sizes[root] = -(-size // width) * width
  found: dict[str, int] = {}
  for root in sorted(sizes, key=sizes.__getitem__, reverse=True):
    first, last = lives[root]
    taken = sorted(
      (found[r], found[r] + sizes[r])
      for r in found
      if lives[r][0] <= last and first <= lives[r][1]
    )
    at = 0
    for begin, end in taken:
      if at + sizes[root] > begin:
        at = max(at, end)
    found[root] = at
  total = max(found[r] + sizes[r] for r in found)
  return {name: found[root] for name, root in roots.items()}, total


def _about(program: Program) -> str:
  """A comment: who made the file, and the widths of the sums."""
  rows = accumulators(program)
  made = str(program.provenance.get("exported_by", "jaxr18"))
  lines = [
    f"Made by: {made}".replace("*/", "* /"),
    "",
    "Bits that the sums of the products need, with the sign, by layer:",
    *(f"  {path}: {width}" for path, width, _ in rows),
  ]
  return "/* " + "\n   ".join(lines) + " */"


def _header(program: Program, memory: int, constants: int) -> str:
  image = program.size**2 * program.channels
  return f"""\
/* A network of integers; docs/integer.md of jaxr18 says what it computes. */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#define NETWORK_SIDE {program.size}
#define NETWORK_CHANNELS {program.channels}
#define NETWORK_IMAGE {image} /* bytes */
#define NETWORK_CLASSES {program.classes}
#define NETWORK_LOGIT_BITS {program.logit_bits}
#define NETWORK_MEMORY {memory}    /* bytes of static memory */
#define NETWORK_CONSTANTS {constants} /* bytes of constant arrays */

/* image: bytes from 0 to 255, [side][side][channels].
   logits: [classes], in units of 2 to the power of -NETWORK_LOGIT_BITS.
   All calls use the same memory: one at a time. */
void network_logits(const uint8_t *image, int32_t *logits);

/* The class with the largest logit, the first of equal ones. */
int network_classify(const uint8_t *image);

#endif
"""


def write(source: CSource, folder: pathlib.Path) -> None:
  """Writes the files into a folder, which is made where it is missing."""
  with writing(folder, "--out"):
    folder.mkdir(parents=True, exist_ok=True)
  for name, text in source.files.items():
    write_atomically(folder / name, text, "--out")


def compiler() -> str | None:
  """Finds this machine's C compiler: $CC, cc, gcc or clang; or None."""
  names = (os.environ.get("CC"), "cc", "gcc", "clang")
  return next(filter(None, (shutil.which(n) for n in names if n)), None)


def compiled(
  folder: pathlib.Path, *flags: str, by: str | None = None
) -> pathlib.Path:
  """Compiles the files of `write` in their folder to FOLDER/classify.

  Raises:
    CompileError: there is no compiler, or it refuses.
  """
  by = by or compiler()
  if by is None:
    raise CompileError("there is no C compiler; install gcc, or set CC")
  program = folder / "classify"
  command = [by, "-std=c99", *(flags or ("-O2",)), "network.c", "main.c", "-o"]
  done = subprocess.run(
    [*command, program.name], capture_output=True, text=True, cwd=folder
  )
  if done.returncode:
    raise CompileError(f"{by} refuses {folder}/network.c: {done.stderr[:2000]}")
  return program


def logits_of(program: pathlib.Path, images: np.ndarray, *before: str):
  """Runs a compiled program on images; returns int64 logits [n, classes].

  `before` is what runs it, such as an emulator of its processor.
  """
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, "images")
    file.write_bytes(np.ascontiguousarray(images, np.uint8).tobytes())
    command = [*before, str(program), "--logits", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise CompileError(f"{program} fails: {done.stderr[:2000]}")
  return np.array([line.split() for line in done.stdout.splitlines()], np.int64)


def main(argv: list[str] | None = None) -> int:
  """Writes a packed file's network as C."""
  parser = argparse.ArgumentParser(
    prog="python -m jaxr18.deploy.to_c",
    description="Writes a packed network as C99 of integers alone.",
  )
  parser.add_argument("file", help="what export --format=packed wrote")
  parser.add_argument("--out", required=True, help="a folder for three files")
  parser.add_argument(
    "--sum_bits",
    type=int,
    help="of residual sums that were trained as floats, 2 to 24"
    f" (default: {SUM_BITS})",
  )
  args = parser.parse_args(argv)
  try:
    source = to_c(lower(*packed.read(args.file), args.sum_bits))
    write(source, pathlib.Path(args.out))
  except (packed.PackedError, ToldError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  print(f"{args.out}: network.h, network.c, main.c")
  print(
    f"{source.memory:,} bytes of memory, {source.constants:,} of constants,"
    f" {source.weights:,} of them weights"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
