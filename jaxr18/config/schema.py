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
    "the data set: cifar10, cifar100, svhn_cropped or digits; or your own:"
    " an .npz file, a folder of images or 'module:function'",
  )
  dir: Text = field(
    "",
    "TFDS's folder; '' takes TFDS_DATA_DIR or TFDS's default. For your own"
    " data, the folder where its file is",
  )
  cache_dir: Text = field(
    "", "the folder for decoded images; '' is ~/.cache/jaxr18"
  )
  validation: int = field(
    5000, "number of training images held out for validation", 0, 10_000_000
  )
  split_seed: int = field(0, "the seed of the validation split", 0, 2**31 - 1)
  order: Literal["content", "folder"] = field(
    "content",
    "the order of the images before the split. content sorts by a hash of"
    " image and label, which is the same for every copy of a data set;"
    " folder keeps the order on disk, as runs older than this field did",
  )
  limit: int = field(
    0, "the number of images used from each split; 0 uses all", 0, 1_000_000
  )


class Checkpoint(Section):
  """When a run is saved."""

  every_seconds: float = field(
    60.0,
    "seconds between two checkpoints within an epoch; the end of an epoch"
    " always saves one",
    0,
    1e6,
  )


class Options(Section):
  """What all phases of an experiment share."""

  seed: int = field(
    0, "the seed of weights, batches and augmentation", 0, 2**31 - 1
  )
  data: Data = section(Data)
  checkpoint: Checkpoint = section(Checkpoint)
  eval_batch_size: int = field(
    500, "images in a step of an evaluation", 1, 10**5
  )
  progress: Literal["auto", "bar", "plain", "none"] = field(
    "auto",
    "how progress is shown; auto is a live bar on a terminal and otherwise"
    " a line for each epoch",
  )
  writers: Text = field(
    "",
    "where else the numbers of each epoch are written, comma-separated:"
    " tensorboard, wandb",
  )


class Network(Section):
  """The architecture, and the bits of its layers."""

  widths: Some[Annotated[int, between(1, 8192)]] = field(
    (64, 128, 256, 512), "channels of each stage"
  )
  blocks: ByStage[Annotated[int, between(1, 100)]] = field(
    (2,), "blocks of each stage; one number serves for all"
  )
  strides: MaybeByStage[Annotated[int, between(1, 4)]] = field(
    (),
    "stride of each stage's first block; () is 1 in the first stage and 2"
    " in the others",
  )
  groups: ByStage[Annotated[int, between(1, 8192)]] = field(
    (1,), "groups of each stage's 3x3 convolutions; one number serves for all"
  )
  depthwise: ByStage[bool] = field(
    (False,),
    "whether a stage's 3x3 convolutions are depthwise-separable; one value"
    " serves for all",
  )
  factorize: FormRules = field(
    (),
    "(regex on layer paths, form): the first match decides, and other"
    " layers stay; a form is dense, depthwise, groups=8 or ranks=1/4,1/4",
  )
  stem_features: int = field(
    0, "channels of the stem; 0 takes widths[0]", 0, 8192
  )
  stem_stride: int = field(
    1,
    "stride of the first convolution; 2 is for images of 64 pixels or more",
    1,
    4,
  )
  resolution: int = field(
    32, "side of the input in pixels; images are resized to it", 4, 512
  )
  scale: float = field(
    0.0,
    "EfficientNet's scaling coefficient: the MACs grow by about 1.92**scale",
    -8,
    8,
  )
  scale_multiple: int = field(
    8, "scaled widths are rounded to a multiple of this", 1, 256
  )
  bits: BitsRules = field(
    ((".*", 32, 32),),
    "(regex on layer paths, w_bits, a_bits): the first match decides; 32 is"
    " unquantized, 16 is float16, and 1 bit of a weight is its sign",
  )
  inner_bits: Annotated[
    int,
    one_of(
      (0, *BITS[:-1]),
      "choose one; other bits of weights and activations go into `bits`",
    ),
  ] = field(
    0,
    "a short form of bits: all layers have this many bits except stem and"
    " head, which have 8; 0 is off, else 2 to 8 or 16",
  )
  sum_bits: Annotated[int, one_of(SUM_BITS, "choose one")] = field(
    32,
    "bits of residual sums and their operands, which share one learned"
    " scale in each block: 4 to 16; 32 is unquantized",
  )
  scales: Scales = field(
    "lsq",
    "how inputs are scaled: learned as in LSQ (lsq), with the paper's"
    " gradient factor (lsq_paper) or as in PACT; fixed keeps the calibrated"
    " scale; dynamic takes each image's largest value",
  )
  w_scales: WeightScales = field(
    "least_error",
    "where a kernel's grid ends: least_error minimizes the squared error of"
    " each channel; learned trains one end for each layer, and"
    " learned_channel one for each channel, of 2 to 7 bits",
  )
  two_bits: TwoBits = field(
    "ternary",
    "values of a 2-bit weight: ternary is -1, 0, 1; four_levels is -3, -1,"
    " 1, 3, which has no zero and cannot be pruned",
  )


class Calibrate(Section):
  """What the learned ends of quantized inputs begin with."""

  method: Calibration = field(
    "mse",
    "how the largest value of a quantized input is first set: least squared"
    " error (mse), the 99.9th percentile, the largest value (absmax), or"
    " LSQ's 2 mean|x| sqrt(n)",
  )
  images: int = field(
    512, "training images used to calibrate; labels are not used", 1, 50_000
  )


class Prune(Section):
  """Which weights or channels go, and when."""

  density: float = field(
    1.0,
    "share of weights, or of channels, that is kept at the end; 1 prunes"
    " nothing",
    1e-6,
    1,
  )
  structured: bool = field(
    False, "prunes whole channels, in groups of layers that share them"
  )
  criterion: Annotated[Literal[WeightCriterion, ChannelCriterion], OR_OWN] = (
    field(
      "magnitude_l1",
      "how importance is measured. Channels have criteria of their own; for"
      " single weights, 'module:function' names one of yours",
    )
  )
  distribution: Literal[WeightDistribution, ChannelDistribution] = field(
    "global",
    "how the density is spread over layers or channel groups; for channels,"
    " global divides scores by their group's mean and global_raw does not",
  )
  rules: DensityRules = field(
    (),
    "(regex on layer paths, density) for distribution=explicit: the first"
    " match decides, and other layers stay",
  )
  pattern: Text = field(
    "", "N:M along the input channels, such as 2:4, in place of density"
  )
  layers: Regex = field(".*", "regex on the paths of the layers to prune")
  floor: float = field(
    0.01,
    "share that each layer or group keeps at least, where the density"
    " allows it",
    0,
    1,
  )
  multiple: int = field(
    1, "each group keeps a multiple of this many channels", 1, 1024
  )
  schedule: Literal["one_shot", "linear", "cubic", "iterative"] = field(
    "one_shot",
    "how the density falls; iterative keeps the same share at each update",
  )
  begin: float = field(0.0, "when updates begin, as a share of the phase", 0, 1)
  end: float = field(0.5, "when updates end, as a share of the phase", 0, 1)
  every: int = field(100, "steps between two updates", 1, 1_000_000)
  regrow: Literal["none", "rigl", "set"] = field(
    "none",
    "moves weights at each update: rigl regrows by gradient, set at random",
  )
  drop: float = field(
    0.3, "share of the kept weights that the first update moves", 0, 1
  )
  images: int = field(
    512, "training images that criteria are computed on", 1, 50_000
  )

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
  weight_decay: float = field(
    0.0, "weight decay of the learned ends of grids", 0, 10
  )


class Augment(Section):
  """How training images are changed at random."""

  pad: int = field(
    4, "images are padded by this many pixels and cropped at random", 0, 16
  )
  flip: Literal["none", "random", "alternating"] = field(
    "random", "mirroring; alternating mirrors each image in every second epoch"
  )
  cutout: int = field(0, "side of a blanked square in pixels; 0 is off", 0, 512)
  mixup: float = field(
    0.0,
    "alpha of mixup's Beta distribution, from which an image's share is"
    " drawn; 0 is off",
    0,
    100,
  )
  cutmix: float = field(
    0.0,
    "alpha of cutmix's Beta distribution, from which the share outside the"
    " pasted rectangle is drawn; 0 is off",
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
    "networks trained side by side, with the seeds seed, seed + 1, ...",
    1,
    64,
  )
  learning_rates: Some[Annotated[float, between(1e-6, 1e6)]] = field(
    (1.0,),
    "factor of the learning rate for each member; one number serves for all",
  )
  temperatures: Some[Annotated[float, between(1e-3, 1e3)]] = field(
    (1.0,),
    "factor of the temperature for each member; one number serves for all",
  )


class Ensemble(Section):
  """Networks that vote."""

  members: Text = field(
    "",
    "the phases or workdirs that vote, comma-separated; such a phase trains"
    " nothing",
  )
  vote: Literal["select", "probability", "logit", "majority", "weighted"] = (
    field(
      "select",
      "how votes are combined; select takes what is best on the validation"
      " images",
    )
  )


class Start(Section):
  """What a phase starts from, and what is done to it first."""

  init: Text = field(
    "",
    "an earlier phase, a workdir or a file of weights to start from;"
    " several, comma-separated, start from the mean of their weights",
  )
  rewind: Text = field(
    "",
    "a phase or workdir whose weights then replace init's, under init's masks",
  )
  shrink: bool = field(
    False,
    "takes init's network without its masked channels; of the network"
    " section only the bits are used",
  )
  drop_blocks: Regex = field(
    "",
    "with shrink, a regex on the names of blocks to remove, such as"
    " 'stage3_block2'",
  )
  recalibrate: int = field(
    0,
    "batches from which batch norm's statistics are computed anew before"
    " training",
    0,
    10_000,
  )
  kernels: Literal["he", "dirac"] = field(
    "he",
    "how new kernels begin: he is He's normal numbers; dirac makes as many"
    " filters of a block's 3x3 kernel identities as it has inputs",
  )
  whiten: bool = field(
    False,
    "begins the stem with filters that whiten patches of 5,000 training"
    " images; optimizer.held='stem' keeps them so",
  )


class Teacher(Section):
  """Who teaches a phase, and by which loss."""

  source: Text = field(
    "",
    "an earlier phase, a workdir or a file of weights to distil from;"
    " several, comma-separated, teach by their mean probability, or for mse"
    " by their mean logits",
  )
  self_teach: bool = field(
    False, "the student's own average teaches; needs average.ema_decay"
  )
  cache: Literal["none", "lazy", "full"] = field(
    "none",
    "keeps the teacher's logits for each view in the workdir: lazy computes"
    " them when needed, full before the first step",
  )
  loss: Literal["kd", "mse", "dkd", "dkd_mixed"] = field(
    "kd",
    "the soft loss. kd is Hinton's; mse is half the squared difference of"
    " logits; dkd is the decoupled loss, added to cross entropy with weight"
    " 1 each, as in its authors' code; dkd_mixed is the decoupled loss"
    " weighted like kd",
  )
  weight: float = field(
    0.9,
    "weight of the soft loss; cross entropy has 1 minus it. dkd does not"
    " use it",
    0,
    1,
  )
  temperature: float = field(
    4.0, "temperature of both softmaxes in the soft loss", 0.01, 100
  )
  dkd_beta: float = field(
    8.0, "weight of dkd's term on the wrong classes", 0, 1000
  )
  dkd_warmup: float = field(
    20.0, "epochs over which dkd's weight grows to its full size", 0, 100_000
  )
  features: Literal["none", "fitnets", "attention"] = field(
    "none", "a loss on the stages' outputs; needs exactly one teacher"
  )
  feature_weight: float = field(
    1.0, "weight of the loss on the stages' outputs", 1e-9, 1e6
  )


class Loss(Section):
  """What the loss has beside cross entropy and the teacher."""

  group_lasso: float = field(
    0.0, "weight of the group lasso on batch norm's scales", 0, 10
  )
  label_smoothing: float = field(
    0.0, "probability that is spread evenly over all classes", 0, 0.99
  )
  dampening: float = field(
    0.0,
    "weight of the squared distance of weights to their grid, against"
    " weights that oscillate; it grows along a cosine to this value, and 0"
    " is off",
    0,
    1e6,
  )
  others: Text = field(
    "",
    "phases or workdirs that the student should differ from,"
    " comma-separated, as members of an ensemble do",
  )
  diversity: float = field(
    0.0, "weight of the likeness to those of loss.others", 0, 1e3
  )
  likeness: Literal["cosine", "log_det"] = field(
    "cosine",
    "how likeness is measured on the probabilities of the wrong classes:"
    " cosine to the mean of the others, or Pang's log-determinant of the"
    " cosines among all members",
  )
  extra: Terms = field(
    (),
    "('module:function', weight) of terms of your own that are added to the"
    " loss",
  )


class Optimizer(Section):
  """How weights are updated."""

  name: Literal["sgd", "adamw"] = field(
    "sgd", "the optimizer; sgd has Nesterov momentum"
  )
  learning_rate: float = field(
    0.1, "learning rate at the end of the warm-up", 1e-9, 100
  )
  warmup_epochs: float = field(
    2.0, "epochs of linear warm-up; a cosine to zero follows", 0, 100_000
  )
  momentum: float = field(0.9, "momentum of sgd", 0, 0.9999)
  weight_decay: float = field(5e-4, "weight decay, on kernels only", 0, 10)
  clip_norm: float = field(
    0.0, "largest norm of the whole gradient; 0 is off", 0, 1e6
  )
  bias_rate: float = field(
    1.0, "factor of learning_rate for batch norm's biases", 0, 1000
  )
  muon_rate: float = field(
    0.0,
    "learning rate of Muon for the kernels of convolutions, such as 0.02,"
    " which warms up and falls as learning_rate does; 0 leaves these kernels"
    " to the optimizer",
    0,
    100,
  )
  muon_momentum: float = field(0.95, "momentum of Muon", 0, 0.9999)
  held: Regex = field(
    "", "regex on layer paths; the kernels of these layers are not trained"
  )


class Average(Section):
  """Averaged weights, and the statistics that go with them."""

  ema_decay: float = field(
    0.0,
    "decay of the moving average of weights, which is then evaluated in"
    " place of the weights; 0 is off",
    0,
    0.99999,
  )
  swa_from: float = field(
    1.0,
    "share of the phase after which the average is the plain mean of each"
    " epoch's last weights (SWA); 1 is off",
    0,
    1,
  )
  swa_rate: float = field(
    0.5,
    "factor of the learning rate from swa_from on; 0 lets the rate fall to"
    " zero and averages the weights of every step, which is not SWA",
    0,
    1,
  )
  swa_cycle: int = field(
    0,
    "epochs of a cycle in which the rate falls from swa_rate to swa_low;"
    " the weights at each cycle's end are averaged. 0 keeps the rate"
    " constant",
    0,
    100_000,
  )
  swa_low: float = field(
    0.01, "factor of the learning rate at the end of a cycle", 0, 1
  )
  estimate: int = field(
    50,
    "batches from which batch norm's statistics are estimated at the end of"
    " each epoch, where weights are averaged or values quantized; 0 keeps"
    " the running statistics",
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
    30,
    "passes over the training images; 0 only transforms the network",
    0,
    100_000,
  )
  batch_size: int = field(
    128, "images in a step, over all devices together", 1, 50_000
  )
  dtype: Literal["float32", "bfloat16"] = field(
    "float32",
    "type of convolutions and activations in training; weights, statistics"
    " and sums stay float32",
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
    "most bytes of one image's activations, as docs/score.md counts them; 0"
    " is no limit",
    0,
    2**40,
  )
  bytes_budget: int = field(
    0, "most bytes of the weights, as the on-disk score counts them; 0 is no"
    " limit",
    0, 2**40,
  )  # fmt: skip
  rungs: Some[Annotated[int, between(1, 100_000)]] = field(
    (2, 4), "epochs after which only the best candidates go on"
  )
  eta: int = field(2, "of this many candidates at a rung, one goes on", 2, 100)
  widths: ByStage[Some[Annotated[int, between(1, 8192)]]] = field(
    ((32, 64), (64, 128), (128, 256), (256, 512)),
    "channels to choose from, for each stage",
  )
  blocks: ByStage[Some[Annotated[int, between(1, 100)]]] = field(
    ((1, 2),) * 4, "blocks to choose from, for each stage"
  )
  groups: ByStage[Some[Annotated[int, between(1, 8192)]]] = field(
    ((1, 2, 4),) * 4, "groups to choose from, for each stage"
  )
  bits: BitChoices = field(
    (("stem|head", (8,)), (".*", (4, 8))),
    "(regex on layer paths, bits to choose from): the first match decides;"
    " activations have at least 2",
  )
  density: Some[Annotated[float, between(1e-6, 1)]] = field(
    (1.0,), "shares of kept weights to choose from"
  )
  resolution: Some[Annotated[int, between(4, 512)]] = field(
    (32,), "sides of the input in pixels to choose from"
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


def _number(x: float) -> str:
  return f"{x:,.0f}" if x == int(x) else f"{x:g}"


def _line(f: Field) -> str:
  first, doc = _assigned(f), f.doc
  if f.choices:
    doc += f"; one of {', '.join(f.choices)}"
  elif f.low is not None and f.high is not None:
    doc += f"; {_number(f.low)} to {_number(f.high)}"
  margin = " " * 32
  text = textwrap.fill(doc, 79, initial_indent=margin, subsequent_indent=margin)
  if len(first) <= len(margin):
    return first.ljust(len(margin)) + text[len(margin) :]
  return f"{first.rstrip()}\n{text}"
