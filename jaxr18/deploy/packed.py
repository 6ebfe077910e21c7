"""Runs a packed network with NumPy alone; this one file is all it takes.

    python packed.py FILE --images=test.npz

FILE is what `python -m jaxr18.export --format=packed` wrote. test.npz holds
`test_images`, uint8 [n, size, size, channels] of values from 0 to 255, and
`test_labels`, integers [n]. What the file promises of the images that its
network was tested on is printed beside what is found. Codes are multiplied and
summed exactly, in float64; all else is float32 as XLA rounds it.
"""

import argparse
import hashlib
import json
import os
import sys
import zipfile
import zlib

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FORMAT = "jaxr18 packed 1"
WITH_SUMS = "jaxr18 packed 2"  # of quantized residual sums
HALF_BITS = 16  # float16; fewer are integers
BLANK = b"0" * 64  # in the digest's place where all is digested
DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1"}


# What else than OSError and PackedError a file may cause that fits nothing.
_MISFITS = (ValueError, LookupError, TypeError, AttributeError, MemoryError,
            ArithmeticError, RecursionError)  # fmt: skip
_DARK = 16  # the brightest value of the digits, and of images from 0 to 1


class PackedError(ValueError):
  """A file that is missing, truncated, altered or no packed network."""


class ImagesError(ValueError):
  """Images or labels that are not as the network takes them."""


def read(path):
  """Reads the network's description and its tensors by name."""
  return parse(_bytes_of(path), path)


def parse(data, path):
  """As `read`, of a file's bytes; `path` names them in an error."""
  try:
    head, body, tensors, meta = _parts(data)
    found, digest = meta["format"], meta["sha256"].encode()
  except _MISFITS as e:
    what = "truncated or no packed network of jaxr18"
    raise PackedError(f"{path} is {what} ({e!r}); export it again") from e
  if found not in (FORMAT, WITH_SUMS):
    raise PackedError(f"{path} has format {found!r}, expected {FORMAT!r}")
  sealed = hashlib.sha256(head.replace(digest or b"?", BLANK) + body)
  if sealed.hexdigest().encode() != digest:
    what = "damaged: its SHA-256 is not that of what was written"
    raise PackedError(f"{path} is {what}; export it again")
  try:
    arrays = {}
    for name, t in tensors.items():
      flat = np.frombuffer(body[slice(*t["data_offsets"])], DTYPES[t["dtype"]])
      arrays[name] = flat.reshape(t["shape"])
    return dict(json.loads(meta["network"])), arrays
  except _MISFITS as e:
    raise PackedError(f"{path} holds no network: {e!r}; export it again") from e


def _bytes_of(path):
  try:
    if os.path.exists(path) and not os.path.isfile(path):
      raise OSError("it is no regular file")  # a pipe would never end
    with open(path, "rb") as f:
      return f.read()
  except (OSError, ValueError) as e:  # a path with a null byte
    raise PackedError(f"cannot read {path}: {e}") from e


def _parts(data):
  """Header, body, the tensors' entries and the header's metadata."""
  length = int.from_bytes(data[:8], "little")
  head, body = data[8 : 8 + length], data[8 + length :]
  tensors = json.loads(head)
  return head, body, tensors, tensors.pop("__metadata__")


def unpack_bits(data, count: int, bits: int):
  """Unpacks non-negative integers of `bits` bits each, as int64."""
  flat = np.unpackbits(data, count=count * bits, bitorder="little")
  return flat.reshape(count, bits) @ (1 << np.arange(bits, dtype=np.int64))


def kept(layer, arrays):
  """Returns where a layer's stored weights stand in its flat kernel."""
  path, size = layer["path"], int(np.prod(layer["kernel_shape"]))
  if layer["encoding"] == "bitmask":
    return np.flatnonzero(unpack_bits(arrays[f"{path}.mask"], size, 1))
  if layer["encoding"] == "indices":
    width = int(np.ceil(np.log2(size)))
    return unpack_bits(arrays[f"{path}.indices"], layer["kept"], width)
  return np.arange(size)


def kernel(layer, arrays):
  """Returns a layer's whole kernel: integer codes, or float32."""
  path, bits, count = layer["path"], layer["w_bits"], layer["kept"]
  size = int(np.prod(layer["kernel_shape"]))
  if bits >= HALF_BITS:
    values = arrays[f"{path}.kernel"].astype(np.float32).reshape(-1)
  else:
    odd = f"{path}.odd_codes" in arrays
    name = "odd_codes" if odd else "codes"
    values = unpack_bits(arrays[f"{path}.{name}"], count, bits)
    signs = 2 * values - 1  # the rest is two's complement
    values = signs if bits == 1 else values - (values >> (bits - 1) << bits)
    values = 2 * values + 1 if odd else values
  out = np.zeros(size, values.dtype)
  out[kept(layer, arrays)] = values
  return out.reshape(layer["kernel_shape"])


def quantize(x, bound, bits: int, signed: bool):
  """Computes an input's codes and the step between two.

  Args:
    x: float32, of any shape.
    bound: of the largest level; of a shape that broadcasts with x.
    bits: 2 to 8.
    signed: whether the levels are symmetric around 0.

  Returns:
    float32 whole numbers of the shape of x, and the step.
  """
  n = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
  step = np.float32(bound) * np.float32(1 / n)
  x = x * (np.float32(1) / step)  # as XLA divides by a scalar
  return np.rint(np.clip(x, -n if signed else 0, n)), step


def convolve(x, kernel, stride: int, groups: int):
  """Computes a convolution with padding k // 2.

  Args:
    x: [n, height, width, inputs].
    kernel: [k, k, inputs / groups, features].
    stride: in pixels.
    groups: of channels.

  Returns:
    [n, height / stride, width / stride, features].
  """
  side, _, inputs, features = kernel.shape
  x = np.pad(x, [(0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)])
  seen = sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]
  n, h, w = seen.shape[:3]
  seen = seen.reshape(n, h, w, groups, inputs, side, side)
  a = seen.transpose(3, 0, 1, 2, 5, 6, 4).reshape(groups, n * h * w, -1)
  b = kernel.reshape(-1, groups, features // groups).transpose(1, 0, 2)
  return (a @ b).transpose(1, 0, 2).reshape(n, h, w, features)


def blocks_of(units):
  """Lists the names of the blocks, in order."""
  return list(dict.fromkeys(u.split("/")[0] for u in units if "/" in u))


def walk(units, x, apply, relu, add, mean, enter):
  """Walks through a network's layers, whatever computes them.

  Args:
    units: layers in a row by path, such as 'stage1_block1/conv1'.
    x: the images in the form that the functions take.
    apply: computes a layer from its row and its input.
    relu, mean: compute the operations between layers.
    add: computes a block's sum of two operands, given the block's name.
    enter: makes what enters the first block of the stem's output, given the
      block's name.

  Returns:
    The head's output.
  """

  def run(unit, x):
    for layer in units[unit]:
      x = apply(layer, x)
    return x

  blocks = blocks_of(units)
  x = enter(relu(run("stem", x)), blocks[0])
  for block in blocks:
    y = run(f"{block}/conv2", relu(run(f"{block}/conv1", x)))
    if f"{block}/proj" in units:
      x = run(f"{block}/proj", x)
    x = relu(add(y, x, block))
    del y
  x = mean(x)
  return run("head", x)


def normalize(images, network):
  """uint8 images -> float32 of mean 0 and deviation 1 at the resolution."""
  mean, std = np.float32(network["mean"]), np.float32(network["std"])
  x = images.astype(np.float64) * np.float32(1 / 255) - mean  # fused, as below
  x = x.astype(np.float32) * (np.float32(1) / std)
  if images.shape[1] == network["resolution"]:
    return x
  weights = resizing(images.shape[1], network["resolution"])
  return np.einsum("nhwc,hH,wW->nHWc", x, weights, weights, optimize=True)


def resizing(size: int, resolution: int):
  """Computes weights [size, resolution] of antialiased interpolation."""
  ratio = size / resolution
  centres = (np.arange(resolution) + 0.5) * ratio - 0.5
  far = np.abs(centres - np.arange(size)[:, None]) / max(ratio, 1)
  weights = np.maximum(0, 1 - far)
  return np.float32(weights / weights.sum(0))


def layer_output(layer, kernel, arrays, x):
  """Computes one layer.

  Args:
    layer: its row of the file's description.
    kernel: [k, k, inputs / groups, features], unpacked.
    arrays: scale, bias and input bound by 'PATH.NAME', where there are some.
    x: float32 [n, height, width, inputs].

  Returns:
    float32 [n, height, width, features].
  """
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
  """Returns a function from uint8 images to logits, and the description.

  Raises PackedError; the function raises ImagesError.
  """
  network, arrays = read(path)

  def run(images):
    check_images(images, network)
    return walk(
      network["units"],
      normalize(images, network),
      lambda layer, x: layer_output(layer, kernels[layer["path"]], arrays, x),
      # In place: a layer's output is nobody else's.
      relu=lambda x: np.maximum(x, 0, out=x),
      add=lambda y, x, block: on_grid((y, x), block, True),
      # Over width, then height: float32's sums depend on the order.
      mean=lambda x: x.sum(2).sum(1)[:, None, None] / x.shape[1] ** 2,
      enter=lambda x, block: on_grid((x,), block, False),
    )[:, 0, 0]

  def on_grid(operands, block, signed):
    bits = network.get("sum_bits")
    if bits is None:
      y, *others = operands
      return np.add(y, others[0], out=y) if others else y
    n = 2 ** (bits - 1) - 1
    step = arrays[f"{block}.sum_bound"] * np.float32(1 / n)
    low, high = (-n, n) if signed else (0, 2**bits - 1)
    part = np.float32(1) / step
    codes = [np.rint(np.clip(x * part, low, high)) for x in operands]
    return sum(codes) * step  # the sum is of integers

  try:
    layers = sum(network["units"].values(), [])
    kernels = {x["path"]: kernel(x, arrays) for x in layers}
    side = network.get("data", {}).get("size", network["resolution"])
    run(np.zeros((1, side, side, channels_of(network)), np.uint8))
  except _MISFITS as e:
    what = "holds a network that cannot be run"
    raise PackedError(f"{path} {what}: {e!r}; export it again") from e
  return run, network


def channels_of(network) -> int:
  first = network["units"]["stem"][0]
  return first["kernel_shape"][2] * first["groups"]


def classes_of(network) -> int:
  return network["units"]["head"][-1]["kernel_shape"][-1]


def identity(name: str, images, labels):
  """Describes the images that a network was tested on, for its file."""
  return {
    "name": name,
    "count": len(images),
    "size": images.shape[1],
    "fingerprint": fingerprint(images, labels),
  }


def fingerprint(images, labels) -> str:
  """Hashes labelled images, whatever their order."""
  rows = [
    hashlib.sha256(image.tobytes() + int(label).to_bytes(8, "little")).digest()
    for image, label in zip(images, labels, strict=True)
  ]
  return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def check_images(images, network) -> None:
  """Raises ImagesError unless they are as the network takes them."""
  channels = channels_of(network)
  size = network.get("data", {}).get("size", "size")
  shape, dtype = np.shape(images), getattr(images, "dtype", type(images))
  found = f"images are {dtype} {list(shape)}"
  wanted = f"expected uint8 [n, {size}, {size}, {channels}]"
  if dtype != np.uint8:
    mend = "give whole values from 0 to 255, which are normalized here"
  elif len(shape) != 4 or shape[3] != channels:
    mend = "the channels come last"
    if len(shape) == 4 and shape[1] == channels:
      mend += "; images.transpose(0, 2, 3, 1) puts them there"
  elif shape[1] != shape[2] or size not in ("size", shape[1]):
    mend = "give the images at the size that the network was tested at"
  elif not shape[0] * shape[1]:
    mend = "there must be one"
  else:
    return
  raise ImagesError(f"{found}, {wanted}: {mend}")


def check_labels(labels, count: int, network) -> None:
  """Raises ImagesError unless there is one class for each of the images."""
  classes = classes_of(network)
  found = f"labels are {labels.dtype} {list(labels.shape)}"
  wanted = f"expected integers [{count}] from 0 to {classes - 1}"
  if labels.shape != (count,):
    mend = "one for each image"
    if labels.shape == (count, 1):
      mend += "; labels.reshape(-1) makes them so"
    elif labels.shape == (count, classes):
      mend += "; labels.argmax(-1) makes them so"
  elif labels.dtype.kind not in "iu":
    mend = "labels.astype(int) makes them so where they are whole"
  elif labels.min() < 0 or labels.max() >= classes:
    found += f" from {labels.min()} to {labels.max()}"
    mend = "they count the classes from 0"
  else:
    return
  raise ImagesError(f"{found}, {wanted}: {mend}")


def read_test(path, network):
  """Reads and checks the test images and labels of an .npz."""
  if os.path.exists(path) and not os.path.isfile(path):
    raise ImagesError(f"{path} is no regular file, expected an .npz")
  try:
    with np.load(path) as data:
      images, labels = data["test_images"], data["test_labels"]
  except (*_MISFITS, EOFError, zipfile.BadZipFile, zlib.error) as e:
    what = "an .npz with test_images and test_labels"
    raise ImagesError(f"{path} is not {what}: {e}") from e
  if images.ndim == 3 and channels_of(network) == 1:
    images = images[..., None]
  try:
    check_images(images, network)
    check_labels(labels, len(images), network)
    if images.max() <= _DARK:
      raise ImagesError(
        f"no value of the images is above {images.max()}, expected values"
        " from 0 to 255: scale them"
      )
  except ImagesError as e:
    raise ImagesError(f"{path}: {e}") from e
  return images, labels


def other_images(network, images, labels) -> str:
  """Warns where the network was tested on other images; '' otherwise."""
  promised = network.get("data")
  if promised is None:
    return (
      "the file is of an older version and does not name the images that its"
      " network was tested on; what follows may be of others"
    )
  found = fingerprint(images, labels)
  if found == promised["fingerprint"]:
    return ""
  return (
    f"the network was tested on {promised['count']} images of"
    f" {promised['name']} with the fingerprint {promised['fingerprint']};"
    f" these {len(images)} images and labels have {found}"
  )


def right_answers(run, images, labels) -> int:
  """Counts the images that a function of `load` answers as labels [n] do.

  Raises ImagesError where a logit is not finite, whose answer would be the
  first class.
  """
  parts = np.array_split(images, -(-len(images) // 200))
  logits = np.concatenate([np.asarray(run(part)) for part in parts])
  bad = np.flatnonzero(~np.isfinite(logits).all(-1))
  if len(bad):
    raise ImagesError(
      f"image {bad[0]} gets the logits {logits[bad[0]]}, expected finite ones;"
      " mend the normalization or the weights"
    )
  return int(np.sum(logits.argmax(-1) == labels))


def main(argv=None) -> int | None:
  parser = argparse.ArgumentParser(
    description=(__doc__ or "").partition("\n")[0]
  )
  parser.add_argument("file")
  parser.add_argument("--images", required=True, help="an .npz")
  args = parser.parse_args(argv)
  try:
    run, network = load(args.file)
    images, labels = read_test(args.images, network)
    right = right_answers(run, images, labels)
  except (OSError, ValueError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  provenance = network.get("provenance", {})
  print(json.dumps(provenance, indent=1))
  if other := other_images(network, images, labels):
    print(f"Warning: {other}", file=sys.stderr)
  counts = {"found": (right, len(labels))}
  if {"test_correct", "test_count"} <= provenance.keys():
    promised = provenance["test_correct"], provenance["test_count"]
    counts = {"promised": promised} | counts
  for which, (correct, count) in counts.items():
    print(f"{which}: accuracy {correct / count:.2%} ({correct} of {count})")


if __name__ == "__main__":
  sys.exit(main())
