"""One phase of 6 steps an epoch on 96 digits of 8x8, for the real command."""

from jaxr18.config import base


def get_config(arg=""):
  config = base(phases=("train",))
  config.data.name = "digits"
  config.data.validation = 50
  config.data.limit = 96
  config.eval_batch_size = 20
  config.progress = "plain"
  train = config.train
  train.network.widths = (4, 12)
  train.network.blocks = (1, 1)
  train.network.strides = (1, 2)
  train.network.groups = (1, 1)
  train.network.depthwise = (False, False)
  train.network.resolution = 8
  train.batch_size = 16
  train.epochs = int(arg or 3)
  train.optimizer.warmup_epochs = 1.0
  train.optimizer.learning_rate = 0.02
  train.average.ema_decay = 0.9
  train.augment.pad = 1
  return config
