"""Trains a network on for integers alone: its residual sums get 8 bits too.

python -m jaxr18.main --config=configs/integers.py

From a clone, since it begins with docs/results/train_on_small, whose residual
sums are floats. With sums on learned grids of 8 bits, no float is left between
the image and the logits, and C, LiteRT and ONNX Runtime compute one network:
docs/integer.md. The score stays, since it does not charge sums. On one CPU core
with AVX-512: 87.66% at 0.0040 in 56 minutes (docs/results/integers). `:tiny`
takes seconds on the digits, from new weights.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)
PUBLISHED = "docs/results/train_on_small/network.safetensors"


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
  quant.network.w_scales, quant.network.sum_bits = "learned_channel", 8
  quant.epochs, quant.augment.flip, quant.augment.pad = 40, "alternating", 2
  quant.average.ema_decay = 0.998
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.04, 1.0
  quant.optimizer.weight_decay, quant.bounds.weight_decay = 5e-5, 1e-4
  if arg == "tiny":
    return tiny(config, strides=(2, 2, 2))
  quant.start.init = PUBLISHED
  return config
