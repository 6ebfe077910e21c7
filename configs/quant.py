"""The narrow ResNet-18 of dense_narrow.py in fewer bits.

python -m jaxr18.main --config=configs/quant.py:4 --workdir=runs/quant_4

The argument is the bits of all layers but stem and head, which have 8: 8, 6,
4, 3, 2 (ternary weights), or 1 (their sign, with inputs of 2 bits), trained for
4 epochs from runs/dense_narrow and taught by it. `ptq4` trains nothing: bounds
and batch norm's statistics from 512 images. `:tiny` takes seconds on digits.
"""

from jaxr18.config import base


def get_config(arg=""):
  tiny = arg == "tiny"
  config = base(phases=("dense", "quant") if tiny else ("quant",))
  quant = config.quant
  phases = [config[name] for name in config.phases]
  for phase in phases:
    phase.network.widths = (16, 32, 48, 56)
    phase.network.strides = (2, 2, 2, 1)
    phase.augment.pad = 2
    phase.augment.flip = "alternating"
  quant.init = quant.teacher = "dense" if tiny else "runs/dense_narrow"
  bits = 4 if tiny else int(arg.removeprefix("ptq") or 4)
  quant.network.bits = (("stem|head", 8, 8), (".*", bits, max(2, bits)))
  quant.epochs, quant.ema_decay = 4, 0.998
  quant.learning_rate, quant.warmup_epochs = 0.02, 0.5
  quant.weight_decay, quant.kd_weight = 1e-4, 0.7
  if arg.startswith("ptq"):
    quant.epochs, quant.teacher, quant.ema_decay = 0, "", 0.0
    quant.recalibrate = 4
  if tiny:
    config.data.name, config.data.validation = "digits", 200
    for phase in phases:
      phase.network.blocks = (1, 1, 1, 1)
      phase.epochs, phase.batch_size, phase.ema_decay = 2, 32, 0.9
      phase.augment.flip = "none"
  return config
