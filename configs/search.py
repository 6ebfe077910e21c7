"""Networks of a few M MACs: accuracy against the per-layer score.

python -m jaxr18.search --config=configs/search.py --trials=14

Candidates are forms of dense_narrow.py: widths, blocks and groups by stage,
bits, weights kept, resolution; quantized and pruned from the first step on, for
4 epochs, of which a half may go on after 1 and again after 2. `:digits` takes
a minute or two on the embedded digits.
"""

from jaxr18.config import base

ARGUMENTS = ("digits",)


def get_config(arg=""):
  config = base(search=True)
  train, search = config.train, config.search
  train.network.strides = (2, 2, 2, 1)
  train.augment.pad, train.augment.flip = 2, "alternating"
  train.epochs, train.optimizer.warmup_epochs = 4, 0.5
  train.average.ema_decay = 0.995
  train.prune.distribution, train.prune.schedule = "erk", "cubic"
  train.prune.end, train.prune.every = 0.25, 50
  search.score_budget, search.rungs, search.eta = 0.004, (1, 2), 2
  search.widths = ((8, 16, 24), (16, 24, 32, 40), (32, 48, 64), (48, 64, 80))
  search.groups = ((1, 2, 4),) * 4
  deep, bits = "stage[34].*", (2, 3, 4, 8)
  search.bits = (("stem|head", (8,)), (deep, bits), (".*", bits))
  search.density, search.resolution = (1.0, 0.7, 0.5, 0.3), (24, 28, 32)
  if arg == "digits":
    config.data.name, config.data.validation = "digits", 200
    search.widths, search.blocks = ((8, 16),) * 4, ((1,),) * 4
    search.score_budget, search.resolution = 0.0005, (16, 24)
    train.batch_size, train.average.ema_decay = 32, 0.9
    train.augment.flip, train.prune.every = "none", 10
  return config
