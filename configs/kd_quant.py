"""A float teacher, distilled into a student of 4-bit weights and activations.

python -m jaxr18.main --config=configs/kd_quant.py

`:digits` is the same job on embedded data: no download, under two minutes on
two CPU cores.
"""

from jaxr18.config import base


def get_config(arg=""):
  config = base(phases=("teacher", "student"))
  teacher, student = config.teacher, config.student
  teacher.network.widths = (32, 64, 128, 256)
  student.network.widths = (16, 32, 64, 128)
  student.network.bits = (("stem|head", 8, 8), (".*", 4, 4))
  student.teacher = "teacher"
  if arg == "digits":
    config.data.name = "digits"
    config.data.validation = 200
    teacher.network.widths = (16, 24, 32, 32)
    student.network.widths = (8, 12, 16, 16)
    for phase in (teacher, student):
      phase.network.strides = (2, 2, 2, 1)
      phase.epochs = 12
      phase.batch_size = 32
      phase.augment.pad = 2
      phase.augment.flip = "none"
  elif arg:
    raise ValueError(f"kd_quant.py: argument {arg!r} must be 'digits' or none")
  return config
