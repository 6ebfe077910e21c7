"""PyTorch's weights of the usual CIFAR ResNets as a `Network`.

The names are those of kuangliu/pytorch-cifar: conv1, bn1, layer1.0.conv1,
layer1.0.bn1, layer1.0.shortcut.0 and .1, linear; or torchvision's, which has
downsample for shortcut and fc for linear. A convolution that is factorized is
a Sequential there: layer1.0.conv1.0 (depthwise) and .1 (pointwise).

The network sees what its images are normalized by: many repositories divide
by a wrong standard deviation of CIFAR-10, (0.2023, 0.1994, 0.2010), which
costs such a network some accuracy where images are normalized by the right one.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18 import network
from jaxr18.network import Network
from jaxr18.spec import BOUNDS, BlockSpec, ConvSpec, HeadSpec, NetSpec, check

# Where training scripts keep the state_dict in what they save.
_NESTED = ("net", "state_dict", "model", "model_state_dict")
# DataParallel and torch.compile put these before every name.
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
_LEAVES = {
  ("bn", "scale"): "weight",
  ("bn", "bias"): "bias",
  ("bn", "mean"): "running_mean",
  ("bn", "var"): "running_var",
  ("conv", "kernel"): "weight",
  ("head", "kernel"): "weight",
  ("head", "bias"): "bias",
}
_SHOWN = 6  # names in an error


SUFFIXES = (".pt", ".pth")  # what a file of PyTorch's is known by


class WeightsError(ValueError):
  """The weights are not those of the network."""


def load(path: str | os.PathLike, spec: NetSpec | None = None) -> Network:
  """Reads a file that torch.save wrote, without running code from it.

  Args:
    path: of a state_dict, or of a dict that holds one under 'net',
      'state_dict', 'model' or 'model_state_dict'.
    spec: what the network is; None derives it as `derive_spec` does.

  Returns:
    The network in float32, nothing pruned.

  Raises:
    WeightsError: PyTorch is not installed, the file cannot be read or holds
      more than tensors and plain values, or the weights do not fit.
  """
  try:
    import torch
  except ImportError as e:
    raise WeightsError(
      f"reading {path} needs PyTorch; pip install 'jaxr18[torch]'"
    ) from e
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
  except OSError as e:
    raise WeightsError(f"cannot read {path}: {e.strerror or e}") from e
  except Exception as e:  # of many types, pickle's and zip's among them
    first = str(e).partition("\n")[0]
    raise WeightsError(
      f"{path} does not hold weights alone: {first} Save model.state_dict(),"
      " and not the model, with torch.save"
    ) from e
  try:
    if spec is None:
      spec = derive_spec(loaded)
    return from_state_dict(loaded, spec)
  except WeightsError as e:
    raise WeightsError(f"{path}: {e}") from e


def from_state_dict(state_dict: Mapping[str, Any], spec: NetSpec) -> Network:
  """A network with the weights of a PyTorch one.

  Args:
    state_dict: names to arrays (NumPy's, or anything that it can read, such
      as tensors); may be nested and prefixed as in `load`. Convolutions are
      OIHW, linear is [classes, features]; num_batches_tracked is ignored.
    spec: what the network is. Bounds of quantized inputs start at 1, as in
      `network.init`; `network.calibrate` sets them.

  Returns:
    The network in float32, nothing pruned.

  Raises:
    WeightsError: names the tensors that are missing, not expected, or of a
      shape that is not the spec's.
  """
  tensors, given = _canonical(state_dict)
  net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
  problems, used = [], set()

  def take(path, leaf):
    path = [p.key for p in path]
    if path[-1] in BOUNDS:
      return jnp.ones(leaf.shape, leaf.dtype)
    name = _torch_name(path, spec)
    if name not in tensors:
      problems.append(f"{name} is missing")
      return None
    used.add(name)
    array = _to_ours(tensors[name])
    if array.shape != leaf.shape:
      problems.append(
        f"{given[name]} is {list(np.shape(tensors[name]))}, expected"
        f" {list(_torch_shape(leaf.shape))}"
      )
    return jnp.asarray(array, leaf.dtype)

  params, batch_stats = (
    jax.tree_util.tree_map_with_path(take, tree)
    for tree in (net.params, net.batch_stats)
  )
  problems += [f"{given[n]} is not expected" for n in tensors if n not in used]
  if problems:
    more = len(problems) - _SHOWN
    raise WeightsError(
      f"the weights do not fit the network in {len(problems)} places: "
      + "; ".join(problems[:_SHOWN])
      + (f"; and {more} more" if more > 0 else "")
      + "; give the weights of this network, or the spec of theirs"
    )
  masks = jax.tree.map(lambda _: jnp.array(True), params)
  return Network(params, batch_stats, masks, spec)


def derive_spec(state_dict: Mapping[str, Any], resolution: int = 32) -> NetSpec:
  """The network that a state_dict's names and shapes describe, unquantized.

  Shapes tell everything but the strides, which are the usual ones: 2 in the
  first block of every stage but the first.

  Raises:
    WeightsError: a tensor that every network has is missing, a shortcut has
      no weights where the block changes its input's shape, or the stem is
      ImageNet's (7x7, then a pooling that no `NetSpec` has).
  """
  tensors, _ = _canonical(state_dict)
  shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}

  def shape(name, ndim):
    if name not in shapes:
      raise WeightsError(f"no network can be derived: {name} is missing")
    if len(shapes[name]) != ndim:
      raise WeightsError(
        f"no network can be derived: {name} is {list(shapes[name])}, expected"
        f" {ndim} axes"
      )
    return shapes[name]

  def conv(name, in_features, stride=1):
    if f"{name}.weight" not in shapes and f"{name}.1.weight" in shapes:
      kernel = shape(f"{name}.0.weight", 4)[2]
      features = shape(f"{name}.1.weight", 4)[0]
      return ConvSpec(features, kernel, stride, depthwise=True)
    features, inputs, kernel, _ = shape(f"{name}.weight", 4)
    groups = in_features // max(1, inputs)
    return ConvSpec(features, kernel, stride, groups)

  channels = shape("conv1.weight", 4)[1]
  stem = conv("conv1", channels)
  if stem.kernel == 7:
    raise WeightsError(
      "conv1.weight is 7x7: ImageNet's stem has a pooling behind it, which is"
      " not built here; train with the stem for CIFAR, 3x3 at stride 1"
    )
  features = stem.features
  stages = []
  while f"layer{len(stages) + 1}.0.bn1.weight" in shapes:
    i = len(stages) + 1
    stage = []
    while f"layer{i}.{len(stage)}.bn1.weight" in shapes:
      name = f"layer{i}.{len(stage)}"
      stride = 2 if i > 1 and not stage else 1
      conv1 = conv(f"{name}.conv1", features, stride)
      conv2 = conv(f"{name}.conv2", conv1.features)
      proj = None
      if f"{name}.shortcut.0.weight" in shapes:
        proj = conv(f"{name}.shortcut.0", features, stride)
      elif stride != 1 or conv2.features != features:
        raise WeightsError(
          f"{name}.shortcut.0.weight is missing, and the block goes from"
          f" {features} to {conv2.features} features at stride {stride}: a"
          " shortcut without weights (the paper's option A) is not built here"
        )
      stage.append(BlockSpec(conv1, conv2, proj))
      features = conv2.features
    stages.append(tuple(stage))
  if not stages:
    raise WeightsError("no network can be derived: layer1.0.bn1 is missing")
  head = HeadSpec(shape("linear.weight", 2)[0])
  derived = NetSpec(stem, tuple(stages), head, resolution, channels)
  try:
    check(derived)
  except ValueError as e:
    raise WeightsError(f"no network can be derived: {e}") from e
  return derived


def _canonical(state_dict) -> tuple[dict[str, Any], dict[str, str]]:
  """Tensors by kuangliu's names, and the names as they were given."""
  for name in _NESTED:
    if isinstance(state_dict, Mapping) and isinstance(
      state_dict.get(name), Mapping
    ):
      state_dict = state_dict[name]
  if not isinstance(state_dict, Mapping):
    raise WeightsError(
      f"expected names with their arrays, got a {type(state_dict).__name__};"
      " save model.state_dict() and not the model"
    )
  tensors, given = {}, {}
  for original, tensor in state_dict.items():
    name = _PREFIX.sub("", str(original))
    name = name.replace(".downsample.", ".shortcut.")
    name = re.sub(r"^fc\.", "linear.", name)
    if name.endswith("num_batches_tracked"):
      continue
    if name in tensors:
      raise WeightsError(f"{given[name]} and {original} are the same tensor")
    tensors[name], given[name] = _to_numpy(tensor), str(original)
  return tensors, given


def _torch_name(path: list[str], spec: NetSpec) -> str:
  """(stage1_block2, conv1, kernel) -> layer1.1.conv1.weight."""
  *layer, leaf = path
  if layer == ["head"]:
    return f"linear.{_LEAVES['head', leaf]}"
  kind = "bn" if layer[-1] in ("stem_bn", "bn1", "bn2", "proj_bn") else "conv"
  leaf = _LEAVES[kind, leaf]
  if layer[0] in ("stem", "stem_bn"):
    names = ["conv1" if kind == "conv" else "bn1"]
    parts = layer[1:]
  else:
    i, j = re.fullmatch(r"stage(\d+)_block(\d+)", layer[0]).groups()
    inner = {"proj": "shortcut.0", "proj_bn": "shortcut.1"}
    names = [f"layer{i}", str(int(j) - 1), inner.get(layer[1], layer[1])]
    parts = layer[2:]
  if parts:  # of a factorized convolution, in their order
    of_unit = [n.path for n in spec.layers() if n.unit == "/".join(layer[:-1])]
    names.append(str(of_unit.index("/".join(layer))))
  return ".".join([*names, leaf])


def _to_numpy(tensor: Any) -> np.ndarray:
  if hasattr(tensor, "detach"):  # a tensor: maybe a Parameter, maybe bfloat16
    tensor = tensor.detach().cpu().float().numpy()
  return np.asarray(tensor)


def _to_ours(array: np.ndarray) -> np.ndarray:
  """OIHW -> HWIO, [out, in] -> [in, out]."""
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  if len(shape) != 4:
    return shape[::-1]
  height, width, inputs, features = shape
  return features, inputs, height, width
