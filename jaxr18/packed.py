"""Runs a packed network with NumPy alone; this one file is all it takes.

    python packed.py FILE --images=test.npz

FILE is what `python -m jaxr18.export --format=packed` wrote. test.npz holds
`test_images`, uint8 [n, size, size, channels], and `test_labels`. Codes are
multiplied and summed exactly, in float64; all else is float32 as XLA rounds it.
"""

import argparse
import hashlib
import json
import sys

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FORMAT = "jaxr18 packed 1"
HALF_BITS = 16  # float16; fewer are integers
BLANK = b"0" * 64  # in the digest's place where all is digested
DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1"}


class PackedError(ValueError):
  """A file that is truncated, altered or no packed network."""


def read(path):
  """The network's description and its tensors by name; or PackedError."""
  with open(path, "rb") as f:
    data = f.read()
  length = int.from_bytes(data[:8], "little")
  head, body = data[8 : 8 + length], data[8 + length :]
  try:
    tensors = json.loads(head)
    meta = tensors.pop("__metadata__")
    found, digest = meta["format"], meta["sha256"].encode()
  except (ValueError, LookupError, TypeError, AttributeError) as e:
    what = "truncated or no packed network of jaxr18"
    raise PackedError(f"{path} is {what} ({e!r}); export it again") from e
  if found != FORMAT:
    raise PackedError(f"{path} has format {found!r}, expected {FORMAT!r}")
  sealed = hashlib.sha256(head.replace(digest, BLANK) + body).hexdigest()
  if sealed.encode() != digest:
    what = "damaged: its SHA-256 is not that of what was written"
    raise PackedError(f"{path} is {what}; export it again")
  arrays = {}
  for name, t in tensors.items():
    flat = np.frombuffer(body[slice(*t["data_offsets"])], DTYPES[t["dtype"]])
    arrays[name] = flat.reshape(t["shape"])
  return json.loads(meta["network"]), arrays


def unpack_bits(data, count: int, bits: int):
  """Non-negative integers of `bits` bits each, lowest bit first: int64."""
  flat = np.unpackbits(data, count=count * bits, bitorder="little")
  return flat.reshape(count, bits) @ (1 << np.arange(bits, dtype=np.int64))


def kernel(layer, arrays):
  """A layer's kernel, whole: integer codes, or float32."""
  path, bits, kept = layer["path"], layer["w_bits"], layer["kept"]
  size = int(np.prod(layer["kernel_shape"]))
  if bits >= HALF_BITS:
    values = arrays[f"{path}.kernel"].astype(np.float32).reshape(-1)
  else:
    values = unpack_bits(arrays[f"{path}.codes"], kept, bits)
    signs = 2 * values - 1  # the rest is two's complement
    values = signs if bits == 1 else values - (values >> (bits - 1) << bits)
  at = np.arange(size)
  if layer["encoding"] == "bitmask":
    at = np.flatnonzero(unpack_bits(arrays[f"{path}.mask"], size, 1))
  elif layer["encoding"] == "indices":
    width = int(np.ceil(np.log2(size)))
    at = unpack_bits(arrays[f"{path}.indices"], kept, width)
  out = np.zeros(size, values.dtype)
  out[at] = values
  return out.reshape(layer["kernel_shape"])


def quantize(x, bound, bits: int, signed: bool):
  """Codes of an input, float32 whole numbers, and the step between two."""
  n = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
  step = np.float32(bound) * np.float32(1 / n)
  x = x * (np.float32(1) / step)  # as XLA divides by a scalar
  return np.rint(np.clip(x, -n if signed else 0, n)), step


def convolve(x, kernel, stride: int, groups: int):
  """[n, h, w, in] by [k, k, in / groups, out], padding k // 2."""
  side, _, inputs, features = kernel.shape
  x = np.pad(x, [(0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)])
  seen = sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]
  n, h, w = seen.shape[:3]
  seen = seen.reshape(n, h, w, groups, inputs, side, side)
  a = seen.transpose(3, 0, 1, 2, 5, 6, 4).reshape(groups, n * h * w, -1)
  b = kernel.reshape(-1, groups, features // groups).transpose(1, 0, 2)
  return (a @ b).transpose(1, 0, 2).reshape(n, h, w, features)


def walk(units, x, apply, relu, add, mean):
  """Logits of normalized images, whatever computes them.

  `units` by path, such as 'stage1_block1/conv1', list layers in a row.
  """

  def run(unit, x):
    for layer in units[unit]:
      x = apply(layer, x)
    return x

  x = relu(run("stem", x))
  for block in dict.fromkeys(u.split("/")[0] for u in units if "/" in u):
    y = run(f"{block}/conv2", relu(run(f"{block}/conv1", x)))
    if f"{block}/proj" in units:
      x = run(f"{block}/proj", x)
    x = relu(add(y, x))
  return run("head", mean(x))


def normalize(images, network):
  """uint8 images -> float32 of mean 0 and deviation 1 at the resolution."""
  mean, std = np.float32(network["mean"]), np.float32(network["std"])
  x = images.astype(np.float64) * np.float32(1 / 255) - mean  # fused, as below
  x = np.float32(x) * (np.float32(1) / std)
  if images.shape[1] == network["resolution"]:
    return x
  weights = resizing(images.shape[1], network["resolution"])
  return np.einsum("nhwc,hH,wW->nHWc", x, weights, weights, optimize=True)


def resizing(size: int, resolution: int):
  """Weights [size, resolution] of antialiased linear interpolation."""
  ratio = size / resolution
  centres = (np.arange(resolution) + 0.5) * ratio - 0.5
  far = np.abs(centres - np.arange(size)[:, None]) / max(ratio, 1)
  weights = np.maximum(0, 1 - far)
  return np.float32(weights / weights.sum(0))


def layer_output(layer, kernel, arrays, x):
  """One layer of a float32 input; `kernel` is whole."""
  path, bits = layer["path"], layer["a_bits"]
  factor = arrays.get(f"{path}.scale", np.ones(1, np.float32))
  if bits < HALF_BITS:
    # Without a bound each image has its own, whatever it is beside.
    largest = np.maximum(np.abs(x).max((1, 2, 3), keepdims=True), 1e-5)
    bound = arrays.get(f"{path}.input_bound", largest)
    x, step = quantize(x, bound, bits, layer["signed_input"])
    factor = factor * step
  elif bits == HALF_BITS:
    x = np.clip(x, -65504, 65504).astype(np.float16)
  dtype = np.float64 if bits < HALF_BITS else np.float32  # codes sum exactly
  x, kernel = x.astype(dtype), kernel.astype(dtype)
  y = np.float32(convolve(x, kernel, layer["stride"], layer["groups"]))
  # What compilers fuse to one multiply-add, rounded once.
  y = y * np.float64(factor) + arrays.get(f"{path}.bias", np.float32(0))
  return np.float32(y)


def load(path):
  """A function from uint8 images to logits, and the network's description."""
  network, arrays = read(path)
  layers = sum(network["units"].values(), [])
  kernels = {x["path"]: kernel(x, arrays) for x in layers}

  def run(images):
    return walk(
      network["units"],
      normalize(images, network),
      lambda layer, x: layer_output(layer, kernels[layer["path"]], arrays, x),
      relu=lambda x: np.maximum(x, 0),
      add=np.add,
      # Over width, then height: float32's sums depend on the order.
      mean=lambda x: x.sum(2).sum(1)[:, None, None] / x.shape[1] ** 2,
    )[:, 0, 0]

  return run, network


def main(argv=None) -> int | None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("file")
  parser.add_argument("--images", required=True, help="an .npz")
  args = parser.parse_args(argv)
  try:
    run, network = load(args.file)
    print(json.dumps(network["provenance"], indent=1))
    with np.load(args.images) as data:
      images, labels = data["test_images"], data["test_labels"]
  except (OSError, KeyError, ValueError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  parts = np.array_split(images, -(-len(images) // 200))
  answers = np.concatenate([run(part).argmax(-1) for part in parts])
  correct = int(np.sum(answers == labels))
  print(f"accuracy {correct / len(labels):.2%} ({correct} of {len(labels)})")


if __name__ == "__main__":
  sys.exit(main())
