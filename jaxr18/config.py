"""Every knob of an experiment: its default, what is allowed, what it means.

An experiment is a sequence of phases, each with a section of its own. A file
in configs/ starts from `base(phases)` and sets only what differs.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections


@dataclasses.dataclass(frozen=True)
class Knob:
  """One field of a config.

  Attributes:
    default: also fixes the type; a tuple's first entry that of its entries.
    doc: meaning and unit.
    low, high: inclusive bounds of a number, of each entry in a tuple.
    choices: the strings allowed.
    length: of a tuple; None for any, 'stages' for one entry a stage.
  """

  default: Any
  doc: str
  low: float | None = None
  high: float | None = None
  choices: tuple[str, ...] | None = None
  length: int | str | None = None


EXPERIMENT = {
  "seed": Knob(0, "of weights, batches and augmentation", 0, 2**31 - 1),
  "data": {
    "name": Knob("cifar10", "the data set", choices=("cifar10", "digits")),
    "dir": Knob("", "TFDS's folder; '' is TFDS_DATA_DIR or TFDS's default"),
    "cache_dir": Knob("", "where decoded images are kept; '' is ~/.cache"),
    "validation": Knob(5000, "images kept from training to select on", 0),
    "split_seed": Knob(0, "of the validation split", 0, 2**31 - 1),
    "limit": Knob(0, "use only so many images of each split; 0 is all", 0),
  },
  "checkpoint": {
    "every_seconds": Knob(60.0, "between two checkpoints in an epoch", 0.0),
  },
  "eval_batch_size": Knob(500, "images a step of an evaluation", 1, 100000),
  "progress": Knob("auto", "a live bar on a terminal, else plain lines",
                   choices=("auto", "bar", "plain", "none")),
}  # fmt: skip

PHASE = {
  "network": {
    "widths": Knob((64, 128, 256, 512), "channels by stage", 1, 8192),
    "blocks": Knob((2, 2, 2, 2), "blocks by stage", 1, 100, length="stages"),
    "strides": Knob((1, 2, 2, 2), "of a stage's first block", 1, 4,
                    length="stages"),
    "groups": Knob((1, 1, 1, 1), "of a stage's 3x3 convolutions", 1, 8192,
                   length="stages"),
    "depthwise": Knob((False,) * 4, "depthwise-separable 3x3 convolutions",
                      length="stages"),
    "stem_features": Knob(0, "channels of the stem; 0 is widths[0]", 0, 8192),
    "resolution": Knob(32, "side of the input in pixels", 4, 512),
    "scale": Knob(0.0, "EfficientNet's compound coefficient", -8.0, 8.0),
    "scale_multiple": Knob(8, "scaled widths are multiples of it", 1, 256),
    "bits": Knob(((".*", 32, 32),),
                 "rules (regex on layer paths, w_bits, a_bits), the first "
                 "match wins; 32 is unquantized"),
  },
  "init": Knob("", "start from this earlier phase or finished workdir"),
  "teacher": Knob("", "distil from this earlier phase or finished workdir"),
  "kd_weight": Knob(0.9, "weight of the soft term, if a teacher is given",
                    0.0, 1.0),
  "temperature": Knob(4.0, "of both softmaxes in the soft term", 0.01, 100.0),
  "label_smoothing": Knob(0.0, "mass moved to all classes evenly", 0.0, 0.99),
  "epochs": Knob(30, "passes over the training images", 1, 100000),
  "batch_size": Knob(128, "images a step, over all devices", 1, 1000000),
  "optimizer": Knob("sgd", "sgd is with Nesterov momentum",
                    choices=("sgd", "adamw")),
  "learning_rate": Knob(0.1, "at the end of the warm-up", 1e-9, 100.0),
  "warmup_epochs": Knob(2.0, "linear, then a cosine to zero", 0.0),
  "momentum": Knob(0.9, "of sgd", 0.0, 0.9999),
  "weight_decay": Knob(5e-4, "on kernels only", 0.0, 10.0),
  "clip_norm": Knob(0.0, "global norm of the gradient; 0 is off", 0.0),
  "ema_decay": Knob(0.0, "of averaged weights, which are then what is "
                    "evaluated; 0 is off", 0.0, 0.99999),
  "dtype": Knob("float32", "of convolutions in training",
                choices=("float32", "bfloat16")),
  "augment": {
    "pad": Knob(4, "random crops of images padded so many pixels", 0, 16),
    "flip": Knob("random", "alternating flips every second epoch",
                 choices=("none", "random", "alternating")),
    "cutout": Knob(0, "side of a square set to the mean; 0 is off", 0, 32),
  },
}  # fmt: skip


def base(phases: Sequence[str] = ("train",)) -> ml_collections.ConfigDict:
  """The default config with a section for each phase, in their order.

  The last phase's network is the one that is tested and scored.
  """
  config = ml_collections.ConfigDict(_defaults(EXPERIMENT))
  config.phases = tuple(phases)
  for name in phases:
    config[name] = ml_collections.ConfigDict(_defaults(PHASE))
  return config.lock()


def knobs(phases: Sequence[str]) -> Iterator[tuple[str, Knob]]:
  """Every field's dotted name and knob, those of the phases included."""
  yield from _flat("", EXPERIMENT)
  for name in phases:
    yield from _flat(f"{name}.", PHASE)


def describe() -> str:
  """All knobs as text, one a line; a phase's own fields under PHASE."""
  lines = []
  for name, knob in knobs(("PHASE",)):
    allowed = ""
    if knob.choices:
      allowed = f" One of {', '.join(knob.choices)}."
    lines.append(f"--config.{name}={knob.default}\n    {knob.doc}.{allowed}")
  return "\n".join(lines)


def _defaults(table: dict[str, Any]) -> dict[str, Any]:
  return {
    k: _defaults(v) if isinstance(v, dict) else v.default
    for k, v in table.items()
  }


def _flat(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, Knob]]:
  for k, v in table.items():
    if isinstance(v, dict):
      yield from _flat(f"{prefix}{k}.", v)
    else:
      yield f"{prefix}{k}", v
