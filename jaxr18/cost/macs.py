"""Counts the multiply-accumulates of any JAX function, layer by layer.

The function is traced to a jaxpr on shapes alone: nothing is computed, and
ResNet-18 takes 50 ms, 49 of them JAX's tracing. What is counted, and how:

- 1 MAC is one multiplication and one addition, 2 FLOPs. A complex MAC is 1.
- A convolution has `prod(out) * prod(kernel) / kernel[out]` of them, which
  needs no group counts. Taps on the padding count (as in PyTorch's
  FlopCounterMode, thop, fvcore and ptflops).
- A transposed convolution has as many with `prod(in)` in place of `prod(out)`:
  its inputs meet the taps. So each gradient of a convolution, and of a
  transposed one, costs what it costs itself. A convolution of a dilated input
  is a transposed one, and so is `lax.conv_transpose` of any stride.
- A matrix product has `prod(out) * prod(contracted)`. A ragged product is
  counted as if every row belonged to one group.
- A loop counts its trips, `vmap` its members, `shard_map` its devices. Dead
  code is not counted.
- Elementwise functions, normalization, pooling and reductions count 0, also
  where they multiply; `other=True` lists them apart. So a product spelt
  `(a * b).sum()` is not seen, and neither is a convolution spelt so.
- Anything else that may multiply is an error that names it and its source
  line: an FFT, a solver, a foreign call, a kernel whose blocks or cores are
  not counted in its jaxpr.

XLA's `cost_analysis` differs: it skips the taps on the padding, counts the
body of a loop once, and counts elementwise work as FLOPs.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import Literal, jaxprs_in_params
from jax.extend.core import primitives as prim
from jax.interpreters.partial_eval import dce_jaxpr

from jaxr18.cost import primitives as known
from jaxr18.cost.convolution import conv_macs
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
    *args: pytrees of arrays or `jax.ShapeDtypeStruct`s, whose shardings the
      function sees.
    branches: 'equal' refuses a `cond` whose branches cost differently,
      'largest' charges the dearest one.
    while_trips: trips of each `while_loop` that multiplies, at least 0, or a
      mapping from its path to its trips. A `fori_loop` with constant bounds
      needs none.
    other: also list elementwise work and reductions.

  Returns:
    A `MacReport`.

  Raises:
    ValueError: a primitive that may multiply and is not understood, branches
      that differ, or a loop of unknown length, with the source line; trips
      that are no whole number or belong to no loop.
  """
  if branches not in ("equal", "largest"):
    raise ValueError(f"branches (={branches!r}) must be 'equal' or 'largest'")
  shapes = jax.tree.map(_shape_struct, args)
  jaxpr = jax.make_jaxpr(fn)(*shapes).jaxpr
  jaxpr, _ = dce_jaxpr(jaxpr, True)
  walk = _Walk(branches, _trips(while_trips), other)
  walk.jaxpr(jaxpr, _Frame())
  walk.check_trips()
  return MacReport(tuple(walk.rows), tuple(walk.others))


def _shape_struct(x):
  if isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
    return x  # with its sharding
  if hasattr(x, "shape") and hasattr(x, "dtype"):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
  return x


def _trips(trips):
  """`while_trips` as Python's own ints."""
  if isinstance(trips, Mapping):
    return {path: _one_trips(n, f"[{path!r}]") for path, n in trips.items()}
  return None if trips is None else _one_trips(trips, "")


def _one_trips(n, where: str) -> int:
  try:
    if isinstance(n, bool) or (trips := operator.index(n)) < 0:
      raise TypeError
  except TypeError:
    raise ValueError(
      f"while_trips{where} (={n!r}) must be a whole number from 0"
    ) from None
  return trips


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
  prim.dot_general_p: _dot,
  conv.conv_p: _own_conv,
  conv.conv_grad_input_p: _own_grad_input,
  conv.conv_grad_kernel_p: _own_grad_kernel,
}
_RULES_BY_NAME = {  # not exported by JAX
  "ragged_dot_general": _ragged_dot,
  "scaled_dot": _dot,
}
# Between a kernel and the convolution that uses it.
_CARRIES_A_KERNEL = (
  "broadcast_in_dim", "convert_element_type", "copy", "rev", "reshape",
  "squeeze", "transpose",
)  # fmt: skip


def _in(v, variables: set) -> bool:
  return not isinstance(v, Literal) and v in variables


class _Walk:
  """Walks a jaxpr and collects rows."""

  def __init__(self, branches, while_trips, other):
    self.branches = branches
    self.while_trips = while_trips
    self.other = other
    self.rows: list[MacRow] = []
    self.others: list[OtherRow] = []
    self.loops: set[str] = set()  # paths of what `while_trips` was asked for

  def check_trips(self) -> None:
    """Raises where trips are given for a loop that is not there."""
    idle = {*self.while_trips} if isinstance(self.while_trips, Mapping) else {}
    if idle := sorted(set(idle) - self.loops):
      raise ValueError(
        f"while_trips names {idle}, where there is no loop; the loops are at"
        f" {sorted(self.loops)}"
      )

  def jaxpr(self, jaxpr, frame: _Frame, flipped=()) -> tuple[bool, ...]:
    """Adds the rows of a jaxpr.

    Args:
      jaxpr: to walk.
      frame: around it.
      flipped: for each input whether it is a kernel that a gradient reversed;
        empty where none is.

    Returns:
      The same of its outputs.
    """
    platforms = {}
    kernels = {v for v, f in zip(jaxpr.invars, flipped, strict=False) if f}
    for eqn in jaxpr.eqns:
      inside = frame.enter(eqn)
      name = eqn.primitive.name
      rule = _RULES.get(eqn.primitive) or _RULES_BY_NAME.get(name)
      given = [_in(v, kernels) for v in eqn.invars]
      made = ()  # flipped outputs
      if rule is not None:
        self._charge(eqn, *rule(eqn), inside)
      elif eqn.primitive is prim.conv_general_dilated_p:
        gradient = "transpose" in inside.transforms
        self._charge(eqn, *conv_macs(eqn, gradient, given[1]), inside)
      elif eqn.primitive is prim.cond_p:
        made = self._cond(eqn, inside, platforms, given)
      elif eqn.primitive is prim.while_p:
        self._while(eqn, inside)
      elif name == "platform_index":
        platforms[eqn.outvars[0]] = eqn.params["platforms"]
      elif name in known.MOVEMENT:
        if name in _CARRIES_A_KERNEL:
          turned = name == "rev" and "transpose" in inside.transforms
          made = (given[0] != turned,)
      elif name in known.ARITHMETIC:
        self._list(eqn, inside)
      else:
        made = self._call(eqn, inside, given)
      kernels |= {v for v, f in zip(eqn.outvars, made, strict=False) if f}
    return tuple(_in(v, kernels) for v in jaxpr.outvars)

  def _charge(self, eqn, macs, groups, frame):
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

  def _call(self, eqn, frame, flipped):
    """A primitive that runs its one jaxpr a known number of times."""
    p, name = eqn.params, eqn.primitive.name
    if eqn.primitive is prim.scan_p:
      frame = frame.times(p["length"])
    elif name == "shard_map":
      axes = p.get("newly_manual_axes", p.get("manual_axes"))
      frame = frame.times(1, math.prod(p["mesh"].shape[a] for a in axes))
    elif name == "pallas_call":
      grid = p["grid_mapping"].grid
      if not all(isinstance(n, int) for n in grid):
        raise ValueError(f"{_where(eqn, frame)}: its grid {grid} is not static")
      frame = frame.times(math.prod(grid))
    elif name not in known.ONCE:
      raise ValueError(
        f"no rule to count the MACs of {_where(eqn, frame)}: add one to"
        " jaxr18.cost.macs, or its name to jaxr18.cost.primitives, as one that"
        " never multiplies or that runs the jaxpr that it holds once"
      )
    if eqn.primitive is prim.linear_solve_p:
      jaxprs = [p["jaxprs"].solve.jaxpr]
    elif name == "linear_call":
      jaxprs = [p["callee"].jaxpr]
    else:
      jaxprs = list(jaxprs_in_params(p))
    if len(jaxprs) != 1:
      raise ValueError(
        f"{_where(eqn, frame)} holds {len(jaxprs)} jaxprs and it is not known"
        " how often each runs: the counter needs a case"
      )
    same = len(jaxprs[0].invars) == len(eqn.invars)
    return self.jaxpr(jaxprs[0], frame, flipped if same else ())

  def _macs(self, jaxpr, frame, flipped=()) -> int:
    apart = _Walk(self.branches, self.while_trips, False)
    apart.jaxpr(jaxpr, frame, flipped)
    self.loops |= apart.loops
    return sum(row.macs for row in apart.rows)

  def _cond(self, eqn, frame, platforms, flipped):
    branches = [b.jaxpr for b in eqn.params["branches"]]
    chosen, flipped = eqn.invars[0], flipped[1:]
    if isinstance(chosen, Literal):
      index = min(max(int(chosen.val), 0), len(branches) - 1)
      return self.jaxpr(branches[index], frame, flipped)
    if chosen in platforms:  # lax.platform_dependent: the default backend's
      backend = jax.default_backend()
      for names, branch in zip(platforms[chosen], branches, strict=True):
        if names is None or backend in names:
          return self.jaxpr(branch, frame, flipped)
    macs = [self._macs(b, frame, flipped) for b in branches]
    if self.branches == "equal" and len(set(macs)) > 1:
      raise ValueError(
        f"{_where(eqn, frame)}: its branches cost {macs} MACs; pass"
        " branches='largest' to charge the dearest"
      )
    return self.jaxpr(branches[macs.index(max(macs))], frame, flipped)

  def _while(self, eqn, frame):
    cond = eqn.params["cond_jaxpr"].jaxpr
    body = eqn.params["body_jaxpr"].jaxpr
    trips = self.while_trips
    self.loops.add(frame.path)
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
