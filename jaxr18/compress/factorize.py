"""A network's convolutions in other forms: grouped, depthwise, low-rank.

A conversion computes the dense kernel that a convolution stands for and
projects it onto the new form (`jaxr18.compress.kernels`), from any form to any
other. Batch norm's running statistics stay as they were, and fit the new
outputs again after some training.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.kernels import dense_kernel, gram, project
from jaxr18.nn.forms import (
  BLOCK_CONVS,
  Rules,
  convolutions,
  form_of,
  in_features,
  with_forms,
  with_forms_of,
)
from jaxr18.nn.network import Network
from jaxr18.nn.quantize import least_error_bound
from jaxr18.nn.spec import ConvSpec, NetSpec, has_bound, has_kernel_bound


def to_grouped(
  net: Network, groups: int, pattern: str = BLOCK_CONVS
) -> Network:
  """Converts the convolutions whose path matches to grouped ones.

  Args:
    net: in any form; unpruned where it changes.
    groups: of each convolution; divides its input and output channels.
    pattern: regex on whole layer paths.

  Raises:
    ValueError: as `convert` and `forms.with_forms`.
  """
  return convert(net, ((pattern, f"groups={groups}"),))


def to_depthwise_separable(net: Network, pattern: str = BLOCK_CONVS) -> Network:
  """Converts the convolutions whose path matches to depthwise-separable ones.

  Raises:
    ValueError: as `convert` and `forms.with_forms`.
  """
  return convert(net, ((pattern, "depthwise"),))


def to_low_rank(
  net: Network, r_in: int | str, r_out: int | str, pattern: str = BLOCK_CONVS
) -> Network:
  """Converts the convolutions whose path matches to low rank.

  Args:
    net: in any form; unpruned where it changes.
    r_in: channels after the first 1x1, or a share of them such as '1/4'; 0
      leaves the 1x1 out.
    r_out: channels before the last 1x1, likewise.
    pattern: regex on whole layer paths.

  Raises:
    ValueError: as `convert` and `forms.with_forms`.
  """
  return convert(net, ((pattern, f"ranks={r_in},{r_out}"),))


def convert(net: Network, rules: Rules | NetSpec) -> Network:
  """Converts convolutions to new forms, with the nearest kernels.

  Bits stay. The bound of a quantized input stays with the first layer of a
  factorization; bounds between its layers start at 1, and
  `network.calibrate` sets them.

  Args:
    net: one network, not a stack.
    rules: `(regex, form)` as in `forms.with_forms`, or a spec of the same
      network whose forms are wanted.

  Raises:
    ValueError: rules that do not fit, or a convolution that would change and
      is pruned.
  """
  if isinstance(rules, NetSpec):
    spec = with_forms_of(net.spec, rules)
  else:
    spec = with_forms(net.spec, rules)
  params = jax.tree.map(lambda x: x, net.params)  # new dicts, the same arrays
  masks = jax.tree.map(lambda x: x, net.masks)
  old = dict(convolutions(net.spec))
  inputs = in_features(net.spec)
  for path, conv in convolutions(spec):
    if form_of(conv) == form_of(old[path]):
      continue
    if not all(np.all(m) for m in jax.tree.leaves(_at(masks, path))):
      raise ValueError(
        f"{path} is pruned, and a mask does not carry over from"
        f" {form_of(old[path])!r} to {form_of(conv)!r}: shrink the network"
        " before, or prune it after"
      )
    node = _at(params, path)
    kernels = project(
      dense_kernel(node, old[path], inputs[path]).astype(np.float64), conv
    )
    bound = _first(node, old[path], inputs[path]).get("input_bound")
    new: dict[str, Any] = {}
    for i, (name, kernel) in enumerate(kernels.items()):
      part: dict[str, Any] = {"kernel": jnp.asarray(kernel, jnp.float32)}
      if has_bound(conv):
        part["input_bound"] = bound if i == 0 else jnp.ones(())
      if has_kernel_bound(conv):
        part["kernel_bound"] = least_error_bound(
          part["kernel"],
          conv.w_bits,
          conv.w_scales == "learned_channel",
          conv.two_bits,
        )
      if name:
        new[name] = part
      else:
        new = part
    _put(params, path, new)
    _put(masks, path, jax.tree.map(lambda _: jnp.array(True), new))
  return net.replace(params=params, masks=masks, spec=spec)


def new_layers(before: NetSpec, after: NetSpec) -> set[str]:
  """Lists the layers whose input a conversion between two specs makes anew."""
  old = dict(convolutions(before))
  inputs = in_features(after)
  return {
    f"{path}/{name}"
    for path, conv in convolutions(after)
    if form_of(conv) != form_of(old[path])
    for name, _ in conv.parts(inputs[path])[1:]
  }


def errors(before: Network, after: Network) -> dict[str, float]:
  """Computes |K - K'| / |K| of each dense kernel that changed, by path.

  K is the kernel before, K' that after; Frobenius norm.
  """
  inputs = in_features(before.spec)
  old = dict(convolutions(before.spec))
  out = {}
  for path, conv in convolutions(after.spec):
    if form_of(conv) == form_of(old[path]):
      continue
    a, b = (
      dense_kernel(_at(net.params, path), spec, inputs[path])
      for net, spec in ((before, old[path]), (after, conv))
    )
    norm = np.linalg.norm(a)
    out[path] = float(np.linalg.norm(a - b) / norm) if norm else 0.0
  return out


def report(before: Network, after: Network) -> str:
  """Lists the changed convolutions: forms, weights, MACs, error.

  '' where none has.
  """
  rows = [("layer", "before", "after", "weights", "MACs", "error")]
  was, now = (dict(convolutions(n.spec)) for n in (before, after))
  cost = [_cost(n.spec) for n in (before, after)]
  for path, error in errors(before, after).items():
    (weights, macs), (new_weights, new_macs) = (c[path] for c in cost)
    rows.append(
      (
        path,
        form_of(was[path]),
        form_of(now[path]),
        f"{weights:,} -> {new_weights:,}",
        f"{macs:,} -> {new_macs:,}",
        f"{error:.3f}",
      )
    )
  if len(rows) == 1:
    return ""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(w) if i < 3 else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def ranks_for(
  net: Network, energy: float, pattern: str = BLOCK_CONVS
) -> tuple[tuple[str, str], ...]:
  """Rules for `convert` with the ranks that each kernel's spectrum asks for.

  Args:
    net: the network.
    energy: share of a kernel's sum of squares, (0, 1), that the leading
      singular vectors of either side keep.
    pattern: regex on whole layer paths.

  Returns:
    `(path, 'ranks=..')`, without the layers that would get no cheaper; they
    can stand in a config.
  """
  if not 0 < energy < 1:
    raise ValueError(f"energy (={energy}) must be above 0 and below 1")
  with_forms(net.spec, ((pattern, "dense"),))  # raises where none matches
  inputs, cost = in_features(net.spec), _cost(net.spec)
  rules = []
  for path, conv in convolutions(net.spec):
    if not re.fullmatch(pattern, path):
      continue
    kernel = dense_kernel(_at(net.params, path), conv, inputs[path])
    ranks = []
    for axis in (2, 3):
      values = np.linalg.eigvalsh(gram(kernel, axis))[::-1]
      kept = np.cumsum(values) < energy * np.sum(values)
      rank = int(np.sum(kept)) + 1
      ranks.append(rank if rank < kernel.shape[axis] else 0)
    if any(ranks):
      rule = (re.escape(path), f"ranks={ranks[0]},{ranks[1]}")
      if _cost(with_forms(net.spec, (rule,)))[path][1] < cost[path][1]:
        rules.append(rule)
  return tuple(rules)


def _cost(spec: NetSpec) -> dict[str, tuple[int, int]]:
  """(weights, MACs) by path of a convolution, a factorized one as one."""
  out: dict[str, tuple[int, int]] = {}
  for layer in spec.layers():
    weights, macs = out.get(layer.unit, (0, 0))
    size = math.prod(layer.kernel_shape)
    out[layer.unit] = (weights + size, macs + layer.macs)
  return out


def _at(tree, path: str) -> dict[str, Any]:
  for key in filter(None, path.split("/")):
    tree = tree[key]
  return tree


def _put(tree, path: str, node) -> None:
  *folders, last = path.split("/")
  _at(tree, "/".join(folders))[last] = node


def _first(node, conv: ConvSpec, in_features: int) -> dict[str, Any]:
  """The parameters of a convolution's first layer."""
  name, _ = conv.parts(in_features)[0]
  return node[name] if name else node
