"""Every knob of an experiment: its default, what is allowed, what it means.

An experiment is a sequence of phases, each with a section of its own. A file
in configs/ starts from `base(phases)` and sets only what differs.
"""

import dataclasses
import difflib
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ml_collections

from jaxr18.host import paths, patterns
from jaxr18.nn.forms import rule_faults
from jaxr18.nn.spec import BITS, SCALES, TWO_BITS, W_BITS, W_SCALES

Faults = Iterator[tuple[str, str]]  # (what a value must be, how to mend it)

# Images of each data set's training split, validation included.
TRAINING_IMAGES = {"cifar10": 50_000, "digits": 1_437}
IMAGE_SIZE = 32  # pixels a side, of both


@dataclasses.dataclass(frozen=True)
class Knob:
  """One field of a config.

  Attributes:
    default: also fixes the type; a tuple's first entry that of its entries.
    doc: meaning and unit.
    low, high: inclusive bounds of a number, of each entry in a tuple.
    choices: the strings allowed.
    by_stage: a tuple with one entry a stage.
    bits_rules: a tuple of (regex, w_bits, a_bits).
    form_rules: a tuple of (regex, form), may be empty.
    density_rules: a tuple of (regex, density), may be empty.
    regex: a string that is a regex, may be empty.
    options: a tuple, one entry a stage, of the tuples to choose from.
    bits_options: a tuple of (regex, the bits to choose from).
  """

  default: Any
  doc: str
  low: float | None = None
  high: float | None = None
  choices: tuple[str, ...] | None = None
  by_stage: bool = False
  bits_rules: bool = False
  form_rules: bool = False
  density_rules: bool = False
  regex: bool = False
  options: bool = False
  bits_options: bool = False

  @property
  def kind(self) -> type:
    """The type of the value, or of each entry in a tuple."""
    many = isinstance(self.default, tuple) and self.default
    return type(self.default[0] if many else self.default)

  def allowed(self) -> str:
    """What a value, or each entry in a tuple, must be, in a few words."""
    if self.choices:
      return f"one of {', '.join(map(repr, self.choices))}"
    if self.kind in (int, float):
      name = {int: "an int", float: "a number"}[self.kind]
      return f"{name} from {self.low} to {self.high}"
    names = {bool: "True or False", str: "a string", tuple: "a tuple of rules"}
    return names[self.kind]

  def faults(self, value: Any) -> Faults:
    """What is wrong with a value, taken by itself; nothing if it is right."""
    if self.bits_rules:
      yield from _rules_faults(value, self)
    elif self.form_rules:
      yield from rule_faults(value)
    elif self.density_rules:
      yield from _density_faults(value)
    elif self.options or self.bits_options:
      yield from _options_faults(value, self)
    elif not isinstance(self.default, tuple):
      hint = f"such as {self.default!r}"
      if self.default == "":
        hint = "write '' for none"
      yield from self._entry_faults(value, "", hint)
    elif not isinstance(value, tuple) or not value:
      yield (
        f"must be a tuple, not empty, each entry {self.allowed()}",
        _as_tuple(value) or f"such as {self.default!r}",
      )
    else:
      for i, entry in enumerate(value):
        yield from self._entry_faults(
          entry, f"has {entry!r} at index {i}, which ", "change it"
        )

  def _entry_faults(self, value: Any, which: str, hint: str) -> Faults:
    must = f"{which}must be {self.allowed()} ({self.doc})"
    # Strict: True is no 1, and no other class of numbers goes through JSON.
    right = type(value) is self.kind
    if self.kind is float:
      right = type(value) in (float, int)
    if not right:
      yield must, hint
    elif self.choices and value not in self.choices:
      near = difflib.get_close_matches(value, self.choices, 1)
      yield must, f"write {near[0]!r}" if near else "choose one"
    elif self.kind in (int, float) and not self.low <= value <= self.high:
      if value < self.low:
        yield must, f"raise it to {self.low} or more"
      elif value > self.high:
        yield must, f"lower it to {self.high} or less"
      else:  # nan
        yield must, hint
    elif self.kind is str and not self.regex and paths.remote(value):
      yield f"{which}{paths.LOCAL}", paths.MOUNT
    elif self.regex and (fault := patterns.fault(value)):
      yield f"{which}must be a regex ({fault})", "mend it"


def _density_faults(rules: Any) -> Faults:
  must = "must be a tuple of rules (regex, density)"
  hint = "such as (('stage4.*', 0.1),), or () for none"
  if not isinstance(rules, tuple):
    yield must, hint
    return
  for rule in rules:
    if (
      not isinstance(rule, tuple)
      or len(rule) != 2
      or not isinstance(rule[0], str)
      or type(rule[1]) not in (int, float)
      or not 0 < rule[1] <= 1
    ):
      yield (
        f"has the rule {rule!r}, which must be (regex, density), the density"
        " above 0 and at most 1",
        hint,
      )
    elif fault := patterns.fault(rule[0]):
      yield f"has {rule[0]!r}, which must be a regex ({fault})", "mend it"


def _options_faults(value: Any, knob: Knob) -> Faults:
  """Of `options` or `bits_options`: the form, then each choice by itself."""
  form = "(regex, bits)" if knob.bits_options else "choices, one a stage"
  must = f"must be a tuple, not empty, of tuples: {form}"
  hint = f"such as {knob.default!r}"
  if (
    not isinstance(value, tuple)
    or not value
    or not all(isinstance(entry, tuple) and entry for entry in value)
  ):
    yield must, hint
    return
  for entry in value:
    choices = entry
    if knob.bits_options:
      if len(entry) != 2 or not isinstance(entry[0], str):
        yield f"has {entry!r}, which must be {form}", hint
        continue
      if fault := patterns.fault(entry[0]):
        yield f"has {entry[0]!r}, which must be a regex ({fault})", "mend it"
      choices = entry[1]
      if not isinstance(choices, tuple) or not choices:
        yield f"has {entry!r}, whose bits must be a tuple", "such as (4, 8)"
        continue
    if len(set(choices)) < len(choices):
      yield f"has {choices!r}, which must name each once", "remove one"
    for choice in choices:
      if type(choice) is not int or (
        choice not in W_BITS
        if knob.bits_options
        else not knob.low <= choice <= knob.high
      ):
        allowed = f"an int from {knob.low} to {knob.high}"
        if knob.bits_options:
          allowed = f"one of {W_BITS}"
        yield f"has {choice!r} in {entry!r}, which must be {allowed}", hint


def _as_tuple(value: Any) -> str:
  """How to write a list or a single value as a tuple; '' for others."""
  if isinstance(value, list) and value:
    return f"write {tuple(value)!r}"
  if type(value) in (int, float):
    return f"write {(value,)!r}"
  return ""


def _rules_faults(rules: Any, knob: Knob) -> Faults:
  form = "(regex, w_bits, a_bits)"
  hint = f"such as {knob.default!r}"
  if not isinstance(rules, tuple) or not rules:
    yield f"must be a tuple of rules {form}", hint
    return
  if isinstance(rules[0], str):
    yield f"must be a tuple of rules {form}", f"write {(rules,)!r}"
    return
  for rule in rules:
    if not isinstance(rule, tuple) or len(rule) != 3:
      yield f"has the rule {rule!r}, which must be a tuple {form}", hint
      continue
    pattern, *bits = rule
    if not isinstance(pattern, str):
      yield f"has {pattern!r} in {rule!r}, which must be a regex", hint
    elif fault := patterns.fault(pattern):
      yield (
        f"has {pattern!r}, which must be a regex ({fault})",
        "mend it; it has to match whole layer paths, such as 'stage1_.*/conv1'",
      )
    for name, b, allowed in zip(
      ("w_bits", "a_bits"), bits, (W_BITS, BITS), strict=True
    ):
      if type(b) is not int or b not in allowed:
        yield (
          f"has {name}={b!r} in {rule!r}, which must be one of {allowed}",
          "choose one; 32 is unquantized",
        )


# The names that compress/ knows; a test holds them equal.
WEIGHT_CRITERIA = ("magnitude_l1", "magnitude_l2", "random", "gradient",
                   "taylor", "snip", "movement", "wanda")  # fmt: skip
CHANNEL_CRITERIA = ("l2", "bn_scale", "taylor", "geometric_median", "random")
CRITERIA = tuple(dict.fromkeys(WEIGHT_CRITERIA + CHANNEL_CRITERIA))
CALIBRATIONS = ("mse", "percentile", "absmax", "lsq")
WEIGHT_DISTRIBUTIONS = ("uniform", "per_output", "global", "erk", "lamp",
                        "explicit")  # fmt: skip
CHANNEL_DISTRIBUTIONS = ("uniform", "global", "global_raw")
DISTRIBUTIONS = tuple(
  dict.fromkeys(WEIGHT_DISTRIBUTIONS + CHANNEL_DISTRIBUTIONS)
)

EXPERIMENT = {
  "seed": Knob(0, "of weights, batches and augmentation", 0, 2**31 - 1),
  "data": {
    "name": Knob("cifar10", "the data set", choices=tuple(TRAINING_IMAGES)),
    "dir": Knob("", "TFDS's folder; '' is TFDS_DATA_DIR or TFDS's default"),
    "cache_dir": Knob("", "for decoded images; '' is ~/.cache/jaxr18"),
    "validation": Knob(5000, "training images held out to select on",
                       0, 49_999),
    "split_seed": Knob(0, "of the validation split", 0, 2**31 - 1),
    "order": Knob("content", "of CIFAR-10's images before they are split: by "
                  "a hash of image and label, which is the same for every "
                  "copy; or by their numbers in the folder, as in runs that "
                  "are older than this field", choices=("content", "folder")),
    "limit": Knob(0, "use so many images of each split; 0 is all",
                  0, 1_000_000),
  },
  "checkpoint": {
    "every_seconds": Knob(60.0, "between two checkpoints within an epoch; "
                          "each epoch's end has one anyway", 0, 1e6),
  },
  "eval_batch_size": Knob(500, "images a step of an evaluation", 1, 100_000),
  "progress": Knob("auto", "a live bar on a terminal, else a line an epoch",
                   choices=("auto", "bar", "plain", "none")),
  "writers": Knob("", "where each epoch's numbers go too, comma-separated: "
                  "tensorboard, wandb"),
}  # fmt: skip

PHASE = {
  "network": {
    "widths": Knob((64, 128, 256, 512), "channels by stage", 1, 8192),
    "blocks": Knob((2, 2, 2, 2), "blocks by stage", 1, 100, by_stage=True),
    "strides": Knob((1, 2, 2, 2), "of each stage's first block", 1, 4,
                    by_stage=True),
    "groups": Knob((1, 1, 1, 1), "of each stage's 3x3 convolutions", 1, 8192,
                   by_stage=True),
    "depthwise": Knob((False,) * 4, "depthwise-separable 3x3 convolutions",
                      by_stage=True),
    "factorize": Knob((), "(regex on layer paths, form), first match wins, "
                      "others stay; forms are dense, depthwise, groups=8, "
                      "ranks=1/4,1/4", form_rules=True),
    "stem_features": Knob(0, "channels of the stem; 0 is widths[0]", 0, 8192),
    "resolution": Knob(32, "side of the input in pixels; images are resized",
                       4, 512),
    "scale": Knob(0.0, "EfficientNet's coefficient: about 1.92**scale the "
                  "MACs", -8, 8),
    "scale_multiple": Knob(8, "scaled widths are multiples of it", 1, 256),
    "bits": Knob(((".*", 32, 32),),
                 "(regex on layer paths, w_bits, a_bits), first match wins; "
                 "32 is unquantized, 16 float16, 1 of weights their sign",
                 bits_rules=True),
    "inner_bits": Knob(0, "in place of bits: of every layer but stem and head, "
                       "which have 8; 0 is off", 0, 16),
    "scales": Knob("lsq", "of quantized inputs: learned as LSQ's, with the "
                   "paper's gradient factor, or as PACT's; fixed as "
                   "calibrated; or dynamic, each image's largest",
                   choices=SCALES),
    "w_scales": Knob("least_error", "where a kernel's grid ends: where the "
                     "squared error of each channel is least, or learned, one "
                     "end a layer or a channel of 2 to 7 bits",
                     choices=W_SCALES),
    "two_bits": Knob("ternary", "of a weight: -1, 0, 1; or four levels, -3, "
                     "-1, 1, 3, which cannot be pruned", choices=TWO_BITS),
  },
  "init": Knob("", "start from this earlier phase, workdir or file of "
               "PyTorch's weights; of several, comma-separated, from the mean "
               "of their weights"),
  "rewind": Knob("", "then take the numbers of this one, under init's masks"),
  "shrink": Knob(False, "the network is init's without the channels that it "
                 "has masked; of `network`, bits alone hold"),
  "drop_blocks": Knob("", "with shrink: blocks that go, a regex on names such "
                      "as 'stage3_block2'", regex=True),
  "recalibrate": Knob(0, "batches that renew batch norm's statistics first",
                      0, 10_000),
  "calibrate": {
    "method": Knob("mse", "what the largest values of quantized inputs begin "
                   "with: least squared error, the 99.9th percentile, the "
                   "largest, or LSQ's 2 mean|x| sqrt(n)", choices=CALIBRATIONS),
    "images": Knob(512, "training images, without labels", 1, 50_000),
  },
  "prune": {
    "density": Knob(1.0, "share of weights, or of channels, kept at the end; "
                    "1 prunes nothing", 1e-6, 1),
    "structured": Knob(False, "whole channels, in coupled groups"),
    "criterion": Knob("magnitude_l1", "what matters; whole channels have their "
                      "own", choices=CRITERIA),
    "distribution": Knob("global", "over layers or channel groups; global_raw "
                         "is of channels, and global then of scores over "
                         "their group's mean", choices=DISTRIBUTIONS),
    "rules": Knob((), "(regex on layer paths, density) of explicit, first "
                  "match wins, others stay", density_rules=True),
    "pattern": Knob("", "N:M along input channels in place of density, such "
                    "as 2:4"),
    "layers": Knob(".*", "regex on paths of the layers whose weights go",
                   regex=True),
    "floor": Knob(0.01, "share that each layer or group keeps at least, if the "
                  "density allows", 0, 1),
    "multiple": Knob(1, "of the channels that a group keeps", 1, 1024),
    "schedule": Knob("one_shot", "of the density; iterative keeps the same "
                     "share at each update",
                     choices=("one_shot", "linear", "cubic", "iterative")),
    "begin": Knob(0.0, "of updates, as a share of the phase", 0, 1),
    "end": Knob(0.5, "of updates, as a share of the phase", 0, 1),
    "every": Knob(100, "steps between two updates", 1, 1_000_000),
    "regrow": Knob("none", "moves weights at each update, by gradient or at "
                   "random", choices=("none", "rigl", "set")),
    "drop": Knob(0.3, "share of kept weights that the first move takes", 0, 1),
    "images": Knob(512, "training images that criteria look at", 1, 50_000),
  },
  "group_lasso": Knob(0.0, "weight of the group lasso on batch norm's scales",
                      0, 10),
  "teacher": Knob("", "distil from this earlier phase, workdir or file of "
                  "PyTorch's weights; of several, comma-separated, from their "
                  "mean probability, or mean logits for mse"),
  "self_teach": Knob(False, "the student's own average teaches; needs "
                     "ema_decay"),
  "teacher_cache": Knob("none", "keeps the teacher's logits of each view in "
                        "the workdir, filled as they are needed or at once",
                        choices=("none", "lazy", "full")),
  "kd_loss": Knob("kd", "kd is Hinton's soft loss; mse half the squared "
                  "difference of logits, in its place; dkd the decoupled one "
                  "beside cross entropy, each of weight 1, as its authors have "
                  "it; dkd_mixed the decoupled one in the place of kd",
                  choices=("kd", "mse", "dkd", "dkd_mixed")),
  "kd_weight": Knob(0.9, "weight of the soft loss, and 1 - it of cross "
                    "entropy, if there is a teacher; 1 is the soft loss alone; "
                    "not of dkd", 0, 1),
  "temperature": Knob(4.0, "of both softmaxes in the soft loss", 0.01, 100),
  "dkd_beta": Knob(8.0, "weight of dkd's classes that are not the right one",
                   0, 1000),
  "dkd_warmup": Knob(20.0, "epochs in which dkd grows to its whole size", 0,
                     100_000),
  "features": Knob("none", "loss on stage outputs, with one teacher",
                   choices=("none", "fitnets", "attention")),
  "feature_weight": Knob(1.0, "weight of the loss on stage outputs", 1e-9, 1e6),
  "others": Knob("", "comma-separated phases or workdirs that the student is "
                 "to differ from, as members of an ensemble"),
  "diversity": Knob("cosine", "how the likeness is measured, of the wrong "
                    "classes' probabilities: the cosine to the others' mean, "
                    "or Pang's log-determinant of all members' cosines",
                    choices=("cosine", "log_det")),
  "diversity_weight": Knob(0.0, "weight of the likeness to the others", 0, 1e3),
  "mixup": Knob(0.0, "alpha of the Beta distribution of mixed images' shares; "
                "0 is off", 0, 100),
  "label_smoothing": Knob(0.0, "mass moved to all classes evenly", 0, 0.99),
  "epochs": Knob(30, "passes over the training images; 0 only transforms",
                 0, 100_000),
  "batch_size": Knob(128, "images a step, over all devices", 1, 50_000),
  "optimizer": Knob("sgd", "sgd has Nesterov momentum",
                    choices=("sgd", "adamw")),
  "learning_rate": Knob(0.1, "at the end of the warm-up", 1e-9, 100),
  "warmup_epochs": Knob(2.0, "linear; then a cosine to zero", 0, 100_000),
  "momentum": Knob(0.9, "of sgd", 0, 0.9999),
  "weight_decay": Knob(5e-4, "on kernels only", 0, 10),
  "bounds": {
    "learning_rate": Knob(1.0, "factor of the learning rate for the learned "
                          "ends of grids", 0, 1000),
    "weight_decay": Knob(0.0, "of the learned ends of grids", 0, 10),
  },
  "dampening": Knob(0.0, "weight of the squared distance of weights to their "
                    "grid, which grows to it along a cosine: against weights "
                    "that oscillate; 0 is off", 0, 1e6),
  "clip_norm": Knob(0.0, "largest norm of the whole gradient; 0 is off",
                    0, 1e6),
  "ema_decay": Knob(0.0, "of averaged weights, which are then what is "
                    "evaluated; 0 is off", 0, 0.99999),
  "swa_from": Knob(1.0, "share of the phase from which the averaged weights "
                   "are the plain mean of each epoch's last; 1 is off", 0, 1),
  "swa_rate": Knob(0.5, "from swa_from on the rate stays at this factor of "
                   "learning_rate; 0 lets it fall to zero, and the mean is of "
                   "every step's weights, which is not SWA", 0, 1),
  "estimate": Knob(50, "batches that batch norm's statistics are estimated "
                   "from at each epoch's end, where weights are averaged or "
                   "values quantized; 0 keeps the running ones", 0, 10_000),
  "dtype": Knob("float32", "of convolutions and activations in training; "
                "weights, statistics and sums are float32",
                choices=("float32", "bfloat16")),
  "augment": {
    "pad": Knob(4, "random crops of images padded by so many pixels", 0, 16),
    "flip": Knob("random", "mirroring; alternating is every second epoch",
                 choices=("none", "random", "alternating")),
    "cutout": Knob(0, "side of a blanked square in pixels; 0 is off",
                   0, IMAGE_SIZE),
  },
  "population": {
    "members": Knob(1, "networks trained side by side, of the seeds seed, "
                    "seed + 1, ...", 1, 64),
    "learning_rates": Knob((1.0,), "factors of learning_rate by member; one "
                           "is for all", 1e-6, 1e6),
    "temperatures": Knob((1.0,), "factors of temperature by member; one is "
                         "for all", 1e-3, 1e3),
  },
  "ensemble": {
    "members": Knob("", "comma-separated phases or workdirs that vote; the "
                    "phase then trains nothing"),
    "vote": Knob("select", "select takes the best on validation images",
                 choices=("select", "probability", "logit", "majority",
                          "weighted")),
  },
}  # fmt: skip

# What `python -m jaxr18.search` may choose in the config's one phase.
SEARCH = {
  "score_budget": Knob(0.02, "largest per-layer score of a candidate that is "
                       "trained", 1e-9, 1e6),
  "rungs": Knob((2, 4), "epochs after which only the best go on",
                1, 100_000),
  "eta": Knob(2, "of so many that came to a rung one goes on", 2, 100),
  "widths": Knob(((32, 64), (64, 128), (128, 256), (256, 512)),
                 "channels to choose from, by stage", 1, 8192, options=True),
  "blocks": Knob(((1, 2),) * 4, "blocks to choose from, by stage", 1, 100,
                 options=True),
  "groups": Knob(((1, 2, 4),) * 4, "groups to choose from, by stage", 1, 8192,
                 options=True),
  "bits": Knob((("stem|head", (8,)), (".*", (4, 8))),
               "(regex on layer paths, bits of weights and, at least 2, "
               "activations to choose from), first match wins",
               bits_options=True),
  "density": Knob((1.0,), "shares of the weights that are kept", 1e-6, 1),
  "resolution": Knob((32,), "sides of the input in pixels", 4, 512),
}  # fmt: skip


def base(
  phases: Sequence[str] = ("train",), search: bool = False
) -> ml_collections.ConfigDict:
  """The default config with a section for each phase, in their order.

  The last phase's network is the one that is tested and scored.

  Args:
    phases: their names.
    search: adds the section of a search.
  """
  config = _section(EXPERIMENT)
  if search:
    config.search = _section(SEARCH)
  config.phases = tuple(phases)
  for name in phases:
    config[name] = _section(PHASE)
  return config.lock()


class Config(ml_collections.ConfigDict):
  """A ConfigDict that takes a scalar of NumPy or JAX for its plain number.

  Those come from np.linspace and the like; ml_collections refuses some of them,
  and none goes through JSON.
  """

  def __setitem__(self, key, value):
    super().__setitem__(key, plain(value))


def plain(value: Any) -> Any:
  """A value without scalars of NumPy or JAX, in tuples and lists neither."""
  if isinstance(value, (tuple, list)):
    # Not of named tuples, which are made of their fields one by one.
    same = type(value) in (tuple, list)
    return type(value)(map(plain, value)) if same else value
  if getattr(value, "shape", None) == () and hasattr(value, "item"):
    return value.item()
  return value


def _section(table: dict[str, Any]) -> Config:
  out = Config()
  for name, knob in table.items():
    out[name] = _section(knob) if isinstance(knob, dict) else knob.default
  return out


def knobs(
  phases: Sequence[str], search: bool = False
) -> Iterator[tuple[str, Knob]]:
  """Every field's dotted name and knob, those of the phases included."""
  yield from _flat("", EXPERIMENT)
  if search:
    yield from _flat("search.", SEARCH)
  for name in phases:
    yield from _flat(f"{name}.", PHASE)


# What may differ between a run and its resumption: it changes no number.
FREE = ("data.dir", "data.cache_dir", "checkpoint", "progress", "writers")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """A saved config's fields by their dotted names."""
  out = {}
  for k, v in tree.items():
    if isinstance(v, dict):
      out |= flatten(v, f"{prefix}{k}.")
    else:
      out[prefix + k] = v
  return out


def completed(saved: dict[str, Any]) -> dict[str, Any]:
  """A saved config with the fields that there were not yet when it was saved.

  Such a field has the value that does what runs did then. That is its default
  but for four: CIFAR-10's images were in the folder's order, batch norm's
  statistics were the running ones, averages were of all steps under a falling
  rate, and DKD was what is called dkd_mixed now. A value that stands where a
  section should be stays as it is.
  """
  search = "search" in saved
  whole = json.loads(base(tuple(saved["phases"]), search).to_json())
  older = {k: v for k, v in saved.items() if k in whole and isinstance(v, dict)}
  if older.get("data", {}).get("name") == "cifar10":
    whole["data"]["order"] = "folder"
  for name in saved["phases"]:
    whole[name]["estimate"] = whole[name]["swa_rate"] = 0
  whole = _merged(whole, saved)
  for name in saved["phases"]:
    phase = older.get(name, {})
    if phase.get("kd_loss") == "dkd" and "dkd_warmup" not in phase:
      whole[name]["kd_loss"] = "dkd_mixed"
  return whole


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  """Both trees' entries, in `new`'s values where it has them."""
  both = {
    k: _merged(old[k], v)
    if isinstance(v, dict) and isinstance(old.get(k), dict)
    else v
    for k, v in new.items()
  }
  return old | both


def within(name: str, sections: Iterable[str]) -> bool:
  """Whether a dotted name is one of these fields, or in one of the sections."""
  return any(name == s or name.startswith(f"{s}.") for s in sections)


def describe(full: bool = False) -> str:
  """The knobs with defaults and meaning, for --help.

  Args:
    full: each knob in full. Otherwise a line a knob, and of a phase's sections
      only their fields' names.
  """
  line = _line if full else _short_line
  lines = ["Fields of every config (--config.data.name=digits):"]
  lines += [line(name, knob) for name, knob in _flat("", EXPERIMENT)]
  lines += ["", "Fields of every phase (--config.PHASE.epochs=10):"]
  sections = {} if full else _sections(PHASE)
  alone = {k: v for k, v in PHASE.items() if k not in sections}
  lines += [line(name, knob) for name, knob in _flat("", alone)]
  if sections:
    lines += ["", "Sections of every phase (--config.PHASE.prune.density=0.5):"]
    lines += [
      textwrap.fill(", ".join(table), 79, initial_indent=f"  {name}: ",
                    subsequent_indent=" " * 4)
      for name, table in sections.items()
    ]  # fmt: skip
    lines += ["", "--helpfull tells what each means, and what is allowed."]
  return "\n".join(lines)


def describe_search(full: bool = False) -> str:
  """The knobs of a search, for its --help; `full` tells each whole."""
  line = _line if full else _short_line
  lines = ["Fields of a search (--config.search.score_budget=0.01):"]
  lines += [line(name, knob) for name, knob in _flat("", SEARCH)]
  if not full:
    lines += ["", "--helpfull tells what each means."]
  return "\n".join(lines)


def _sections(table: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in table.items() if isinstance(v, dict)}


def _assigned(name: str, knob: Knob) -> str:
  default = "''" if knob.default == "" else str(knob.default)
  return f"  {name}={default} "


def _short_line(name: str, knob: Knob) -> str:
  first = _assigned(name, knob).ljust(32)
  return first + textwrap.shorten(knob.doc, 79 - len(first), placeholder=" ...")


def _line(name: str, knob: Knob) -> str:
  first = _assigned(name, knob)
  if knob.choices:
    doc = f"{knob.doc}; one of {', '.join(knob.choices)}"
  else:
    doc = knob.doc
  margin = " " * 32
  text = textwrap.fill(doc, 79, initial_indent=margin, subsequent_indent=margin)
  if len(first) <= len(margin):
    return first.ljust(len(margin)) + text[len(margin) :]
  return f"{first.rstrip()}\n{text}"


def _flat(prefix: str, table: dict[str, Any]) -> Iterator[tuple[str, Knob]]:
  for k, v in table.items():
    if isinstance(v, dict):
      yield from _flat(f"{prefix}{k}.", v)
    else:
      yield f"{prefix}{k}", v
