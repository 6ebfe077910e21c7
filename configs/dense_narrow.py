"""A narrow dense ResNet-18, the partner of the factorized ones.

python -m jaxr18.main --config=configs/dense_narrow.py

233,914 parameters, 7,990,832 MACs. factorized_g2.py, factorized_g8.py,
depthwise.py and low_rank.py are the same network in other forms. `:tiny` takes
seconds on the embedded digits.
"""

from jaxr18.config import base


def get_config(arg=""):
  config = base(phases=("train",))
  train = config.train
  train.network.widths = (16, 32, 48, 56)
  train.network.strides = (2, 2, 2, 1)
  train.epochs = 10
  train.average.ema_decay = 0.998
  train.augment.pad = 2
  train.augment.flip = "alternating"
  if arg == "tiny":
    config.data.name = "digits"
    config.data.validation = 200
    train.network.blocks = (1, 1, 1, 1)
    train.epochs = 2
    train.batch_size = 32
    train.average.ema_decay = 0.9
    train.augment.flip = "none"
  elif arg:
    raise ValueError(
      f"dense_narrow.py: argument {arg!r} must be 'tiny' or none"
    )
  return config
