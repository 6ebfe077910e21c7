"""The narrow ResNet-18, then single weights pruned while it trains on.

python -m jaxr18.main --config=configs/prune_unstructured.py:0.1 \
    --workdir=runs/prune_unstructured_0.1

The argument is the share of weights kept, 0.1 by default; 1.0 trains on
without pruning. 10 dense epochs, then 4 in which the smallest weights of the
whole network go, by a cubic schedule in the first 2. Several shares of one
dense network, which configs/dense_narrow.py trains:
`--config.dense.start.init=runs/dense_narrow --config.dense.epochs=0`. With a
tenth of the weights 80.73%, with all 82.90% (docs/pruning.md). `:tiny` takes
seconds on the embedded digits.
"""

from jaxr18.config import base, tiny


def get_config(arg=""):
  config = base(phases=("dense", "prune"))
  for phase in (config.dense, config.prune):
    phase.network.widths = (16, 32, 48, 56)
    phase.network.strides = (2, 2, 2, 1)
    phase.augment.pad, phase.augment.flip = 2, "alternating"
    phase.average.ema_decay = 0.998
  prune = config.prune
  config.dense.epochs, prune.epochs = 10, 4
  prune.start.init = "dense"
  prune.optimizer.learning_rate, prune.optimizer.warmup_epochs = 0.05, 0.5
  prune.prune.schedule, prune.prune.end = "cubic", 0.5
  try:
    prune.prune.density = 0.1 if arg in ("", "tiny") else float(arg)
  except ValueError:
    raise ValueError(
      f"prune_unstructured.py: argument {arg!r} must be 'tiny', the share of"
      " weights to keep, such as 0.1, or none"
    ) from None
  return tiny(config) if arg == "tiny" else config
