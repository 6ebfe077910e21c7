"""Runs a packed network with NumPy alone; this one file is all it takes.

    python -m jaxr18.packed FILE --images=test.npz
    python packed.py FILE --images=test.npz

FILE is what `python -m jaxr18.export --format=packed` wrote. test.npz holds
`images`, uint8 [n, size, size, channels], and `labels` (or `test_images` and
`test_labels`). Without --images it says what is in the file.

Codes are multiplied and summed exactly: by float32's BLAS where sums stay
below 2**24, by float64's elsewhere. A sum is scaled in float64 and rounded
once, to float32.
"""

import argparse
import hashlib
import json
import struct
import sys

import numpy as np

FORMAT = "jaxr18 packed 1"
HALF_BITS = 16  # float16; fewer are integers
BLANK = b"0" * 64  # the digest, in the header that is digested
DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1"}


class PackedError(ValueError):
  """A file that is no packed network, or is damaged."""


def read(path):
  """The network's description and its tensors by name.

  Raises:
    PackedError: truncated, altered, or another format.
  """
  with open(path, "rb") as f:
    data = f.read()
  try:
    (length,) = struct.unpack("<Q", data[:8])
    head = data[8 : 8 + length]
    tensors = json.loads(head)
    meta = tensors.pop("__metadata__")
    digest, network = meta["sha256"], meta["network"]
    found = meta["format"]
  except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
    raise PackedError(
      f"{path} is truncated or no packed network of jaxr18 ({e!r}); export it"
      " again"
    ) from e
  if found != FORMAT:
    raise PackedError(f"{path} has format {found!r}, expected {FORMAT!r}")
  if seal(head.replace(digest.encode(), BLANK), data[8 + length :]) != digest:
    raise PackedError(
      f"{path} is damaged: its SHA-256 is not that of what was written; export"
      " it again"
    )
  arrays = {}
  for name, t in tensors.items():
    start, end = (8 + length + offset for offset in t["data_offsets"])
    flat = np.frombuffer(data[start:end], DTYPES[t["dtype"]])
    arrays[name] = flat.reshape(t["shape"])
  return json.loads(network), arrays


def seal(head: bytes, body: bytes) -> str:
  """SHA-256 of the header, with `BLANK` for the digest, and the data."""
  return hashlib.sha256(head + body).hexdigest()


def unpack_bits(data, count: int, bits: int):
  """Non-negative integers of `bits` bits each, lowest bit first: int64."""
  flat = np.unpackbits(data, count=count * bits, bitorder="little")
  return flat.reshape(count, bits) @ (1 << np.arange(bits, dtype=np.int64))


def kernel(layer, arrays):
  """A layer's kernel, whole: integer codes, or floats where it has no bits."""
  path, bits, kept = layer["path"], layer["w_bits"], layer["kept"]
  shape, size = layer["kernel_shape"], int(np.prod(layer["kernel_shape"]))
  if bits >= HALF_BITS:
    values = arrays[f"{path}.kernel"].astype(np.float32).reshape(-1)
  else:
    values = unpack_bits(arrays[f"{path}.codes"], kept, bits)
    if bits == 1:
      values = 2 * values - 1
    else:  # two's complement
      values -= (values >> (bits - 1)) << bits
  if layer["encoding"] == "dense":
    return values.reshape(shape)
  if layer["encoding"] == "bitmask":
    at = unpack_bits(arrays[f"{path}.mask"], size, 1).astype(bool)
  else:
    width = int(np.ceil(np.log2(size)))
    at = unpack_bits(arrays[f"{path}.indices"], kept, width)
  out = np.zeros(size, values.dtype)
  out[at] = values
  return out.reshape(shape)


def quantize(x, bound, bits: int, signed: bool):
  """Codes of an input, float32 whole numbers, and the step between two."""
  n = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
  step = np.float32(bound) / np.float32(n)
  return np.rint(np.clip(x / step, -n if signed else 0, n)), step


def convolve(x, kernel, stride: int, groups: int):
  """[n, h, w, in] by [k, k, in / groups, out], padding k // 2."""
  side, _, inputs, features = kernel.shape
  pad = [(0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)]
  seen = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, pad), (side, side), (1, 2)
  )[:, ::stride, ::stride]
  n, h, w = seen.shape[:3]
  seen = seen.reshape(n, h, w, groups, inputs, side, side)
  a = seen.transpose(3, 0, 1, 2, 5, 6, 4).reshape(groups, n * h * w, -1)
  b = kernel.reshape(-1, groups, features // groups).transpose(1, 0, 2)
  return (a @ b).transpose(1, 0, 2).reshape(n, h, w, features)


def walk(units, x, apply, relu, add, mean):
  """A ResNet's layers in order, whatever computes them.

  Args:
    units: by path, 'stem', 'stage1_block1/conv1' and so on, in order: layers
      that follow each other with nothing between.
    x: the normalized images.
    apply: (layer, x) -> y.
    relu, add, mean: the operations between; mean is over height and width.
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
  x = images.astype(np.float32) / np.float32(255)
  x = (x - np.float32(network["mean"])) / np.float32(network["std"])
  size, resolution = images.shape[1], network["resolution"]
  if size != resolution:
    weights = resizing(size, resolution)
    x = np.einsum("nhwc,hH,wW->nHWc", x, weights, weights, optimize=True)
  return x


def resizing(size: int, resolution: int):
  """Weights [size, resolution] of antialiased linear interpolation."""
  ratio = size / resolution
  centres = (np.arange(resolution) + 0.5) * ratio - 0.5
  far = np.abs(centres - np.arange(size)[:, None]) / max(ratio, 1)
  weights = np.maximum(0, 1 - far)
  return (weights / weights.sum(0)).astype(np.float32)


def forward(network, kernels, arrays, images):
  """Logits [n, classes] of uint8 images; `kernels` are whole, by path."""

  def apply(layer, x):
    path, scale, dtype = layer["path"], np.float64(1), np.float32
    k, bits = kernels[path], layer["a_bits"]
    if bits < HALF_BITS:
      bound = arrays.get(f"{path}.input_bound", np.abs(x).max())
      x, step = quantize(x, bound, bits, layer["signed_input"])
      scale = scale * step
      terms = np.abs(k).sum((0, 1, 2)).max()
      if k.dtype.kind == "i" and terms * 2**bits >= 2**24:
        dtype = np.float64
    elif bits == HALF_BITS:
      x = np.clip(x, -65504, 65504).astype(np.float16)
    scale = scale * arrays.get(f"{path}.scale", np.float32(1)).astype(float)
    y = convolve(
      x.astype(dtype), k.astype(dtype), layer["stride"], layer["groups"]
    )
    y = y * scale + arrays.get(f"{path}.bias", np.float32(0))
    return y.astype(np.float32)

  units = {}
  for layer in network["layers"]:
    units.setdefault(layer["unit"], []).append(layer)
  logits = walk(
    units,
    normalize(images, network),
    apply,
    relu=lambda x: np.maximum(x, 0),
    add=np.add,
    mean=lambda x: x.mean((1, 2), keepdims=True),
  )
  return logits[:, 0, 0]


def load(path):
  """A function from uint8 images to logits, and the network's description."""
  network, arrays = read(path)
  kernels = {x["path"]: kernel(x, arrays) for x in network["layers"]}
  return lambda images: forward(network, kernels, arrays, images), network


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("file")
  parser.add_argument("--images", help="an .npz; the accuracy is printed")
  parser.add_argument("--batch", type=int, default=200, help="images at once")
  args = parser.parse_args(argv)
  try:
    run, network = load(args.file)
    for layer in network["layers"]:
      print("{path}: {kernel_shape}, weights of {w_bits} bits as {encoding},"
            " inputs of {a_bits} bits".format(**layer))  # fmt: skip
    print(json.dumps(network["provenance"], indent=1))
    if args.images is None:
      return 0
    with np.load(args.images) as data:
      key = "test_" if "test_images" in data else ""
      images, labels = data[f"{key}images"], data[f"{key}labels"]
  except (OSError, KeyError, ValueError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  starts = range(0, len(images), args.batch)
  answers = [run(images[i : i + args.batch]).argmax(-1) for i in starts]
  correct = int(np.sum(np.concatenate(answers) == labels))
  print(f"accuracy {correct / len(labels):.2%} ({correct} of {len(labels)})")
  return 0


if __name__ == "__main__":
  sys.exit(main())
