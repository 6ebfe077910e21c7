"""One network in one file: saved as it is trained on, or unpacked.

`to_bytes` and `load` keep every number of a network. `unpack` makes a network
of a packed file, which holds only what evaluation needs. `unfold` does that:
batch norm comes back with a mean of 0 and a variance of 1. What trains on needs
`network.unfold_batch_norm` first; a run that starts from such a file has it
done.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxr18.deploy import packed
from jaxr18.host.digest import digest
from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import read_bytes
from jaxr18.nn import network
from jaxr18.nn.network import Network
from jaxr18.nn.resnet import BATCH_NORM_EPSILON
from jaxr18.nn.spec import (
  FLOAT_BITS,
  HALF_BITS,
  LEARNED_BITS,
  Layer,
  NetSpec,
  batch_norm_of,
  has_four_levels,
)

SUFFIX = ".npz"
FORMAT = "jaxr18 network 1"
_TREES = ("params", "batch_stats", "masks")


class SavedError(ToldError, ValueError):
  """A file that holds no network."""


def to_bytes(net: Network) -> bytes:
  """Writes a network's numbers, masks and spec as an .npz file.

  Raises:
    ValueError: stacked networks.
  """
  if (count := network.members(net)) is not None:
    raise ValueError(
      f"{count} networks are stacked here, and one can be saved:"
      " ensemble.unstack gives them"
    )
  arrays: dict[str, Any] = {
    f"{tree}/{path}": np.asarray(leaf)
    for tree in _TREES
    for path, leaf in _flat(jax.device_get(getattr(net, tree))).items()
  }
  meta = {"format": FORMAT, "spec": net.spec.to_json(), "hash": digest(arrays)}
  out = io.BytesIO()
  np.savez(out, meta=np.array(json.dumps(meta)), **arrays)
  return out.getvalue()


def load(path: str | os.PathLike) -> Network:
  """Loads the network that `to_bytes` wrote to a file.

  Raises:
    SavedError: it cannot be read, is damaged, or is no such file.
  """
  try:
    with np.load(io.BytesIO(read_bytes(path))) as file:
      arrays = dict(file)
    meta = json.loads(arrays.pop("meta").item())
    if meta["format"] != FORMAT:
      raise ValueError(f"its format is {meta['format']!r}, expected {FORMAT!r}")
    if meta["hash"] != digest(arrays):
      raise ValueError("its arrays are not what was written")
    spec = NetSpec.from_json(meta["spec"])
    return _network(spec, arrays)
  except OSError as e:
    raise SavedError(f"cannot read {path}: {e.strerror or e}") from e
  except (
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    zipfile.BadZipFile,
    EOFError,
  ) as e:
    raise SavedError(
      f"{path} is damaged or no saved network ({e!r}); save it again"
    ) from e


def _network(spec: NetSpec, arrays: dict[str, np.ndarray]) -> Network:
  """Puts arrays into the trees of a network; each must fit the spec."""
  expected = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  shapes = _flat(expected.params)
  trees: dict[str, dict] = {tree: {} for tree in _TREES}
  for tree in _TREES:
    for path, leaf in _flat(getattr(expected, tree)).items():
      array = arrays[f"{tree}/{path}"]
      whole = array.shape == leaf.shape  # a mask may also be its kernel's shape
      whole |= tree == "masks" and array.shape == shapes[path].shape
      if not whole or array.dtype != leaf.dtype:
        raise ValueError(
          f"{tree}/{path} is {array.dtype}{list(array.shape)}, expected"
          f" {leaf.dtype}{list(leaf.shape)}"
        )
      trees[tree][path] = jnp.asarray(array)
  nested = {
    k: traverse_util.unflatten_dict(v, sep="/") for k, v in trees.items()
  }
  return Network(**nested, spec=spec)


def unpack(path: str | os.PathLike) -> Network:
  """Makes a network that trains on from a packed file.

  Weights that were stored as removed are masked.

  Raises:
    packed.PackedError: as `packed.read`.
  """
  described, arrays = packed.read(path)
  try:
    return unfold(*_folded(described, arrays))
  except (ValueError, LookupError, TypeError, AttributeError) as e:
    raise packed.PackedError(
      f"{path} holds no network that trains on: {e!r}; export it again"
    ) from e


def _folded(described: dict, arrays: dict) -> tuple[NetSpec, dict, dict]:
  """What `unfold` takes, from what `packed.read` gives."""
  folded: dict[str, dict[str, Any]] = {}
  for name, array in arrays.items():
    where, _, what = name.rpartition(".")
    folded.setdefault(where, {})[what] = array
  kept = {}
  for entry in (x for xs in described["units"].values() for x in xs):
    kernel = packed.kernel(entry, arrays)
    integers = entry["w_bits"] < HALF_BITS
    folded[entry["path"]]["codes" if integers else "kernel"] = kernel
    mask = np.zeros(kernel.size, bool)
    mask[packed.kept(entry, arrays)] = True
    kept[entry["path"]] = mask
  spec = NetSpec.from_json(json.dumps(described["spec"]))
  return spec, folded, kept


def unfold(
  spec: NetSpec, folded: dict[str, Any], kept: dict[str, np.ndarray]
) -> Network:
  """Makes a network that trains on of what evaluation needs of one.

  Kernels of 2 to 7 bits get a learned bound for each output channel
  (`w_scales="learned_channel"`), since it alone says where their grid ended.
  Kernels of 8 bits find their grid anew, so their codes may differ: by at most
  half of a step. Kept zeros of a learned grid come back just beside it (a
  thousandth of a step): the grid's end is in root mean squares of what is not
  0, and would jump when the first step of training moves them.

  Args:
    spec: of the network.
    folded: as `fold` returns it; arrays of any shape with the same elements.
    kept: by layer path, False where a weight is masked; of any shape too.
  """
  spec = _trainable(spec)
  net = network.init(jax.random.key(0), spec)
  params, stats, masks = (
    _flat(tree) for tree in (net.params, net.batch_stats, net.masks)
  )
  for layer in spec.layers():
    shape = params[f"{layer.path}/kernel"].shape
    mask = kept[layer.path].reshape(shape)
    masks[f"{layer.path}/kernel"] = jnp.asarray(mask)
    params |= _numbers(layer, folded[layer.path], mask)
    if (norm := batch_norm_of(layer)) is not None:
      one = jnp.ones(layer.features)
      stats[f"{norm}/mean"] = 0 * one
      stats[f"{norm}/var"] = (1 - BATCH_NORM_EPSILON) * one
  if spec.sum_bits != FLOAT_BITS:
    for name, _ in spec.blocks():
      bound = jnp.asarray(folded[name]["sum_bound"])
      params[f"{name}/sum_bound"] = bound
  trees = (traverse_util.unflatten_dict(t, sep="/")
           for t in (params, stats, masks))  # fmt: skip
  return Network(**dict(zip(_TREES, trees, strict=True)), spec=spec)


def _trainable(spec: NetSpec) -> NetSpec:
  """The spec with learned bounds where kernels have 2 to 7 bits."""

  def learned(unit: Any) -> Any:
    if unit is None or unit.w_bits not in LEARNED_BITS:
      return unit
    return dataclasses.replace(unit, w_scales="learned_channel")

  block = lambda b: dataclasses.replace(
    b, **{f: learned(conv) for f, conv in vars(b).items()}
  )
  return dataclasses.replace(
    spec,
    stem=learned(spec.stem),
    head=learned(spec.head),
    stages=tuple(tuple(map(block, stage)) for stage in spec.stages),
  )


def _numbers(
  layer: Layer, numbers: dict[str, Any], kept: np.ndarray
) -> dict[str, Any]:
  """A layer's parameters by path, from what `fold` found of it."""
  path, norm, out = layer.path, batch_norm_of(layer), {}
  kernel = numbers["codes" if layer.w_bits < HALF_BITS else "kernel"]
  kernel = kernel.reshape(kept.shape)
  scale = numbers.get("scale", np.ones(layer.features, np.float32))
  if layer.w_bits < HALF_BITS:
    # A batch norm whose scale was negative turned the stored scale's sign.
    sign = np.where(scale < 0, -1, 1).astype(np.float32)
    steps = np.where(scale == 0, 1, np.abs(scale))
    if layer.w_bits in LEARNED_BITS:
      kernel = _beside_zero(kernel, kept)
      out[f"{path}/kernel_bound"] = jnp.asarray(_bound(layer, kernel))
    kernel, scale = kernel * steps, np.where(scale == 0, 0, sign)
  out[f"{path}/kernel"] = jnp.asarray(kernel, jnp.float32)
  if "input_bound" in numbers:
    out[f"{path}/input_bound"] = jnp.asarray(numbers["input_bound"])
  bias = numbers.get("bias")
  if norm is not None:
    out[f"{norm}/scale"] = jnp.asarray(scale, jnp.float32)
    out[f"{norm}/bias"] = jnp.asarray(bias)
  elif bias is not None:
    out[f"{path}/bias"] = jnp.asarray(bias)
  return out


def _beside_zero(codes: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """The codes, with those that are 0 and kept moved off it, in turns."""
  signs = 1 - 2 * (np.arange(codes.size).reshape(codes.shape) % 2)
  return np.where((codes == 0) & kept, 1e-3 * signs, codes)


def is_folded(net: Network) -> bool:
  """Whether a network's batch norm is as `unpack` leaves it."""
  stats = _flat(jax.device_get(net.batch_stats))
  folded = {"mean": np.float32(0), "var": np.float32(1 - BATCH_NORM_EPSILON)}
  return all(
    np.all(leaf == folded[path.rpartition("/")[2]])
    for path, leaf in stats.items()
  )


def _bound(layer: Layer, codes: np.ndarray) -> np.ndarray:
  """Where each channel's grid ends, in root mean squares of its weights."""
  axes = tuple(range(codes.ndim - 1))
  count = np.maximum((codes != 0).sum(axes), 1)
  size = np.sqrt((codes.astype(np.float64) ** 2).sum(axes) / count)
  last = 3 if has_four_levels(layer) else 2 ** (layer.w_bits - 1) - 1
  return (last / np.where(size == 0, 1, size)).astype(np.float32)


def _flat(tree) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")
