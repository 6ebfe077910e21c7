"""Distil, prune filters, remove them, fine-tune, under one teacher.

python -m jaxr18.main --config=configs/kd_prune.py

A student two thirds as wide as its teacher loses two fifths of its channels in
three steps, chosen by a Taylor expansion of the loss, and ends in 8 bits. Each
phase resumes, and a phase alone can be changed: `--config.prune.prune.density`
is the share of channels kept. `:tiny` takes seconds on the embedded digits.
"""

from jaxr18.config import base, tiny

ARGUMENTS = ("tiny",)


def get_config(arg=""):
  config = base(phases=("teacher", "student", "prune", "finetune"))
  phases = [config[name] for name in config.phases]
  for phase in phases:
    phase.network.widths = (16, 32, 64, 128)
    phase.average.ema_decay, phase.augment.flip = 0.998, "alternating"
  config.teacher.network.widths = (24, 48, 96, 192)
  config.teacher.augment.pad = 2
  config.teacher.epochs = config.student.epochs = 12
  config.prune.start.init, config.finetune.start.init = "student", "prune"
  for phase in phases[1:]:
    phase.teacher.source = "teacher"
    phase.teacher.weight, phase.teacher.temperature = 0.5, 3.0
  for phase in phases[2:]:
    phase.epochs = 6
    phase.optimizer.learning_rate, phase.optimizer.warmup_epochs = 0.05, 0.5
  prune = config.prune.prune
  prune.structured, prune.criterion, prune.density = True, "taylor", 0.6
  prune.schedule, prune.every, prune.floor = "linear", 351, 0.2
  config.finetune.start.shrink = True
  config.finetune.network.bits = ((".*", 8, 8),)
  if arg == "tiny":
    tiny(config, widths=(8, 12, 16, 16), strides=(2, 2, 2, 1))
  return config
