"""What each layer has and costs, from a result: one order for every picture."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxr18.cost.figures import LayerScore
from jaxr18.run.result import Result


class LayerBar(NamedTuple):
  """A layer's numbers, an ensemble's summed over members of that path.

  Attributes:
    path: in the network.
    shape: of the kernel, of the first member.
    weights, kept: of the kernel, without and with its mask.
    macs: for one image.
    w_bits, a_bits: of weights and inputs, one for each that members have.
    params_term, ops_term: the layer's share of the per-layer score.
  """

  path: str
  shape: tuple[int, ...]
  weights: int
  kept: int
  macs: int
  w_bits: tuple[int, ...]
  a_bits: tuple[int, ...]
  params_term: float
  ops_term: float

  @property
  def density(self) -> float:
    return self.kept / self.weights

  @property
  def total(self) -> float:
    return self.params_term + self.ops_term


def bars(result: Result) -> list[LayerBar]:
  """Lists the layers from the input to the head."""
  by_layer: dict[str, list[LayerScore]] = {}
  for row in result.score.rows:
    path = re.sub(r"^member\d+/", "", row.path)
    by_layer.setdefault(path, []).append(row)
  return [
    LayerBar(
      path,
      tuple(rows[0].kernel_shape),
      sum(r.weights for r in rows),
      sum(r.kept for r in rows),
      sum(r.macs for r in rows),
      tuple(sorted({r.w_bits for r in rows})),
      tuple(sorted({r.a_bits for r in rows})),
      sum(r.per_layer.params_term for r in rows),
      sum(r.per_layer.ops_term for r in rows),
    )
    for path, rows in by_layer.items()
  ]


def bits(layer: LayerBar) -> str:
  return "/".join("–".join(map(str, b)) for b in (layer.w_bits, layer.a_bits))


HEAD = ("layer", "kernel", "weights kept", "density", "MACs",
        "bits w/a", "score, per layer")  # fmt: skip


def texts(layers: Sequence[LayerBar]) -> list[list[str]]:
  """Writes a row of texts for each layer, as `HEAD` names them, and the sum."""
  rows = [
    [
      x.path,
      "×".join(map(str, x.shape)),
      f"{x.kept:,}",
      f"{x.density:.3f}",
      f"{x.macs:,}",
      bits(x),
      f"{x.total:.6f} = {x.params_term:.6f} + {x.ops_term:.6f}",
    ]
    for x in layers
  ]
  weights, kept = sum(x.weights for x in layers), sum(x.kept for x in layers)
  params = sum(x.params_term for x in layers)
  ops = sum(x.ops_term for x in layers)
  rows.append(
    ["all", "", f"{kept:,}", f"{kept / weights:.3f}",
     f"{sum(x.macs for x in layers):,}", "",
     f"{params + ops:.6f} = {params:.6f} + {ops:.6f}"]
  )  # fmt: skip
  return rows


Shares = list[dict[str, Any]]  # of a bar: class_, left and width in percent


def table(layers: Sequence[LayerBar]) -> dict[str, Any]:
  """Returns what the page's table of layers shows: texts, and bars in cells."""
  most_weights = max(x.weights for x in layers)
  most_macs = max(x.macs for x in layers)
  most_bits = 32
  most_score = max(x.total for x in layers) or 1.0
  *rows, last = texts(layers)
  out = []
  for x, row in zip(layers, rows, strict=True):
    share = 100 / most_weights
    cells = [
      _cell(row[2], (("of0", x.kept * share),
                     ("rest", (x.weights - x.kept) * share))),
      _cell(row[3], (("of0", 100 * x.density),
                     ("rest", 100 - 100 * x.density))),
      _cell(row[4], (("of2", 100 * x.macs / most_macs),)),
      _cell(row[5], (("of0", 100 * max(x.w_bits) / most_bits),),
            (("of2", 100 * max(x.a_bits) / most_bits),)),
      _cell(f"{x.total:.6f}", (("of0", 100 * x.params_term / most_score),
                               ("of2", 100 * x.ops_term / most_score))),
    ]  # fmt: skip
    cells[-1]["title"] = row[6]
    out.append({"path": x.path.split("/"), "shape": row[1], "cells": cells})
  total, _, terms = last[-1].partition(" = ")
  sums = [(text, "") for text in last[2:-1]] + [(total, terms)]
  return {"head": _TABLE_HEAD, "rows": out, "sum": [last[0], *sums]}


# Each column's name, and what the colors of its bars mean.
_TABLE_HEAD = (
  ("layer and kernel", ()),
  ("weights", (("of0", "kept"), ("rest", "removed"))),
  ("density", ()),
  ("MACs", ()),
  ("bits", (("of0", "weights"), ("of2", "inputs"))),
  ("score, per layer", (("of0", "weights"), ("of2", "MACs"))),
)


def _cell(text: str, *tracks: Sequence[tuple[str, float]]) -> dict[str, Any]:
  return {"text": text, "title": "", "tracks": [_shares(t) for t in tracks]}


def _shares(track: Sequence[tuple[str, float]]) -> Shares:
  out, left = [], 0.0
  for class_, width in track:
    if width > 0.05:
      out.append({"class_": class_, "left": left, "width": width})
    left += width
  return out
