"""The dense ResNet-18 in float32: what everything is compared with.

python -m jaxr18.main --config=configs/baseline.py

11,173,962 parameters, 555,422,720 MACs, score 3.979. Meant for a GPU; `:tiny`
runs a narrow one on the embedded digits in seconds.
"""

from jaxr18.config import base


def get_config(arg=""):
  config = base(phases=("train",))
  config.train.epochs = 60
  config.train.loss.label_smoothing = 0.1
  if arg == "tiny":
    config.data.name = "digits"
    config.data.validation = 200
    config.train.network.widths = (8, 8, 16, 16)
    config.train.epochs = 3
    config.train.optimizer.warmup_epochs = 1.0
    config.train.batch_size = 32
  elif arg:
    raise ValueError(f"baseline.py: argument {arg!r} must be 'tiny' or none")
  return config


def sweep(add):
  for rate in (0.05, 0.1, 0.2):
    add({"train.optimizer.learning_rate": rate})
