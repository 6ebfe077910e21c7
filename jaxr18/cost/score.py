"""The efficiency score: three figures, each a sum of two terms.

    score = params_term + ops_term
    params_term = bits of the weights / 32 / 5.6e6
    ops_term    = MACs * bits of the operands / 32 / 2.8e8

Lower is better. The references 5.6e6 and 2.8e8 are those of the course that
the score comes from (ResNet-18 in half precision). MACs are for one image,
convolutions and the head alone, taps on the padding included; see
`jaxr18.cost.macs` and docs/score.md.

**per network**: its formula, as its authors compute it, with global numbers:

    (1 - (p_s + p_u)) * q_w / 32 * w / 5.6e6
      + (1 - p_s) * max(q_w, q_a) / 32 * f / 2.8e8

w is every parameter as PyTorch counts them, batch norm and bias included
(not the learned bounds of quantizers); f the MACs. q_w and q_a are the
largest bits of any layer. p_s + p_u is the fraction of w that masks remove.
p_s is the part in wholly masked channels, as a share of the parameters or of
the MACs, whichever is smaller, so neither term is credited with more than the
masks remove. On a shrunk network w and f are already smaller and p_s is 0.

**per layer**: the sum over layers of what is really there:

    kept weights * w_bits / 32 / 5.6e6 + MACs * max(w_bits, a_bits) / 32 / 2.8e8

with each layer's own bits. Masks remove weights and no MACs: only shrinking
removes MACs. Batch norm is folded: its scales vanish into the weights, its
bias is charged with 32 bits an output channel (of every convolution that a
batch norm follows), like the head's. The first layer is charged as any other,
by the bits of what it multiplies: the image quantized to its `a_bits`, or the
normalized image in 32 bits.

**on disk**: the same MACs; the weights at the bits that a file of them needs,
without compression. A kernel takes the smallest of: every weight, zeros too,
in w_bits (which a pruned kernel of 1 bit cannot, since a sign has no zero); a
mask of one bit a weight and the kept weights; for each kept weight its w_bits
and an index of ceil(log2(size)) bits. To this come 32 bits for the bias of each
output channel, masked or not, 32 bits for the scale of each output channel of a
kernel of 8 bits or fewer, and of one in float16 that batch norm follows (its
scale cannot vanish into weights that are rounded already), and 32 bits for the
learned bound of each such input. Not in it: the description of the network.

Hence per layer <= on disk always; and where all bits are b and pruning is
unstructured, per layer equals the reference formula with w the kernels'
weights, plus the biases at 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxr18.cost.counted import MacReport
from jaxr18.cost.figures import (
  BIAS_BITS,
  MACS_REFERENCE,
  PARAMS_REFERENCE,
  Figure,
  LayerScore,
  PerNetwork,
  Score,
)
from jaxr18.cost.kept import (
  LayerWeights,
  encodings,
  layer_weights,
  stored_scales,
)
from jaxr18.nn.spec import FLOAT_BITS, Layer, NetSpec

SCALE_BITS = 32  # of an output channel or an input


def per_network_score(
  w: int,
  f: int,
  *,
  p_s: float = 0.0,
  p_u: float = 0.0,
  q_w: int = FLOAT_BITS,
  q_a: int = FLOAT_BITS,
  shrunk: bool = False,
) -> PerNetwork:
  """Computes the reference formula on given numbers.

  Args:
    w: parameters.
    f: MACs for one image.
    p_s: fraction removed in whole channels, [0, 1].
    p_u: fraction removed elsewhere, [0, 1].
    q_w: bits of a weight, 1 to 32.
    q_a: bits of an activation, 1 to 32.
    shrunk: w and f are those of a network whose channels are gone already.

  Raises:
    ValueError: numbers out of range, p_s + p_u > 1, or p_s > 0 on a network
      that is shrunk.
  """
  for name, bits in (("q_w", q_w), ("q_a", q_a)):
    _check_bits(name, bits)
  for name, n in (("w", w), ("f", f)):
    if n < 0:
      raise ValueError(f"{name} (={n}) must not be negative")
  for name, p in (("p_s", p_s), ("p_u", p_u)):
    if not 0 <= p <= 1:
      raise ValueError(f"{name} (={p}) must be within [0, 1]")
  if p_s + p_u > 1 + 1e-12:
    raise ValueError(
      f"p_s + p_u (={p_s} + {p_u}) must be at most 1: both are fractions of"
      " the same w, and a weight is removed once"
    )
  if shrunk and p_s:
    raise ValueError(
      f"p_s (={p_s}) must be 0 on a shrunk network: its w (={w}) and f (={f})"
      " have lost those channels already"
    )
  return PerNetwork(
    max(0.0, 1 - (p_s + p_u)) * q_w / 32 * w / PARAMS_REFERENCE,
    (1 - p_s) * max(q_w, q_a) / 32 * f / MACS_REFERENCE,
    p_s,
    p_u,
    q_w,
    q_a,
    w,
    f,
  )


def score(
  spec: NetSpec,
  *,
  masks: Any = None,
  sparsity: float = 0.0,
  p_s: float | None = None,
  shrunk_from: NetSpec | None = None,
  members: int = 1,
  views: int = 1,
  counted: MacReport | None = None,
) -> Score:
  """Scores a network by its spec; no weight is initialized or looked at.

  Args:
    spec: the network as it stands, after any shrinking.
    masks: bool, nested dicts like its parameters, True keeps, a scalar where
      nothing is pruned. With `members`, arrays may have that leading axis.
    sparsity: without masks, the fraction removed of every kernel.
    p_s: declares the formula's p_s where no masks tell it; the other figures
      charge what is there.
    shrunk_from: the spec before its channels were removed.
    members: networks of this spec that vote; each is charged in full.
    views: passes over one image by each member (test-time augmentation).
    counted: the count of the function that predicts one image, as
      `count_macs` returns it, to hold against what is charged here.

  Returns:
    A `Score`.

  Raises:
    ValueError: masks that do not fit, bits or fractions out of range, p_s on
      a shrunk network or twice, or passes of `counted` that are not charged.
  """
  for name, n in (("members", members), ("views", views)):
    if not isinstance(n, int) or n < 1:
      raise ValueError(f"{name} (={n!r}) must be an int, at least 1")
  if not 0 <= sparsity <= 1:
    raise ValueError(f"sparsity (={sparsity}) must be within [0, 1]")
  if masks is not None and sparsity:
    raise ValueError(
      f"masks say what is removed: drop them or sparsity (={sparsity})"
    )
  layers = spec.layers()
  counts = [layer_weights(layer, masks, sparsity, members) for layer in layers]
  return score_counts(
    layers, counts, p_s=p_s, shrunk=_is_shrunk(spec, shrunk_from),
    members=members, views=views, counted=counted,
  )  # fmt: skip


def score_counts(
  layers: Sequence[Layer],
  counts: Sequence[LayerWeights],
  *,
  p_s: float | None = None,
  shrunk: bool = False,
  members: int = 1,
  views: int = 1,
  counted: MacReport | None = None,
) -> Score:
  """Computes the score from weights that are counted already.

  Args:
    layers: of the network, in its order.
    counts: the weights of each layer.
    p_s: the ratio that structured pruning removed; None follows from the
      counts.
    shrunk: whether pruned channels are gone from the layers.
    members: networks that answer together.
    views: of each image.
    counted: multiply-accumulates from the jaxpr, to be compared.

  Raises:
    ValueError: `counted` differs from the layers' own count.
  """
  rows = tuple(
    _row(layer, count, members * views)
    for layer, count in zip(layers, counts, strict=True)
  )
  if counted is not None:
    _check_counted(rows, counted)
  per_layer = per_layer_figure(rows)
  stored_bits = sum(row.stored_bits for row in rows)
  on_disk = Figure(stored_bits / 32 / PARAMS_REFERENCE, per_layer.ops_term)
  per_network = _per_network(rows, counts, p_s, shrunk)
  return Score(per_network, per_layer, on_disk, rows, members, views)


def per_layer_figure(rows: Sequence[LayerScore]) -> Figure:
  """Sums over layers, each by its own bits.

  Rounded once: Python's `sum` gives other last bits since 3.12.
  """
  return Figure(
    math.fsum(row.per_layer.params_term for row in rows),
    math.fsum(row.per_layer.ops_term for row in rows),
  )


def _check_bits(name: str, bits: int) -> None:
  if not isinstance(bits, int) or not 1 <= bits <= FLOAT_BITS:
    raise ValueError(
      f"{name} (={bits!r}) must be an int from 1 to {FLOAT_BITS}"
    )


def _row(layer: Layer, count: LayerWeights, passes: int) -> LayerScore:
  _check_bits(f"{layer.path}: w_bits", layer.w_bits)
  _check_bits(f"{layer.path}: a_bits", layer.a_bits)
  members = count.size // math.prod(layer.kernel_shape)
  forms = encodings(layer.kernel_shape, count.kept, layer.w_bits, members)
  encoding = min(forms, key=forms.__getitem__)
  return LayerScore(
    path=layer.path,
    kernel_shape=layer.kernel_shape,
    groups=layer.groups,
    w_bits=layer.w_bits,
    a_bits=layer.a_bits,
    weights=count.size,
    kept=count.kept,
    biases=count.biases,
    biases_kept=count.biases_kept,
    macs=passes * layer.macs,
    encoding=encoding,
    stored_bits=forms[encoding]
    + count.biases * BIAS_BITS
    + members * stored_scales(layer) * SCALE_BITS,
  )


def _per_network(rows, counts, p_s, shrunk) -> PerNetwork:
  w = sum(c.params for c in counts)
  f = sum(row.macs for row in rows)
  removed = 1 - sum(c.params_kept for c in counts) / w
  by_params = sum(c.params_structured for c in counts) / w
  by_macs = math.fsum(
    row.macs * c.structured / c.size
    for row, c in zip(rows, counts, strict=True)
  )
  masked = min(by_params, by_macs / f)
  declared = False
  if p_s is None:
    p_s = masked  # on a shrunk network, channels masked since then
  elif p_s and masked:
    raise ValueError(
      f"p_s (={p_s}) is charged already: the masks remove whole channels"
      f" (p_s={masked:.4f}); leave p_s out"
    )
  else:
    declared = True
  return per_network_score(
    w,
    f,
    p_s=p_s,
    p_u=max(0.0, removed - masked),  # rounding may leave -1e-17
    q_w=max(row.w_bits for row in rows),
    q_a=max(row.a_bits for row in rows),
    shrunk=shrunk and declared,
  )


def _is_shrunk(spec: NetSpec, shrunk_from: NetSpec | None) -> bool:
  if shrunk_from is None:
    return False
  before = [layer.kernel_shape for layer in shrunk_from.layers()]
  return before != [layer.kernel_shape for layer in spec.layers()]


def _check_counted(rows, counted: MacReport) -> None:
  """Holds a count by layer path against the rows."""
  macs = dict.fromkeys((row.path for row in rows), 0)
  for path, n in counted.by_path().items():
    scopes = path.split("/")
    tails = ("/".join(scopes[i:]) for i in range(len(scopes)))
    tail = next((t for t in tails if t in macs), None)
    if tail is None:
      raise ValueError(
        f"{n} MACs at {path!r} belong to no layer of the spec; its layers are"
        f" {list(macs)}"
      )
    macs[tail] += n
  for row in rows:
    if macs[row.path] != row.macs:
      ratio = macs[row.path] / row.macs
      raise ValueError(
        f"{row.path}: predicting one image takes {macs[row.path]} MACs, and"
        f" {row.macs} are charged ({ratio:.3g} times as many): every pass of"
        " an ensemble or of test-time augmentation is charged, with members="
        " and views="
      )
