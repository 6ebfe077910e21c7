"""The grids of a weight of 2 bits, side by side, from one float network.

python -m jaxr18.main --config=configs/two_bits.py

Three stages of 8, 16 and 32 channels see 10,000 of CIFAR-10's images: a float
phase, then four phases of 3 epochs in 2 bits from it, ternary and four levels,
each with ends of least error and with learned ones. What it compares are the
phases' validation accuracies; it is far too short to say what a network in 2
bits can do. `:tiny` takes seconds on the digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)

GRIDS = {
  "ternary": ("ternary", "least_error"),
  "ternary_learned": ("ternary", "learned"),
  "four": ("four_levels", "least_error"),
  "four_learned": ("four_levels", "learned"),
}


def get_config(arg=""):
  config = base(phases=("float", *GRIDS))
  config.data.limit = 10_000
  for name in config.phases:
    phase = config[name]
    phase.network.widths = (8, 16, 32)
    phase.augment.pad, phase.augment.flip = 2, "alternating"
    phase.epochs, phase.average.estimate = 8, 20
    if name in GRIDS:
      phase.start.init, phase.epochs = "float", 3
      phase.network.inner_bits = 2
      phase.network.two_bits, phase.network.w_scales = GRIDS[name]
      phase.optimizer.learning_rate, phase.optimizer.warmup_epochs = 0.04, 0.5
      phase.optimizer.weight_decay = 5e-5
  return tiny(config, strides=(2,)) if arg == "tiny" else config
