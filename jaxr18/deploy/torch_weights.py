"""PyTorch's weights of the usual CIFAR ResNets as a `Network`.

The names are those of kuangliu/pytorch-cifar: conv1, bn1, layer1.0.conv1,
layer1.0.bn1, layer1.0.shortcut.0 and .1, linear; or torchvision's, which has
downsample for shortcut and fc for linear. A convolution that is factorized is
a Sequential there: layer1.0.conv1.0 (depthwise) and .1 (pointwise).

Shapes do not tell all. Strides are taken to be the usual ones, a 3x3 stem is
taken to have no pooling behind it and a block to be conv, norm, ReLU, and
images to be normalized as here: many repositories divide by a wrong standard
deviation of CIFAR-10, (0.2023, 0.1994, 0.2010). Whether all of that is so, the
accuracy that the weights are known for tells:

    python -m jaxr18.deploy.torch_weights FILE --images=test.npz \\
      --accuracy=0.9502

test.npz holds `test_images`, uint8 [n, size, size, channels], and
`test_labels`, as jaxr18/deploy/packed.py takes them.
"""

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.data.augment import normalize
from jaxr18.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from jaxr18.deploy import packed, saved
from jaxr18.deploy.state_dict import (
  SHOWN,
  WeightsError,
  canonical,
  listed,
  read,
)
from jaxr18.host.inputs import check_file
from jaxr18.nn import network
from jaxr18.nn.network import Network
from jaxr18.nn.spec import BOUNDS, BlockSpec, ConvSpec, HeadSpec, NetSpec, check

_LEAVES = {
  ("bn", "scale"): "weight",
  ("bn", "bias"): "bias",
  ("bn", "mean"): "running_mean",
  ("bn", "var"): "running_var",
  ("conv", "kernel"): "weight",
  ("head", "kernel"): "weight",
  ("head", "bias"): "bias",
}

# What a file of one network is known by.
SUFFIXES = (
  ".pt", ".pth", ".th", ".pth.tar", ".ckpt", ".bin", ".safetensors",
  saved.SUFFIX, ".onnx",
)  # fmt: skip


def is_name(source: str | os.PathLike) -> bool:
  """Returns whether a source names a file of one network."""
  source = os.path.expanduser(source)
  return source.endswith(SUFFIXES) and not os.path.isdir(source)


def load(path: str | os.PathLike, spec: NetSpec | None = None) -> Network:
  """Reads a network from a file, without running any code in it.

  Files of torch.save and of safetensors hold PyTorch's weights; those of
  `saved.to_bytes` and packed ones are our own, and `from_onnx` says which ONNX
  files serve.

  Args:
    path: of a state_dict, or of a dict that holds one under 'net',
      'state_dict', 'model' or another name. Whatever else is in there, such
      as settings, is not looked at.
    spec: what the network is; None derives it as `derive_spec` does.

  Returns:
    The network in float32, with the masks of `torch.nn.utils.prune`.

  Raises:
    WeightsError: PyTorch is not installed, the file cannot be read or holds
      more than tensors and plain values, or the weights do not fit.
  """
  path = os.fspath(path)
  try:
    if path.endswith(saved.SUFFIX):
      return saved.load(path)
    check_file(path)
    if path.endswith(".onnx"):
      return _from_onnx(path)
    if _is_packed(path):
      return saved.unpack(path)
    loaded = read(path)
  except OSError as e:
    raise WeightsError(f"cannot read {path}: {e.strerror or e}") from e
  except (saved.SavedError, packed.PackedError) as e:
    raise WeightsError(str(e)) from e
  try:
    if spec is None:
      spec = derive_spec(loaded)
    return from_state_dict(loaded, spec)
  except WeightsError as e:
    raise WeightsError(f"{path}: {e}") from e


def _from_onnx(path: str) -> Network:
  try:
    from jaxr18.deploy import from_onnx
  except ImportError as e:
    raise WeightsError(
      f"reading {path} needs ONNX ({e}); pip install 'jaxr18[onnx]'"
    ) from e
  return from_onnx.load(path)


def _is_packed(path: str) -> bool:
  """Whether a safetensors file is a packed network of ours."""
  if not path.endswith(".safetensors"):
    return False
  with open(path, "rb") as f:
    head = f.read(1 << 16)
  return packed.FORMAT.encode() in head


def from_state_dict(state_dict: Mapping[str, Any], spec: NetSpec) -> Network:
  """Makes a network with the weights of a PyTorch one.

  Args:
    state_dict: names to arrays (NumPy's, or anything that it can read, such
      as tensors); may be nested as in `load`, and have a prefix that all names
      share. Convolutions are OIHW, linear is [classes, features]. Counters
      such as num_batches_tracked are ignored; NAME_orig with NAME_mask, as
      `torch.nn.utils.prune` leaves them, are a tensor with its mask.
    spec: what the network is. Bounds of quantized inputs start at 1, as in
      `network.init`; `network.calibrate` sets them.

  Returns:
    The network in float32.

  Raises:
    WeightsError: names the tensors that are missing, not expected, or of a
      shape that is not the spec's.
  """
  tensors, pruned, given, there = canonical(state_dict)
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
    elif not np.isfinite(array).all():
      problems.append(f"{given[name]} has numbers that are NaN or infinite")
    return jnp.asarray(array, leaf.dtype)

  params, batch_stats = (
    jax.tree_util.tree_map_with_path(take, tree)
    for tree in (net.params, net.batch_stats)
  )
  problems += [f"{given[n]} is not expected" for n in tensors if n not in used]
  if problems:
    more = len(problems) - SHOWN
    raise WeightsError(
      f"the weights do not fit the network in {len(problems)} places: "
      + "; ".join(problems[:SHOWN])
      + (f"; and {more} more" if more > 0 else "")
      + ("" if used else f"; {listed(there)}")
      + "; give the weights of this network, or the spec of theirs"
    )

  def mask(path, leaf):
    path = [p.key for p in path]
    name = "" if path[-1] in BOUNDS else _torch_name(path, spec)
    if name not in pruned:
      return jnp.array(True)
    return jnp.asarray(_to_ours(pruned[name]))

  masks = jax.tree_util.tree_map_with_path(mask, params)
  return Network(params, batch_stats, masks, spec)


def derive_spec(state_dict: Mapping[str, Any], resolution: int = 32) -> NetSpec:
  """Derives the network that a state_dict's names and shapes describe.

  Shapes tell everything but the strides, which are the usual ones: 2 in the
  first block of every stage but the first.

  Raises:
    WeightsError: a tensor that every network has is missing, a shortcut has
      no weights where the block changes its input's shape, or the stem is
      ImageNet's (7x7, then a pooling that no `NetSpec` has).
  """
  weights = canonical(state_dict)
  shapes = {name: np.shape(x) for name, x in weights.tensors.items()}

  def shape(name, ndim):
    if name not in shapes:
      raise WeightsError(
        f"no network can be derived: {name} is missing; {listed(weights.there)}"
      )
    if len(shapes[name]) != ndim:
      raise WeightsError(
        f"no network can be derived: {name} is {list(shapes[name])}, expected"
        f" {ndim} axes"
      )
    return shapes[name]

  def conv(name, in_features, stride=1) -> ConvSpec:
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
  stages = _derived_stages(shapes, conv, stem.features)
  if not stages:
    raise WeightsError(
      "no network can be derived: layer1.0.bn1 is missing;"
      f" {listed(weights.there)}"
    )
  head = HeadSpec(shape("linear.weight", 2)[0])
  derived = NetSpec(stem, stages, head, resolution, channels)
  try:
    check(derived)
  except ValueError as e:
    raise WeightsError(f"no network can be derived: {e}") from e
  return derived


def _derived_stages(
  shapes: Mapping[str, tuple[int, ...]],
  conv: Callable[..., ConvSpec],
  features: int,
) -> tuple[tuple[BlockSpec, ...], ...]:
  """Derives the blocks that there are weights of.

  Args:
    shapes: of all tensors, by name.
    conv: derives a convolution from its name, inputs and stride.
    features: of the stem.
  """
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
  return tuple(stages)


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
    i, j = re.findall(r"\d+", layer[0])  # of stage1_block2
    inner = {"proj": "shortcut.0", "proj_bn": "shortcut.1"}
    names = [f"layer{i}", str(int(j) - 1), inner.get(layer[1], layer[1])]
    parts = layer[2:]
  if parts:  # of a factorized convolution, in their order
    of_unit = [n.path for n in spec.layers() if n.unit == "/".join(layer[:-1])]
    names.append(str(of_unit.index("/".join(layer))))
  return ".".join([*names, leaf])


def _to_ours(array: np.ndarray) -> np.ndarray:
  """OIHW -> HWIO, [out, in] -> [in, out]."""
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  if len(shape) != 4:
    return shape[::-1]
  height, width, inputs, features = shape
  return features, inputs, height, width


def main(argv=None) -> int:
  """Tests a file's weights, and says whether they are what is expected."""
  parser = argparse.ArgumentParser(
    prog="python -m jaxr18.deploy.torch_weights",
    description="Tests PyTorch's weights as a network of jaxr18.",
  )
  parser.add_argument("file", help="of a state_dict")
  parser.add_argument("--images", required=True, help="an .npz, see packed.py")
  parser.add_argument(
    "--accuracy",
    type=float,
    help="the share of right answers that the weights are known for",
  )
  for name, default in (("mean", CIFAR10_MEAN), ("std", CIFAR10_STD)):
    parser.add_argument(
      f"--{name}",
      type=lambda text: tuple(map(float, text.split(","))),
      default=default,
      help=f"of each channel in units of 0..1 (default: {default})",
    )
  args = parser.parse_args(argv)
  try:
    if not np.all(np.isfinite(args.mean)) or not np.all(np.array(args.std) > 0):
      raise ValueError(
        f"--mean={args.mean} must be finite and --std={args.std} above 0; take"
        " the values that the weights were trained with"
      )
    net = load(args.file)
    first, *_, last = net.spec.layers()
    images, labels = packed.read_test(
      args.images,
      {
        "units": {
          "stem": [{"kernel_shape": first.kernel_shape, "groups": 1}],
          "head": [{"kernel_shape": last.kernel_shape}],
        }
      },
    )
    how = args.mean, args.std, net.spec.resolution
    run = jax.jit(lambda net, x: network.forward(net, normalize(x, *how)))
    run = functools.partial(run, net)
    correct = packed.right_answers(run, images, labels)
  except (WeightsError, OSError, ValueError) as e:
    print(f"Error: {e}", file=sys.stderr)
    return 1
  accuracy = correct / len(labels)
  widths = [stage[0].conv2.features for stage in net.spec.stages]
  print(f"widths {widths}, blocks {[len(s) for s in net.spec.stages]}")
  print(f"accuracy {accuracy:.2%} ({correct} of {len(labels)})")
  # Two programs may answer one image in a thousand differently.
  if args.accuracy is not None and accuracy < args.accuracy - 1e-3:
    print(
      f"Error: expected {args.accuracy:.2%}. What shapes do not tell may be"
      " otherwise there: strides, a pooling behind the stem, the order of norm,"
      " ReLU and convolution, or --mean and --std",
      file=sys.stderr,
    )
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
