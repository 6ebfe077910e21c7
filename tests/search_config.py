"""A search among networks of two stages on 64 digits of 8x8."""

from jaxr18.config import base


def get_config(arg=""):
  config = base(search=True)
  config.data.name, config.data.limit, config.data.validation = "digits", 64, 40
  config.progress, config.eval_batch_size = "none", 40
  train, search = config.train, config.search
  network = train.network
  network.widths, network.blocks, network.strides = (4, 8), (1, 1), (1, 2)
  network.groups, network.depthwise = (1, 1), (False, False)
  network.resolution = 8
  train.epochs, train.batch_size, train.warmup_epochs = 3, 16, 0.5
  train.augment.pad, train.ema_decay = 1, 0.5
  train.prune.distribution = "erk"
  search.rungs, search.score_budget = (1, 2), 6e-5
  search.widths, search.blocks = ((4, 8), (8,)), ((1,), (1,))
  search.groups = ((1, 2, 4), (1, 2))
  search.bits = (("stem|head", (8,)), (".*", (4, 8)))
  search.density, search.resolution = (1.0, 0.5), (8,)
  if arg == "alike":  # candidates that differ in nothing compiled
    search.widths, search.groups = ((4,), (8,)), ((1,), (1,))
    search.bits, search.density = ((".*", (32,)),), (0.7, 0.6, 0.4, 0.3)
    search.score_budget = 1.0
  return config
