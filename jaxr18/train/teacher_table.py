"""A teacher's logits of every view of every image, kept in a file.

Augmentation is a function of (image, crop, flip), so there are few views: 50
of each image at a pad of 2. The table holds [images, views, classes] in
float32; what is asked for the first time is computed and stored, so that a
number is the same whether it was just computed or read. CIFAR-10's 45,000
images at a pad of 2 take 100 MB.
"""

import hashlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress.distill import mean_teacher
from jaxr18.data import dataset as data
from jaxr18.data.augment import Views, apply_views, normalize, views_at
from jaxr18.nn.network import Network, forward
from jaxr18.train.table import FORMAT, Table


def fingerprint(
  nets: tuple[Network, ...],
  dataset,
  pad: int,
  dtype=jnp.float32,
  loss: str = "kd",
) -> str:
  """Returns a hash of all that a table's logits depend on.

  Args:
    nets: the teachers.
    dataset: whose images they look at.
    pad: of the crops.
    dtype: of convolutions.
    loss: as `distill.mean_teacher` takes it.
  """
  h = hashlib.sha256()
  h.update(
    f"{FORMAT} {dataset.fingerprint} {dataset.mean} {dataset.std}".encode()
  )
  h.update(f" {pad} {dataset.classes}".encode())
  if dtype != jnp.float32:  # tables of float32 keep their names
    h.update(f" {jnp.dtype(dtype).name}".encode())
  if loss == "mse" and len(nets) > 1:
    h.update(b" mean logits")
  for net in nets:
    h.update(net.spec.to_json().encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(net):
      a = np.ascontiguousarray(leaf)
      h.update(f"{jax.tree_util.keystr(path)} {a.dtype} {a.shape}".encode())
      h.update(a.tobytes())
  return h.hexdigest()[:32]


class CachedTeacher:
  """Logits of the views that a training step draws, from a table."""

  def __init__(
    self,
    nets: tuple[Network, ...],
    dataset: data.Dataset,
    folder: pathlib.Path,
    *,
    pad: int,
    flip: str,
    dtype=jnp.float32,
    loss: str = "kd",
  ):
    """Opens the table of these teachers and images below `folder`.

    Args:
      dtype: of convolutions, as the step's own teacher would have it.
      loss: decides what several teachers' mean is, as in the step.
    """
    self._loss = loss
    self._nets, self._dataset, self._dtype = nets, dataset, dtype
    self._pad, self._flip = pad, flip
    images = int(dataset.train.index.max()) + 1
    name = fingerprint(nets, dataset, pad, dtype, loss)
    shape = (images, 2 * (2 * pad + 1) ** 2, dataset.classes)
    self.table = Table(folder / name, shape)
    self._views = jax.jit(self._make_views)
    self._compute = jax.jit(self._make_logits)
    self.computed = 0  # rows, by this process

  def _make_views(self, key, step, index, epoch) -> Views:
    views = lambda key, index: views_at(
      key, step, index.shape[0], index=index, epoch=epoch, pad=self._pad,
      flip=self._flip,
    )  # fmt: skip
    return (jax.vmap(views) if index.ndim == 2 else views)(key, index)

  def _make_logits(self, nets, images, views: Views) -> jax.Array:
    d = self._dataset
    images = apply_views(images, views, self._pad)
    inputs = lambda net: normalize(images, d.mean, d.std, net.spec.resolution)
    each = [forward(net, inputs(net), self._dtype) for net in nets]
    return mean_teacher(jnp.stack(each), self._loss)

  def __call__(
    self, key, step: int, epoch: int, part: data.Split
  ) -> np.ndarray:
    """Logits [batch, classes], or [members, batch, classes], in float32.

    Args:
      key: the run's, as the step takes it; of a population, one a member.
      step, epoch: the step's.
      part: the batch [batch, ...] or [members, batch, ...].
    """
    views = self._views(key, np.int32(step), part.index, np.int32(epoch))
    dy, dx, flip = (np.asarray(v) for v in views)
    view = (dy * (2 * self._pad + 1) + dx) * 2 + flip
    for i in np.ndindex(part.index.shape[:-1]):
      # Asked for each member anew: a row that two want is the first one's.
      missing = ~self.table.filled(part.index[i], view[i])
      if missing.any():
        self._fill(part.index[i], part.images[i], view[i], missing)
    return self.table.get(part.index, view)

  def _fill(self, index, images, view, missing) -> None:
    side = 2 * self._pad + 1
    views = Views(view // 2 // side, view // 2 % side, view % 2 == 1)
    # The whole batch, so that one program serves however many are missing.
    logits = np.asarray(self._compute(self._nets, images, views))
    self.table.put(index[missing], view[missing], logits[missing])
    self.computed += int(missing.sum())

  def fill(self, batch_size: int, tell: Callable[[str], None] = lambda s: None):
    """Computes every view that is missing; a killed one goes on."""
    train = self._dataset.train
    flips = (0,) if self._flip == "none" else (0, 1)
    numbers = [v for v in range(self.table.shape[1]) if v % 2 in flips]
    for done, number in enumerate(numbers):
      for start in range(0, len(train), batch_size):
        # The last batch is moved back, to be of the same size.
        start = max(0, min(start, len(train) - batch_size))
        part = train.take(slice(start, start + batch_size))
        view = np.full(len(part), number)
        missing = ~self.table.filled(part.index, view)
        if missing.any():
          self._fill(part.index, part.images, view, missing)
      self.table.flush()
      tell(f"teacher's logits: view {done + 1} of {len(numbers)}")

  def flush(self) -> None:
    self.table.flush()
