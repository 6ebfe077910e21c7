"""Which images are held out: decided by labels and a seed alone."""

import numpy as np


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Chooses exactly `count` rows, each class in proportion.

  Where the proportion is no whole number, the largest remainders get one
  more.

  Args:
    labels: int [n].
    count: from 0 to n.
    seed: non-negative; decides which rows.

  Returns:
    The rows, sorted, int64 [count].
  """
  classes, sizes = np.unique(labels, return_counts=True)
  shares = sizes * count
  quotas = shares // len(labels)
  rest = count - quotas.sum()
  quotas[np.argsort(-(shares % len(labels)), kind="stable")[:rest]] += 1
  order = permutation(len(labels), seed)
  rows = [
    order[labels[order] == c][:quota]
    for c, quota in zip(classes, quotas, strict=True)
  ]
  return np.sort(np.concatenate(rows))


def permutation(n: int, *seeds: int) -> np.ndarray:
  """An order of 0..n-1 that the seeds decide, on every machine the same."""
  # Sorts the raw stream, which NumPy keeps the same over its versions; it
  # does not promise that for Generator.permutation.
  bits = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(n)
  return np.argsort(bits, kind="stable")
