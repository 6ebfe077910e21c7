"""A data set by its name -> uint8 arrays and batches.

The name is one of TFDS's, that of the packaged digits, or a person's own file
or folder. `load` returns everything as NumPy arrays in memory (CIFAR-10 is 184
MB).
`batches` and `augment` are pure functions of the seed, the epoch and the step:
a resumed run sees the same pixels as one that was never interrupted.
"""

import dataclasses
import hashlib
import io
import pathlib
import zipfile
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from jaxr18.data import cifar10, digits, facts, folder, function, named, npz
from jaxr18.data.facts import DataError, ImagesError
from jaxr18.data.split import permutation, stratified
from jaxr18.host import cache, own, paths
from jaxr18.host.errors import FileError
from jaxr18.host.files import write_atomically
from jaxr18.host.inputs import check_file

ORDERS = ("content", "folder")

# Over the 50,000 training images. The (0.2023, 0.1994, 0.2010) of many
# repositories is the mean of the images' own deviations, a known mistake.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

_TEST_DIGITS = 360  # of 1,797: about a fifth


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """Labelled images.

  Attributes:
    images: uint8 [n, size, size, channels].
    labels: int32 [n].
    index: int32 [n], ascending, the image's position in the whole training set
      (for the test split: in the test set), whatever part of it was kept.
  """

  images: np.ndarray
  labels: np.ndarray
  index: np.ndarray

  def __len__(self) -> int:
    return self.labels.shape[0]

  def take(self, rows) -> "Split":
    """The images at `rows` (ints or a slice)."""
    return Split(self.images[rows], self.labels[rows], self.index[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Three splits and what is needed to normalize them.

  Attributes:
    name: as in `load`; of a person's own, that of the file or folder alone.
    classes: their number; labels are 0..classes - 1.
    train, validation, test: no image is in two of them.
    mean, std: of each channel, in units of 0..1; see `normalize`.
    fingerprint: digest of all images and labels, or, in the folder's order, of
      the files that they were read from: the same where training, validation
      and test images are the same.
    class_names: () where they are not known.
  """

  name: str
  classes: int
  train: Split
  validation: Split
  test: Split
  mean: tuple[float, ...]
  std: tuple[float, ...]
  fingerprint: str
  class_names: tuple[str, ...] = ()


def load(
  name: str,
  data_dir: str = "",
  validation: int = 5000,
  split_seed: int = 0,
  limit: int = 0,
  cache_dir: str = "",
  order: str = ORDERS[0],
) -> Dataset:
  """Loads a dataset; CIFAR-10 is downloaded and prepared where it is missing.

  Args:
    name: of `facts.KNOWN`; 'module:function' as `data.function` takes it; or an
      .npz or a folder of images, as `named.locate` takes it.
    data_dir: TFDS's folder; '' is TFDS_DATA_DIR or TFDS's default. Of a
      person's own images, where a name that is no absolute path lies.
    validation: how many training images to hold out, stratified over the
      classes: 0 for none, less than the training set.
    split_seed: decides which.
    limit: if not 0, keep only the first so many images of each split. The
      validation images of a limited and of a full dataset are the same.
    cache_dir: for the decoded arrays; '' is `$XDG_CACHE_HOME/jaxr18` or
      `~/.cache/jaxr18`.
    order: of CIFAR-10's images before they are split: 'content' is that of
      `by_content`, the same for every copy; 'folder' that of the ids in the
      folder, which all runs had before there was another.

  Raises:
    DataError: the data can't be had; the text says what was tried.
    ValueError: an argument out of its range.
  """
  if order not in ORDERS:
    raise ValueError(f"order (={order!r}) must be one of {ORDERS}.")
  arrays, fingerprint, names = _arrays(name, data_dir, cache_dir, order)
  known = name in facts.KNOWN
  named_so = known or own.is_own(name)
  if name == "cifar10":
    mean, std = CIFAR10_MEAN, CIFAR10_STD
  else:
    mean, std = statistics(arrays["train_images"], name)
  train, test = (
    Split(
      arrays[f"{split}_images"],
      arrays[f"{split}_labels"].astype(np.int32),
      np.arange(len(arrays[f"{split}_labels"]), dtype=np.int32),
    )
    for split in ("train", "test")
  )
  if not 0 <= validation < len(train):
    raise ValueError(
      f"validation (={validation}) must be at least 0 and less than the "
      f"{len(train):,} training images of {name}."
    )
  if limit < 0:
    raise ValueError(f"limit (={limit}) must be 0 (all images) or positive.")
  held_out = stratified(train.labels, validation, split_seed)
  kept = np.setdiff1d(np.arange(len(train)), held_out)
  rows = slice(limit or None)
  return Dataset(
    name if named_so else paths.folder(name).name,
    facts.KNOWN[name].classes if known else int(train.labels.max()) + 1,
    train.take(kept[rows]),
    train.take(held_out[rows]),
    test.take(rows),
    mean,
    std,
    fingerprint,
    names,
  )


def _arrays(
  name: str, data_dir: str, cache_dir: str, order: str
) -> tuple[npz.Arrays, str, tuple[str, ...]]:
  """Arrays in their order, the fingerprint, and the names of the classes."""
  if name == "digits":
    return _digits_arrays(), "scikit-learn digits", ()
  names = ()
  if name in facts.KNOWN:
    arrays, fingerprint = _tfds_arrays(name, data_dir, cache_dir)
  elif own.is_own(name):
    arrays, fingerprint = function.read(name), ""
  else:
    path = named.locate(name, data_dir)
    if path.suffix == npz.SUFFIX:
      arrays, names = npz.read(path)
      fingerprint = "" if order == "content" else _digest([path])
    else:
      arrays, names = folder.read(path)
      fingerprint = ""
  if order == "content" or not fingerprint:
    arrays, fingerprint = by_content(arrays)
  return arrays, fingerprint, names


def by_content(
  arrays: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], str]:
  """Sorts each split by a hash of image and label; 0.5 s for CIFAR-10.

  Args:
    arrays: {train,test}_{images,labels}, in any order.

  Returns:
    The sorted arrays, and the digest of all hashes: both are functions of the
    set of images, whoever wrote the copy that they were read from.
  """
  sorted_arrays, total = {}, hashlib.blake2b(digest_size=16)
  for split in ("train", "test"):
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    hashes = b"".join(
      hashlib.blake2b(image.data, digest_size=16, key=_key(label)).digest()
      for image, label in zip(images, labels.tolist(), strict=True)
    )
    high, low = np.frombuffer(hashes, ">u8").reshape(-1, 2).T
    rows = np.lexsort((low, high))  # equal ones are the same image and label
    total.update(np.stack([high, low], 1)[rows].tobytes())
    sorted_arrays[f"{split}_images"] = images[rows]
    sorted_arrays[f"{split}_labels"] = labels[rows]
  return sorted_arrays, total.hexdigest()


def _key(label: int) -> bytes:
  """One byte where that is enough, as it always was for CIFAR-10."""
  return label.to_bytes(max(1, -(-label.bit_length() // 8)), "little")


def batches(n: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
  """Chooses the rows of an epoch's batches by seed and epoch alone.

  Args:
    n: how many images there are.
    batch_size: from 1 to n.
    seed: of the run.
    epoch: from 0.

  Returns:
    int [n // batch_size, batch_size]: distinct rows of 0..n-1 in a new order
    every epoch; the n % batch_size last ones are left out.

  Raises:
    ValueError: fewer images than one batch.
  """
  if not 1 <= batch_size <= n:
    raise ValueError(
      f"batch_size (={batch_size}) must be from 1 to the {n:,} training images."
    )
  steps = n // batch_size
  order = permutation(n, seed, epoch)[: steps * batch_size]
  return order.reshape(steps, batch_size)


def _digits_arrays() -> dict[str, np.ndarray]:
  images, labels = digits.read()
  images = digits.as_pictures(images)
  # They come with no test set; this one is the same in every run.
  test = stratified(labels, _TEST_DIGITS, seed=0)
  train = np.setdiff1d(np.arange(len(images)), test)
  return {
    "train_images": images[train],
    "train_labels": labels[train],
    "test_images": images[test],
    "test_labels": labels[test],
  }


def statistics(images: np.ndarray, name: str) -> tuple[tuple, tuple]:
  """The mean and standard deviation of each channel, to four digits.

  They follow from how often each value comes, which is exact, and needs no
  float for each pixel.

  Args:
    images: uint8 [n, size, size, channels].
    name: of the data set, for an error.

  Raises:
    ImagesError: a channel that is the same everywhere.
  """
  mean, std = [], []
  values = np.arange(256) / 255
  for channel in range(images.shape[-1]):
    counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
    share = counts / counts.sum()
    mean.append(float(share @ values))
    std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)))
    if std[-1] < 1e-4:
      raise ImagesError(
        f"{name} has the value {counts.argmax()} in nearly every pixel of"
        f" channel {channel} of train_images, expected pictures",
        "look at them: they may have been divided by 255, or be empty",
      )
  mean, std = (tuple(round(x, 4) for x in both) for both in (mean, std))
  return mean, std


def _tfds_arrays(name: str, data_dir: str, cache_dir: str) -> Any:
  """A set's arrays and the digest of the files that they come from."""
  root = cifar10.resolve_data_dir(data_dir)
  builder = cifar10.open_folder(root, name)
  if builder is None and name == cifar10.NAME:
    builder = _prepared(root)
  if builder is None:
    raise DataError(
      f"{name} is not prepared in {root}, as TFDS's folder of ArrayRecord;"
      ' where TensorFlow is installed, `python -c "import'
      f" tensorflow_datasets as tfds; tfds.builder('{name}',"
      f" data_dir='{root}').download_and_prepare(file_format='array_record')\"`"
      " prepares one, which is then read anywhere without; TFDS_DATA_DIR or"
      " --config.data.dir names another folder"
    )
  try:
    files = [
      pathlib.Path(file)
      for split in ("train", "test")
      for file in builder.info.splits[split].filepaths
    ]
    fingerprint = _digest(files)
    kept = cache.folder(cache_dir) / f"{name}-{fingerprint}.npz"
    if (arrays := _read_cache(kept, name)) is None:
      arrays = _read_records(builder, "train") | _read_records(builder, "test")
      _write_cache(kept, arrays)
  except Exception as e:  # there is no end to how files can be damaged
    raise DataError(
      f"{name} in {builder.data_path} can not be read: "
      f"{type(e).__name__}: {e}\n{cifar10.ANOTHER}"
    ) from e
  return arrays, fingerprint


def _prepared(root: pathlib.Path):
  """CIFAR-10's folder, made from the official archive."""
  try:
    return cifar10.open_folder(cifar10.prepare(str(root)))
  except (DataError, OSError) as e:
    raise DataError(
      f"CIFAR-10 is not prepared in {root}, and preparing it there failed: "
      f"{e}\nTwo ways out: (1) a prepared folder, named by TFDS_DATA_DIR or "
      "--config.data.dir; `python -m jaxr18.data --data_dir=DIR` prepares "
      "one where there is internet access, and anywhere with "
      f"--archive=FILE, which is {cifar10.OFFICIAL.url}; (2) the embedded "
      "data: --config=configs/kd_quant.py:digits, or config.data.name = "
      "'digits' in any config."
    ) from e


def _digest(files) -> str:
  """Of names and content: 0.1 s for 140 MB, and no time stamp to trust."""
  digest = hashlib.blake2b(digest_size=16)
  for path in files:
    digest.update(path.name.encode() + b"\0")
    check_file(path)
    with open(path, "rb") as f:
      digest.update(hashlib.file_digest(f, "blake2b").digest())
  return digest.hexdigest()


# Made when the module is imported, which type checkers do not see.
_PROTO: Any = tf_example_pb2


def _read_records(builder, split: str, chunk: int = 2000) -> Any:
  """`{split}_images` and `{split}_labels`, in the order of their ids."""
  # Raw records in chunks: TFDS's own loop over examples takes 3 times as long.
  source = builder.as_data_source(split=split).data_source
  n = len(source)
  images = np.empty((n, *cifar10.SHAPE), np.uint8)
  labels, order = np.empty(n, np.int32), np.empty(n, np.int64)
  for start in range(0, n, chunk):
    rows = range(start, min(start + chunk, n))
    for i, record in zip(rows, source.__getitems__(list(rows)), strict=True):
      example = _PROTO.Example.FromString(record).features.feature
      image = Image.open(io.BytesIO(example["image"].bytes_list.value[0]))
      images[i] = np.asarray(image)
      labels[i] = example["label"].int64_list.value[0]
      order[i] = int(example["id"].bytes_list.value[0].rpartition(b"_")[2])
  # TFDS shuffles what it writes; the ids ('train_00042') give the order back.
  rows = np.argsort(order, kind="stable")
  return {f"{split}_images": images[rows], f"{split}_labels": labels[rows]}


def _read_cache(path: pathlib.Path, name: str) -> dict[str, np.ndarray] | None:
  """The arrays, or None where there are none or they are damaged."""
  try:
    with np.load(path) as arrays:  # checks each array's CRC-32
      return dict(arrays)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    logging.warning("Reading %s again: the cache %s: %s", name, path, e)
    return None


def _write_cache(path: pathlib.Path, arrays) -> None:
  """Keeps the arrays; where that fails, the next run just reads again."""
  content = io.BytesIO()
  np.savez(content, **arrays)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getbuffer(), "--config.data.cache_dir")
  except (OSError, FileError) as e:
    logging.warning("No cache of the decoded images in %s: %s", path.parent, e)
