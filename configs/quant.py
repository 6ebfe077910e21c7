"""A narrow ResNet-18, trained, then quantized and trained on.

python -m jaxr18.main --config=configs/quant.py

The network of dense_narrow.py in 4 bits, stem and head in 8, taught by itself
in 32 bits for 4 epochs. `:8`, `:4`, `:3`, `:2` (ternary weights) and `:1`
(their signs, 2-bit inputs) start from runs/dense_narrow in place of their own
first phase; `:ptq4` only calibrates. 81.12% at a per-layer score of 0.0091,
79.22% at 0.0070 with 3 bits, 75.80% at 0.0048 with 2 (docs/quantization.md).
`:tiny` takes seconds on the digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny", *"8654321", *(f"ptq{bits}" for bits in "8654321"))


def get_config(arg=""):
  alone, bits = arg in ("", "tiny"), arg.removeprefix("ptq")
  config = base(phases=("dense", "quant") if alone else ("quant",))
  phases, quant = [config[name] for name in config.phases], config.quant
  for phase in phases:
    phase.network.widths = (16, 32, 48, 56)
    phase.network.strides = (2, 2, 2, 1)
    phase.augment.pad, phase.augment.flip = 2, "alternating"
    phase.epochs, phase.average.ema_decay = 10, 0.998
  source = "dense" if alone else "runs/dense_narrow"
  quant.start.init = quant.teacher.source = source
  bits = 4 if alone else int(bits)
  quant.network.bits = (("stem|head", 8, 8), (".*", bits, max(2, bits)))
  quant.epochs, quant.teacher.weight = 4, 0.7
  quant.optimizer.learning_rate, quant.optimizer.warmup_epochs = 0.02, 0.5
  quant.optimizer.weight_decay = 1e-4
  if arg.startswith("ptq"):
    quant.epochs, quant.teacher.source, quant.average.ema_decay = 0, "", 0.0
    quant.start.recalibrate = 4  # batches of 128 images
  return tiny(config) if arg == "tiny" else config
