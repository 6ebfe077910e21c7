"""What a network's answers and masks show, as arrays and small images."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

CLASSES = {
  "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
              "horse", "ship", "truck"),
  "digits": tuple("0123456789"),
}  # fmt: skip
THUMBNAIL = 64  # pixels a side, at most
_LEVELS = 16  # of a mask's pixel: 4 bits in the file
_INK = (61, 123, 234)  # shows on white and on black


class Wrong(NamedTuple):
  """A wrong answer: class numbers, and the probability of each of the two."""

  image: np.ndarray
  index: int
  label: int
  answer: int
  p_label: float
  p_answer: float


class Evidence(NamedTuple):
  """What the network itself shows beside its result.

  Attributes:
    classes: names.
    confusion: int [labels, answers], counts on the test split.
    wrong: the images that it is most wrong about, the worst first.
    masks: by layer path, share of kept weights [inputs, outputs] of kernels
      that a mask takes something from.
    remark: what a reader must know of it, or ''.
  """

  classes: tuple[str, ...]
  confusion: np.ndarray
  wrong: list[Wrong]
  masks: dict[str, np.ndarray]
  remark: str = ""


def class_names(data_name: str, classes: int) -> tuple[str, ...]:
  names = CLASSES.get(data_name, ())
  return names if len(names) == classes else tuple(map(str, range(classes)))


def confusion(answers: np.ndarray, labels: np.ndarray, classes: int):
  """Counts how often each label [n] got each answer [n]."""
  pairs = labels.astype(np.int64) * classes + answers
  counts = np.bincount(pairs, minlength=classes * classes)
  return counts.reshape(classes, classes)


def most_wrong(
  logits: np.ndarray,
  images: np.ndarray,
  labels: np.ndarray,
  index: np.ndarray,
  count: int = 16,
) -> list[Wrong]:
  """Finds the wrong answers with the least probability of the right class.

  Args:
    logits: [n, classes].
    images: uint8 [n, h, w, 3].
    labels, index: [n].
  """
  shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  answers = logits.argmax(-1)
  own = log_p[np.arange(len(labels)), labels]
  rows = np.flatnonzero(answers != labels)
  rows = rows[np.argsort(own[rows], kind="stable")][:count]
  return [
    Wrong(
      images[i],
      int(index[i]),
      int(labels[i]),
      int(answers[i]),
      float(np.exp(own[i])),
      float(np.exp(log_p[i, answers[i]])),
    )
    for i in rows
  ]


def mask_maps(masks: Any, paths: Sequence[str]) -> dict[str, np.ndarray]:
  """Maps the share of each kernel that its mask keeps, where that is not all.

  Args:
    masks: nested dicts of bool; a kernel's is [..., inputs, outputs], or a
      scalar where nothing is pruned.
    paths: of the layers, in the order that they shall have.

  Returns:
    [inputs, outputs] by layer path, means over a kernel's taps; of depthwise
    kernels, which have one input, [taps, outputs].
  """
  found = dict(_maps(masks, ()))
  return {path: found[path] for path in paths if path in found}


def _maps(tree, path):
  for name, value in tree.items():
    if hasattr(value, "items"):
      yield from _maps(value, (*path, name))
      continue
    mask = np.asarray(value)
    if name != "kernel" or mask.ndim < 2 or mask.all():
      continue
    if mask.ndim > 2 and mask.shape[-2] == 1:
      yield "/".join(path), mask.reshape(-1, mask.shape[-1]).astype(float)
    else:
      taps = tuple(range(mask.ndim - 2))
      yield "/".join(path), mask.mean(taps)


def mask_png(kept: np.ndarray) -> bytes:
  """Draws a small PNG with ink where weights are kept."""
  rows, columns = kept.shape
  size = min(columns, THUMBNAIL), min(rows, THUMBNAIL)
  image = Image.fromarray(kept.astype(np.float32)).resize(
    size, Image.Resampling.BOX
  )
  levels = np.round(np.asarray(image) * (_LEVELS - 1)).astype(np.uint8)
  small = Image.fromarray(levels).convert("P")
  small.putpalette(_INK * _LEVELS)
  alpha = bytes(round(255 * i / (_LEVELS - 1)) for i in range(_LEVELS))
  out = io.BytesIO()
  small.save(out, "PNG", bits=4, transparency=alpha, optimize=True)
  return out.getvalue()


def image_png(image: np.ndarray) -> bytes:
  """Writes uint8 [h, w, 1 or 3] as a PNG."""
  out = io.BytesIO()
  image = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(image).save(out, "PNG", optimize=True)
  return out.getvalue()


def data_uri(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()
