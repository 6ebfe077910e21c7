"""Changes files at random and reads them: python -m benchmarks.fuzz

For each reader of networks a small file is changed 1,250 times, 10,000 in all:
bits, bytes and whole pieces of it, or, behind its checksum, one field of what
it holds. Each reader must give a network or an error that is meant for people,
within --seconds. The C program, compiled with the address and the
undefined-behaviour sanitizer, reads images that are changed in the same way.

Each reader runs in a process of its own, so a crash is told with the case that
caused it: `--reader=NAME --first=CASE --count=1` reads that one again. Exits
with 1 where anything is bad.
"""

import argparse
import collections
import hashlib
import io
import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import results
from jaxr18.cli import told
from jaxr18.deploy import from_onnx, judge, packed, saved, to_c, torch_weights
from jaxr18.deploy.lower import lower
from jaxr18.deploy.pack import pack
from jaxr18.deploy.to_onnx import to_onnx
from jaxr18.deploy.to_qonnx import to_qonnx
from jaxr18.host.digest import digest
from jaxr18.nn import network
from jaxr18.nn.network import Network
from jaxr18.nn.spec import resnet, with_bits

SIDE = 8
HOW: Any = dict(mean=(0.5,) * 3, std=(0.25,) * 3, provenance={})
BATCH = 100  # images that one process of the C program reads
SANITIZED = ("-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all")


def small() -> Network:
  """A network of two stages in 4 bits on images of 8x8 pixels."""
  spec = resnet((4, 8), (1, 1), (1, 2), (1, 1), (False, True), resolution=SIDE)
  spec = with_bits(spec, [("stem", 8, 8), (".*", 4, 4)])
  images = jax.random.normal(jax.random.key(1), (16, SIDE, SIDE, 3))
  return network.calibrate(network.init(jax.random.key(0), spec), images)


def changed(data: bytes, rng: np.random.Generator) -> bytes:
  """The bytes with one to three changes, some of which change nothing."""
  out = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    at, to = sorted(rng.integers(0, len(out) + 1, 2))
    kind = rng.integers(6)
    if kind == 0:
      del out[at:]
    elif kind == 1:
      del out[at : min(to, at + 64)]
    elif kind == 2:
      out[at:at] = rng.bytes(rng.integers(1, 17))
    elif kind == 3:
      out[at:at] = out[at : min(to, at + 64)]
    elif kind == 4 and at < len(out):
      out[at] ^= 1 << rng.integers(8)
    elif at < len(out):
      end = min(at + int(rng.choice([1, 4, 8])), len(out))
      out[at:end] = bytes([rng.choice([0, 255, 127, 57])]) * (end - at)
    out = out or bytearray(b"\0")
  return bytes(out)


def changed_json(value: Any, rng: np.random.Generator) -> Any:
  """The value with one leaf of it replaced or gone."""
  if isinstance(value, dict | list) and value and rng.random() < 0.95:
    out = value.copy()
    at = rng.choice(list(value)) if isinstance(value, dict) else (
      rng.integers(len(value)))  # fmt: skip
    if rng.random() < 0.1:
      del out[at]
    else:
      out[at] = changed_json(out[at], rng)
    return out
  odd = [0, -1, 1, 3, 10**30, 0.5, 1e308, "", "x", None, True, [], {}, [0] * 9]
  return odd[rng.integers(len(odd))]


def in_packed(data: bytes, rng: np.random.Generator) -> bytes:
  """A packed file with one field changed, and sealed again."""
  length = int.from_bytes(data[:8], "little")
  head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
  meta = head["__metadata__"]
  what = rng.integers(3)
  if what == 0:
    about = changed_json(json.loads(meta["network"]), rng)
    meta["network"] = json.dumps(about)
  elif what == 1:
    tensors = [k for k in head if k != "__metadata__"]
    name = rng.choice(tensors)
    head[name] = changed_json(head[name], rng)
  else:
    body = changed(body, rng)
  text, seal = json.dumps(head).encode(), meta["sha256"].encode()
  found = hashlib.sha256(text.replace(seal, packed.BLANK) + body).hexdigest()
  text = text.replace(seal, found.encode())
  return len(text).to_bytes(8, "little") + text + body


def in_saved(data: bytes, rng: np.random.Generator) -> bytes:
  """A saved network with an array or its description changed, and sealed."""
  with np.load(io.BytesIO(data)) as file:
    arrays = dict(file)
  meta = json.loads(arrays.pop("meta").item())
  if rng.random() < 0.5:
    meta["spec"] = json.dumps(changed_json(json.loads(meta["spec"]), rng))
  else:
    name = rng.choice(list(arrays))
    ways = [lambda x: x[None], lambda x: x.ravel()[:3], np.float64,
            lambda x: x * np.nan, lambda x: x.astype(str)]  # fmt: skip
    arrays[name] = np.asarray(ways[rng.integers(len(ways))](arrays[name]))
    if rng.random() < 0.3:
      del arrays[name]
  meta["hash"] = digest(arrays)
  out = io.BytesIO()
  np.savez(out, meta=np.array(json.dumps(meta)), **arrays)
  return out.getvalue()


def in_onnx(data: bytes, rng: np.random.Generator) -> bytes:
  """An ONNX model with a node, an attribute or a constant changed."""
  import onnx

  model = onnx.ModelProto.FromString(data)
  graph = model.graph
  pick = lambda values: values[rng.integers(len(values))]
  node, other, constant = (
    pick(x) for x in (graph.node, graph.node, graph.initializer)
  )
  what = rng.integers(7)
  if what == 0:
    node.op_type, node.domain = other.op_type, other.domain
  elif what == 1:
    node.input[rng.integers(len(node.input))] = pick(other.output)
  elif what == 2:
    node.input[rng.integers(len(node.input))] = constant.name
  elif what == 3 and node.attribute:
    attribute = pick(node.attribute)
    if attribute.ints:
      attribute.ints[rng.integers(len(attribute.ints))] = int(
        pick([-1, 0, 1, 2, 3, 99, 2**40])
      )
    attribute.i = int(pick([-1, 0, 1, 5, 2**40]))
  elif what == 4 and constant.dims:
    constant.dims[rng.integers(len(constant.dims))] = int(
      pick([-1, 0, 1, 2, 7, 2**40])
    )
  elif what == 5:
    constant.raw_data = changed(constant.raw_data or b"\0", rng)
  else:
    del graph.node[rng.integers(len(graph.node))]
  return model.SerializeToString()


Change = Callable[[bytes, np.random.Generator], bytes]


def readers() -> dict[str, tuple[str, Callable[[], bytes], Change, Callable]]:
  """By name: suffix, the file, a change behind its checksum, what reads it."""
  image = np.zeros((1, SIDE, SIDE, 3), np.uint8)
  return {
    "packed": (".safetensors", lambda: pack(small(), **HOW), in_packed,
               lambda path: packed.load(path)[0](image)),
    "unpack": (".safetensors", lambda: pack(small(), **HOW), in_packed,
               torch_weights.load),
    "saved": (".npz", lambda: saved.to_bytes(small()), in_saved,
              torch_weights.load),
    "weights": (".safetensors", _state_dict, changed, torch_weights.load),
    "judge": (".onnx", lambda: to_onnx(small(), size=SIDE, **HOW), in_onnx,
              judge.judge),
    "onnx": (".onnx", lambda: to_onnx(small(), size=SIDE, **HOW), in_onnx,
             from_onnx.load),
    "qonnx": (".onnx", lambda: to_qonnx(small(), size=SIDE, **HOW), in_onnx,
              from_onnx.load),
  }  # fmt: skip


def _state_dict() -> bytes:
  """PyTorch's names for a small dense network, as safetensors."""
  rng, tensors, body = np.random.default_rng(0), {}, b""
  shapes = {"conv1.weight": (4, 3, 3, 3), "linear.weight": (5, 4),
            "linear.bias": (5,)}  # fmt: skip
  for name in ("layer1.0.conv1", "layer1.0.conv2"):
    shapes[f"{name}.weight"] = (4, 4, 3, 3)
  for norm in ("bn1", "layer1.0.bn1", "layer1.0.bn2"):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{norm}.{leaf}"] = (4,)
  for name, shape in shapes.items():
    value = rng.uniform(0.1, 1, shape).astype("<f4").tobytes()
    ends = [len(body), len(body) + len(value)]
    tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": ends}
    body += value
  head = json.dumps(tensors).encode()
  return len(head).to_bytes(8, "little") + head + body


def cases(data: bytes, inside: Change, first: int, count: int) -> Iterator:
  """(number, changed file) of each case; the number alone decides it."""
  for case in range(first, first + count):
    rng = np.random.default_rng(case)
    yield case, (inside if case % 2 else changed)(data, rng)


def read_all(name: str, first: int, count: int, seconds: int) -> dict[str, int]:
  """Reads the cases of one reader, and prints what is bad."""
  suffix, make, inside, read = readers()[name]
  found: dict[str, int] = collections.Counter()
  signal.signal(signal.SIGALRM, _too_long)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, f"case{suffix}")
    path.write_bytes(make())
    read(path)  # what is whole is read
    for case, data in cases(path.read_bytes(), inside, first, count):
      path.write_bytes(data)
      print(f"case {case}", file=sys.stderr, flush=True)
      signal.alarm(seconds)
      try:
        read(path)
        found["read"] += 1
      except Exception as e:
        signal.alarm(0)
        found["refused" if told(e) else "bad"] += 1
        if not told(e):
          print(f"{name} case {case}:")
          traceback.print_exc(file=sys.stdout)
      finally:
        signal.alarm(0)
  return found


def _too_long(signum, frame):
  raise TimeoutError("the reader does not end")


def read_images(first: int, count: int, seconds: int) -> dict[str, int]:
  """Lets the C program, with sanitizers, read changed images."""
  found: dict[str, int] = collections.Counter()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    file = folder / "net.safetensors"
    file.write_bytes(pack(small(), **HOW))
    described, arrays = packed.read(file)
    described = described | {"data": {"size": SIDE}}
    to_c.write(to_c.to_c(lower(described, arrays)), folder)
    program = to_c.compiled(folder, *SANITIZED, by="gcc")
    pixels = np.random.default_rng(0).bytes(SIDE * SIDE * 3)
    image = b"P6\n# drawn\n%d %d\n255\n" % (SIDE, SIDE) + pixels
    all_cases = list(cases(image, changed, first, count))
    for i in range(0, count, BATCH):
      files = []
      for case, data in all_cases[i : i + BATCH]:
        files.append(folder / f"{case}.ppm")
        files[-1].write_bytes(data)
      done = subprocess.run([program, *files], capture_output=True, text=True,
                            timeout=seconds)  # fmt: skip
      clean = done.returncode in (0, 1) and "ERROR" not in done.stderr
      refused = len(done.stderr.splitlines())  # a line each
      found["refused"] += refused if clean else 0
      found["read"] += len(files) - refused if clean else 0
      found["bad"] += 0 if clean else len(files)
      if not clean:
        print(f"c cases from {files[0]}:\n{done.stderr[:3000]}")
      for file in files:
        file.unlink()
  return found


def run_reader(name: str, count: int, seconds: int) -> dict[str, Any]:
  """One reader in a process of its own."""
  began = time.perf_counter()
  command = [sys.executable, "-m", "benchmarks.fuzz", f"--reader={name}",
             f"--count={count}", f"--seconds={seconds}"]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True)
  *bad, last = done.stdout.splitlines() or [""]
  out: dict[str, Any] = {"seconds": round(time.perf_counter() - began)}
  if done.returncode in (0, 1) and last.startswith("{"):
    out |= json.loads(last)
  else:
    at = done.stderr.strip().splitlines()[-1:]
    bad.append(f"{name} died with {done.returncode} after {at}")
    out |= {"bad": 1}
  print("\n".join(bad), end="\n" if bad else "")
  print(f"{name}: {out}", flush=True)
  return out


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--count", type=int, default=1250, help="cases a reader")
  parser.add_argument("--first", type=int, default=0, help="the first case")
  parser.add_argument("--seconds", type=int, default=20, help="a case may take")
  parser.add_argument("--reader", help="this one, here")
  parser.add_argument("--out", help="a JSON file for the counts")
  args = parser.parse_args()
  if args.reader:
    how = (args.first, args.count, args.seconds)
    found = (
      read_images(*how) if args.reader == "c" else read_all(args.reader, *how)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**found, "peak_mib": peak}))
    return int(found["bad"] > 0)
  names = [*readers(), *(["c"] if shutil.which("gcc") else [])]
  out = {name: run_reader(name, args.count, args.seconds) for name in names}
  results.write({"count": args.count, "readers": out}, args.out)
  return int(any(one.get("bad") for one in out.values()))


if __name__ == "__main__":
  sys.exit(main())
