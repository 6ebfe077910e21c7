"""A dense network, then its convolutions at low rank, trained on.

python -m jaxr18.main --config=configs/low_rank.py

233,914 parameters, 7,990,832 MACs, and after Tucker-2 at a third of the
channels 50,954 parameters, 2,215,968 MACs. The dense phase is
dense_narrow.py. `:tiny` takes seconds on the embedded digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("dense", "low_rank"))
  dense, low_rank = config.dense, config.low_rank
  low_rank.network.factorize = (("stage.*/conv.", "ranks=1/3,1/3"),)
  low_rank.start.init = "dense"
  dense.epochs, low_rank.epochs = 10, 5
  low_rank.optimizer.learning_rate = 0.03
  for phase in (dense, low_rank):
    phase.network.widths = (16, 32, 48, 56)
    phase.network.strides = (2, 2, 2, 1)
    phase.average.ema_decay = 0.998
    phase.augment.pad = 2
    phase.augment.flip = "alternating"
  return tiny(config) if arg == "tiny" else config
