"""Cuts two blocks from train_on.py's network and trains it on in 3 bits.

python -m jaxr18.main --config=configs/cut_blocks.py

From a clone, since it begins with docs/results/train_on. The last block of the
second and of the third stage goes: a per-layer score of 0.0080 in place of
0.0130. On one CPU core with AVX-512: 89.72% in 120 minutes
(docs/results/cut_blocks). `:tiny` takes seconds on the digits, from new
weights.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)
PUBLISHED = "docs/results/train_on/network.safetensors"


def get_config(arg=""):
  config = base(phases=("quant",))
  config.data.validation = 0
  quant = config.quant
  quant.network.widths, quant.network.blocks = (12, 24, 56), (2,)
  quant.network.bits = (
    ("stem|head", 8, 8),
    (".*proj", 6, 6),
    (".*", 3, 3),
  )
  quant.network.w_scales = "learned_channel"
  quant.epochs, quant.augment.flip, quant.augment.pad = 60, "alternating", 2
  quant.average.ema_decay = 0.998
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.08, 1.0
  quant.optimizer.weight_decay, quant.bounds.weight_decay = 5e-5, 1e-4
  if arg == "tiny":
    return tiny(config, strides=(2, 2, 2))
  quant.start.init, quant.start.shrink = PUBLISHED, True
  quant.start.drop_blocks = "stage[23]_block3"
  return config
