"""The narrow ResNet-18, whole channels masked, then removed, trained on.

python -m jaxr18.main --config=configs/prune_structured.py:0.5 \
    --workdir=runs/prune_structured_0.5

The argument is the share of channels kept, 0.5 by default: the best of all
channel groups, at least a fifth of each. 10 dense epochs, 1 masked, 3 shrunk.
Several shares of one dense network, which configs/dense_narrow.py trains:
`--config.dense.start.init=runs/dense_narrow --config.dense.epochs=0`. With a
half of the channels 76.94% at a per-layer score of 0.0176 (docs/pruning.md).
`:tiny` takes seconds on the embedded digits.
"""

from jaxr18.config import base, tiny


def get_config(arg=""):
  config = base(phases=("dense", "prune", "shrink"))
  phases = [config[name] for name in config.phases]
  for phase in phases:
    phase.network.widths = (16, 32, 48, 56)
    phase.network.strides = (2, 2, 2, 1)
    phase.augment.pad, phase.augment.flip = 2, "alternating"
    phase.average.ema_decay = 0.998
  config.dense.epochs, config.prune.epochs, config.shrink.epochs = 10, 1, 3
  for phase, init in ((config.prune, "dense"), (config.shrink, "prune")):
    phase.start.init = init
    phase.optimizer.learning_rate, phase.optimizer.warmup_epochs = 0.05, 0.5
  prune = config.prune.prune
  prune.structured, prune.criterion, prune.floor = True, "l2", 0.2
  try:
    prune.density = 0.5 if arg in ("", "tiny") else float(arg)
  except ValueError:
    raise ValueError(
      f"prune_structured.py: argument {arg!r} must be 'tiny', the share of"
      " channels to keep, such as 0.5, or none"
    ) from None
  config.shrink.start.shrink = True
  return tiny(config) if arg == "tiny" else config
