"""A narrow ResNet of three stages in 3 bits, taught by its own float run.

python -m jaxr18.main --config=configs/three_bits.py

ResNet-18's fourth stage is a poor buy in this score: it spends 16
multiply-accumulates a weight, and a weight is charged as much as 50. Three
stages of (2, 3, 3) blocks with 12, 24 and 56 channels and 3 bits have a
per-layer score of 0.0112: 89.64% in 78 minutes on two CPU cores with AMX
(docs/results/three_bits). Both phases see all 50,000 training images, so
nothing is selected: the last epoch counts. `:small` is (2, 2, 2) blocks with 8,
16 and 40 channels, in float32, of a per-layer score of 0.0038. `:select` holds
5,000 images out instead; `:tiny` takes seconds on the digits.
"""

from jaxr18.config import base


def get_config(arg=""):
  config = base(phases=("float", "quant"))
  config.data.validation = 0
  for phase in (config.float, config.quant):
    network = phase.network
    network.widths, network.blocks = (12, 24, 56), (2, 3, 3)
    network.strides, network.groups = (1, 2, 2), (1, 1, 1)
    network.depthwise = (False, False, False)
    phase.augment.flip, phase.average.ema_decay = "alternating", 0.998
    phase.dtype = "bfloat16"
  config.float.epochs, config.float.optimizer.weight_decay = 36, 5e-4
  quant = config.quant
  quant.start.init = quant.teacher.source = "float"
  quant.network.inner_bits, quant.network.w_scales = 3, "learned"
  quant.epochs, quant.teacher.weight = 30, 0.9
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.04, 1.0
  quant.optimizer.weight_decay, quant.bounds.weight_decay = 1e-4, 1e-4
  if arg == "small":
    for phase in (config.float, quant):
      phase.network.widths, phase.network.blocks = (8, 16, 40), (2, 2, 2)
      phase.dtype = "float32"
    config.float.epochs, quant.epochs = 50, 70
    config.float.optimizer.weight_decay = 2e-4
  elif arg == "select":
    config.data.validation = 5000
  elif arg == "tiny":
    config.data.name, config.data.validation = "digits", 200
    for phase in (config.float, quant):
      phase.network.strides, phase.network.blocks = (2, 2, 2), (1, 1, 1)
      phase.epochs, phase.batch_size, phase.average.ema_decay = 2, 32, 0.9
      phase.augment.flip, phase.dtype = "none", "float32"
  elif arg:
    raise ValueError(
      f"three_bits.py: argument {arg!r} must be "
      "'small', 'select', 'tiny' or none"
    )
  return config
