"""The narrow ResNet-18 with 3x3 convolutions in 2 groups.

python -m jaxr18.main --config=configs/factorized_g2.py

120,730 parameters, 4,299,824 MACs: 80.85% at a per-layer score of 0.0368
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
  train.network.groups = (2,)
  train.epochs = 10
  train.average.ema_decay = 0.998
  train.augment.pad = 2
  train.augment.flip = "alternating"
  return tiny(config) if arg == "tiny" else config
