"""Bounds of the three figures of a network that training decides in part.

Each is a sum over layers in which every number stands as a range; see
`jaxr18.cost.bounds` for how such sums are bounded, `jaxr18.cost.score` for the
figures.
"""

import math
from collections.abc import Callable

from jaxr18.config.forecast.kernels import ends, term
from jaxr18.config.forecast.outlook import Kept, Outlook
from jaxr18.cost.bounds import Bounds, Range, plus, products, spread
from jaxr18.cost.figures import (
  BIAS_BITS,
  MACS_REFERENCE,
  PARAMS_REFERENCE,
  Figure,
)
from jaxr18.cost.kept import encodings, stored_scales, vector_paths
from jaxr18.cost.score import SCALE_BITS
from jaxr18.nn.spec import Layer

Weigh = Callable[[Layer], float]  # what one weight or one channel counts


def bounds_of(o: Outlook, views: int) -> Bounds:
  """Bounds one network's figures, for so many views of an image."""
  layers = o.spec.layers()
  macs = _kernels(o, _side)
  charged = _kernels(o, lambda x: _side(x) * max(x.w_bits, x.a_bits))
  ops = [views * n / 32 / MACS_REFERENCE for n in charged]
  weights = _kept(o, lambda x: 1)
  bits = plus(
    _kept(o, lambda x: x.w_bits),
    _channels(o, lambda x: BIAS_BITS, masked=True),
  )
  on_disk = plus(
    _whole_files(o), _part_files(o), _channels(o, lambda x: BIAS_BITS),
    _scales(o),
  )  # fmt: skip
  # The reference formula, with global numbers.
  vectors = lambda x: len(vector_paths(x))
  params = plus(_kernels(o, lambda x: 1), _channels(o, vectors))
  left = plus(weights, _channels(o, vectors, masked=True))
  structured = _structured_share(o, params, left, macs)
  q_w, q_a = max(x.w_bits for x in layers), max(x.a_bits for x in layers)
  f = [views * n * max(q_w, q_a) / 32 / MACS_REFERENCE for n in macs]
  low, high = (
    {
      "per_network": Figure(
        left[end] * q_w / 32 / PARAMS_REFERENCE,
        (1 - structured[1 - end]) * f[end],
      ),
      "per_layer": Figure(bits[end] / 32 / PARAMS_REFERENCE, ops[end]),
      "on_disk": Figure(on_disk[end] / 32 / PARAMS_REFERENCE, ops[end]),
    }
    for end in (0, 1)
  )
  macs = views * macs[0], views * macs[1]
  return Bounds(low, high, macs, weights, tuple(dict.fromkeys(o.why)))


def _side(layer: Layer) -> int:
  """The pixels at which a kernel is applied."""
  return layer.out_size**2


def _sum(o: Outlook, terms, masked: bool) -> Range:
  """Of products of numbers of channels, without the masked ones if `masked`."""
  if masked:
    return products(terms, o.alive, o.alive_sum)
  return products(terms, o.widths, o.width_sum)


def _kernels(
  o: Outlook,
  weigh: Weigh,
  masked: bool = False,
  which: Callable[[Layer], bool] = lambda layer: True,
) -> Range:
  """The sum of kernels' sizes, each times what `weigh` says of its layer."""
  terms = []
  for layer in filter(which, o.spec.layers()):
    c, groups = term(layer, ends(o.spec)[layer.path])
    terms.append((c * weigh(layer), groups))
  return _sum(o, terms, masked)


def _channels(o: Outlook, weigh: Weigh, masked: bool = False) -> Range:
  """The same of output channels that a batch norm or a bias follows."""
  terms = []
  for layer in filter(vector_paths, o.spec.layers()):
    end = ends(o.spec)[layer.path][1]
    n = weigh(layer) * (1 if end else layer.features)
    terms.append((n, [end] if end else []))
  return _sum(o, terms, masked)


def _kept(o: Outlook, weigh: Weigh) -> Range:
  """The sum of unmasked weights, each times what `weigh` says."""
  layers = [x for x in o.spec.layers() if x.path in o.singles]
  ranges = {x.path: o.kept(x) for x in layers}
  slopes, base = {}, 0
  for layer in layers:
    low, high = ranges[layer.path]
    slopes[layer.path] = [(weigh(layer), high - low)]
    base += weigh(layer) * low
  return plus(
    _kernels(o, weigh, masked=True, which=lambda x: x.path not in o.singles),
    (base, base),
    spread(ranges, o.totals, slopes),
  )


def _scales(o: Outlook) -> Range:
  """Bits of the scales beside a file's weights."""
  terms: list[tuple[float, list[str]]] = []
  for layer in o.spec.layers():
    scales = stored_scales(layer)
    by_channel = scales >= layer.features
    end = ends(o.spec)[layer.path][1]
    if by_channel and end:
      terms.append((SCALE_BITS, [end]))
      scales -= layer.features
    terms.append((SCALE_BITS * scales, []))
  return _sum(o, terms, masked=False)


def _whole_files(o: Outlook) -> Range:
  """Bits of a file's kernels that lose whole channels at most."""
  plain = lambda x: x.path not in o.singles
  if all(o.alive[g] == o.widths[g] for g in o.alive):
    return _kernels(o, lambda x: x.w_bits, which=plain)
  out = 0.0, 0.0
  for layer in filter(plain, o.spec.layers()):
    both = zip(o.size(layer), o.in_alive(layer), strict=True)
    low, high = (_file(layer, s, k) for s, k in both)
    out = plus(out, (low, high))
  return out


def _part_files(o: Outlook) -> Range:
  """Bits of a file's kernels that lack single weights."""
  ranges, base, slopes = {}, 0.0, ({}, {})
  for layer in o.spec.layers():
    if layer.path not in o.singles:
      continue
    k, size = o.singles[layer.path], o.size(layer)[1]
    ranges[layer.path] = k.least, k.most
    corners = _corners(layer, size, k)
    base += _file(layer, size, k.least)
    # Of 1 bit, whole kernels are smaller files than those that lack a weight.
    for end, most in enumerate((k.most, min(k.most, size - 0.5))):
      at = [_file(layer, size, min(n, max(most, k.least))) for n in corners]
      slopes[end][layer.path] = [
        ((b - a) / (y - x), y - x)
        for a, b, x, y in zip(
          at[:-1], at[1:], corners[:-1], corners[1:], strict=True
        )
        if y > x
      ]
  low, high = (spread(ranges, o.totals, slopes[end])[end] for end in (0, 1))
  return base + low, base + high


def _file(layer: Layer, size: float, kept: float) -> float:
  """Bits of a file's kernel in its smallest form."""
  return min(encodings((round(size),), kept, layer.w_bits).values())


def _corners(layer: Layer, size: float, k: Kept) -> list[float]:
  """Numbers of kept weights between which a file grows evenly."""
  index = math.ceil(math.log2(size)) if size > 1 else 0
  corners = [size / index if index else size]
  corners.append(size * (layer.w_bits - 1) / layer.w_bits)
  inner = sorted(n for n in corners if k.least < n < k.most)
  return [k.least, *inner, k.most]


def _structured_share(
  o: Outlook, params: Range, left: Range, macs: Range
) -> Range:
  """The formula's p_s: the share in wholly masked channels."""
  if params[1] <= left[0] + 1e-3:
    return 0.0, 0.0
  wholes = [(o.whole(x), _side(x)) for x in o.spec.layers()]
  by_params = [sum(masked[end] for masked, _ in wholes) for end in (0, 1)]
  by_macs = [sum(masked[end] * n for masked, n in wholes) for end in (0, 1)]
  low = min(by_params[0] / params[1], by_macs[0] / macs[1])
  removed = 1 - left[0] / params[1]
  high = min(removed, by_macs[1] / macs[0], 1.0)
  return low, max(low, high)
