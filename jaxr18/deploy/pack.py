"""The packed artifact: a network in one file, each weight at its true bits.

The container is safetensors' (an 8-byte length, a header in JSON, bytes), so
its library lists what is inside; `packed.py` beside this file reads and runs it
with NumPy alone. By layer path there are

  PATH.codes        uint8: integers of the layer's bits, in two's complement
                    (of 1 bit: 1 is 1 and 0 is -1), lowest bit first, row by
                    row of HWIO;
  PATH.odd_codes    uint8: in their place, of the four levels -3, -1, 1, 3: the
                    integer i of 2 bits is 2 i + 1;
  PATH.kernel       float16 or float32 in their place, of 16 or 32 bits;
  PATH.mask         uint8: a bit for each weight, 1 where it is kept; or
  PATH.indices      uint8: its index in ceil(log2(size)) bits for each kept
                    weight; or neither, when zeros are stored too;
  PATH.scale        float32 [out]: times a code or float16, the weight with
                    batch norm folded into it;
  PATH.bias         float32 [out], with batch norm folded into it;
  PATH.input_bound  float32: the largest input that can be represented. Levels
                    are 0 .. 2**b - 1, or -n .. n, n = 2**(b-1) - 1, of signed
                    ones; one step is bound / levels. Without it the bound is
                    the largest of each image;
  BLOCK.sum_bound   float32: the largest operand of the block's residual sum,
                    where sums have `sum_bits`. Levels are a signed input's.

Which form a kernel takes is `jaxr18.cost.kept.encodings`' choice, as the
*on disk* figure of the score charges it; a tensor ends on a whole byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np

from jaxr18.cost.kept import encodings
from jaxr18.deploy import packed
from jaxr18.deploy.fold import fold, hwio
from jaxr18.nn.network import Network, at
from jaxr18.nn.spec import HALF_BITS, Layer, has_four_levels

_NAMES = {dtype: name for name, dtype in packed.DTYPES.items()}


def pack(
  net: Network,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  provenance: dict[str, Any],
  data: dict[str, Any] | None = None,
) -> bytes:
  """Makes the whole file.

  Args:
    net: not stacked; its masks decide what is stored.
    mean, std: of each channel in units of 0..1: what the network's images are
      normalized with.
    provenance: JSON, kept as it is.
    data: what the network was tested on, as `packed.identity` gives it.

  Raises:
    ValueError: stacked networks.
  """
  folded = fold(net)
  units, tensors = {}, {}
  for layer in net.spec.layers():
    numbers = folded[layer.path]
    mask = _kept(layer, at(net.masks, layer.path)["kernel"], numbers)
    kept = int(mask.sum())
    encoding = encoding_of(layer, kept)
    units.setdefault(layer.unit, []).append(
      {
        "path": layer.path,
        "kernel_shape": hwio(layer),
        "stride": layer.stride,
        "groups": layer.groups,
        "w_bits": layer.w_bits,
        "a_bits": layer.a_bits,
        "signed_input": layer.signed_input,
        "encoding": encoding,
        "kept": math.prod(mask.shape) if encoding == "dense" else kept,
      }
    )
    entry = _tensors(layer, numbers, mask, encoding)
    tensors |= {f"{layer.path}.{k}": v for k, v in entry.items()}
  sums = {
    f"{name}.sum_bound": folded[name]["sum_bound"]
    for name, _ in net.spec.blocks()
    if name in folded
  }
  tensors |= sums
  network = {
    "spec": json.loads(net.spec.to_json()),
    "units": units,
    "mean": mean,
    "std": std,
    "resolution": net.spec.resolution,
    "tensors": (__doc__ or "")
    .partition("there are\n")[2]
    .partition("\n\nWhich")[0],
    "provenance": provenance,
  }
  if data is not None:
    network["data"] = data
  if sums:
    network["sum_bits"] = net.spec.sum_bits
  return _container(network, tensors)


def encoding_of(layer: Layer, kept: int) -> str:
  """Chooses the form that takes the fewest bits."""
  forms = encodings(layer.kernel_shape, kept, layer.w_bits)
  return min(forms, key=forms.__getitem__)


def pack_bits(values: np.ndarray, bits: int) -> np.ndarray:
  """Packs the lowest `bits` of integers [n] into uint8, lowest bit first."""
  values = np.asarray(values, np.int64).reshape(-1, 1)
  parts = np.array_split(values, max(1, len(values) // 2**16), axis=0)
  rows = [(part >> np.arange(bits) & 1).astype(np.uint8) for part in parts]
  return np.packbits(np.concatenate(rows), bitorder="little")


def _kept(layer: Layer, mask, numbers) -> np.ndarray:
  """Which weights are stored unless all are, bool HWIO."""
  mask, shape = np.asarray(mask), hwio(layer)
  mask = np.broadcast_to(mask.reshape(shape if mask.ndim else ()), shape)
  if layer.w_bits == 1:  # a sign has no zero
    mask = mask & ((numbers["codes"] != 0) | (numbers["scale"] == 0))
  return mask


def _tensors(layer, folded, mask, encoding) -> dict[str, np.ndarray]:
  """A layer's tensors by name."""
  name = "kernel" if layer.w_bits >= HALF_BITS else "codes"
  values = folded[name]
  out = {k: v for k, v in folded.items() if k != name}
  if encoding != "dense":
    values = values[mask]
    at_most = math.ceil(math.log2(mask.size))
    if encoding == "bitmask":
      out["mask"] = pack_bits(mask, 1)
    else:
      out["indices"] = pack_bits(np.flatnonzero(mask), at_most)
  if name == "codes":
    bits = layer.w_bits
    if bits == 1:
      values = values > 0
    elif has_four_levels(layer):
      name, values = "odd_codes", values >> 1
    values = pack_bits(values, bits)
  out[name] = values
  return out


def _container(network: dict, tensors: dict[str, np.ndarray]) -> bytes:
  """A safetensors file; floats first, so that all are aligned."""
  meta = {
    "format": packed.WITH_SUMS if "sum_bits" in network else packed.FORMAT,
    "sha256": packed.BLANK.decode(),
    "network": json.dumps(network),
  }
  header: dict[str, Any] = {"__metadata__": meta}
  parts, end = [], 0
  order = sorted(tensors, key=lambda n: -tensors[n].dtype.itemsize)
  for name in order:
    array = np.ascontiguousarray(tensors[name])
    parts.append(array.tobytes())
    start, end = end, end + len(parts[-1])
    header[name] = {
      "dtype": _NAMES[array.dtype.newbyteorder("<").str.lstrip("|")],
      "shape": tensors[name].shape,
      "data_offsets": [start, end],
    }
  head = json.dumps(header, separators=(",", ":")).encode()
  head += b" " * (-len(head) % 8)
  body = b"".join(parts)
  digest = hashlib.sha256(head + body).hexdigest()
  head = head.replace(packed.BLANK, digest.encode(), 1)
  return struct.pack("<Q", len(head)) + head + body


def bytes_of_data(data: bytes) -> int:
  """Counts the bytes of a packed file without its header."""
  return len(data) - 8 - struct.unpack("<Q", data[:8])[0]
