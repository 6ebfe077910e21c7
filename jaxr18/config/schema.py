"""Every field of an experiment: its type, default, bounds and meaning.

An experiment is a sequence of phases, each with a section of its own. A file
in configs/ starts from `base(phases)` and sets only what differs.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from jaxr18.config.fields import (
  OR_OWN,
  BitChoices,
  BitsRules,
  ByStage,
  DensityRules,
  Field,
  FormRules,
  MaybeByStage,
  Regex,
  Section,
  Some,
  Terms,
  Text,
  between,
  field,
  one_of,
  section,
  section_of,
  walk,
)
from jaxr18.nn.spec import BITS, SUM_BITS

# The names that nn/ and compress/ know; tests hold them equal.
Calibration = Literal["mse", "percentile", "absmax", "lsq"]
Scales = Literal["lsq", "lsq_paper", "pact", "fixed", "dynamic"]
WeightScales = Literal["least_error", "learned", "learned_channel"]
TwoBits = Literal["ternary", "four_levels"]
WeightCriterion = Literal[
  "magnitude_l1", "magnitude_l2", "random", "gradient", "taylor", "snip",
  "movement", "wanda",
]  # fmt: skip
ChannelCriterion = Literal[
  "l2", "bn_scale", "taylor", "geometric_median", "random"
]
WeightDistribution = Literal[
  "uniform", "per_output", "global", "erk", "lamp", "explicit"
]
ChannelDistribution = Literal["uniform", "global", "global_raw"]

CALIBRATIONS = get_args(Calibration)
WEIGHT_CRITERIA = get_args(WeightCriterion)
CHANNEL_CRITERIA = get_args(ChannelCriterion)
WEIGHT_DISTRIBUTIONS = get_args(WeightDistribution)
CHANNEL_DISTRIBUTIONS = get_args(ChannelDistribution)


class Data(Section):
  """The data set, and which of its images are seen."""

  name: Text = field(
    "cifar10",
    "the data set: cifar10, cifar100, svhn_cropped or digits; or, of one's own,"
    " an .npz, a folder of images or 'module:function'",
  )
  dir: Text = field(
    "",
    "TFDS's folder, '' is TFDS_DATA_DIR or TFDS's default; or where the file of"
    " one's own lies",
  )
  cache_dir: Text = field("", "for decoded images; '' is ~/.cache/jaxr18")
  validation: int = field(
    5000, "training images held out to select on", 0, 10_000_000
  )
  split_seed: int = field(0, "of the validation split", 0, 2**31 - 1)
  order: Literal["content", "folder"] = field(
    "content",
    "of the images before they are split: by a hash of image and label,"
    " which is the same for every copy; or as they are in the folder or"
    " file, as in runs that are older than this field",
  )
  limit: int = field(
    0, "use so many images of each split; 0 is all", 0, 1_000_000
  )


class Checkpoint(Section):
  """When a run is saved."""

  every_seconds: float = field(
    60.0,
    "between two checkpoints within an epoch; each epoch's end has one anyway",
    0,
    1e6,
  )


class Options(Section):
  """What all phases of an experiment share."""

  seed: int = field(0, "of weights, batches and augmentation", 0, 2**31 - 1)
  data: Data = section(Data)
  checkpoint: Checkpoint = section(Checkpoint)
  eval_batch_size: int = field(500, "images a step of an evaluation", 1, 10**5)
  progress: Literal["auto", "bar", "plain", "none"] = field(
    "auto", "a live bar on a terminal, else a line an epoch"
  )
  writers: Text = field(
    "",
    "where each epoch's numbers go too, comma-separated: tensorboard, wandb",
  )


class Network(Section):
  """The architecture, and the bits of its layers."""

  widths: Some[Annotated[int, between(1, 8192)]] = field(
    (64, 128, 256, 512), "channels by stage"
  )
  blocks: ByStage[Annotated[int, between(1, 100)]] = field(
    (2,), "blocks by stage; one is for all"
  )
  strides: MaybeByStage[Annotated[int, between(1, 4)]] = field(
    (), "of each stage's first block; () is 1, then 2"
  )
  groups: ByStage[Annotated[int, between(1, 8192)]] = field(
    (1,), "of each stage's 3x3 convolutions; one is for all"
  )
  depthwise: ByStage[bool] = field(
    (False,), "depthwise-separable 3x3 convolutions; one is for all"
  )
  factorize: FormRules = field(
    (),
    "(regex on layer paths, form), first match wins, others stay; forms are"
    " dense, depthwise, groups=8, ranks=1/4,1/4",
  )
  stem_features: int = field(0, "channels of the stem; 0 is widths[0]", 0, 8192)
  stem_stride: int = field(
    1, "of the first convolution; 2 is for images of 64 pixels or more", 1, 4
  )
  resolution: int = field(
    32, "side of the input in pixels; images are resized", 4, 512
  )
  scale: float = field(
    0.0, "EfficientNet's coefficient: about 1.92**scale the MACs", -8, 8
  )
  scale_multiple: int = field(8, "scaled widths are multiples of it", 1, 256)
  bits: BitsRules = field(
    ((".*", 32, 32),),
    "(regex on layer paths, w_bits, a_bits), first match wins; 32 is"
    " unquantized, 16 float16, 1 of weights their sign",
  )
  inner_bits: Annotated[
    int,
    one_of(
      (0, *BITS[:-1]),
      "choose one; other bits of weights and activations go into `bits`",
    ),
  ] = field(
    0,
    "in place of bits: of every layer but stem and head, which have 8; 0 is"
    " off, else 2 to 8 or 16",
  )
  sum_bits: Annotated[int, one_of(SUM_BITS, "choose one")] = field(
    32,
    "of residual sums and their operands, on one learned scale of each block:"
    " 4 to 16, or 32, unquantized",
  )
  scales: Scales = field(
    "lsq",
    "of quantized inputs: learned as LSQ's, with the paper's gradient factor,"
    " or as PACT's; fixed as calibrated; or dynamic, each image's largest",
  )
  w_scales: WeightScales = field(
    "least_error",
    "where a kernel's grid ends: where the squared error of each channel is"
    " least, or learned, one end a layer or a channel of 2 to 7 bits",
  )
  two_bits: TwoBits = field(
    "ternary",
    "of a weight: -1, 0, 1; or four levels, -3, -1, 1, 3, which cannot be"
    " pruned",
  )


class Calibrate(Section):
  """What the learned ends of quantized inputs begin with."""

  method: Calibration = field(
    "mse",
    "what the largest values of quantized inputs begin with: least squared"
    " error, the 99.9th percentile, the largest, or LSQ's 2 mean|x| sqrt(n)",
  )
  images: int = field(512, "training images, without labels", 1, 50_000)


class Prune(Section):
  """Which weights or channels go, and when."""

  density: float = field(
    1.0,
    "share of weights, or of channels, kept at the end; 1 prunes nothing",
    1e-6,
    1,
  )
  structured: bool = field(False, "whole channels, in coupled groups")
  criterion: Annotated[Literal[WeightCriterion, ChannelCriterion], OR_OWN] = (
    field(
      "magnitude_l1",
      "what matters; whole channels have their own, and of single weights"
      " 'module:function' of your own serves too",
    )
  )
  distribution: Literal[WeightDistribution, ChannelDistribution] = field(
    "global",
    "over layers or channel groups; global_raw is of channels, and global then"
    " of scores over their group's mean",
  )
  rules: DensityRules = field(
    (),
    "(regex on layer paths, density) of explicit, first match wins, others"
    " stay",
  )
  pattern: Text = field(
    "", "N:M along input channels in place of density, such as 2:4"
  )
  layers: Regex = field(".*", "regex on paths of the layers whose weights go")
  floor: float = field(
    0.01,
    "share that each layer or group keeps at least, if the density allows",
    0,
    1,
  )
  multiple: int = field(1, "of the channels that a group keeps", 1, 1024)
  schedule: Literal["one_shot", "linear", "cubic", "iterative"] = field(
    "one_shot",
    "of the density; iterative keeps the same share at each update",
  )
  begin: float = field(0.0, "of updates, as a share of the phase", 0, 1)
  end: float = field(0.5, "of updates, as a share of the phase", 0, 1)
  every: int = field(100, "steps between two updates", 1, 1_000_000)
  regrow: Literal["none", "rigl", "set"] = field(
    "none", "moves weights at each update, by gradient or at random"
  )
  drop: float = field(
    0.3, "share of kept weights that the first move takes", 0, 1
  )
  images: int = field(512, "training images that criteria look at", 1, 50_000)

  @property
  def prunes(self) -> bool:
    """Whether a phase changes masks."""
    explicit = self.distribution == "explicit"
    return self.density < 1 or bool(self.pattern) or explicit


class Bounds(Section):
  """How the learned ends of grids are trained."""

  learning_rate: float = field(
    1.0, "factor of the learning rate for the learned ends of grids", 0, 1000
  )
  weight_decay: float = field(0.0, "of the learned ends of grids", 0, 10)


class Augment(Section):
  """How training images are changed at random."""

  pad: int = field(4, "random crops of images padded by so many pixels", 0, 16)
  flip: Literal["none", "random", "alternating"] = field(
    "random", "mirroring; alternating is every second epoch"
  )
  cutout: int = field(0, "side of a blanked square in pixels; 0 is off", 0, 512)
  mixup: float = field(
    0.0,
    "alpha of the Beta distribution of mixed images' shares; 0 is off",
    0,
    100,
  )
  cutmix: float = field(
    0.0,
    "alpha of the Beta distribution of the share that is not a rectangle of"
    " another image; 0 is off",
    0,
    100,
  )

  @property
  def mixes(self) -> str:
    """Which field mixes images; '' for none."""
    return next((f for f in ("mixup", "cutmix") if getattr(self, f)), "")


class Population(Section):
  """Networks that are trained side by side."""

  size: int = field(
    1,
    "networks trained side by side, of the seeds seed, seed + 1, ...",
    1,
    64,
  )
  learning_rates: Some[Annotated[float, between(1e-6, 1e6)]] = field(
    (1.0,), "factors of learning_rate by member; one is for all"
  )
  temperatures: Some[Annotated[float, between(1e-3, 1e3)]] = field(
    (1.0,), "factors of temperature by member; one is for all"
  )


class Ensemble(Section):
  """Networks that vote."""

  members: Text = field(
    "",
    "comma-separated phases or workdirs that vote; the phase then trains"
    " nothing",
  )
  vote: Literal["select", "probability", "logit", "majority", "weighted"] = (
    field("select", "select takes the best on validation images")
  )


class Start(Section):
  """What a phase starts from, and what is done to it first."""

  init: Text = field(
    "",
    "start from this earlier phase, workdir or file of weights; of"
    " several, comma-separated, from the mean of their weights",
  )
  kernels: Literal["he", "dirac"] = field(
    "he",
    "what new kernels begin with: He's normal numbers; or, with dirac, as many"
    " filters of the blocks' 3x3 kernels as they have inputs are identities",
  )
  rewind: Text = field(
    "", "then take the numbers of this one, under init's masks"
  )
  shrink: bool = field(
    False,
    "the network is init's without the channels that it has masked; of"
    " `network`, bits alone hold",
  )
  drop_blocks: Regex = field(
    "",
    "with shrink: blocks that go, a regex on names such as 'stage3_block2'",
  )
  recalibrate: int = field(
    0, "batches that renew batch norm's statistics first", 0, 10_000
  )


class Teacher(Section):
  """Who teaches a phase, and by which loss."""

  source: Text = field(
    "",
    "distil from this earlier phase, workdir or file of weights; of"
    " several, comma-separated, from their mean probability, or mean logits for"
    " mse",
  )
  self_teach: bool = field(
    False, "the student's own average teaches; needs ema_decay"
  )
  cache: Literal["none", "lazy", "full"] = field(
    "none",
    "keeps the teacher's logits of each view in the workdir, filled as they"
    " are needed or at once",
  )
  loss: Literal["kd", "mse", "dkd", "dkd_mixed"] = field(
    "kd",
    "kd is Hinton's soft loss; mse half the squared difference of logits, in"
    " its place; dkd the decoupled one beside cross entropy, each of weight 1,"
    " as its authors have it; dkd_mixed the decoupled one in the place of kd",
  )
  weight: float = field(
    0.9,
    "weight of the soft loss, and 1 - it of cross entropy, if there is a"
    " teacher; 1 is the soft loss alone; not of dkd",
    0,
    1,
  )
  temperature: float = field(
    4.0, "of both softmaxes in the soft loss", 0.01, 100
  )
  dkd_beta: float = field(
    8.0, "weight of dkd's classes that are not the right one", 0, 1000
  )
  dkd_warmup: float = field(
    20.0, "epochs in which dkd grows to its whole size", 0, 100_000
  )
  features: Literal["none", "fitnets", "attention"] = field(
    "none", "loss on stage outputs, with one teacher"
  )
  feature_weight: float = field(
    1.0, "weight of the loss on stage outputs", 1e-9, 1e6
  )


class Loss(Section):
  """What the loss has beside cross entropy and the teacher."""

  group_lasso: float = field(
    0.0, "weight of the group lasso on batch norm's scales", 0, 10
  )
  label_smoothing: float = field(
    0.0, "mass moved to all classes evenly", 0, 0.99
  )
  dampening: float = field(
    0.0,
    "weight of the squared distance of weights to their grid, which grows to"
    " it along a cosine: against weights that oscillate; 0 is off",
    0,
    1e6,
  )
  others: Text = field(
    "",
    "comma-separated phases or workdirs that the student is to differ from, as"
    " members of an ensemble",
  )
  diversity: float = field(0.0, "weight of the likeness to the others", 0, 1e3)
  likeness: Literal["cosine", "log_det"] = field(
    "cosine",
    "how the likeness is measured, of the wrong classes' probabilities: the"
    " cosine to the others' mean, or Pang's log-determinant of all members'"
    " cosines",
  )
  extra: Terms = field(
    (), "('module:function', weight) of terms of your own, added to the loss"
  )


class Optimizer(Section):
  """How weights are updated."""

  name: Literal["sgd", "adamw"] = field("sgd", "sgd has Nesterov momentum")
  learning_rate: float = field(0.1, "at the end of the warm-up", 1e-9, 100)
  warmup_epochs: float = field(2.0, "linear; then a cosine to zero", 0, 100_000)
  momentum: float = field(0.9, "of sgd", 0, 0.9999)
  weight_decay: float = field(5e-4, "on kernels only", 0, 10)
  clip_norm: float = field(
    0.0, "largest norm of the whole gradient; 0 is off", 0, 1e6
  )


class Average(Section):
  """Averaged weights, and the statistics that go with them."""

  ema_decay: float = field(
    0.0,
    "of averaged weights, which are then what is evaluated; 0 is off",
    0,
    0.99999,
  )
  swa_from: float = field(
    1.0,
    "share of the phase from which the averaged weights are the plain mean of"
    " each epoch's last; 1 is off",
    0,
    1,
  )
  swa_rate: float = field(
    0.5,
    "from swa_from on the rate stays at this factor of learning_rate; 0 lets"
    " it fall to zero, and the mean is of every step's weights, which is not"
    " SWA",
    0,
    1,
  )
  swa_cycle: int = field(
    0,
    "epochs in which the rate falls from swa_rate to swa_low, again and again;"
    " the mean is of the weights at each cycle's end. 0 keeps the rate",
    0,
    100_000,
  )
  swa_low: float = field(
    0.01, "factor of learning_rate at the end of a cycle", 0, 1
  )
  estimate: int = field(
    50,
    "batches that batch norm's statistics are estimated from at each epoch's"
    " end, where weights are averaged or values quantized; 0 keeps the running"
    " ones",
    0,
    10_000,
  )


class PhaseOptions(Section):
  """One phase of an experiment."""

  network: Network = section(Network)
  start: Start = section(Start)
  teacher: Teacher = section(Teacher)
  loss: Loss = section(Loss)
  epochs: int = field(
    30, "passes over the training images; 0 only transforms", 0, 100_000
  )
  batch_size: int = field(128, "images a step, over all devices", 1, 50_000)
  dtype: Literal["float32", "bfloat16"] = field(
    "float32",
    "of convolutions and activations in training; weights, statistics and sums"
    " are float32",
  )
  optimizer: Optimizer = section(Optimizer)
  bounds: Bounds = section(Bounds)
  average: Average = section(Average)
  augment: Augment = section(Augment)
  calibrate: Calibrate = section(Calibrate)
  prune: Prune = section(Prune)
  population: Population = section(Population)
  ensemble: Ensemble = section(Ensemble)


class Search(Section):
  """What `python -m jaxr18.search` may choose in the config's one phase."""

  score_budget: float = field(
    0.02, "largest per-layer score of a candidate that is trained", 1e-9, 1e6
  )
  memory_budget: int = field(
    0,
    "most bytes of the activations of one image, by cost/memory.py; 0 is any",
    0,
    2**40,
  )
  bytes_budget: int = field(
    0, "most bytes of the weights as the on-disk score has them; 0 is any",
    0, 2**40,
  )  # fmt: skip
  rungs: Some[Annotated[int, between(1, 100_000)]] = field(
    (2, 4), "epochs after which only the best go on"
  )
  eta: int = field(2, "of so many that came to a rung one goes on", 2, 100)
  widths: ByStage[Some[Annotated[int, between(1, 8192)]]] = field(
    ((32, 64), (64, 128), (128, 256), (256, 512)),
    "channels to choose from, by stage",
  )
  blocks: ByStage[Some[Annotated[int, between(1, 100)]]] = field(
    ((1, 2),) * 4, "blocks to choose from, by stage"
  )
  groups: ByStage[Some[Annotated[int, between(1, 8192)]]] = field(
    ((1, 2, 4),) * 4, "groups to choose from, by stage"
  )
  bits: BitChoices = field(
    (("stem|head", (8,)), (".*", (4, 8))),
    "(regex on layer paths, bits of weights and, at least 2, activations to"
    " choose from), first match wins",
  )
  density: Some[Annotated[float, between(1e-6, 1)]] = field(
    (1.0,), "shares of the weights that are kept"
  )
  resolution: Some[Annotated[int, between(4, 512)]] = field(
    (32,), "sides of the input in pixels"
  )


# What may differ between a run and its resumption: it changes no number.
FREE = ("data.dir", "data.cache_dir", "checkpoint", "progress", "writers")


def defaults(
  phases: Sequence[str] = ("train",), search: bool = False
) -> dict[str, Any]:
  """Returns the default config of these phases as plain nested values."""
  values = _defaults(Options)
  if search:
    values["search"] = _defaults(Search)
  values["phases"] = tuple(phases)
  return values | {name: _defaults(PhaseOptions) for name in phases}


def _defaults(model: type[Section]) -> dict[str, Any]:
  return {
    name: _defaults(inner) if (inner := section_of(info)) else info.default
    for name, info in model.model_fields.items()
  }


def fields(phases: Sequence[str], search: bool = False) -> Iterator[Field]:
  """Yields every field of a config of these phases, by its dotted name."""
  yield from walk(Options)
  if search:
    yield from walk(Search, "search.")
  for name in phases:
    yield from walk(PhaseOptions, f"{name}.")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Lists a saved config's fields by their dotted names."""
  out = {}
  for k, v in tree.items():
    if isinstance(v, dict):
      out |= flatten(v, f"{prefix}{k}.")
    else:
      out[prefix + k] = v
  return out


def staged(network: Mapping[str, Any]) -> dict[str, Any]:
  """Gives a network section an entry for each stage where one is for all.

  Strides that are not given are 1, then 2 at each stage.

  Args:
    network: the section's values; those that are wrong stay as they are.
  """
  out, widths = dict(network), network.get("widths")
  if not isinstance(widths, tuple | list):
    return out
  for f in walk(Network):
    value = out.get(f.name)
    if f.by_stage and isinstance(value, tuple | list):
      if len(value) == 1:
        out[f.name] = tuple(value) * len(widths)
      elif not value and f.name == "strides":
        out[f.name] = (1, *(2,) * (len(widths) - 1))
  return out


def describe(full: bool = False) -> str:
  """Describes the fields with defaults and meaning, for --help.

  Args:
    full: each field in full. Otherwise a line a field, and of a phase's
      sections only their fields' names.
  """
  line = _line if full else _short_line
  lines = ["Fields of every config (--config.data.name=digits):"]
  lines += [line(f) for f in walk(Options)]
  lines += ["", "Fields of every phase (--config.PHASE.epochs=10):"]
  sections = {
    name: inner
    for name, info in PhaseOptions.model_fields.items()
    if (inner := section_of(info)) and not full
  }
  lines += [
    line(f)
    for f in walk(PhaseOptions)
    if f.name.partition(".")[0] not in sections
  ]
  if sections:
    lines += ["", "Sections of every phase (--config.PHASE.prune.density=0.5):"]
    lines += [
      textwrap.fill(", ".join(model.model_fields), 79,
                    initial_indent=f"  {name}: ", subsequent_indent=" " * 4)
      for name, model in sections.items()
    ]  # fmt: skip
    lines += ["", "--helpfull tells what each means, and what is allowed."]
  return "\n".join(lines)


def describe_search(full: bool = False) -> str:
  """Describes the fields of a search for its --help; `full` in full."""
  line = _line if full else _short_line
  lines = ["Fields of a search (--config.search.score_budget=0.01):"]
  lines += [line(f) for f in walk(Search, "search.")]
  if not full:
    lines += ["", "--helpfull tells what each means."]
  return "\n".join(lines)


def _assigned(f: Field) -> str:
  default = "''" if f.default == "" else str(f.default)
  return f"  {f.name}={default} "


def _short_line(f: Field) -> str:
  first = _assigned(f).ljust(32)
  return first + textwrap.shorten(f.doc, 79 - len(first), placeholder=" ...")


def _line(f: Field) -> str:
  first, doc = _assigned(f), f.doc
  if f.choices:
    doc += f"; one of {', '.join(f.choices)}"
  elif f.low is not None:
    doc += f"; {f.low:g} to {f.high:g}"
  margin = " " * 32
  text = textwrap.fill(doc, 79, initial_indent=margin, subsequent_indent=margin)
  if len(first) <= len(margin):
    return first.ljust(len(margin)) + text[len(margin) :]
  return f"{first.rstrip()}\n{text}"
