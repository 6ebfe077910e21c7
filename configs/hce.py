"""A heterogeneous ensemble of one network, pruned and quantized (HCE).

python -m jaxr18.main --config=configs/hce.py

One copy keeps a third of its weights, the other has 4 bits; both learn from the
whole network, and the second to err elsewhere than the first (after HCE, arXiv
2301.07794). The score charges both. `:tiny` takes seconds on the digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("whole", "pruned", "quantized", "vote"))
  whole, pruned, quantized, vote = [config[name] for name in config.phases]
  for phase in (whole, pruned, quantized):
    phase.network.widths = (16, 32, 48, 56)
    phase.network.strides = (2, 2, 2, 1)
    phase.epochs, phase.average.ema_decay = 10, 0.998
    phase.augment.pad, phase.augment.flip = 2, "alternating"
  for phase in (pruned, quantized):
    phase.start.init = phase.teacher.source = "whole"
    phase.teacher.cache = "lazy"
    phase.optimizer.learning_rate, phase.optimizer.warmup_epochs = 0.03, 0.5
  pruned.prune.density, pruned.prune.schedule = 1 / 3, "cubic"
  quantized.network.bits = (("stem|head", 8, 8), (".*", 4, 4))
  quantized.loss.others, quantized.loss.diversity = "pruned", 0.2
  vote.ensemble.members = "pruned,quantized"
  return tiny(config) if arg == "tiny" else config
