"""A person's own images in a folder of files, by class.

Either DIR/train/CLASS/FILE and DIR/test/CLASS/FILE, or DIR/CLASS/FILE, of which
a fifth of each class is the test set, the same in every run. The classes are
numbered in the order of their names.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxr18.data import npz
from jaxr18.data.facts import Facts, ImagesError
from jaxr18.data.split import stratified

TESTED = 5  # one image of so many, where the folder has no test set
_GRAY = ("1", "L", "LA", "La")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class Files(NamedTuple):
  """The images of a folder.

  Attributes:
    names: of the classes.
    paths: of the images, by split.
    labels: int32 [n], by split.
  """

  names: tuple[str, ...]
  paths: dict[str, list[pathlib.Path]]
  labels: dict[str, np.ndarray]


def facts(path: pathlib.Path) -> Facts:
  """Looks at the head of every file, and decodes none.

  Raises:
    ImagesError: as `read`.
  """
  files = find(path)
  size, channels = _common(files)
  return Facts(len(files.paths["train"]), len(files.names), size, channels)


def read(
  path: pathlib.Path,
  size: int = 0,
  done: Callable[[int], None] = lambda count: None,
) -> tuple[npz.Arrays, tuple[str, ...]]:
  """Decodes all images.

  Args:
    path: of the folder.
    size: the side wanted: the largest square in the middle of each image is
      resized to it. 0 takes them as they are, all of one size.
    done: is told how many are decoded.

  Returns:
    As `npz.read`.

  Raises:
    ImagesError: an empty class, a file that is no image, images of several
      sizes where none is asked for.
  """
  files = find(path)
  own, channels = _common(files, any_size=bool(size))
  side, count, out = size or own, 0, {}
  for split, paths in files.paths.items():
    images = np.empty((len(paths), side, side, channels), np.uint8)
    for i, file in enumerate(paths):
      images[i] = _decoded(file, channels, size)
      done(count := count + 1)
    out[f"{split}_images"] = images
    out[f"{split}_labels"] = files.labels[split]
  return out, files.names


def find(path: pathlib.Path) -> Files:
  """Lists the images of each class and split.

  Raises:
    ImagesError: fewer than two classes, or one that is empty in a split.
  """
  if (path / "train").is_dir():
    folders = {split: path / split for split in npz.SPLITS}
    if not folders["test"].is_dir():
      raise ImagesError(
        f"{path} has a folder train and no folder test",
        "make one with the same folders of classes, or give a folder that has"
        " those of classes alone, of which a fifth is then the test set",
      )
  else:
    folders = {"train": path}
  names = tuple(p.name for p in _inside(folders["train"]) if p.is_dir())
  if len(names) < 2:
    raise ImagesError(
      f"{folders['train']} has {len(names)} folders, expected one for each of"
      " two classes or more",
      "sort the images into CLASS/FILE, or train/CLASS/FILE and"
      " test/CLASS/FILE",
    )
  paths, labels = {}, {}
  for split, folder in folders.items():
    found = [_of_class(folder / name) for name in names]
    if odd := {p.name for p in _inside(folder) if p.is_dir()} - {*names}:
      raise ImagesError(
        f"{folder} has a class {min(odd)} that {folders['train']} lacks",
        "add training images of it, or take that folder away",
      )
    paths[split] = sum(found, [])
    labels[split] = np.repeat(np.arange(len(names)), [*map(len, found)])
  if "test" not in paths:
    paths, labels = _parted(paths["train"], labels["train"])
  return Files(names, paths, {k: v.astype(np.int32) for k, v in labels.items()})


def _parted(paths, labels):
  """Sets a fifth of each class apart."""
  test = stratified(labels, max(1, len(paths) // TESTED), 0)
  rows = {"train": np.setdiff1d(np.arange(len(paths)), test), "test": test}
  return (
    {split: [paths[i] for i in chosen] for split, chosen in rows.items()},
    {split: labels[chosen] for split, chosen in rows.items()},
  )


def _inside(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists what is in a folder and not hidden, by name."""
  return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _of_class(folder: pathlib.Path) -> list[pathlib.Path]:
  found = _inside(folder) if folder.is_dir() else []
  if odd := [p for p in found if not p.is_file()]:
    raise ImagesError(
      f"{odd[0]} is no file, expected the images of one class and no folders",
      "move its images up, or take it away",
    )
  if not found:
    raise ImagesError(
      f"{folder} has no image, expected one or more of that class",
      "add some, or take that class away everywhere",
    )
  return found


def _common(files: Files, any_size: bool = False) -> tuple[int, int]:
  """Finds the side and the channels that all images have."""
  first: Any = None
  channels = 1
  for path in _all(files):
    with _opened(path) as image:
      shape, mode = image.size, image.mode
    if mode in _DEEP:
      raise ImagesError(
        f"{path} has more than 8 bits a channel (Pillow's mode {mode})",
        "save it with 8 bits",
      )
    first = first or (path, shape)
    if not any_size and (shape != first[1] or shape[0] != shape[1]):
      raise ImagesError(
        f"{path} is {shape[0]}x{shape[1]} pixels, and {first[0]}"
        f" {first[1][0]}x{first[1][1]}; expected squares of one size",
        f"`python -m jaxr18.data --images={_root(files)} --npz=FILE --size=64`"
        " makes them so",
      )
    channels = channels if mode in _GRAY else 3
  return first[1][0], channels


def _all(files: Files) -> Iterator[pathlib.Path]:
  for paths in files.paths.values():
    yield from paths


def _root(files: Files) -> pathlib.Path:
  path = files.paths["train"][0].parents[1]
  return path.parent if path.name == "train" else path


def _opened(path: pathlib.Path) -> Image.Image:
  try:
    return Image.open(path)
  except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
    raise _no_image(path, e) from e


def _decoded(path: pathlib.Path, channels: int, size: int) -> np.ndarray:
  """Reads an image as uint8 [size, size, channels]."""
  with _opened(path) as image:
    try:
      image = image.convert("L" if channels == 1 else "RGB")
      if size:
        how = Image.Resampling.LANCZOS
        image = ImageOps.fit(image, (size, size), how)
    except (OSError, SyntaxError, ValueError) as e:  # the file ends early
      raise _no_image(path, e) from e
  return np.asarray(image).reshape(*image.size, channels)


def _no_image(path: pathlib.Path, e: Exception) -> ImagesError:
  return ImagesError(
    f"{path} is no image that can be read: {e}", "mend it or take it away"
  )
