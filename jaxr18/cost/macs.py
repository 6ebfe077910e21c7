"""Counts the multiply-accumulates of any JAX function, layer by layer.

The function is traced to a jaxpr on shapes alone: nothing is computed, and
ResNet-18 takes 50 ms, 49 of them JAX's tracing. What is counted, and how:

- 1 MAC is one multiplication and one addition, 2 FLOPs. A complex MAC is 1.
- A convolution has `prod(out) * prod(kernel) / kernel[out]` of them, which
  needs no group counts. Taps on the padding count (as in PyTorch's
  FlopCounterMode, thop, fvcore and ptflops); taps on the holes of a dilated
  input do not, so the data gradient of a strided convolution costs what the
  convolution costs.
- A matrix product has `prod(out) * prod(contracted)`. A ragged product is
  counted as if every row belonged to one group.
- A loop counts its trips, `vmap` its members, `shard_map` its devices. Dead
  code is not counted.
- Elementwise functions, normalization, pooling and reductions count 0, also
  where they multiply; `other=True` lists them apart. So a product spelt
  `(a * b).sum()` is not seen, and neither is a convolution spelt so.
- Anything else that may multiply is an error that names it and its source
  line: an FFT, a solver, a foreign call.

XLA's `cost_analysis` differs: it skips the taps on the padding, counts the
body of a loop once, and counts elementwise work as FLOPs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import jaxprs_in_params
from jax.extend.core import primitives as prim
from jax.interpreters.partial_eval import dce_jaxpr

from jaxr18.cost import free
from jaxr18.cost.counted import MacReport, MacRow, OtherRow
from jaxr18.nn import conv

_REMAT_SCOPE = "rematted_computation"


def count_macs(
  fn: Callable[..., Any],
  *args: Any,
  branches: str = "equal",
  while_trips: int | Mapping[str, int] | None = None,
  other: bool = False,
) -> MacReport:
  """Counts the multiply-accumulates of `fn(*args)` without running it.

  Args:
    fn: any function that JAX can trace; jitted, vmapped, differentiated or
      sharded as you like. Bind static and keyword arguments beforehand with
      `functools.partial`.
    *args: pytrees of arrays or `jax.ShapeDtypeStruct`s.
    branches: 'equal' refuses a `cond` whose branches cost differently,
      'largest' charges the dearest one.
    while_trips: trips of each `while_loop` that multiplies, or a mapping from
      its path to its trips. A `fori_loop` with constant bounds needs none.
    other: also list elementwise work and reductions.

  Returns:
    A `MacReport`.

  Raises:
    ValueError: a primitive that may multiply and is not understood, branches
      that differ, or a loop of unknown length, with the source line.
  """
  if branches not in ("equal", "largest"):
    raise ValueError(f"branches (={branches!r}) must be 'equal' or 'largest'")
  shapes = jax.tree.map(_shape_struct, args)
  jaxpr = jax.make_jaxpr(fn)(*shapes).jaxpr
  jaxpr, _ = dce_jaxpr(jaxpr, True)
  walk = _Walk(branches, while_trips, other)
  walk.jaxpr(jaxpr, _Frame())
  return MacReport(tuple(walk.rows), tuple(walk.others))


def _shape_struct(x):
  if hasattr(x, "shape") and hasattr(x, "dtype"):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
  return x


@dataclasses.dataclass(frozen=True)
class _Frame:
  """Where the walk stands: the scopes entered and the repetitions."""

  scopes: tuple[str, ...] = ()
  transforms: tuple[str, ...] = ()
  repeats: int = 1
  devices: int = 1
  sources: tuple[Any, ...] = ()

  def enter(self, eqn) -> _Frame:
    scopes, transforms = list(self.scopes), list(self.transforms)
    for part in eqn.source_info.name_stack.stack:
      if type(part).__name__ == "Transform":
        transforms.append(part.name)
      elif part.name == _REMAT_SCOPE:
        transforms.append("remat")
      else:
        scopes.append(part.name)
    return dataclasses.replace(
      self,
      scopes=tuple(scopes),
      transforms=tuple(transforms),
      sources=(eqn.source_info, *self.sources),
    )

  def times(self, repeats: int, devices: int = 1) -> _Frame:
    return dataclasses.replace(
      self,
      repeats=self.repeats * repeats,
      devices=self.devices * devices,
    )

  @property
  def path(self) -> str:
    return "/".join(self.scopes)


def _where(eqn, frame: _Frame) -> str:
  # Inside JAX's own jitted functions there is no line of the user's.
  lines = (source_info_util.summarize(source) for source in frame.sources)
  line = next(filter(None, lines), "source unknown")
  return f"{eqn.primitive.name!r} at {frame.path or '(top)'} ({line})"


# One rule a primitive: eqn -> (MACs of one run, groups).


def _conv(eqn) -> tuple[int, int]:
  p = eqn.params
  rhs, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  _, in_axis, *rhs_spatial = p["dimension_numbers"].rhs_spec
  batch_axis, feature_axis, *out_spatial = p["dimension_numbers"].out_spec
  macs = out[batch_axis] * out[feature_axis] * rhs[in_axis]
  for i, (o, k) in enumerate(zip(out_spatial, rhs_spatial, strict=True)):
    macs *= _taps(
      out[o],
      rhs[k],
      p["window_strides"][i],
      p["padding"][i][0],
      p["lhs_dilation"][i],
      p["rhs_dilation"][i],
    )
  return macs, p["feature_group_count"] * p["batch_group_count"]


@functools.lru_cache(maxsize=4096)
def _taps(out, kernel, stride, pad, lhs_dilation, rhs_dilation) -> int:
  """Pairs (output, tap) along one axis that do not fall on a hole."""
  if lhs_dilation == 1:
    return out * kernel
  at = np.arange(out)[:, None] * stride + np.arange(kernel) * rhs_dilation
  return int(((at - pad) % lhs_dilation == 0).sum())


def _dot(eqn) -> tuple[int, int]:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  lhs = eqn.invars[0].aval.shape
  out = eqn.outvars[0].aval.shape
  return math.prod(out) * math.prod(lhs[i] for i in contracted), 1


def _ragged_dot(eqn) -> tuple[int, int]:
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (lhs_contracted, _), _ = numbers.dot_dimension_numbers
  lhs = eqn.invars[0].aval.shape
  out = eqn.outvars[0].aval.shape
  macs = math.prod(out) * math.prod(lhs[i] for i in lhs_contracted)
  if numbers.lhs_ragged_dimensions[0] in lhs_contracted:
    # The output has a leading axis of groups, which share the contraction.
    macs //= max(out[0], 1)
  return macs, 1


# Our own convolution and its gradients, however the platform computes them:
# each multiplies every output's gradient (or value) with every tap once.


def _own_conv(eqn) -> tuple[int, int]:
  kernel, y = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  return math.prod(y) * math.prod(kernel[-4:-1]), eqn.params["groups"]


def _own_grad_input(eqn) -> tuple[int, int]:
  dy, kernel = (v.aval.shape for v in eqn.invars)
  macs = _own_members(eqn) * math.prod(dy[-4:]) * math.prod(kernel[-4:-1])
  return macs, eqn.params["groups"]


def _own_grad_kernel(eqn) -> tuple[int, int]:
  dy, kernel = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  macs = _own_members(eqn) * math.prod(dy[-4:]) * math.prod(kernel[-4:-1])
  return macs, eqn.params["groups"]


def _own_members(eqn) -> int:
  """A fifth, leading axis is that of vmapped members."""
  shape = eqn.outvars[0].aval.shape
  return shape[0] if len(shape) == 5 else 1


_RULES = {
  prim.conv_general_dilated_p: _conv,
  prim.dot_general_p: _dot,
  conv.conv_p: _own_conv,
  conv.conv_grad_input_p: _own_grad_input,
  conv.conv_grad_kernel_p: _own_grad_kernel,
}
_RULES_BY_NAME = {"ragged_dot_general": _ragged_dot}  # not exported by JAX


class _Walk:
  """Walks a jaxpr and collects rows."""

  def __init__(self, branches, while_trips, other):
    self.branches = branches
    self.while_trips = while_trips
    self.other = other
    self.rows: list[MacRow] = []
    self.others: list[OtherRow] = []

  def jaxpr(self, jaxpr, frame: _Frame) -> None:
    platforms = {}
    for eqn in jaxpr.eqns:
      inside = frame.enter(eqn)
      name = eqn.primitive.name
      rule = _RULES.get(eqn.primitive) or _RULES_BY_NAME.get(name)
      if rule is not None:
        self._charge(eqn, rule, inside)
      elif eqn.primitive is prim.cond_p:
        self._cond(eqn, inside, platforms)
      elif eqn.primitive is prim.while_p:
        self._while(eqn, inside)
      elif name == "platform_index":
        platforms[eqn.outvars[0]] = eqn.params["platforms"]
      elif name in free.MOVEMENT:
        pass
      elif name in free.ARITHMETIC:
        self._list(eqn, inside)
      else:
        self._call(eqn, inside)

  def _charge(self, eqn, rule, frame):
    macs, groups = rule(eqn)
    shapes = (eqn.invars[0], eqn.invars[1], eqn.outvars[0])
    self.rows.append(
      MacRow(
        frame.path,
        eqn.primitive.name,
        frame.transforms,
        tuple(tuple(v.aval.shape) for v in shapes),
        groups,
        frame.repeats,
        frame.devices,
        macs * frame.repeats * frame.devices,
      )
    )

  def _list(self, eqn, frame):
    if self.other:
      sizes = (
        math.prod(v.aval.shape)
        for v in (*eqn.invars, *eqn.outvars)
        if hasattr(v.aval, "shape")
      )
      elements = max(sizes, default=0) * frame.repeats * frame.devices
      self.others.append(OtherRow(frame.path, eqn.primitive.name, elements))

  def _call(self, eqn, frame):
    """A primitive that runs its one jaxpr, once or a known number of times."""
    p = eqn.params
    if eqn.primitive is prim.scan_p:
      frame = frame.times(p["length"])
    elif eqn.primitive.name == "shard_map":
      axes = p.get("newly_manual_axes", p.get("manual_axes"))
      frame = frame.times(1, math.prod(p["mesh"].shape[a] for a in axes))
    elif eqn.primitive.name == "pallas_call":
      grid = p["grid_mapping"].grid
      if not all(isinstance(n, int) for n in grid):
        raise ValueError(f"{_where(eqn, frame)}: its grid {grid} is not static")
      frame = frame.times(math.prod(grid))
    if eqn.primitive is prim.linear_solve_p:
      jaxprs = [p["jaxprs"].solve.jaxpr]
    elif eqn.primitive.name == "linear_call":
      jaxprs = [p["callee"].jaxpr]
    else:
      jaxprs = list(jaxprs_in_params(p))
    if not jaxprs:
      raise ValueError(
        f"no rule to count the MACs of {_where(eqn, frame)}: add one to"
        " jaxr18.cost.macs, or its name to jaxr18.cost.free if it never"
        " multiplies"
      )
    if len(jaxprs) == 1:
      self.jaxpr(jaxprs[0], frame)
      return
    for jaxpr in jaxprs:
      if self._macs(jaxpr, frame):
        raise ValueError(
          f"{_where(eqn, frame)} holds {len(jaxprs)} jaxprs and it is not"
          " known how often each runs: the counter needs a case"
        )

  def _macs(self, jaxpr, frame) -> int:
    apart = _Walk(self.branches, self.while_trips, False)
    apart.jaxpr(jaxpr, frame)
    return sum(row.macs for row in apart.rows)

  def _cond(self, eqn, frame, platforms):
    branches = [b.jaxpr for b in eqn.params["branches"]]
    here = platforms.get(eqn.invars[0])
    if here is not None:  # lax.platform_dependent: the default backend's
      backend = jax.default_backend()
      for names, branch in zip(here, branches, strict=True):
        if names is None or backend in names:
          return self.jaxpr(branch, frame)
    macs = [self._macs(b, frame) for b in branches]
    if self.branches == "equal" and len(set(macs)) > 1:
      raise ValueError(
        f"{_where(eqn, frame)}: its branches cost {macs} MACs; pass"
        " branches='largest' to charge the dearest"
      )
    self.jaxpr(branches[macs.index(max(macs))], frame)

  def _while(self, eqn, frame):
    cond = eqn.params["cond_jaxpr"].jaxpr
    body = eqn.params["body_jaxpr"].jaxpr
    trips = self.while_trips
    if isinstance(trips, Mapping):
      trips = trips.get(frame.path)
    if trips is None:
      if self._macs(cond, frame) or self._macs(body, frame):
        hint = f"{{{frame.path!r}: TRIPS}}" if frame.path else "TRIPS"
        raise ValueError(
          f"{_where(eqn, frame)} multiplies, and the jaxpr does not hold its"
          f" trips; pass while_trips={hint}"
        )
      trips = 1  # nothing to charge; its elementwise work is listed once
    self.jaxpr(cond, frame.times(trips + 1))
    self.jaxpr(body, frame.times(trips))
