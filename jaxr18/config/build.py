"""From a phase's options to what the rooms below take."""

import dataclasses
from typing import Literal

import optax

from jaxr18.compress.gradual import Plan
from jaxr18.config.checks import PATTERN
from jaxr18.config.schema import PhaseOptions, Prune
from jaxr18.data.augment import Augment
from jaxr18.data.dataset import Dataset
from jaxr18.host import own
from jaxr18.host.paths import names
from jaxr18.train import state
from jaxr18.train import terms as terms_lib
from jaxr18.train.average import Average
from jaxr18.train.muon import Muon
from jaxr18.train.state import Group
from jaxr18.train.step import Member
from jaxr18.train.terms import Term


def plan(p: Prune, steps: int) -> Plan | None:
  """Plans what a phase of so many steps does to its masks; None for nothing."""
  if not p.prunes:
    return None
  kept = PATTERN.fullmatch(p.pattern)
  return Plan(
    density=p.density,
    structured=p.structured,
    criterion=p.criterion,
    distribution=p.distribution,
    rules=tuple((pattern, float(d)) for pattern, d in p.rules),
    pattern=(int(kept[1]), int(kept[2])) if kept else None,
    layers=p.layers,
    floor=p.floor,
    multiple=p.multiple,
    schedule=p.schedule,
    begin=round(p.begin * steps),
    end=round(p.end * steps),
    every=p.every,
    regrow=p.regrow,
    drop=p.drop,
  )


def member_seeds(c: PhaseOptions, seed: int) -> tuple[int, ...]:
  """Lists a population's seeds: a member equals a run alone with its seed."""
  return tuple(range(seed, seed + c.population.size))


def factors(
  c: PhaseOptions, field: Literal["learning_rates", "temperatures"]
) -> tuple[float, ...]:
  """Returns a population's factors by member, of one or of one for each."""
  values = tuple(map(float, getattr(c.population, field)))
  return values * c.population.size if len(values) == 1 else values


def terms(c: PhaseOptions) -> tuple[Term, ...]:
  """Lists the terms of a phase's loss; their order decides bits."""
  if names(c.teacher.source) or c.teacher.self_teach:
    out = terms_lib.answers(
      c.teacher.loss,
      temperature=c.teacher.temperature,
      weight=c.teacher.weight,
      label_smoothing=c.loss.label_smoothing,
      beta=c.teacher.dkd_beta,
      warmup=c.teacher.dkd_warmup,
    )
  else:
    out = [terms_lib.cross_entropy(c.loss.label_smoothing)]
  if c.loss.group_lasso:
    out.append(terms_lib.group_lasso(c.loss.group_lasso))
  if c.loss.dampening:
    out.append(terms_lib.dampening(c.loss.dampening, c.epochs))
  if c.teacher.features != "none":
    features = {"fitnets": terms_lib.fitnets, "attention": terms_lib.attention}
    out.append(features[c.teacher.features](c.teacher.feature_weight))
  if names(c.loss.others):
    out.append(terms_lib.diversity(c.loss.likeness, c.loss.diversity))
  for name, weight in c.loss.extra:
    out.append(Term(name, own.load(name), weight))
  return tuple(out)


def augment(c: PhaseOptions, dataset: Dataset) -> Augment:
  """Says what is done to a phase's images."""
  a = c.augment
  return Augment(
    a.pad,
    a.flip,
    a.cutout,
    a.mixup,
    a.cutmix,
    tuple(dataset.mean),
    tuple(dataset.std),
  )


def average(c: PhaseOptions, steps_per_epoch: int) -> Average | None:
  """Says what `average` and `teacher.self_teach` mean; None for none.

  SWA takes the weights at the end of each epoch, or of each cycle of its rate,
  from the epoch at which the rate begins to stay or to cycle. With a rate that
  falls to zero, each step's are taken.
  """
  if c.average.ema_decay == 0 and c.average.swa_from == 1:
    return None
  if c.average.swa_from == 1:
    return Average(c.average.ema_decay, teaches=c.teacher.self_teach)
  start = hold_from(c, steps_per_epoch)
  if start is None:
    first = round(c.average.swa_from * c.epochs * steps_per_epoch)
    return Average(c.average.ema_decay, first, 1, c.teacher.self_teach)
  every = max(1, c.average.swa_cycle) * steps_per_epoch
  return Average(c.average.ema_decay, start - 1, every, c.teacher.self_teach)


def hold_from(c: PhaseOptions, steps_per_epoch: int) -> int | None:
  """Returns the step where SWA's own rate begins; None for never."""
  if c.average.swa_from == 1 or not c.average.swa_rate:
    return None
  return max(1, int(c.average.swa_from * c.epochs)) * steps_per_epoch


def optimizer(
  c: PhaseOptions, steps_per_epoch: int, movement: bool
) -> optax.GradientTransformation:
  """Makes a phase's optimizer.

  Args:
    c: the phase's section.
    steps_per_epoch: of the phase.
    movement: whether its state sums what movement pruning asks for.
  """
  start = hold_from(c, steps_per_epoch)
  rate = state.Rate(
    c.optimizer.learning_rate,
    c.epochs * steps_per_epoch,
    round(c.optimizer.warmup_epochs * steps_per_epoch),
    start,
    c.average.swa_rate if start else 0.0,
    c.average.swa_cycle * steps_per_epoch if start else 0,
    c.average.swa_low,
  )
  held = []
  if c.optimizer.held:
    held.append(Group(state.kernels_of(c.optimizer.held), 0.0))
  muon = None
  if c.optimizer.muon_rate:
    muon = Muon(
      dataclasses.replace(rate, peak=c.optimizer.muon_rate).schedule(),
      c.optimizer.muon_momentum,
      c.optimizer.weight_decay,
    )
  return state.make_optimizer(
    c.optimizer.name,
    rate,
    momentum=c.optimizer.momentum,
    weight_decay=c.optimizer.weight_decay,
    clip_norm=c.optimizer.clip_norm,
    groups=(
      Group(state.bounds, c.bounds.learning_rate, c.bounds.weight_decay),
      Group(state.norm_biases, c.optimizer.bias_rate),
      *held,
    ),
    muon=muon,
    movement=movement,
  )


def members(c: PhaseOptions) -> tuple[Member, ...]:
  """Lists what a population's members have of their own; () of one network."""
  if c.population.size == 1:
    return ()
  pairs = factors(c, "learning_rates"), factors(c, "temperatures")
  return tuple(Member(*pair) for pair in zip(*pairs, strict=True))
