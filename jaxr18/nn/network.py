"""A network is a pytree of arrays with its static description.

Every technique is a pure function `Network -> Network`, and they chain.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxr18.nn.resnet import (
  BATCH_NORM_EPSILON,
  BATCH_NORM_MOMENTUM,
  ResNet,
)
from jaxr18.nn.spec import NetSpec, check, has_four_levels


class Network(struct.PyTreeNode):
  """Arrays, and the spec that gives them meaning.

  Attributes:
    params: kernels, batch norm's scales and biases, bounds of quantized
      inputs, by layer path.
    batch_stats: batch norm's running means and variances.
    masks: bool, the tree of `params`; True keeps, a scalar True where nothing
      is pruned.
    spec: static; networks of different specs have different tree structures.
  """

  params: Any
  batch_stats: Any
  masks: Any
  spec: NetSpec = struct.field(pytree_node=False)

  def __repr__(self) -> str:
    layers = self.spec.layers()
    stages = "-".join(
      str(stage[-1].conv2.features) for stage in self.spec.stages
    )
    bits = "/".join(str(b) for b in sorted({x.w_bits for x in layers}))
    return (
      f"Network({stages} channels, {len(layers)} layers,"
      f" {sum(math.prod(x.kernel_shape) for x in layers):,} weights of"
      f" {bits} bits, {sum(x.macs for x in layers):,} MACs)"
    )

  def _repr_html_(self) -> str:
    """A table of the layers, for notebooks."""
    names = ("layer", "kernel", "groups", "weight bits", "input bits", "MACs")
    rows = [
      (x.path, "x".join(map(str, x.kernel_shape)), x.groups, x.w_bits,
       x.a_bits, f"{x.macs:,}")
      for x in self.spec.layers()
    ]  # fmt: skip
    cells = lambda kind, row: "".join(f"<{kind}>{c}</{kind}>" for c in row)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', names)}</tr>{body}</table>"


Transform = Callable[[Network], Network]


def chain(*transforms: Transform) -> Transform:
  """Composes transforms; the first one is applied first."""

  def chained(net: Network) -> Network:
    return functools.reduce(lambda n, t: t(n), transforms, net)

  return chained


def init(key: jax.Array, spec: NetSpec) -> Network:
  """Makes a network with He-normal kernels, nothing pruned, bounds of 1.

  Raises:
    ValueError: the spec is not a network (`spec.check`).
  """
  # Options of the compiler cannot be nested in another jit or eval_shape.
  run = _init if isinstance(key, jax.core.Tracer) else _compiled_init
  return run(key, spec)


def _init(key: jax.Array, spec: NetSpec) -> Network:
  check(spec)
  shape = (1, spec.resolution, spec.resolution, spec.channels)
  # Named, since of all collections the calibrations would be traced too.
  variables = ResNet(spec).init(
    key,
    jnp.zeros(shape, jnp.float32),
    mutable=["params", "batch_stats"],
  )
  params = variables["params"]
  masks = jax.tree.map(lambda _: jnp.array(True), params)
  return Network(params, variables["batch_stats"], masks, spec)


# It runs once: unoptimized, 13 layers take 1 s to compile and run, and 7 s
# otherwise, for the random numbers alone.
_compiled_init = jax.jit(
  _init,
  static_argnames="spec",
  compiler_options={"xla_backend_optimization_level": 0},
)


def kernels(tree: Any) -> dict[str, Any]:
  """Returns the kernels of a tree like `params`, by layer path, sorted."""
  leaves = sorted(_flat(tree).items())
  split = [(*path.rpartition("/"), leaf) for path, leaf in leaves]
  return {path: leaf for path, _, name, leaf in split if name == "kernel"}


def with_kernels(tree: Any, new: dict[str, Any]) -> Any:
  """Puts other kernels into a tree; layers that `new` lacks keep theirs."""
  return _merge(tree, {path: {"kernel": k} for path, k in new.items()})


def at(tree, path: str):
  """Returns the node of a tree at a layer's path."""
  for name in path.split("/"):
    tree = tree[name]
  return tree


def check_four_levels(net: Network) -> None:
  """Raises ValueError where a mask is on a kernel whose levels have no zero."""
  masked = [
    layer.path
    for layer in net.spec.layers()
    if has_four_levels(layer)
    and not np.all(at(net.masks, layer.path)["kernel"])
  ]
  if masked:
    raise ValueError(
      f"weights are masked in {', '.join(masked)}, whose four levels of 2 bits"
      " (-3, -1, 1, 3) have no zero: write two_bits='ternary', give these"
      " layers other bits, or leave them whole"
    )


def members(net: Network) -> int | None:
  """Counts the networks that are stacked; None for a single one."""
  bias = net.params["head"]["bias"]
  return bias.shape[0] if bias.ndim == 2 else None


def apply_masks(params: Any, masks: Any) -> Any:
  """Sets to 0 what a mask removes (by `where`, since nan * 0 is nan)."""
  return jax.tree.map(lambda p, m: jnp.where(over(m, p), p, 0), params, masks)


def over(mask: jax.Array, param: jax.Array) -> jax.Array:
  """Reshapes a mask so that it broadcasts over its parameter.

  A scalar mask of stacked networks is one bool a member, [members].
  """
  if 0 < jnp.ndim(mask) < jnp.ndim(param):
    return mask.reshape(mask.shape + (1,) * (param.ndim - mask.ndim))
  return mask


def forward(net: Network, images: jax.Array, dtype=jnp.float32) -> jax.Array:
  """Computes logits in evaluation.

  Args:
    net: the network; its masks are applied.
    images: [batch, resolution, resolution, channels], normalized.
    dtype: of activations and kernels in convolutions.

  Returns:
    [batch, classes], float32.
  """
  return _run(net, images.astype(dtype))


def forward_train(
  net: Network, images: jax.Array, dtype=jnp.float32
) -> tuple[jax.Array, Any]:
  """Computes logits in training, and moves the batch statistics."""
  logits, updated = _run(
    net, images.astype(dtype), train=True, mutable=["batch_stats"]
  )
  return logits, updated["batch_stats"]


def forward_stages(
  net: Network, images: jax.Array, dtype=jnp.float32, train: bool = False
) -> tuple[jax.Array, tuple[jax.Array, ...], Any]:
  """Computes logits and the output of each stage, for losses on features.

  Args:
    net, images, dtype: as in `forward`.
    train: batch norm uses the batch's statistics.

  Returns:
    ([batch, classes], a tuple of [batch, side, side, channels], the batch
    statistics, which `train` moves by this batch).
  """
  last = {}
  for name, _ in net.spec.blocks():
    last[name.partition("_")[0]] = name
  logits, updated = _run(
    net,
    images.astype(dtype),
    train,
    mutable=["batch_stats", "intermediates"],
    capture_intermediates=lambda m, _: m.name in last.values(),
  )
  outputs = updated["intermediates"]
  stages = tuple(outputs[name]["__call__"][0] for name in last.values())
  return logits, stages, updated["batch_stats"]


def stage_features(spec: NetSpec) -> tuple[int, ...]:
  """Returns the channels of each stage's output."""
  found = {}
  for name, block in spec.blocks():
    found[name.partition("_")[0]] = block.conv2.features
  return tuple(found.values())


def stage_sides(spec: NetSpec) -> tuple[int, ...]:
  """Returns the side of each stage's output, in pixels."""
  found = {}
  for layer in spec.layers():
    if layer.path.startswith("stage"):
      found[layer.path.partition("_")[0]] = layer.out_size
  return tuple(found.values())


@functools.partial(jax.jit, static_argnames="method")
def calibrate(net: Network, images: jax.Array, method: str = "mse") -> Network:
  """Sets the bounds of quantized inputs from one batch of images.

  A learned bound of a kernel begins where the squared error is least.

  Each layer sees what the quantized layers before it give. Batch norm uses the
  batch's statistics, so a network that was just initialized can be calibrated,
  or one of few bits, whose values are no longer those of its running
  statistics; these stay as they are.

  Args:
    net: the network; nothing else of it changes.
    images: [n, resolution, resolution, channels], normalized.
    method: of `nn.calibrate`.

  Raises:
    ValueError: there is no image.
  """
  if not len(images):
    raise ValueError(
      "no images to calibrate the bounds of quantized inputs on; give some"
      " hundred"
    )
  _, sown = _run(net, images, train=True, mutable=["batch_stats", method])
  return net.replace(params=_merge(net.params, sown.get(method, {})))


@jax.jit
def input_norms(net: Network, images: jax.Array) -> dict[str, jax.Array]:
  """Computes the L2 norms of each layer's input channels, by layer path.

  Args:
    net: in evaluation.
    images: [n, resolution, resolution, channels], normalized; norms are over
      images and pixels.
  """
  _, sown = _run(net, images, mutable=["squares"])
  return {
    layer.path: jnp.sqrt(at(sown["squares"], layer.path)["input"])
    for layer in net.spec.layers()
  }


@jax.jit
def unfold_batch_norm(net: Network, images: jax.Array) -> Network:
  """Gives a folded batch norm statistics of its own; evaluation stays.

  Where batch norm was folded into the convolution before it, its scale says
  nothing in training, which divides by the batch's own deviation. Here the
  images' mean and variance become the running ones, and scale and bias take
  over what those now remove.

  Args:
    net: in evaluation; whatever its running statistics are.
    images: [n, resolution, resolution, channels], normalized.
  """
  _, sown = _run(net, images, mutable=["moments"])
  params, stats, new = (
    _flat(tree) for tree in (net.params, net.batch_stats, sown["moments"])
  )
  for norm in sorted({name.rpartition("/")[0] for name in stats}):
    scale, bias = params[f"{norm}/scale"], params[f"{norm}/bias"]
    mean, var = (stats[f"{norm}/{x}"] for x in ("mean", "var"))
    factor = scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON)
    deviation = jnp.sqrt(new[f"{norm}/var"] + BATCH_NORM_EPSILON)
    params[f"{norm}/scale"] = factor * deviation
    params[f"{norm}/bias"] = bias + factor * (new[f"{norm}/mean"] - mean)
  return net.replace(
    params=unflatten_dict(params, sep="/"),
    batch_stats=unflatten_dict(new, sep="/"),
  )


def recalibrate(net: Network, batches: Iterable[jax.Array]) -> Network:
  """Estimates batch norm's statistics anew.

  After surgery the old ones are those of another network; those of a network
  of few bits or of averaged weights belong to other grids, which costs points
  of accuracy. The mean over batches of each batch's mean and variance takes
  their place (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021).

  Args:
    net: the network, or stacked ones; nothing else of it changes.
    batches: each [batch, resolution, resolution, channels], normalized; of
      stacked networks [members, batch, ...].

  Raises:
    ValueError: there is no batch.
  """
  count, total = 0, jax.tree.map(jnp.zeros_like, net.batch_stats)
  for images in batches:
    count, total = count + 1, _add_statistics(net, images, total)
  if not count:
    raise ValueError("no batch to take batch norm's statistics from")
  return net.replace(batch_stats=_divide(total, count))


@jax.jit
def _add_statistics(net: Network, images: jax.Array, total: Any) -> Any:
  """The total, and one batch's mean and variance, in `batch_stats`' tree."""
  if net.params["head"]["bias"].ndim == 2:  # stacked
    return jax.vmap(_add_statistics)(net, images, total)
  zeros = jax.tree.map(jnp.zeros_like, net.batch_stats)
  # From 0, a step of the moving average is a share of the batch's.
  _, moved = forward_train(net.replace(batch_stats=zeros), images)
  share = 1 - BATCH_NORM_MOMENTUM
  return jax.tree.map(lambda t, x: t + x / share, total, moved)


@jax.jit
def _divide(total: Any, count: int) -> Any:
  return jax.tree.map(lambda x: x / count, total)


def _run(
  net: Network, images: jax.Array, train: bool = False, **options
) -> Any:
  """Applies the network's module to images, in their own type."""
  params = apply_masks(net.params, net.masks)
  variables = {"params": params, "batch_stats": net.batch_stats}
  return ResNet(net.spec, train=train).apply(variables, images, **options)


def _flat(tree: Any) -> dict[str, Any]:
  return flatten_dict(tree, sep="/")


def _merge(old: dict, new: dict) -> dict:
  """Replaces the leaves of a tree that another tree has too."""
  leaves, others = _flat(old), _flat(new).items()
  merged = leaves | {path: x for path, x in others if path in leaves}
  return unflatten_dict(merged, sep="/")
