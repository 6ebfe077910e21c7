"""What a phase begins with: its network, projections, key and pruning plan."""

import dataclasses
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress import ensemble, factorize, gradual, prune
from jaxr18.config import build
from jaxr18.config.build import member_seeds
from jaxr18.config.experiment import (
  Phase,
)
from jaxr18.config.faults import ConfigError
from jaxr18.config.network import quantized
from jaxr18.config.schema import PhaseOptions
from jaxr18.data import dataset as data
from jaxr18.data.augment import normalize
from jaxr18.nn import initial, network
from jaxr18.nn.network import Network
from jaxr18.nn.spec import NetSpec
from jaxr18.run import sources, teaching
from jaxr18.run.work import Run
from jaxr18.train import state as state_lib


class Beginning(NamedTuple):
  """What a phase, or one member of its population, begins with.

  Attributes:
    update: prunes by the plan, as `_prune`; None without one.
  """

  net: Network
  projections: Any
  key: jax.Array
  plan: gradual.Plan | None
  update: Any


def begin(
  run: Run, phase: Phase, teachers, steps: int, member: int
) -> Beginning:
  """Makes what one member of a phase has before its first step.

  A member is what a run alone of its seed would be.

  Args:
    run: the run.
    phase: the phase.
    teachers: of the phase; FitNets' projections fit their stage outputs.
    steps: of the phase, by which pruning is planned.
    member: its number in the population.
  """
  c, dataset, where = phase.options, run.dataset, f"config.{phase.name}"
  seed = member_seeds(c, run.experiment.seed)[member]
  key = jax.random.fold_in(jax.random.key(seed), phase.index)
  init_key, train_key = jax.random.split(key)
  net = start(run, phase, init_key, member)
  projections = teaching.make_projections(
    c, jax.random.fold_in(init_key, 2), net, teachers, where
  )
  plan = build.plan(c.prune, steps)
  if plan is None:
    return Beginning(net, projections, train_key, None, None)
  plan = dataclasses.replace(
    plan, start_density=gradual.start_density(net, plan)
  )
  try:
    gradual.check(net, plan)
  except ValueError as e:
    raise ConfigError(f"{where}.prune: {e}") from e
  net = gradual.prepare(net, plan)
  seen = dataset.train.take(np.arange(min(c.prune.images, len(dataset.train))))
  update = functools.partial(
    _prune,
    plan=plan,
    key=jax.random.fold_in(init_key, 1),
    images=normalized(seen.images, dataset, net.spec),
    labels=jnp.asarray(seen.labels),
    where=f"{where}.prune",
  )
  return Beginning(net, projections, train_key, plan, update)


def stacked(begun: list[Beginning]) -> tuple[Network, Any, jax.Array]:
  """Networks, projections and keys of a population, members first."""
  projections = [b.projections for b in begun]
  return (
    ensemble.stack([b.net for b in begun]),
    jax.tree.map(lambda *x: jnp.stack(x), *projections),
    jnp.stack([b.key for b in begun]),
  )


def update_each(begun: list[Beginning]):
  """Prunes the network, or each member of a population by its own plan."""

  def update(state, step: int, gradients) -> Network:
    movement = state_lib.movement_of(state.opt_state)
    if len(begun) == 1:
      return begun[0].update(
        state.net, step, gradients=gradients, movement=movement
      )
    nets = []
    for i, (b, net) in enumerate(
      zip(begun, ensemble.unstack(state.net), strict=True)
    ):
      own = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
      nets.append(
        b.update(
          net,
          step,
          gradients=lambda own=own: own(gradients()),
          movement=own(movement),
        )
      )
    return ensemble.stack(nets)

  return update


def start(run: Run, phase: Phase, key: jax.Array, member: int = 0) -> Network:
  """Makes the network that a phase begins with, of its source or a new one.

  Args:
    run: the run.
    phase: the phase.
    key: for the random numbers of new kernels.
    member: its number in the population.

  Raises:
    ConfigError: the source does not fit.
  """
  c, dataset, here = phase.options, run.dataset, f"config.{phase.name}"
  of = functools.partial(
    sources.load_for, run.workdir, members=c.population.size, member=member
  )
  where = f"{here}.start.init (={c.start.init!r})"
  source = of(c.start.init, where) if c.start.init else None
  if source is not None and c.start.rewind:
    where = f"{here}.start.rewind (={c.start.rewind!r})"
    try:
      source = prune.rewind(source, of(c.start.rewind, where))
    except ValueError as e:
      raise ConfigError(f"{where}: {e}") from e
  spec = phase.spec
  if c.start.shrink:
    assert source is not None  # as the config has been checked
    source = sources.shrunk(source, c.start.drop_blocks, here)
    spec = quantized(source.spec, c.network)
  assert spec is not None
  images = dataset.train.images[: c.calibrate.images]
  images = normalized(images, dataset, spec)
  method = c.calibrate.method
  new = _new_kernels(c, dataset, spec)
  net = sources.initial_network(key, spec, images, source, where, method, new)
  if source is not None and jax.process_index() == member == 0:
    converted = factorize.report(source, net)
    if converted and run.experiment.progress != "none":
      print(f"{where}, converted:\n{converted}", file=sys.stderr, flush=True)
  if c.start.recalibrate:
    seed = member_seeds(c, run.experiment.seed)[member]
    order = data.batches(len(dataset.train), c.batch_size, seed, 0)
    net = network.recalibrate(
      net,
      (
        normalized(dataset.train.images[rows], dataset, spec)
        for rows in order[: c.start.recalibrate]
      ),
    )
  return net


def _new_kernels(c: PhaseOptions, dataset, spec: NetSpec) -> network.Transform:
  """What is done to kernels that no source gives."""
  transforms: list[network.Transform] = []
  if c.start.kernels == "dirac":
    transforms.append(initial.dirac)
  if c.start.whiten:
    few = dataset.train.images[:5000]  # as many as airbench94's
    batches = (
      normalized(few[i : i + 100], dataset, spec)
      for i in range(0, len(few), 100)
    )
    transforms.append(functools.partial(initial.whiten, batches=batches))
  return network.chain(*transforms)


def _prune(net: Network, step: int, *, plan, key, where, **seen) -> Network:
  key = jax.random.fold_in(key, step)
  try:
    return gradual.update(net, plan, step, key=key, **seen)
  except ValueError as e:
    raise ConfigError(f"{where}: {e}") from e


def normalized(images, dataset, spec: NetSpec) -> jax.Array:
  """Normalizes uint8 images as the network's data are, at its resolution."""
  return normalize(images, dataset.mean, dataset.std, spec.resolution)
