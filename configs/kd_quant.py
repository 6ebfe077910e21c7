"""A float teacher, distilled into a student of 4-bit weights and activations.

python -m jaxr18.main --config=configs/kd_quant.py

On two CPU cores: 88.64% at a per-layer score of 0.0180 in 81 minutes
(validation 89.22%, its teacher 89.54%; docs/results/kd_quant). `:digits` is the
same job on embedded data: no download, under two minutes.
"""

from jaxr18.config import base

ARGUMENTS = ("digits",)


def get_config(arg=""):
  config = base(phases=("teacher", "student"))
  teacher, student = config.teacher, config.student
  teacher.network.widths = (24, 48, 96, 192)
  teacher.epochs = 12
  student.network.widths = (12, 24, 48, 96)
  student.network.bits = (("stem|head", 8, 8), (".*", 4, 4))
  student.teacher.source = "teacher"
  student.teacher.weight, student.teacher.temperature = 0.5, 3.0
  student.epochs = 34
  for phase in (teacher, student):
    phase.average.ema_decay, phase.augment.flip = 0.998, "alternating"
  teacher.augment.pad, student.augment.cutout = 2, 8
  if arg == "digits":
    config.data.name, config.data.validation = "digits", 200
    teacher.network.widths = (16, 24, 32, 32)
    student.network.widths = (8, 12, 16, 16)
    for phase in (teacher, student):
      phase.network.strides = (2, 2, 2, 1)
      phase.epochs, phase.batch_size = 12, 32
      phase.average.ema_decay = 0.95
      phase.augment.flip = "none"
  return config
