"""The score that networks will have, or bounds of it."""

import dataclasses
from collections.abc import Sequence

from jaxr18.config.forecast.bounds import bounds_of
from jaxr18.config.forecast.kernels import ends
from jaxr18.config.forecast.outlook import Outlook
from jaxr18.cost.bounds import Bounds, add_bounds
from jaxr18.cost.figures import Score, stored_bytes
from jaxr18.cost.kept import LayerWeights, vector_paths
from jaxr18.cost.score import per_layer_figure, score_counts
from jaxr18.cost.several import add_scores
from jaxr18.nn.spec import Layer


def score_of(
  outlooks: Sequence[Outlook], ensemble: bool, views: int = 1
) -> Score | Bounds:
  """Computes the `Score` that a phase's networks will have, or `Bounds`.

  Args:
    outlooks: of the phase.
    ensemble: whether all are charged; of a population the first is.
    views: of each image.
  """
  if not ensemble:
    return _score(outlooks[0], views)
  each = [_score(o, views) for o in outlooks]
  known = [one for one in each if isinstance(one, Score)]
  return add_scores(known) if len(known) == len(each) else add_bounds(each)


def per_layer_of(o: Outlook) -> float | None:
  """Computes the per-layer figure that a network will have, if it is known."""
  found = _score(o, 1)
  if isinstance(found, Score):
    return found.per_layer.total
  return per_layer_figure(found.rows).total if found.rows else None


def stored_bytes_of(o: Outlook) -> int | None:
  """What the on-disk figure will charge; None where it is unknown."""
  rows = _score(o, 1).rows
  return stored_bytes(rows) if rows else None


def _score(o: Outlook, views: int) -> Score | Bounds:
  """Of one network."""
  layers = o.spec.layers()
  counts = [c for layer in layers if (c := _counts(o, layer)) is not None]
  known = o.fixed and len(counts) == len(layers)
  rows = score_counts(layers, counts, views=views) if known else None
  if rows is not None and all(_whole_is_known(o, layer) for layer in layers):
    return rows
  out = bounds_of(o, views)
  return out if rows is None else dataclasses.replace(out, rows=rows.rows)


def _whole_is_known(o: Outlook, layer: Layer) -> bool:
  low, high = o.whole(layer)
  return low == high


def _counts(o: Outlook, layer: Layer) -> LayerWeights | None:
  """A layer's weights, None where training decides how many are kept.

  Of those in wholly masked channels it has the fewest that may be.
  """
  size, kept, whole = o.size(layer), o.kept(layer), int(o.whole(layer)[0])
  outputs = ends(o.spec)[layer.path][1]
  alive = o.alive[outputs] if outputs else (layer.features, layer.features)
  if any(low != high for low, high in (size, kept, alive)):
    return None
  vectors = len(vector_paths(layer))
  return LayerWeights(
    size=int(size[0]),
    kept=int(kept[0]),
    structured=whole,
    biases=layer.features if vectors else 0,
    biases_kept=int(alive[0]) if vectors else 0,
    params=int(size[0]) + layer.features * vectors,
    params_kept=int(kept[0] + alive[0] * vectors),
    params_structured=int(whole + (layer.features - alive[0]) * vectors),
  )
