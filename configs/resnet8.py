"""MLPerf Tiny's ResNet-8, the industry's own network for CIFAR-10, in 8 bits.

python -m jaxr18.main --config=configs/resnet8.py

77,360 weights and 12,501,632 MACs in three stages of one block, a per-layer
score of 0.0147 with all layers in 8 bits. One thing differs from
https://github.com/mlcommons/tiny, whose projections have no batch norm, which
folding removes here too. First a float network is trained, then the same one in
8 bits: 88.31% in 78 minutes on a CPU core with AVX-512 (docs/results/resnet8);
MLPerf Tiny's file has 86.97%. `:tiny` takes seconds on the digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("float", "quant"))
  for phase in (config.float, config.quant):
    phase.network.widths, phase.network.blocks = (16, 32, 64), (1,)
    phase.average.ema_decay = 0.998
  config.float.epochs, config.quant.epochs = 60, 10
  quant = config.quant
  quant.start.init, quant.network.bits = "float", ((".*", 8, 8),)
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.02, 1.0
  return tiny(config, strides=(1, 2, 2)) if arg == "tiny" else config
