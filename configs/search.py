"""Networks of at most 8 M MACs: accuracy against the exact score.

python -m jaxr18.search --config=configs/search.py --trials=14

Candidates are forms of dense_narrow.py: widths, blocks and groups by stage,
bits, weights kept, resolution; quantized and pruned from the first step on, for
4 epochs, of which a half may go on after 1 and again after 2. `:digits` takes
a minute on the embedded digits.
"""

from jaxr18.config import base


def get_config(arg=""):
  if arg not in ("", "digits"):
    raise ValueError(f"search.py: argument {arg!r} must be 'digits' or none")
  config = base(search=True)
  train, search = config.train, config.search
  train.network.widths = (16, 32, 48, 56)
  train.network.strides = (2, 2, 2, 1)
  train.augment.pad, train.augment.flip = 2, "alternating"
  train.epochs, train.warmup_epochs, train.ema_decay = 4, 0.5, 0.995
  train.prune.distribution, train.prune.schedule = "erk", "cubic"
  train.prune.end, train.prune.every = 0.25, 50
  search.score_budget, search.rungs, search.eta = 0.005, (1, 2), 2
  search.widths = ((8, 16), (16, 24, 32), (24, 32, 40, 48), (32, 40, 48, 56))
  search.groups = ((1, 2, 4, 8),) * 4
  search.bits = (
    ("stem|head", (8,)),
    ("stage[12].*", (2, 3, 4, 8)),
    ("stage[34].*", (2, 3, 4, 8)),
  )
  search.density = (1.0, 0.7, 0.5, 0.3)
  search.resolution = (24, 28, 32)
  if arg == "digits":
    config.data.name, config.data.validation = "digits", 200
    search.widths = ((8, 16),) * 4
    train.batch_size, train.ema_decay = 32, 0.9
    train.augment.flip = "none"
    train.prune.every = 10
    search.score_budget = 0.001
  return config
