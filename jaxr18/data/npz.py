"""A person's own images in one .npz: what it must hold, read and written.

train_images, test_images   uint8 [n, size, size] or [n, size, size, 1 or 3]
train_labels, test_labels   integers [n], the classes counted from 0
class_names                 strings [classes], where there are some
"""

import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxr18.data.facts import Facts, ImagesError
from jaxr18.host.files import write_atomically
from jaxr18.host.inputs import check_file

SUFFIX = ".npz"
SPLITS = ("train", "test")
SIZES = 4, 512  # pixels a side, as a network's resolution
MOST_CLASSES = 10_000
_WANTED = tuple(f"{s}_{what}" for s in SPLITS for what in ("images", "labels"))
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile,
            zlib.error, NotImplementedError)  # fmt: skip

Header = tuple[tuple[int, ...], np.dtype]
Arrays = dict[str, np.ndarray]


def facts(path: pathlib.Path) -> Facts:
  """Reads the headers of the images and all labels, and checks them.

  Raises:
    ImagesError: an array is missing, or is not as this file's text says.
  """
  try:
    check_file(path)
    with zipfile.ZipFile(path) as archive:
      names = {n.removesuffix(".npy"): n for n in archive.namelist()}
      _raise_first(path, _missing(names))
      headers = {
        k: _header(archive, v) for k, v in names.items() if k in _WANTED
      }
    with np.load(path) as arrays:
      labels = {s: arrays[f"{s}_labels"] for s in SPLITS}
  except _DAMAGED as e:
    raise _unreadable(path, e) from e
  return _facts(path, headers, labels)


def checked(where: str, arrays: Arrays) -> tuple[Arrays, Facts]:
  """Brings arrays that are no file's into the form of `read`.

  Args:
    where: they are from, for an error.
    arrays: by name; others than the four are left out.

  Raises:
    ImagesError: as `facts`.
  """
  _raise_first(where, _missing(arrays))
  headers = {k: (arrays[k].shape, arrays[k].dtype) for k in _WANTED}
  labels = {s: arrays[f"{s}_labels"] for s in SPLITS}
  found = _facts(where, headers, labels)
  return _formed(arrays, found), found


def _facts(where, headers: Mapping[str, Header], labels) -> Facts:
  _raise_first(where, check(headers, labels))
  shape, _ = headers["train_images"]
  classes = int(labels["train"].max()) + 1
  return Facts(len(labels["train"]), classes, shape[1], (*shape, 1)[3])


def _formed(arrays: Arrays, found: Facts) -> Arrays:
  """Gives images their channels, and labels one type."""
  out = {}
  for split in SPLITS:
    images = arrays[f"{split}_images"]
    out[f"{split}_images"] = images.reshape(*images.shape[:3], found.channels)
    out[f"{split}_labels"] = arrays[f"{split}_labels"].astype(np.int32)
  return out


def read(path: pathlib.Path) -> tuple[Arrays, tuple[str, ...]]:
  """Reads all arrays, checked, and the names of the classes.

  Returns:
    {train,test}_images, uint8 [n, size, size, channels], and
    {train,test}_labels, int32 [n]; the names are () where there are none.

  Raises:
    ImagesError: as `facts`.
  """
  found = facts(path)
  try:
    with np.load(path) as arrays:
      out = {name: arrays[name] for name in _WANTED}
      names = arrays["class_names"] if "class_names" in arrays else ()
  except _DAMAGED as e:
    raise _unreadable(path, e) from e
  names = tuple(map(str, names))
  return _formed(out, found), names if len(names) == found.classes else ()


def write(path: pathlib.Path, arrays: Arrays, names: tuple[str, ...]) -> None:
  """Writes a file that `read` reads; the same arrays give the same bytes.

  Raises:
    ImagesError: arrays that `read` would refuse.
    FileError: it cannot be written.
  """
  checked(str(path), arrays)
  more = {"class_names": np.array(names)} if names else {}
  entries: dict[str, Any] = arrays | more
  content = io.BytesIO()
  np.savez_compressed(content, **entries)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, content.getbuffer(), "--npz")


def check(
  headers: Mapping[str, Header], labels: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, str]]:
  """Yields what of the arrays is wrong, and how to mend each.

  Args:
    headers: shape and type by an array's name.
    labels: by split.
  """
  for split in SPLITS:
    yield from _images_fit(f"{split}_images", *headers[f"{split}_images"])
    count = headers[f"{split}_images"][0][0]
    yield from _labels_fit(f"{split}_labels", labels[split], count)
  (_, *train), (_, *test) = (headers[f"{s}_images"][0] for s in SPLITS)
  if train != test:
    yield (
      f"has train_images of {train} and test_images of {test} an image",
      "give both the same size and channels",
    )
  yield from _classes_fit(labels["train"], labels["test"])


def _missing(names) -> Iterator[tuple[str, str]]:
  if gone := [name for name in _WANTED if name not in names]:
    yield (
      f"lacks {', '.join(gone)} and has {', '.join(sorted(names))}",
      "np.savez(FILE, train_images=..., train_labels=..., test_images=...,"
      " test_labels=...) writes all four",
    )


def _images_fit(name: str, shape, dtype) -> Iterator[tuple[str, str]]:
  found = f"has {name} of {dtype} {list(shape)}"
  wanted = "expected uint8 [n, size, size] or [n, size, size, 1 or 3]"
  low, high = SIZES
  if dtype != np.uint8:
    mend = "values from 0 to 255 become so by .astype('uint8')"
    if dtype.kind == "f":
      mend = "(255 * x).round().astype('uint8') makes values from 0 to 1 so"
  elif len(shape) not in (3, 4) or len(shape) == 4 and shape[3] not in (1, 3):
    mend = "the channels come last, 1 of gray or 3 of color"
    if len(shape) == 4 and shape[1] in (1, 3):
      mend += "; .transpose(0, 2, 3, 1) puts them there"
  elif shape[1] != shape[2] or not low <= shape[1] <= high:
    wanted += f", size from {low} to {high}"
    mend = (
      "`python -m jaxr18.data --images=FOLDER --npz=FILE --size=64` makes"
      " square ones of a folder's images"
    )
  elif not shape[0]:
    mend = "there must be one"
  else:
    return
  yield f"{found}, {wanted}", mend


def _labels_fit(name: str, labels, count: int) -> Iterator[tuple[str, str]]:
  found = f"has {name} of {labels.dtype} {list(labels.shape)}"
  wanted = f"expected integers [{count}]"
  if labels.dtype.kind not in "iu":
    mend = "np.unique(labels, return_inverse=True)[1] numbers the classes"
  elif labels.shape != (count,):
    mend = "give one for each image"
    if labels.shape == (count, 1):
      mend += "; .reshape(-1) makes them so"
    elif len(labels.shape) == 2 and len(labels) == count:
      mend += "; .argmax(-1) makes them so"
  elif count and (labels.min() < 0 or labels.max() >= MOST_CLASSES):
    found += f" from {labels.min()} to {labels.max()}"
    wanted += f" from 0 to {MOST_CLASSES - 1} at most"
    mend = "count the classes from 0"
  else:
    return
  yield f"{found}, {wanted}", mend


def _classes_fit(train, test) -> Iterator[tuple[str, str]]:
  seen = np.unique(train)
  gaps = np.setdiff1d(np.arange(seen[-1] + 1), seen)
  if len(gaps):
    yield (
      f"has no training image of class {gaps[0]}, and some of class {seen[-1]}",
      "number the classes without gaps:"
      " np.unique(labels, return_inverse=True)[1]",
    )
  elif len(seen) < 2:
    yield "has one class in train_labels, expected two or more", "add another"
  elif test.max() > seen[-1]:
    yield (
      f"has test_labels up to {test.max()}, and train_labels up to {seen[-1]}",
      "give training images of every class, or leave these test images out",
    )


def _header(archive: zipfile.ZipFile, name: str) -> Header:
  """Reads shape and type of an array from its first bytes."""
  with archive.open(name) as f:
    version = np.lib.format.read_magic(f)
    if version == (1, 0):
      shape, _, dtype = np.lib.format.read_array_header_1_0(f)
    else:
      shape, _, dtype = np.lib.format.read_array_header_2_0(f)
  return shape, dtype


def _raise_first(path, found: Iterator[tuple[str, str]]) -> None:
  for fact, mend in found:
    raise ImagesError(f"{path} {fact}", mend)


def _unreadable(path: str | os.PathLike, e: Exception) -> ImagesError:
  return ImagesError(
    f"{path} cannot be read as an .npz: {e}", "write it again with np.savez"
  )
