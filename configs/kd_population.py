"""Three seeds of a 2-M-MAC student side by side, distilled or not.

python -m jaxr18.main --config=configs/dense_narrow.py
python -m jaxr18.main --config=configs/kd_population.py:kd \\
    --config.train.teacher.source=runs/dense_narrow
python -m jaxr18.main --config=configs/kd_population.py:plain

`:kd` and `:plain` have the same students, seeds, steps and images; result.json
has each seed's test accuracy, their mean and standard deviation. A pad of 1
leaves 18 views of an image, whose logits the seeds share. 77.60 ± 0.97% with a
teacher and 76.02 ± 0.62% without (docs/distill.md). `:tiny` takes seconds
on the embedded digits, with a teacher of its own.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("kd", "plain", "tiny")


def get_config(arg="plain"):
  config = base(phases=("teacher", "train") if arg == "tiny" else ("train",))
  for phase in [config[name] for name in config.phases]:
    phase.network.widths, phase.network.strides = (8, 16, 24, 24), (2, 2, 2, 1)
    phase.epochs, phase.average.ema_decay = 10, 0.998
    phase.augment.pad, phase.augment.flip = 1, "alternating"
  train = config.train
  train.population.size = 3
  train.teacher.weight, train.teacher.temperature = 0.9, 4.0
  if arg != "plain":
    train.teacher.source, train.teacher.cache = "runs/dense_narrow", "lazy"
  if arg == "tiny":
    tiny(config)
    train.teacher.source = "teacher"
  return config
