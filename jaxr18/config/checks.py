"""What must fit together in one phase, beyond each field by itself.

A check is a generator of (the field within the phase, what it must be, how to
mend it). It names what it reads, and runs where nothing is wrong with that.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxr18.compress.gradual import moves
from jaxr18.config.schema import (
  CHANNEL_CRITERIA,
  CHANNEL_DISTRIBUTIONS,
  WEIGHT_CRITERIA,
  WEIGHT_DISTRIBUTIONS,
  Bounds,
  Calibrate,
  Network,
  Optimizer,
  PhaseOptions,
  Section,
  Start,
)
from jaxr18.host import own
from jaxr18.host.paths import names
from jaxr18.nn.spec import HALF_BITS, Layer, has_bound, has_kernel_bound

Found = Iterator[tuple[str, str, str]]

PATTERN = re.compile(r"([1-9]\d?):([1-9]\d?)")  # N:M


class Draft(NamedTuple):
  """A phase that is being checked.

  Attributes:
    name: of the phase.
    options: of the phase; what is wrong has its default.
    validation: how many images are held out.
    processes: that train the phase together.
  """

  name: str
  options: PhaseOptions
  validation: int
  processes: int


def training_fits(d: Draft) -> Found:
  """Checks that the warm-up ends within the phase."""
  c = d.options
  if c.epochs and c.optimizer.warmup_epochs > c.epochs:
    yield (
      "optimizer.warmup_epochs",
      f"must be at most config.{d.name}.epochs (={c.epochs})",
      "lower it or train longer",
    )


def cycles_fit(d: Draft) -> Found:
  """Cycles of SWA's rate that end with the phase."""
  c, average = d.options, d.options.average
  if not average.swa_cycle:
    return
  if average.swa_from == 1 or not average.swa_rate:
    yield (
      "average.swa_cycle",
      "must be 0 where SWA is off (swa_from=1) or the rate falls to zero"
      " (swa_rate=0)",
      "set swa_from, such as 0.75, and swa_rate, such as 0.5",
    )
    return
  left = c.epochs - max(1, int(average.swa_from * c.epochs))
  if left % average.swa_cycle:
    yield (
      "average.swa_cycle",
      f"must divide the {left} epochs that are left of"
      f" config.{d.name}.epochs (={c.epochs}) at swa_from"
      f" (={average.swa_from:g}), or the last cycle does not count",
      "change one of the three",
    )
  if average.swa_low > average.swa_rate:
    yield (
      "average.swa_low",
      f"must be at most swa_rate (={average.swa_rate:g})",
      "lower it",
    )


def start_fits(d: Draft) -> Found:
  """Checks that there is a source where something is done to it."""
  c = d.options
  if (c.start.shrink or c.start.rewind) and not c.start.init:
    yield (
      "start.shrink" if c.start.shrink else "start.rewind",
      f"must be left out where config.{d.name}.start.init is empty",
      "name a phase or a workdir in start.init",
    )
  for field in ("kernels", "whiten"):
    off = _default(Start, field)
    if c.start.init and getattr(c.start, field) != off:
      yield (
        f"start.{field}",
        f"must be {off!r} beside config.{d.name}.start.init"
        f" (={c.start.init!r}), whose kernels are taken",
        "leave one of the two out",
      )
  if c.start.drop_blocks and not c.start.shrink:
    yield (
      "start.drop_blocks",
      f"needs config.{d.name}.start.shrink=True: the network is no longer the"
      " one that `network` describes",
      "set it",
    )


def bits_fit(d: Draft) -> Found:
  """Checks that bits are given once."""
  network = d.options.network
  if network.inner_bits and network.bits != _default(Network, "bits"):
    yield (
      "network.inner_bits",
      f"must be 0 beside config.{d.name}.network.bits (={network.bits!r}),"
      " which says all bits by itself",
      "leave one of the two out",
    )


def prune_fits(d: Draft) -> Found:
  """Checks that the plan of pruning can be followed."""
  p = d.options.prune
  if not p.prunes:
    return
  allowed = CHANNEL_CRITERIA if p.structured else WEIGHT_CRITERIA
  serves = own.is_own(p.criterion) and not p.structured
  if p.criterion not in allowed and not serves:
    what = "channels" if p.structured else "single weights"
    yield ("prune.criterion", f"must be one of {allowed} for {what}",
           "choose one")  # fmt: skip
  if p.structured:
    yield from _channels_fit(p)
  elif p.distribution not in WEIGHT_DISTRIBUTIONS:
    yield ("prune.distribution", f"must be one of {WEIGHT_DISTRIBUTIONS} for"
           " single weights", "choose one")  # fmt: skip
  elif p.distribution == "lamp" and not p.criterion.startswith("magnitude_"):
    yield (
      "prune.criterion",
      "must be 'magnitude_l1' or 'magnitude_l2' where distribution='lamp',"
      " which ranks by w^2",
      "choose one",
    )
  if (p.distribution == "explicit") != bool(p.rules):
    yield ("prune.rules", "must be given with distribution='explicit', and only"
           " then", "such as (('stage4.*', 0.1),)")  # fmt: skip
  if p.pattern:
    yield from _pattern_fits(p)
  yield from _updates_fit(p, d.options.epochs)


def own_functions_fit(d: Draft) -> Found:
  """Functions of the user's own that can be imported."""
  wanted = [("loss.extra", name) for name, _ in d.options.loss.extra]
  if own.is_own(d.options.prune.criterion):
    wanted.append(("prune.criterion", d.options.prune.criterion))
  for field, name in wanted:
    try:
      own.load(name)
    except own.OwnError as e:
      yield field, "must name functions that can be imported", str(e)


def _channels_fit(p) -> Found:
  if p.distribution not in CHANNEL_DISTRIBUTIONS:
    yield ("prune.distribution", f"must be one of {CHANNEL_DISTRIBUTIONS} for"
           " channels", "choose one")  # fmt: skip
  for field, off in (("pattern", ""), ("regrow", "none"), ("layers", ".*")):
    if getattr(p, field) != off:
      yield (f"prune.{field}", "is of single weights",
             f"write {off!r}, or structured=False")  # fmt: skip


def _pattern_fits(p) -> Found:
  match = PATTERN.fullmatch(p.pattern)
  if not match or int(match[1]) > int(match[2]):
    yield ("prune.pattern", "must be N:M with N at most M, such as '2:4'",
           "mend it")  # fmt: skip
  elif p.density < 1:
    yield ("prune.pattern", f"must be '' beside a density (={p.density}): it is"
           " one of its own", "leave one of the two out")  # fmt: skip
  elif moves(p.schedule, p.regrow):
    yield ("prune.pattern", "is set at once and does not move",
           "write schedule='one_shot' and regrow='none'")  # fmt: skip


def _updates_fit(p, epochs: int) -> Found:
  """Updates that come in the phase, and before the network is selected."""
  if (
    p.criterion == "movement"
    and p.schedule == "one_shot"
    and (not p.begin or not epochs)
  ):
    yield (
      "prune.begin",
      "must be above 0, in a phase with epochs: criterion 'movement' sums what"
      " training does before",
      "raise it",
    )
  if p.regrow != "none" and p.schedule != "one_shot":
    yield ("prune.regrow", "keeps the density that it starts with",
           "write schedule='one_shot'")  # fmt: skip
  often = moves(p.schedule, p.regrow)
  if often and p.begin >= p.end:
    yield "prune.end", f"must be above begin (={p.begin})", "raise it"
  if often and not epochs:
    yield ("prune.schedule", "needs epochs, and the phase has none",
           "write 'one_shot' and regrow='none', or train")  # fmt: skip
  last = p.end if often else p.begin
  if epochs and last >= 1:
    yield ("prune.end" if often else "prune.begin", "must be below 1: the"
           " network is selected among those after the last update",
           "lower it")  # fmt: skip


def teaching_fits(d: Draft) -> Found:
  """Checks that there is a teacher where a field needs one."""
  t, section = d.options.teacher, f"config.{d.name}.teacher"
  teachers = names(t.source)
  has_teacher = bool(teachers) or t.self_teach
  mixed = t.loss != "dkd"  # which weighs itself
  if t.weight == 0 and has_teacher and mixed and t.features == "none":
    yield ("teacher.weight", "must be above 0 where there is a teacher",
           f"raise it, or take the teacher (={t.source!r}) away")  # fmt: skip
  if t.self_teach and teachers:
    yield ("teacher.self_teach", f"must be False beside {section}.source"
           f" (={t.source!r})", "leave one of the two out")  # fmt: skip
  if t.self_teach and not d.options.average.ema_decay:
    yield (
      "teacher.self_teach",
      f"needs config.{d.name}.average.ema_decay above 0: the average is the"
      " teacher",
      "such as average.ema_decay=0.998",
    )
  if t.features != "none" and len(teachers) + t.self_teach != 1:
    yield ("teacher.features", "needs one teacher",
           "name it in teacher.source, or write 'none'")  # fmt: skip
  mixes = d.options.augment.mixes
  if mixes and has_teacher and t.loss.startswith("dkd"):
    yield (
      f"augment.{mixes}",
      f"must be 0 with {section}.loss (={t.loss!r}), which needs one right"
      " class",
      "write 0, or teacher.loss='kd'",
    )


def augment_fits(d: Draft) -> Found:
  """Checks that images are mixed in one way only."""
  a = d.options.augment
  if a.mixup and a.cutmix:
    yield ("augment.cutmix", f"must be 0 beside config.{d.name}.augment.mixup"
           f" (={a.mixup:g})", "leave one of the two out")  # fmt: skip


def cache_fits(d: Draft) -> Found:
  """Checks that the teacher's logits can be kept."""
  t, augment = d.options.teacher, d.options.augment
  if t.cache == "none":
    return
  if d.processes > 1:
    yield ("teacher.cache", f"must be 'none' with {d.processes} processes: they"
           " would write one file",
           "write 'none', or start one process")  # fmt: skip
  if not names(t.source):
    yield ("teacher.cache", "must be 'none' without a teacher that stays the"
           " same", "write 'none', or name a teacher")  # fmt: skip
  for field, value, off, why in (
    ("augment.mixup", augment.mixup, 0, "a mixture is no view of an image"),
    ("augment.cutmix", augment.cutmix, 0, "a mixture is no view of an image"),
    ("augment.cutout", augment.cutout, 0,
     "there are too many places of the square"),
    ("teacher.features", t.features, "none", "stage outputs are not kept"),
  ):  # fmt: skip
    if value != off:
      yield ("teacher.cache", f"must be 'none' with config.{d.name}.{field}"
             f" (={value!r}): {why}",
             f"write 'none', or {field}={off!r}")  # fmt: skip


def others_fit(d: Draft) -> Found:
  """Checks that a likeness to others has a weight and one right class."""
  c = d.options
  if bool(names(c.loss.others)) != bool(c.loss.diversity):
    yield (
      "loss.diversity",
      f"must be above 0 with config.{d.name}.loss.others"
      f" (={c.loss.others!r}), and only then",
      "such as 0.1",
    )
  if c.augment.mixes and c.loss.others:
    yield (f"augment.{c.augment.mixes}", "must be 0 with loss.others: their"
           " likeness needs one right class", "write 0")  # fmt: skip


def population_fits(d: Draft) -> Found:
  """Factors for each member, and one spec for all."""
  c, size = d.options, d.options.population.size
  for field, alone in (
    ("learning_rates", "optimizer.learning_rate"),
    ("temperatures", "teacher.temperature"),
  ):
    factors = getattr(c.population, field)
    if len(factors) not in (1, size):
      yield (
        f"population.{field}",
        f"must have 1 or config.{d.name}.population.size (={size}) entries",
        f"write {(factors * size)[:size]!r}",
      )
    elif size == 1 and factors[0] != 1:
      yield (
        f"population.{field}",
        "must be (1.0,) where there is one member",
        f"set config.{d.name}.{alone} itself",
      )
  if size > 1 and c.start.shrink:
    yield (
      "start.shrink",
      f"must be False with config.{d.name}.population.size (={size}):"
      " members that have lost different channels are of several specs",
      "shrink one network in a phase of its own",
    )


def ensemble_fits(d: Draft) -> Found:
  """Members that vote in a phase that does nothing else."""
  c = d.options
  if not names(c.ensemble.members):
    return
  for field, value, off in (
    ("population.size", c.population.size, 1),
    ("start.init", c.start.init, ""),
    ("start.kernels", c.start.kernels, "he"),
    ("start.whiten", c.start.whiten, False),
    ("start.shrink", c.start.shrink, False),
    ("teacher.source", c.teacher.source, ""),
    ("teacher.self_teach", c.teacher.self_teach, False),
    ("loss.others", c.loss.others, ""),
    ("prune.density", c.prune.density, 1),
    ("prune.pattern", c.prune.pattern, ""),
  ):
    if value != off:
      yield (
        field,
        f"must be {off!r} beside config.{d.name}.ensemble.members: an ensemble"
        " trains nothing",
        "do it in a phase of its own",
      )
  if not d.validation and c.ensemble.vote in ("select", "weighted"):
    yield (
      "ensemble.vote",
      "must be 'probability', 'logit' or 'majority' without validation images"
      " (config.data.validation is 0)",
      "choose one, or hold some out",
    )


# What is read, and the check of it.
PHASE_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Draft], Found]], ...] = (
  (("optimizer.warmup_epochs", "epochs"), training_fits),
  (("average", "epochs"), cycles_fit),
  (("start",), start_fits),
  (("network.bits", "network.inner_bits"), bits_fit),
  (("prune", "epochs"), prune_fits),
  (("prune.criterion", "loss.extra"), own_functions_fit),
  (("teacher", "average.ema_decay", "augment"), teaching_fits),
  (("augment",), augment_fits),
  (("teacher", "augment"), cache_fits),
  (("loss.others", "loss.diversity", "augment"), others_fit),
  (("population", "start.shrink"), population_fits),
  (
    ("ensemble", "population.size", "start", "teacher", "loss.others",
     "prune.density", "prune.pattern"),
    ensemble_fits,
  ),
)  # fmt: skip


def calibration_fits(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that a layer has a bound where calibration is configured."""
  if c.network.sum_bits != _default(Network, "sum_bits"):
    return
  if not any(x.a_bits < HALF_BITS for x in layers):
    asked = [("network.scales", c.network.scales, _default(Network, "scales"))]
    asked += [
      (f"calibrate.{f}", getattr(c.calibrate, f), _default(Calibrate, f))
      for f in Calibrate.model_fields
    ]
    for field, value, default in asked:
      if value != default:
        yield (
          field,
          "needs a quantized input, and no layer of the phase has one",
          "give some layers an a_bits of 8 or fewer in network.bits"
          f" (={c.network.bits!r}), or set network.inner_bits",
        )
  elif c.calibrate.method != "mse" and not any(map(has_bound, layers)):
    yield (
      "calibrate.method",
      "has nothing to calibrate with network.scales (='dynamic')",
      "leave it out, or choose other scales",
    )


def two_bits_fit(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that a kernel has 2 bits where their levels are chosen."""
  asked = c.network.two_bits != _default(Network, "two_bits")
  if asked and not any(x.w_bits == 2 for x in layers):
    yield (
      "network.two_bits",
      "needs a kernel of 2 bits, and no layer of the phase has one",
      "give some layers a w_bits of 2 in network.bits, or set"
      " network.inner_bits=2",
    )


def dampening_fits(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that a kernel has a grid where weights are drawn to it."""
  if c.loss.dampening and not any(x.w_bits < HALF_BITS for x in layers):
    yield (
      "loss.dampening",
      "must be 0 where no layer of the phase has weights of 8 bits or fewer",
      "leave it out, or quantize some layers",
    )


def bounds_fit(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that an end is learned where its training is configured."""
  kernels = any(map(has_kernel_bound, layers))
  if c.network.w_scales != _default(Network, "w_scales") and not kernels:
    yield (
      "network.w_scales",
      "needs a kernel of 2 to 7 bits, and no layer of the phase has one",
      "give some layers such a w_bits in network.bits, or set"
      " network.inner_bits",
    )
  sums = c.network.sum_bits != _default(Network, "sum_bits")
  if kernels or sums or any(map(has_bound, layers)):
    return
  for field in Bounds.model_fields:
    if getattr(c.bounds, field) != _default(Bounds, field):
      yield (
        f"bounds.{field}",
        "is of learned ends of grids, and no layer of the phase has one",
        "leave it out, or quantize some layers",
      )


def muon_fits(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that Muon finds kernels that are one matrix each."""
  o = c.optimizer
  grouped = [x.path for x in layers if 1 < x.groups < x.in_features]
  if o.muon_rate and grouped:
    yield (
      "optimizer.muon_rate",
      f"must be 0 with grouped convolutions ({grouped[0]}), whose kernels are"
      " no matrix from inputs to outputs",
      "write 0, or groups=1; depthwise kernels are left to optimizer.name",
    )
  if (
    o.muon_momentum != _default(Optimizer, "muon_momentum") and not o.muon_rate
  ):
    yield (
      "optimizer.muon_momentum",
      "is of Muon, which optimizer.muon_rate (=0) leaves off",
      "set muon_rate, or leave it out",
    )


def whitening_fits(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that the stem has two filters for each value of a patch."""
  first = layers[0]
  least = 2 * math.prod(first.kernel_shape[:3])
  if c.start.whiten and first.path != "stem":
    yield (
      "start.whiten",
      f"needs a stem of one kernel, and it begins with {first.path}",
      "leave the stem out of network.factorize, or write False",
    )
  elif c.start.whiten and first.features < least:
    yield (
      "start.whiten",
      f"needs a stem of at least {least} channels, two for each value of a"
      f" patch, and it has {first.features}",
      "raise network.stem_features or widths, or write False",
    )


def held_layers_are_there(c: PhaseOptions, layers: Sequence[Layer]) -> Found:
  """Checks that a layer is held where a regex says so."""
  held = c.optimizer.held
  if held and not any(re.fullmatch(held, x.path) for x in layers):
    yield (
      "optimizer.held",
      f"matches no layer; there are {', '.join(x.path for x in layers)}",
      "mend it",
    )


def _default(model: type[Section], field: str):
  return model.model_fields[field].default


LAYER_CHECKS: tuple[
  tuple[tuple[str, ...], Callable[[PhaseOptions, Sequence[Layer]], Found]], ...
] = (
  (("network", "calibrate", "start.shrink"), calibration_fits),
  (("network", "bounds", "start.shrink"), bounds_fit),
  (("network", "start.shrink"), two_bits_fit),
  (("network", "start.shrink", "loss.dampening"), dampening_fits),
  (("network", "start.shrink", "optimizer"), muon_fits),
  (("network", "start"), whitening_fits),
  (("network", "start.shrink", "optimizer.held"), held_layers_are_there),
)
