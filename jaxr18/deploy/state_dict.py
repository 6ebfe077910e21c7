"""Files of weights from PyTorch: a state_dict, whatever stands around it.

Nothing here knows a network's layers, but for the names that begin without a
prefix.
"""

import collections
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from numpy._core import multiarray

from jaxr18.host.errors import ToldError

# Where training scripts keep the state_dict in what they save; of several the
# first is taken.
_NESTED = (
  "net", "state_dict", "model", "model_state_dict", "model_state", "weights",
  "params", "network", "student", "module", "state_dict_ema", "model_ema",
  "ema",
)  # fmt: skip
# DataParallel and torch.compile put these before names and into them.
_WRAPPERS = re.compile(r"(^|\.)((module|_orig_mod)\.)+")
# Names without a prefix begin so.
_FIRST = re.compile(r"(conv1|bn1|layer\d+|linear|fc)\.")
# What others count beside the weights: batches, averages, thop's operations.
_COUNTERS = (
  "num_batches_tracked", "n_averaged", "total_ops", "total_params",
)  # fmt: skip
SHOWN = 6  # names in an error
_SAFETENSORS = {
  "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8",
  "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


class WeightsError(ToldError, ValueError):
  """The weights are not those of the network."""


class Weights(NamedTuple):
  """Tensors by kuangliu's names.

  Attributes:
    tensors: float arrays.
    masks: bool arrays of those that `torch.nn.utils.prune` has pruned.
    given: the names as they were given.
    there: all names that were given, whatever they name.
  """

  tensors: dict[str, np.ndarray]
  masks: dict[str, np.ndarray]
  given: dict[str, str]
  there: list[str]


def read(path: str) -> Any:
  """Reads a state_dict, or a dict around one, and runs no code of the file.

  Args:
    path: of torch.save's or of safetensors' file.

  Raises:
    WeightsError: PyTorch is not installed, or the file holds more than tensors
      and plain values.
  """
  if path.endswith(".safetensors"):
    return _read_safetensors(path)
  return _read_torch(path)


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
  with open(path, "rb") as f:
    data = f.read()
  end = 8 + int.from_bytes(data[:8], "little")
  try:
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {name: _of_safetensors(t, data, end) for name, t in header.items()}
  except (ValueError, LookupError, TypeError, AttributeError) as e:
    if isinstance(e, WeightsError):
      raise
    raise WeightsError(
      f"{path} is truncated, damaged or no safetensors file ({e!r}); save it"
      " again"
    ) from e


def _of_safetensors(entry: dict, data: bytes, start: int) -> np.ndarray:
  low, high = entry["data_offsets"]
  kind = entry["dtype"]
  if start + high > len(data):
    raise ValueError(f"{len(data)} bytes, expected {start + high}")
  array = np.frombuffer(data[start + low : start + high], _SAFETENSORS[kind])
  if kind == "BF16":  # the upper half of a float32
    array = (array.astype(np.uint32) << 16).view(np.float32)
  return array.reshape(entry["shape"])


def _read_torch(path: str) -> Any:
  """What torch.load gives, with `_Plain` for classes that it refuses."""
  try:
    import torch  # type: ignore[reportMissingImports]
  except ImportError as e:
    raise WeightsError(
      f"reading {path} needs PyTorch; pip install 'jaxr18[torch]'"
    ) from e
  known = _numpy_globals()
  while True:
    try:
      with torch.serialization.safe_globals(known):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
      break
    except OSError:
      raise
    except Exception as e:  # of many types, pickle's and zip's among them
      named = re.search(r"GLOBAL (\S+) was not an allowed global", str(e))
      names = {named[1], f"builtins.{named[1]}"} if named else set()
      if names - {name for _, name in known}:
        known += [(_Plain, name) for name in sorted(names)]
        continue
      first = str(e).partition("\n")[0]
      raise WeightsError(
        f"{path} does not hold weights alone: {first} Save model.state_dict(),"
        " and not the model, with torch.save"
      ) from e

  parts = (loaded, *loaded.values()) if isinstance(loaded, Mapping) else ()
  models = [x for x in parts if "_modules" in getattr(x, "__dict__", {})]
  if models and not _has_kernels(loaded):
    raise WeightsError(
      f"{path} does not hold weights alone but a model, whose code is not run."
      " Save model.state_dict(), and not the model, with torch.save"
    )
  return loaded


class _Plain:
  """In the place of a class beside the weights, none of whose code is run."""

  def __new__(cls, *args, **kwargs):
    del args, kwargs
    return collections.OrderedDict()  # takes whatever state and items follow


def _numpy_globals() -> list[tuple[Any, str]]:
  """NumPy's own arrays and scalars, by the names of its versions 1 and 2."""
  out = [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
  for name in ("_reconstruct", "scalar"):
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
      out.append((getattr(multiarray, name), f"{module}.{name}"))
  kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdSU"}
  return out + [(kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds]


def canonical(state_dict: Any) -> Weights:
  """Finds the tensors of a state_dict, by kuangliu's names.

  Raises:
    WeightsError: there is no network, or more than one.
  """
  found = _unwrapped(state_dict)
  named = {
    str(name): tensor
    for name, tensor in found.items()
    if len(_shape(tensor)) and not str(name).endswith(_COUNTERS)
  }  # fmt: skip
  given = {}
  for original, name in _without_prefix(list(named)).items():
    name = name.replace(".downsample.", ".shortcut.")
    name = re.sub(r"^fc\.", "linear.", name)
    if name in given:
      raise WeightsError(f"{given[name]} and {original} are the same tensor")
    given[name] = original
  _refuse_normed(given)
  arrays = {n: _to_numpy(named[given[n]], given[n]) for n in given}
  tensors = {n: x for n, x in arrays.items() if not n.endswith("_mask")}
  masks = {}
  for name in [n for n in arrays if n.endswith("_mask")]:
    whole = name.removesuffix("_mask")
    if f"{whole}_orig" not in tensors:
      raise WeightsError(f"{given[name]} is there without {whole}_orig")
    tensors[whole] = tensors.pop(f"{whole}_orig")
    given[whole] = given[f"{whole}_orig"]
    masks[whole] = arrays[name] != 0
    if masks[whole].shape != tensors[whole].shape:
      raise WeightsError(
        f"{given[name]} is {list(masks[whole].shape)}, expected"
        f" {list(tensors[whole].shape)}"
      )
  return Weights(tensors, masks, given, [str(name) for name in found])


def _unwrapped(found: Any) -> Mapping:
  """The innermost mapping of names to kernels."""
  while True:
    if not isinstance(found, Mapping):
      raise WeightsError(
        f"expected names with their arrays, got a {type(found).__name__};"
        " save model.state_dict() and not the model"
      )
    if any(len(_shape(x)) == 4 for x in found.values()):
      return found
    inner = [name for name, x in found.items() if _has_kernels(x)]
    if not inner:
      return found
    usual = [name for name in _NESTED if name in inner]
    if len(inner) > 1 and not usual:
      raise WeightsError(
        f"there are several networks, {', '.join(map(str, inner))}; save the"
        " state_dict of one"
      )
    chosen = (usual or inner)[0]
    if len(inner) > 1:
      others = ", ".join(str(name) for name in inner if name != chosen)
      logging.warning(
        "Of the weights in %r those in %s are not read; save them alone to"
        " read them", chosen, others,
      )  # fmt: skip
    found = found[chosen]


def _has_kernels(x: Any) -> bool:
  return isinstance(x, Mapping) and any(
    isinstance(name, str) and (len(_shape(v)) == 4 or _has_kernels(v))
    for name, v in x.items()
  )


def _shape(x: Any) -> tuple[int, ...]:
  """A tensor's; () of plain values, which have none."""
  return tuple(getattr(x, "shape", ()))


def _without_prefix(names: list[str]) -> dict[str, str]:
  """Names by what was given, without wrappers and a prefix that all share."""
  short = {name: _WRAPPERS.sub(r"\1", name) for name in names}
  while short:
    first = next(iter(short.values())).partition(".")[0] + "."
    if _FIRST.fullmatch(first) or not all(
      name.startswith(first) for name in short.values()
    ):
      break
    short = {k: name.removeprefix(first) for k, name in short.items()}
  return short


def _refuse_normed(given: Mapping[str, str]) -> None:
  """Raises where a weight is the result of others, which are what is stored."""
  for name, original in given.items():
    normed = name.endswith((".weight_g", ".weight_v"))
    if normed or ".parametrizations." in name:
      raise WeightsError(
        f"{original} is of a weight_norm or another parametrization: call"
        " torch.nn.utils.remove_weight_norm or"
        " torch.nn.utils.parametrize.remove_parametrizations before saving"
      )


def listed(names: list[str]) -> str:
  """Lists some of the names that are there, for an error."""
  if not names:
    return "it holds no names"
  more = len(names) - SHOWN
  shown = ", ".join(name[:40] for name in names[:SHOWN])
  return f"there are {shown}" + (f" and {more} more" if more > 0 else "")


def _to_numpy(tensor: Any, name: str) -> np.ndarray:
  if hasattr(tensor, "detach"):  # a tensor: maybe a Parameter, maybe bfloat16
    tensor = tensor.detach()
    if tensor.is_meta:
      raise WeightsError(
        f"{name} is a meta tensor, which has a shape and no numbers; load the"
        " weights before saving the state_dict"
      )
    if tensor.is_quantized:
      tensor = tensor.dequantize()
    elif str(tensor.layout) != "torch.strided":
      tensor = tensor.to_dense()
    counts = not tensor.is_floating_point()
    tensor = tensor.cpu().float().numpy()
  else:
    tensor = np.asarray(tensor)
    counts = tensor.dtype.kind not in "f"
  if counts and not name.endswith("_mask"):
    raise WeightsError(f"{name} holds no floats; save the float weights")
  return tensor
