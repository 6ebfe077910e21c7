"""The narrow ResNet-18 with depthwise-separable 3x3 convolutions.

python -m jaxr18.main --config=configs/depthwise.py

37,810 parameters, 1,697,456 MACs: 77.75% at a per-layer score of 0.0127
(docs/factorize.md), by the recipe of dense_narrow.py. `:tiny` takes seconds on
the embedded digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("train",))
  train = config.train
  train.network.widths = (16, 32, 48, 56)
  train.network.strides = (2, 2, 2, 1)
  train.network.depthwise = (True,)
  train.epochs = 10
  train.average.ema_decay = 0.998
  train.augment.pad = 2
  train.augment.flip = "alternating"
  return tiny(config) if arg == "tiny" else config
