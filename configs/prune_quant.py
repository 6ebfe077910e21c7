"""A narrow ResNet-18 that loses most weights as it learns, then 5 bits.

python -m jaxr18.main --config=configs/prune_quant.py

Three fifths of the weights go while the first phase trains, by magnitude over
all layers (Zhu and Gupta, 2017). The second quantizes what is left, taught by
what it was. On two CPU cores: 90.00% at a per-layer score of 0.0276 in 68
minutes (docs/results/prune_quant). `:tiny` takes seconds on the digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("pruned", "quant"))
  pruned, quant = config.pruned, config.quant
  for phase in (pruned, quant):
    phase.network.widths = (16, 32, 64, 128)
    phase.augment.flip, phase.average.ema_decay = "alternating", 0.998
  pruned.epochs = 42
  prune = pruned.prune
  prune.density, prune.schedule, prune.begin, prune.end = 0.4, "cubic", 0.2, 0.6
  quant.start.init = quant.teacher.source = "pruned"
  quant.network.bits = ((".*", 5, 5),)
  quant.epochs, quant.teacher.weight = 6, 0.9
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.01, 0.5
  quant.optimizer.weight_decay = 1e-4
  return tiny(config, strides=(2, 2, 2, 1)) if arg == "tiny" else config
