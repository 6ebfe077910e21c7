"""A search among networks of two stages on 64 digits of 8x8.

Those that the budget allows differ in nothing that is compiled for.
"""

from jaxr18.config import base


def get_config():
  config = base(search=True)
  config.data.name, config.data.limit, config.data.validation = "digits", 64, 40
  config.progress, config.eval_batch_size = "none", 40
  train, search = config.train, config.search
  network = train.network
  network.widths, network.blocks, network.strides = (4, 8), (1, 1), (1, 2)
  network.groups, network.depthwise = (1, 1), (False, False)
  network.resolution = 8
  train.epochs, train.batch_size, train.optimizer.warmup_epochs = 3, 16, 0.5
  train.augment.pad, train.average.ema_decay = 1, 0.5
  train.prune.distribution = "erk"
  search.rungs, search.score_budget = (1, 2), 4e-4
  search.widths, search.blocks = ((4, 8), (8,)), ((1,), (1,))
  search.groups = ((1,), (1,))
  search.bits = ((".*", (32,)),)  # fewer take longer to compile
  search.density = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
  search.resolution = (8,)
  return config
