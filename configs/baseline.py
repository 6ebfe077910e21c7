"""The dense ResNet-18 in float32: what everything is compared with.

python -m jaxr18.main --config=configs/baseline.py

11,173,962 parameters, 555,422,720 MACs, score 3.979. Meant for a GPU; `:tiny`
runs a narrow one on the embedded digits in seconds.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("train",))
  config.train.epochs = 60
  config.train.loss.label_smoothing = 0.1
  if arg == "tiny":
    tiny(config, widths=(8, 8, 16, 16))
    config.train.epochs, config.train.optimizer.warmup_epochs = 3, 1.0
  return config


def sweep(add):
  for rate in (0.05, 0.1, 0.2):
    add({"train.optimizer.learning_rate": rate})
