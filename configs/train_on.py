"""Trains a packed network on: that of three_bits.py, with some bits more.

python -m jaxr18.main --config=configs/train_on.py

From a clone, since it begins with docs/results/three_bits. The shortcuts get 8
bits and the first two stages, of few weights, 4: a per-layer score of 0.0130 in
place of 0.0112. A packed file keeps a learned grid for each output channel, so
here they are learned by channel. On one CPU core with AVX2: 90.41% in 97
minutes (docs/results/train_on). `--config.quant.start.init=FILE` trains another
network of this shape on; `:tiny` takes seconds on the digits, from new weights.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)
PUBLISHED = "docs/results/three_bits/network.safetensors"


def get_config(arg=""):
  config = base(phases=("quant",))
  config.data.validation = 0
  quant = config.quant
  quant.network.widths, quant.network.blocks = (12, 24, 56), (2, 3, 3)
  quant.network.bits = (
    ("stem|head|.*proj", 8, 8),
    ("stage3_block(1/conv2|[23]).*", 3, 3),
    (".*", 4, 4),
  )
  quant.network.w_scales = "learned_channel"
  quant.epochs, quant.augment.flip = 27, "alternating"
  quant.average.ema_decay = 0.998
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.04, 1.0
  quant.optimizer.weight_decay, quant.bounds.weight_decay = 1e-4, 1e-4
  if arg == "tiny":
    return tiny(config, strides=(2, 2, 2))
  quant.start.init = PUBLISHED
  return config
