"""A narrow dense ResNet-18, the partner of the factorized ones.

python -m jaxr18.main --config=configs/dense_narrow.py

233,914 parameters, 7,990,832 MACs: 81.82% at a per-layer score of 0.0702
(docs/factorize.md). factorized_g2.py, factorized_g8.py, depthwise.py and
low_rank.py are the same network in other forms. `:tiny` takes seconds on the
embedded digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("train",))
  train = config.train
  train.network.widths = (16, 32, 48, 56)
  train.network.strides = (2, 2, 2, 1)
  train.epochs = 10
  train.average.ema_decay = 0.998
  train.augment.pad = 2
  train.augment.flip = "alternating"
  return tiny(config) if arg == "tiny" else config
