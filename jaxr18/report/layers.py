"""What each layer has and costs, from a result: one order for every picture."""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxr18.cost.figures import LayerScore
from jaxr18.report import page, svg
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
  """The layers from the input to the head."""
  found: dict[str, list[LayerScore]] = {}
  for row in result.score.rows:
    path = re.sub(r"^member\d+/", "", row.path)
    found.setdefault(path, []).append(row)
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
    for path, rows in found.items()
  ]


def bits(layer: LayerBar) -> str:
  return "/".join("–".join(map(str, b)) for b in (layer.w_bits, layer.a_bits))


HEAD = ("layer", "kernel", "weights kept", "density", "MACs",
        "bits w/a", "score, per layer")  # fmt: skip


def texts(layers: Sequence[LayerBar]) -> list[list[str]]:
  """A row of texts for each layer, as `HEAD` names them, and the sum."""
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


def table(layers: Sequence[LayerBar]) -> str:
  """The layers as a table with bars in its cells, as markup."""
  most_weights = max(x.weights for x in layers)
  most_macs = max(x.macs for x in layers)
  most_bits = 32
  most_score = max(x.total for x in layers) or 1.0
  names = [
    "layer and kernel",
    f"{_swatch('of0')}weights kept {_swatch('rest')}removed",
    f"{_swatch('of0')}density",
    f"{_swatch('of2')}MACs",
    f"{_swatch('of0')}bits of weights {_swatch('of2')}inputs",
    f"score: {_swatch('of0')}weights {_swatch('of2')}MACs",
  ]
  head = "".join(f'<th scope="col">{name}</th>' for name in names)
  *rows, last = texts(layers)
  body = []
  for x, row in zip(layers, rows, strict=True):
    share = 100 / most_weights
    cells = [
      _bar(
        row[2],
        ("of0", x.kept * share),
        ("rest", (x.weights - x.kept) * share),
      ),
      _bar(row[3], ("of0", 100 * x.density), ("rest", 100 - 100 * x.density)),
      _bar(row[4], ("of2", 100 * x.macs / most_macs)),
      _two(row[5], max(x.w_bits) / most_bits, max(x.a_bits) / most_bits),
      _bar(
        f"{x.total:.6f}",
        ("of0", 100 * x.params_term / most_score),
        ("of2", 100 * x.ops_term / most_score),
        title=row[6],
      ),
    ]  # fmt: skip
    name = html.escape(x.path).replace("/", "/<wbr>")
    name = f'<th scope="row">{name}<small>{row[1]}</small></th>'
    body.append(f"<tr>{name}{''.join(cells)}</tr>")
  total, _, terms = last.pop().partition(" = ")
  last.append(f"{total}<small>{terms}</small>")
  foot = "".join(f'<td class="bar">{c}</td>' for c in last[2:])
  foot = f'<tr><th scope="row">{last[0]}</th>{foot}</tr>'
  return page.scrolled(
    f'<table class="layers"><thead><tr>{head}</tr></thead>'
    f"<tbody>{''.join(body)}</tbody>"
    f"<tfoot>{foot}</tfoot></table>",
    "Weights, MACs, bits, density and score by layer",
  )


def _swatch(class_: str) -> str:
  return f'<span class="swatch {class_}"></span>'


def _track(*shares: tuple[str, float]) -> str:
  parts, left = [], 0.0
  for class_, width in shares:
    if width > 0.05:
      parts.append(
        f'<rect class="{class_}" x="{left:.1f}%" width="{width:.1f}%"/>'
      )
    left += width
  return f'<svg class="track" aria-hidden="true">{"".join(parts)}</svg>'


def _bar(words: str, *shares, title: str | None = None) -> str:
  words = svg.tag("span", html.escape(words))
  return svg.tag("td", words, _track(*shares), class_="bar", title=title)


def _two(words: str, weights: float, inputs: float) -> str:
  tracks = _track(("of0", 100 * weights)) + _track(("of2", 100 * inputs))
  words = svg.tag("span", html.escape(words))
  return svg.tag("td", words, tracks, class_="bar bits")
