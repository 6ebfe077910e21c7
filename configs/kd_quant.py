"""A float teacher, distilled into a student of 4-bit weights and activations.

python -m jaxr18.main --config=configs/kd_quant.py

On two CPU cores: 88.64% at a per-layer score of 0.0180 in 81 minutes
(validation 89.22%, its teacher 89.54%; docs/results/kd_quant). `:digits` is the
same job on embedded data: no download, under two minutes.
"""

from jaxr18.config import base


def get_config(arg=""):
  config = base(phases=("teacher", "student"))
  teacher, student = config.teacher, config.student
  teacher.network.widths = (24, 48, 96, 192)
  teacher.epochs = 12
  student.network.widths = (12, 24, 48, 96)
  student.network.bits = (("stem|head", 8, 8), (".*", 4, 4))
  (
    student.teacher.source,
    student.teacher.weight,
    student.teacher.temperature,
  ) = "teacher", 0.5, 3.0
  student.epochs = 34
  for phase in (teacher, student):
    phase.average.ema_decay = 0.998
    phase.augment.flip = "alternating"
  teacher.augment.pad = 2
  student.augment.cutout = 8
  if arg == "digits":
    config.data.name = "digits"
    config.data.validation = 200
    teacher.network.widths = (16, 24, 32, 32)
    student.network.widths = (8, 12, 16, 16)
    for phase in (teacher, student):
      phase.network.strides = (2, 2, 2, 1)
      phase.epochs = 12
      phase.batch_size = 32
      phase.average.ema_decay = 0.95
      phase.augment.flip = "none"
  elif arg:
    raise ValueError(f"kd_quant.py: argument {arg!r} must be 'digits' or none")
  return config
