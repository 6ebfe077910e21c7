"""The handwritten digits that the package carries, so a run needs no download.

They are the test set of UCI's "Optical Recognition of Handwritten Digits", the
1,797 images that scikit-learn has as `load_digits`. digits.LICENSE.txt names
their makers and their license.
"""

import pathlib

import numpy as np

_FILE = pathlib.Path(__file__).with_name("digits.npz")


def read() -> tuple[np.ndarray, np.ndarray]:
  """Reads the images and their labels.

  Returns:
    uint8 [1797, 8, 8], each pixel the count 0..16 of black dots in a block of
    four by four, and uint8 [1797].
  """
  with np.load(_FILE) as arrays:
    return arrays["images"], arrays["labels"]


def as_pictures(images: np.ndarray) -> np.ndarray:
  """Scales `read`'s images to uint8 [n, 32, 32, 3], from 0 to 255."""
  large = np.rint(images * (255 / 16)).astype(np.uint8)
  large = large.repeat(4, axis=1).repeat(4, axis=2)
  return np.repeat(large[..., None], 3, axis=3)
