"""Asynchronous successive halving on Pareto ranks.

Candidates are compared at rungs, epochs of their training: one goes on if it
is among the best 1 / eta of all that have come to the rung so far, and no one
waits for others (ASHA, Li et al., 2020, arXiv:1810.05934, as it stops trials).
With several objectives, the best are those of the lowest non-domination rank
(MO-ASHA, Schmucker et al., 2021, arXiv:2106.12639), and of one rank those that
stand farthest from their neighbours (the crowding distance of NSGA-II, Deb et
al., 2002).
"""

from collections.abc import Sequence

import numpy as np


def ranks(costs: np.ndarray) -> np.ndarray:
  """Ranks costs [n, objectives] by non-domination; lower is better.

  0 where no other row is as low in all and lower in one; then the same without
  those of rank 0, and so on. Equal rows have equal ranks.
  """
  costs = np.asarray(costs, float)
  below = np.all(costs[:, None] <= costs[None], -1)
  dominates = below & np.any(costs[:, None] < costs[None], -1)
  out = np.full(len(costs), -1)
  rank = 0
  while (out < 0).any():
    left = out < 0
    front = left & ~dominates[left].any(0)
    out[front] = rank
    rank += 1
  return out


def crowding(costs: np.ndarray) -> np.ndarray:
  """Computes crowding distances [n] of costs [n, objectives] of one front.

  The sum over objectives of the gap between a row's two neighbours, as a share
  of the whole range; infinite at both ends.
  """
  costs = np.asarray(costs, float)
  out = np.zeros(len(costs))
  for column in costs.T:
    order = np.argsort(column, kind="stable")
    ordered = column[order]
    span = ordered[-1] - ordered[0]
    out[order[[0, -1]]] = np.inf
    if span:
      out[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
  return out


def order(costs: np.ndarray) -> list[int]:
  """Orders rows of costs [n, objectives] from the best to the worst.

  By rank, then the more distant first, then the lower in the first objective,
  then the earlier.
  """
  costs = np.asarray(costs, float)
  rank = ranks(costs)
  distance = np.zeros(len(costs))
  for r in set(rank.tolist()):
    rows = np.flatnonzero(rank == r)
    distance[rows] = crowding(costs[rows])
  return sorted(
    range(len(costs)), key=lambda i: (rank[i], -distance[i], costs[i][0], i)
  )


def goes_on(
  earlier: Sequence[tuple[float, float]],
  mine: tuple[float, float],
  eta: int,
) -> bool:
  """Decides whether a candidate that comes to a rung is trained on.

  Args:
    earlier: (accuracy, score) of those that came before it, in any state.
    mine: its own.
    eta: of so many one goes on; while there are fewer, all do.
  """
  costs = np.array([(-accuracy, cost) for accuracy, cost in [*earlier, mine]])
  if len(costs) < eta:
    return True
  return len(earlier) in order(costs)[: len(costs) // eta]
