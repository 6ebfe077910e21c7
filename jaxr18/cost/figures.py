"""What scoring returns: three figures, a row a layer, tables, JSON.

The figures are defined in `jaxr18.cost.score`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from rich.table import Table

PARAMS_REFERENCE = 5.6e6
MACS_REFERENCE = 2.8e8
FIGURES = ("per_network", "per_layer", "on_disk")
BIAS_BITS = 32  # what is added to a 32-bit accumulator


@dataclasses.dataclass(frozen=True)
class Figure:
  """One of the three figures, and its two terms."""

  params_term: float
  ops_term: float

  @property
  def total(self) -> float:
    return self.params_term + self.ops_term


@dataclasses.dataclass(frozen=True)
class PerNetwork(Figure):
  """The whole network's figure and the numbers that went into the formula."""

  p_s: float
  p_u: float
  q_w: int
  q_a: int
  w: int
  f: int


@dataclasses.dataclass(frozen=True)
class LayerScore:
  """What one layer has and costs, summed over an ensemble's members.

  Attributes:
    path, kernel_shape, groups, w_bits, a_bits: as in the spec.
    weights: of the kernel; `kept` of them are not masked.
    biases: folded from batch norm, or the head's; `biases_kept` not masked.
    macs: for one image, over all members and views.
    encoding: of the stored kernel: 'dense', 'bitmask' or 'indices'.
    stored_bits: of kernel, biases and scales.
  """

  path: str
  kernel_shape: tuple[int, ...]
  groups: int
  w_bits: int
  a_bits: int
  weights: int
  kept: int
  biases: int
  biases_kept: int
  macs: int
  encoding: str
  stored_bits: int

  @property
  def per_layer(self) -> Figure:
    """The layer's share of the per-layer figure."""
    bits = self.kept * self.w_bits + self.biases_kept * BIAS_BITS
    return Figure(
      bits / 32 / PARAMS_REFERENCE,
      self.macs * max(self.w_bits, self.a_bits) / 32 / MACS_REFERENCE,
    )


def plain_table(title: str) -> Table:
  """Makes an empty rich table with a title and a line under its head."""
  from rich import box  # late: --help prints no table
  from rich.table import Table

  return Table(
    title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0),
    pad_edge=False,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Score:
  """The three figures of a network (defined in `jaxr18.cost.score`)."""

  per_network: PerNetwork
  per_layer: Figure
  on_disk: Figure
  rows: tuple[LayerScore, ...]
  members: int = 1
  views: int = 1

  def __repr__(self) -> str:
    figures = (f"{name}={figure.total:.6g}" for name, figure in self._figures())
    return f"Score({', '.join(figures)}, macs={self.macs:,})"

  @property
  def macs(self) -> int:
    """For one image, over all members and views."""
    return sum(row.macs for row in self.rows)

  @property
  def stored_bytes(self) -> int:
    """What the on-disk figure charges for the weights of all members."""
    return stored_bytes(self.rows)

  def as_dict(self) -> dict[str, Any]:
    """Returns plain numbers, strings, lists and dicts."""
    out = {
      name: {**dataclasses.asdict(figure), "total": figure.total}
      for name, figure in self._figures()
    }
    out |= {"members": self.members, "views": self.views, "macs": self.macs}
    return out | {"rows": [dataclasses.asdict(row) for row in self.rows]}

  def to_json(self) -> str:
    return json.dumps(self.as_dict(), allow_nan=False)

  def _figures(self):
    return tuple((name, getattr(self, name)) for name in FIGURES)

  def table(self) -> Table:
    """Makes a rich table of the layers' shares of the per-layer figure."""
    title = "Score by layer"
    if self.members * self.views > 1:
      title += f", {self.members} members x {self.views} views"
    table = plain_table(title)
    table.add_column("layer", no_wrap=True)
    sparse = any(row.encoding != "dense" for row in self.rows)
    names = ("kernel", "groups", "weights", "density", "w/a bits", "MACs")
    names += ("params %", "ops %", "stored as")[: 3 if sparse else 2]
    for name in names:
      table.add_column(name, justify="right", overflow="fold")
    params, ops = self.per_layer.params_term, self.per_layer.ops_term
    for row in self.rows:
      cells = (
        row.path,
        "x".join(map(str, row.kernel_shape)),
        str(row.groups),
        f"{row.weights:,}",
        f"{row.kept / row.weights:.3f}",
        f"{row.w_bits}/{row.a_bits}",
        f"{row.macs:,}",
        f"{100 * row.per_layer.params_term / max(params, 1e-30):.2f}",
        f"{100 * row.per_layer.ops_term / max(ops, 1e-30):.2f}",
        row.encoding,
      )
      table.add_row(*cells[: 1 + len(names)])
    weights = sum(row.weights for row in self.rows)
    kept = sum(row.kept for row in self.rows)
    sums = f"{weights:,}", f"{kept / weights:.3f}", "", f"{self.macs:,}"
    table.add_section()
    table.add_row("sum", "", "", *sums, "100.00", "100.00")
    return table

  def summary(self) -> Table:
    """Makes a rich table of the three figures and their terms."""
    table = plain_table("Score, lower is better")
    table.add_column("figure")
    for name in ("params", "ops", "score"):
      table.add_column(name, justify="right")
    for name, figure in self._figures():
      table.add_row(
        name,
        f"{figure.params_term:.6f}",
        f"{figure.ops_term:.6f}",
        f"{figure.total:.6f}",
      )
    c = self.per_network
    table.caption = (
      f"w={c.w:,} f={c.f:,}\np_s={c.p_s:.4f} p_u={c.p_u:.4f}"
      f" q_w={c.q_w} q_a={c.q_a}"
    )
    table.caption_justify = "left"
    return table


def stored_bytes(rows: Iterable[LayerScore]) -> int:
  """Returns the bytes that the on-disk figure charges for layers' weights."""
  return -(-sum(row.stored_bits for row in rows) // 8)
