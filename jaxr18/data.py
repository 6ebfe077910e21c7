"""TFDS's CIFAR-10 or the embedded digits -> uint8 arrays; augmentation.

`load` returns everything as NumPy arrays in memory (CIFAR-10 is 184 MB).
`batches` and `augment` are pure functions of the seed, the epoch and the step:
a resumed run sees the same pixels as one that was never interrupted.

`python -m jaxr18.data` prepares CIFAR-10's folder ahead of the first run.
"""

import argparse
import hashlib
import io
import os
import pathlib
import sys
import tempfile
import time
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from jaxr18 import cifar10
from jaxr18.cifar10 import DataError

NAMES = ('cifar10', 'digits')
FLIPS = ('none', 'random', 'alternating')

# Over the 50,000 training images. The (0.2023, 0.1994, 0.2010) of many
# repositories is the mean of the images' own deviations, a known mistake.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

_TEST_DIGITS = 360  # of 1,797: about a fifth


class Split(NamedTuple):
  """Labelled images in the order of the original set.

  Attributes:
    images: uint8 [n, 32, 32, 3].
    labels: int32 [n].
    index: int32 [n], the image's position in the original training set (for
      the test split: in the test set), whatever part of it was kept.
  """

  images: np.ndarray
  labels: np.ndarray
  index: np.ndarray

  def __len__(self) -> int:
    return self.labels.shape[0]

  def take(self, rows) -> 'Split':
    """The images at `rows` (ints or a slice)."""
    return Split(*(array[rows] for array in self))


class Dataset(NamedTuple):
  """Three splits and what is needed to normalize them.

  Attributes:
    mean, std: of each channel, in units of 0..1; see `normalize`.
    fingerprint: hex digest of the source's content, split apart.
  """

  name: str
  classes: int
  train: Split
  validation: Split
  test: Split
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  fingerprint: str


def load(
  name: str,
  data_dir: str = '',
  validation: int = 5000,
  split_seed: int = 0,
  limit: int = 0,
  cache_dir: str = '',
) -> Dataset:
  """Loads a dataset; CIFAR-10 is downloaded and prepared where it is missing.

  Args:
    name: one of `NAMES`.
    data_dir: TFDS's folder; '' is TFDS_DATA_DIR or TFDS's default.
    validation: how many training images to hold out, stratified over the
      classes: 0 for none, less than the training set.
    split_seed: decides which.
    limit: if not 0, keep only the first so many images of each split. The
      validation images of a limited and of a full dataset are the same.
    cache_dir: for the decoded arrays; '' is `$XDG_CACHE_HOME/jaxr18` or
      `~/.cache/jaxr18`.

  Raises:
    DataError: the data can't be had; the text says what was tried.
    ValueError: an argument out of its range.
  """
  if name == 'cifar10':
    arrays, fingerprint = _cifar10_arrays(data_dir, cache_dir)
    mean, std = CIFAR10_MEAN, CIFAR10_STD
  elif name == 'digits':
    arrays, fingerprint = _digits_arrays(), 'scikit-learn digits'
    mean, std = _statistics(arrays['train_images'])
  else:
    raise ValueError(f'name (={name!r}) must be one of {NAMES}.')
  train, test = (
    Split(
      arrays[f'{split}_images'],
      arrays[f'{split}_labels'].astype(np.int32),
      np.arange(len(arrays[f'{split}_labels']), dtype=np.int32),
    )
    for split in ('train', 'test')
  )
  if not 0 <= validation < len(train):
    raise ValueError(
      f'validation (={validation}) must be at least 0 and less than the '
      f'{len(train):,} training images of {name}.'
    )
  if limit < 0:
    raise ValueError(f'limit (={limit}) must be 0 (all images) or positive.')
  held_out = stratified(train.labels, validation, split_seed)
  kept = np.setdiff1d(np.arange(len(train)), held_out)
  rows = slice(limit or None)
  return Dataset(
    name,
    10,
    train.take(kept[rows]),
    train.take(held_out[rows]),
    test.take(rows),
    mean,
    std,
    fingerprint,
  )


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
  quotas[np.argsort(-(shares % len(labels)), kind='stable')[:rest]] += 1
  order = _permutation(len(labels), seed)
  rows = [
    order[labels[order] == c][:quota]
    for c, quota in zip(classes, quotas, strict=True)
  ]
  return np.sort(np.concatenate(rows))


def batches(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
  """The rows of an epoch's batches, a pure function of (seed, epoch).

  Returns:
    int [n // batch_size, batch_size]: distinct rows of 0..n-1 in a new order
    every epoch; the n % batch_size last ones are left out.

  Raises:
    ValueError: fewer images than one batch.
  """
  if not 1 <= batch_size <= n:
    raise ValueError(
      f'batch_size (={batch_size}) must be from 1 to the {n:,} training '
      'images.'
    )
  steps = n // batch_size
  order = _permutation(n, seed, epoch)[: steps * batch_size]
  return order.reshape(steps, batch_size)


def _permutation(n: int, *seeds: int) -> np.ndarray:
  # Sorts the raw stream, which NumPy keeps the same over its versions; it
  # does not promise that for Generator.permutation.
  bits = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(n)
  return np.argsort(bits, kind='stable')


# --- Reading -----------------------------------------------------------------


def _digits_arrays() -> dict[str, np.ndarray]:
  """The 1,797 digits of scikit-learn: 8x8, 0..16 -> 32x32x3, 0..255."""
  from sklearn import datasets  # takes a second, and CIFAR-10 needs it not

  digits = datasets.load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
  images = images.repeat(4, axis=1).repeat(4, axis=2)
  images = np.repeat(images[..., None], 3, axis=3)
  # They come with no test set; this one is the same in every run.
  test = stratified(digits.target, _TEST_DIGITS, seed=0)
  train = np.setdiff1d(np.arange(len(images)), test)
  return {
    'train_images': images[train],
    'train_labels': digits.target[train],
    'test_images': images[test],
    'test_labels': digits.target[test],
  }


def _statistics(images: np.ndarray):
  """The mean and standard deviation of each channel, to four digits."""
  pixels = images.reshape(-1, images.shape[-1]) / 255
  return tuple(
    tuple(round(float(x), 4) for x in stat)
    for stat in (pixels.mean(0), pixels.std(0))
  )


def _cifar10_arrays(data_dir: str, cache_dir: str):
  """CIFAR-10's arrays and the digest of the files that they come from."""
  root = cifar10.resolve_data_dir(data_dir)
  try:
    builder = cifar10.open_folder(root)
    if builder is None:
      logging.info('No CIFAR-10 in %s: preparing it there.', root)
      builder = cifar10.open_folder(cifar10.prepare(str(root)))
  except (DataError, OSError) as e:
    raise DataError(
      f'CIFAR-10 can not be had. No prepared folder in {root}, and preparing '
      f'it there failed: {e}\nTwo ways out: (1) name a folder that is '
      'prepared, by TFDS_DATA_DIR or --config.data.dir (on a machine with '
      'internet access `python -m jaxr18.data --data_dir=DIR` prepares one, '
      f'or anywhere with --archive=FILE from {cifar10.OFFICIAL.url}); (2) use '
      "the embedded data: --config=configs/kd_quant.py:digits, or "
      "config.data.name = 'digits'."
    ) from e
  files = [
    pathlib.Path(file)
    for split in ('train', 'test')
    for file in builder.info.splits[split].filepaths
  ]
  fingerprint = _digest(files)
  cache = _cache_folder(cache_dir) / f'cifar10-{fingerprint}.npz'
  arrays = _read_cache(cache)
  if arrays is None:
    arrays = {}
    for split in ('train', 'test'):
      images, labels = _read_records(builder, split)
      arrays |= {f'{split}_images': images, f'{split}_labels': labels}
    _write_cache(cache, arrays)
  return arrays, fingerprint


def _digest(files) -> str:
  """Of names and content: 0.1 s for 140 MB, and no time stamp to trust."""
  digest = hashlib.blake2b(digest_size=16)
  for path in files:
    digest.update(path.name.encode() + b'\0')
    with open(path, 'rb') as f:
      digest.update(hashlib.file_digest(f, 'blake2b').digest())
  return digest.hexdigest()


def _read_records(builder, split: str, chunk: int = 2000):
  """All images and labels of a split, in the order of their ids."""
  # Raw records in chunks: TFDS's own loop over examples takes 3 times as long.
  source = builder.as_data_source(split=split).data_source
  n = len(source)
  images = np.empty((n, *cifar10.SHAPE), np.uint8)
  labels, order = np.empty(n, np.int32), np.empty(n, np.int64)
  for start in range(0, n, chunk):
    rows = range(start, min(start + chunk, n))
    for i, record in zip(rows, source.__getitems__(list(rows)), strict=True):
      example = tf_example_pb2.Example.FromString(record).features.feature
      png = example['image'].bytes_list.value[0]
      images[i] = np.asarray(Image.open(io.BytesIO(png)))
      labels[i] = example['label'].int64_list.value[0]
      order[i] = int(example['id'].bytes_list.value[0].rpartition(b'_')[2])
  # TFDS shuffles what it writes; the ids ('train_00042') give the order back.
  rows = np.argsort(order, kind='stable')
  return images[rows], labels[rows]


def _cache_folder(cache_dir: str) -> pathlib.Path:
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'jaxr18'


def _read_cache(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """The arrays, or None where there are none or they are damaged."""
  try:
    with np.load(path) as arrays:  # checks each array's CRC-32
      return dict(arrays)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    logging.warning('Reading CIFAR-10 again: the cache %s: %s', path, e)
    return None


def _write_cache(path: pathlib.Path, arrays) -> None:
  """Writes atomically; where it can't, the next run just reads again."""
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
      temporary = f.name
      np.savez(f, **arrays)
    os.replace(temporary, path)
  except OSError as e:
    logging.warning('No cache of the decoded images in %s: %s', path.parent, e)
    if temporary:
      pathlib.Path(temporary).unlink(missing_ok=True)


# --- On the device -----------------------------------------------------------


def normalize(images, mean, std, resolution: int) -> jax.Array:
  """uint8 images -> float32 of mean 0 and deviation 1, at `resolution`.

  Args:
    images: uint8 [n, size, size, channels].
    mean, std: of each channel, in units of 0..1.
    resolution: the side wanted; another one than `size` resizes linearly,
      antialiased.

  Returns:
    float32 [n, resolution, resolution, channels].
  """
  x = images.astype(jnp.float32) / 255
  x = (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)
  n, *size, channels = x.shape
  if size != [resolution, resolution]:
    shape = (n, resolution, resolution, channels)
    x = jax.image.resize(x, shape, 'linear', antialias=True)
  return x


class Views(NamedTuple):
  """How each image is seen.

  Attributes:
    dy, dx: int32 [n], the crop's corner in the padded image, 0..2 * pad.
    flip: bool [n], mirrored left to right.
  """

  dy: jax.Array
  dx: jax.Array
  flip: jax.Array


def sample_views(
  key, n: int, *, pad: int = 4, flip: str = 'random', flip_bits=None
) -> Views:
  """Draws `n` views.

  Args:
    key: of this step.
    n: images.
    pad: the crop moves by up to so many pixels each way.
    flip: one of `FLIPS`; 'alternating' takes `flip_bits` (bool [n]) as they
      are, see `alternating_flip`.
  """
  y_key, x_key, flip_key = jax.random.split(key, 3)
  dy = jax.random.randint(y_key, (n,), 0, 2 * pad + 1)
  dx = jax.random.randint(x_key, (n,), 0, 2 * pad + 1)
  if flip == 'none':
    bits = jnp.zeros(n, bool)
  elif flip == 'random':
    bits = jax.random.bernoulli(flip_key, shape=(n,))
  elif flip == 'alternating':
    if flip_bits is None:
      raise ValueError("flip='alternating' needs flip_bits.")
    bits = flip_bits
  else:
    raise ValueError(f'flip (={flip!r}) must be one of {FLIPS}.')
  return Views(dy, dx, bits)


def alternating_flip(key, index, epoch) -> jax.Array:
  """Which images to mirror: all of them exactly every other epoch.

  Each image starts with its own random bit, which turns every epoch (Jordan,
  "94% on CIFAR-10 in 3.29 seconds", 2024): two epochs in a row show each
  image in both ways, where random flips show half of them twice the same.

  Args:
    key: of the run: the same in every step.
    index: int [n], which images.
    epoch: int.

  Returns:
    bool [n].
  """
  bit = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i)))
  return bit(index) ^ (epoch % 2 == 1)


def apply_views(images, views: Views, pad: int) -> jax.Array:
  """Pads by reflection, crops to the size as it was, and mirrors.

  Reflection (without repeating the edge) leaves no dark frame, and stays
  uint8. One gather does all: 0.1 ms for 128 images on a CPU core, against 0.4
  for padding and dynamic slices.

  Args:
    images: [n, height, width, channels] of any type.
    views: of `n`.
    pad: as the views were sampled with; less than height and width.
  """
  _, height, width, _ = images.shape
  if not 0 <= pad < min(height, width):
    raise ValueError(
      f'pad (={pad}) must be at least 0 and less than the images '
      f'({height}x{width}).'
    )

  def look(image, dy, dx, flip):
    rows = jnp.arange(height) + dy - pad
    columns = jnp.arange(width)
    columns = jnp.where(flip, width - 1 - columns, columns) + dx - pad
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    return image[rows[:, None], columns[None]]

  return jax.vmap(look)(images, *views)


def _reflect(i, size: int):
  return size - 1 - abs(size - 1 - abs(i))


def cut_out(key, images, side: int, mean) -> jax.Array:
  """Fills a square in each image with the channels' mean.

  The square's centre is any pixel, so it may stand out over the edge (DeVries
  and Taylor, "Improved Regularization of CNNs with Cutout", 2017).

  Args:
    key: of this step.
    images: uint8 [n, height, width, channels].
    side: of the square, in pixels.
    mean: of each channel, in units of 0..1: 0 after `normalize`, up to the
      rounding to uint8.
  """
  n, height, width, _ = images.shape
  y_key, x_key = jax.random.split(key)

  def inside(key, size):
    first = jax.random.randint(key, (n, 1), 0, size) - side // 2
    i = jnp.arange(size)
    return (i >= first) & (i < first + side)

  square = inside(y_key, height)[:, :, None] & inside(x_key, width)[:, None]
  fill = jnp.round(jnp.asarray(mean) * 255).astype(images.dtype)
  return jnp.where(square[..., None], fill, images)


def augment(
  key,
  images,
  step,
  *,
  index=None,
  epoch=None,
  pad: int = 4,
  flip: str = 'random',
  cutout: int = 0,
  mean=CIFAR10_MEAN,
) -> jax.Array:
  """Pad and crop, flip, cutout: a pure function of (key, step, images).

  Args:
    key: of the run, the same in every step (the step is folded in here): the
      alternating flip needs what stays the same over the run, and everything
      else what differs from step to step.
    images: uint8 [n, height, width, channels].
    step: int, may be traced.
    index: int [n], `Split.index` of the images; only for flip='alternating'.
    epoch: int, may be traced; only for flip='alternating'.
    pad: pixels on each side; 0 is no crop.
    flip: one of `FLIPS`.
    cutout: side of the square in pixels; 0 is none.
    mean: `Dataset.mean`; what cutout fills with.

  Returns:
    Images of the same shape and type.
  """
  flip_key, step_key = jax.random.split(key)
  view_key, cut_key = jax.random.split(jax.random.fold_in(step_key, step))
  bits = None
  if flip == 'alternating':
    if index is None or epoch is None:
      raise ValueError("flip='alternating' needs index and epoch.")
    bits = alternating_flip(flip_key, index, epoch)
  if pad or flip != 'none':
    views = sample_views(
      view_key, images.shape[0], pad=pad, flip=flip, flip_bits=bits
    )
    images = apply_views(images, views, pad)
  if cutout:
    images = cut_out(cut_key, images, cutout, mean)
  return images


# --- python -m jaxr18.data ---------------------------------------------------


def main(argv=None, source: cifar10.Source = cifar10.OFFICIAL) -> int:
  """Prepares CIFAR-10's folder and its cache."""
  parser = argparse.ArgumentParser(
    prog='python -m jaxr18.data',
    description='Prepares CIFAR-10 as a standard TFDS folder (ArrayRecord), '
    'without TensorFlow, and reads it once.',
  )
  parser.add_argument(
    '--data_dir',
    default='',
    help='TFDS folder (default: TFDS_DATA_DIR, else '
    f'{cifar10.tfds.core.constants.DATA_DIR})',
  )
  parser.add_argument(
    '--archive',
    default='',
    help='cifar-10-binary.tar.gz, if it is here already (default: download '
    f'{source.url})',
  )
  args = parser.parse_args(argv)
  try:
    root = cifar10.prepare(args.data_dir, args.archive, source)
    began = time.monotonic()
    dataset = load('cifar10', str(root), validation=0)
  except (DataError, OSError) as e:
    print(e, file=sys.stderr)
    return 1
  print(
    f'CIFAR-10 in {root}: {len(dataset.train):,} training and '
    f'{len(dataset.test):,} test images, read in '
    f'{time.monotonic() - began:.1f} s.'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
