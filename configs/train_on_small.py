"""Trains the small network of three_bits.py on: its packed file.

python -m jaxr18.main --config=configs/train_on_small.py

From a clone, since it begins with docs/results/three_bits_small, which
underfits: so its views are mild and the training long. The shortcuts get 8 bits
and one layer of the first block 4: a per-layer score of 0.0040. On one CPU core
with AVX2: 87.28% in 99 minutes (docs/results/train_on_small). `:tiny` takes
seconds on the digits, from new weights.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)
PUBLISHED = "docs/results/three_bits_small/network.safetensors"


def get_config(arg=""):
  config = base(phases=("quant",))
  config.data.validation = 0
  quant = config.quant
  quant.network.widths, quant.network.blocks = (8, 16, 40), (2,)
  quant.network.bits = (
    ("stem|head|.*proj", 8, 8),
    ("stage1_block1/conv1", 4, 4),
    (".*", 3, 3),
  )
  quant.network.w_scales = "learned_channel"
  quant.epochs, quant.augment.flip, quant.augment.pad = 72, "alternating", 2
  quant.average.ema_decay = 0.998
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.08, 1.0
  quant.optimizer.weight_decay, quant.bounds.weight_decay = 5e-5, 1e-4
  if arg == "tiny":
    return tiny(config, strides=(2, 2, 2))
  quant.start.init = PUBLISHED
  return config
