"""What is known of a data set before its images are read.

A config is checked by it: how many images there are to train on, how many
classes a network tells apart, and which images it takes.
"""

import dataclasses

from jaxr18.host.errors import ToldError


class DataError(ToldError, RuntimeError):
  """The data can't be had, or is not what it should be."""


class ImagesError(DataError):
  """A person's own images that cannot be taken.

  Attributes:
    fact: which file, what it has and what was expected.
    mend: how to mend it.
  """

  def __init__(self, fact: str, mend: str):
    super().__init__(f"{fact}; {mend}")
    self.fact, self.mend = fact, mend


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a config has to fit.

  Attributes:
    train: images of the training split, validation included.
    classes: that are told apart.
    size: pixels a side.
    channels: 1 or 3.
  """

  train: int
  classes: int = 10
  size: int = 32
  channels: int = 3


CIFAR10 = Facts(50_000)

# By the names of TFDS; the digits come with the package.
KNOWN = {
  "cifar10": CIFAR10,
  "cifar100": Facts(50_000, 100),
  "svhn_cropped": Facts(73_257),
  "digits": Facts(1_437),
}
