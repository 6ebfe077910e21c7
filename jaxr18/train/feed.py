"""The batches of a phase, a pure function of seed and step."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jaxr18.data import dataset as data
from jaxr18.train.mesh import shard
from jaxr18.train.step import Batch
from jaxr18.train.teacher_table import CachedTeacher


@dataclasses.dataclass(frozen=True)
class Feed:
  """Where a phase's batches come from.

  Attributes:
    split: the training images.
    batch_size: of one network.
    seed: decides the order of images; of a population one for each member,
      whose batches are stacked, members first.
    key: of the run, from which the views follow that a table is asked for; of
      a population one for each member.
    mesh: over which each batch is split.
    table: gives the teacher's logits in place of a teacher.
  """

  split: data.Split
  batch_size: int
  seed: int | tuple[int, ...]
  key: jax.Array
  mesh: Mesh
  table: CachedTeacher | None = None

  @property
  def steps(self) -> int:
    """Steps an epoch."""
    return len(self.split) // self.batch_size

  def epoch(self, epoch: int, first: int) -> Iterator[tuple[int, Batch]]:
    """Yields each step of an epoch from `first` on, and its batch.

    A table is asked for the batch that is yielded and not before: it keeps what
    it is asked for, and its rows must not depend on where a run was killed.
    """
    for step in range(first, (epoch + 1) * self.steps):
      yield step, self.batch(step)

  def batch(self, step: int) -> Batch:
    """Returns the batch of a step, split over the mesh."""
    epoch, i = divmod(step, self.steps)
    rows = self._order(epoch)[i]
    part, logits = self.split.take(rows), None
    if self.table is not None:
      logits = self.table(self.key, step, epoch, part)
    batch = Batch(part.images, part.labels, part.index, logits)
    return shard(batch, self.mesh, rows.ndim - 1)

  def flush(self) -> None:
    """Brings what the table was asked for on disk."""
    if self.table is not None:
      self.table.flush()

  def _order(self, epoch: int) -> np.ndarray:
    """Rows [steps, batch], or [steps, members, batch]."""
    args = len(self.split), self.batch_size
    if isinstance(self.seed, int):
      return _batches(*args, self.seed, epoch)
    orders = [_batches(*args, seed, epoch) for seed in self.seed]
    return np.stack(orders, 1)


@functools.lru_cache(maxsize=64)
def _batches(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
  return data.batches(n, batch_size, seed, epoch)
