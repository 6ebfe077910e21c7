"""Networks that vote: three seeds, or the runs after the colon.

python -m jaxr18.main --config=configs/ensemble.py
python -m jaxr18.main --config=configs/ensemble.py:runs/a,runs/b \\
    --workdir=runs/vote

Without runs it trains the narrow network of dense_narrow.py with three seeds
side by side. The members' networks are copied, the vote is chosen on validation
images, the test images are seen once. Three networks pruned and quantized from
one voted 82.24% at a per-layer score of 0.0809, and the best of them has 80.73%
(docs/ensembles.md). `:tiny` takes seconds on the digits.
"""

from jaxr18.config import base, tiny


def get_config(arg=""):
  if "/" in arg or "," in arg:
    config = base(phases=("ensemble",))
    config.ensemble.ensemble.members = arg
    return config
  config = base(phases=("train", "ensemble"))
  train = config.train
  train.network.widths = (16, 32, 48, 56)
  train.network.strides = (2, 2, 2, 1)
  train.population.size = 3
  train.epochs, train.average.ema_decay = 10, 0.998
  train.augment.pad, train.augment.flip = 2, "alternating"
  config.ensemble.ensemble.members = "train"
  if arg not in ("", "tiny"):
    raise ValueError(
      f"ensemble.py: argument {arg!r} must be workdirs such as runs/a,runs/b,"
      " 'tiny' or none"
    )
  return tiny(config) if arg == "tiny" else config
