"""The score of an ensemble whose members have several specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxr18.cost.figures import Figure, PerNetwork, Score
from jaxr18.cost.score import score
from jaxr18.nn.spec import NetSpec


def ensemble_score(members: Sequence[tuple[NetSpec, Any]]) -> Score:
  """Scores an ensemble: each term is the sum of the members'.

  Args:
    members: spec and masks of each; masks as `score` takes them, or None.

  Returns:
    A `Score`. Its `per_network` adds the members' two terms, each by the
    formula with its own p_s, p_u, q_w and q_a; of the sum, w and f are sums,
    the bits the largest, p_s and p_u means weighted by w. Rows are named
    'member0/stem' and so on.

  Raises:
    ValueError: no member, or as `score`.
  """
  if not members:
    raise ValueError("an ensemble needs at least one network, got none")
  return add_scores([score(spec, masks=masks) for spec, masks in members])


def add_scores(scores: Sequence[Score]) -> Score:
  """Adds the scores of an ensemble's members."""
  whole = [s.per_network for s in scores]
  w = sum(c.w for c in whole)
  rows = tuple(
    dataclasses.replace(row, path=f"member{i}/{row.path}")
    for i, s in enumerate(scores)
    for row in s.rows
  )
  return Score(
    PerNetwork(
      *_terms(whole),
      sum(c.p_s * c.w for c in whole) / w,
      sum(c.p_u * c.w for c in whole) / w,
      max(c.q_w for c in whole),
      max(c.q_a for c in whole),
      w,
      sum(c.f for c in whole),
    ),
    Figure(*_terms([s.per_layer for s in scores])),
    Figure(*_terms([s.on_disk for s in scores])),
    rows,
    len(scores),
  )


def _terms(figures) -> tuple[float, float]:
  return (
    sum(f.params_term for f in figures),
    sum(f.ops_term for f in figures),
  )
