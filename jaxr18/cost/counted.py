"""What a MAC count returns: rows by layer, their sums, a table, JSON."""

from __future__ import annotations

import collections
import dataclasses
import json
import operator

from rich.table import Table

from jaxr18.cost.figures import plain_table


@dataclasses.dataclass(frozen=True)
class MacRow:
  """One convolution or matrix product of the traced function.

  Attributes:
    path: scopes around it, 'ResNet/stage1_block1/conv1'; flax puts the module
      path there, `jax.named_scope` any name.
    primitive: its name, such as 'conv_general_dilated'.
    transforms: what made it, outermost first: 'vmap', 'jvp', 'transpose' (a
      gradient), 'remat' (computed again for the gradient).
    shapes: of the left operand, the right operand and the output. Inside
      `shard_map` these are one device's.
    groups: feature groups times batch groups of a convolution, otherwise 1.
    repeats: how often it runs on a device: trips of the loops around it.
    devices: how many devices run it, by the `shard_map`s around it.
    macs: in all, over repeats and devices.
  """

  path: str
  primitive: str
  transforms: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  groups: int
  repeats: int
  devices: int
  macs: int


@dataclasses.dataclass(frozen=True)
class OtherRow:
  """Elementwise work or a reduction, charged 0 MACs.

  `elements` is the size of the largest operand or output, over repeats and
  devices.
  """

  path: str
  primitive: str
  elements: int


@dataclasses.dataclass(frozen=True)
class MacReport:
  """The count of one function: rows in program order, and their sums."""

  rows: tuple[MacRow, ...]
  other: tuple[OtherRow, ...] = ()

  @property
  def total(self) -> int:
    """MACs over all devices."""
    return sum(row.macs for row in self.rows)

  @property
  def per_device(self) -> int:
    """MACs of one device: `shard_map` divides, all else runs whole."""
    return sum(row.macs // row.devices for row in self.rows)

  def by_path(self) -> dict[str, int]:
    """MACs by path, in program order."""
    out: dict[str, int] = collections.defaultdict(int)
    for row in self.rows:
      out[row.path] += row.macs
    return dict(out)

  def table(self) -> Table:
    """Makes a rich table, with equal rows taken together."""
    table = plain_table("Multiply-accumulates")
    table.add_column("path", overflow="fold")
    table.add_column("primitive", overflow="fold")
    for name in ("shapes", "groups", "times", "MACs", "%"):
      table.add_column(name, justify="right", overflow="fold")
    merged: dict[MacRow, int] = collections.defaultdict(int)
    for row in self.rows:
      merged[row] += 1
    for row, n in merged.items():
      lhs, rhs, out = ("x".join(map(str, s)) for s in row.shapes)
      table.add_row(
        row.path or "(top)",
        "/".join((*row.transforms, row.primitive)),
        f"{lhs} * {rhs} -> {out}",
        str(row.groups),
        str(n * row.repeats * row.devices),
        _thousands(n * row.macs),
        _percent(n * row.macs, self.total),
      )
    table.add_section()
    table.add_row("total", "", "", "", "", _thousands(self.total), "100.00")
    return table

  def to_json(self) -> str:
    """Writes a JSON object with total, per_device, rows and other."""
    return json.dumps(
      {
        "total": self.total,
        "per_device": self.per_device,
        "rows": [dataclasses.asdict(row) for row in self.rows],
        "other": [dataclasses.asdict(row) for row in self.other],
      },
      default=_plain,
    )


def _thousands(n) -> str:
  return f"{n:,}" if isinstance(n, int) else str(n)  # a symbolic one


def _percent(part, whole) -> str:
  if isinstance(part, int) and isinstance(whole, int):
    return f"{100 * part / max(whole, 1):.2f}"
  return ""


def _plain(size) -> int | str:
  """A size that json does not know: NumPy's integer, or a symbolic one."""
  try:
    return operator.index(size)
  except Exception:  # JAX has its own for a size that is not known yet
    return str(size)
