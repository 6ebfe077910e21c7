"""A narrow ResNet of three stages in 3 bits, taught by its own float run.

python -m jaxr18.main --config=configs/three_bits.py

Three stages, since ResNet-18's fourth spends 16 multiply-accumulates a weight
where a weight is charged as much as 50. On two CPU cores with AMX: 89.64% at a
per-layer score of 0.0112 in 78 minutes (docs/results/three_bits), with all
50,000 training images: nothing is selected, the last epoch counts. `:small` has
(2, 2, 2) blocks of 8, 16 and 40 channels in float32: 86.11% at 0.0038 with AVX2
(docs/results/three_bits_small); `:select` holds 5,000 images out; `:tiny` takes
seconds on the digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("small", "select", "tiny")


def get_config(arg=""):
  config = base(phases=("float", "quant"))
  config.data.validation = 0
  for phase in (config.float, config.quant):
    phase.network.widths, phase.network.blocks = (12, 24, 56), (2, 3, 3)
    phase.augment.flip, phase.average.ema_decay = "alternating", 0.998
    phase.dtype = "bfloat16"
  quant = config.quant
  config.float.epochs, quant.epochs = 36, 30
  quant.start.init = quant.teacher.source = "float"
  quant.network.inner_bits, quant.network.w_scales = 3, "learned"
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.04, 1.0
  quant.optimizer.weight_decay, quant.bounds.weight_decay = 1e-4, 1e-4
  if arg == "small":
    for phase in (config.float, quant):
      phase.network.widths, phase.network.blocks = (8, 16, 40), (2,)
      phase.dtype = "float32"
    config.float.epochs, quant.epochs = 50, 50
    config.float.optimizer.weight_decay = 2e-4
  elif arg == "select":
    config.data.validation = 5000
  return tiny(config, strides=(2, 2, 2)) if arg == "tiny" else config
