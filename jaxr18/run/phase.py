"""One phase of a run, trained or gone on with until its phase.json is there."""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.config import build
from jaxr18.config.build import member_seeds
from jaxr18.config.experiment import (
  Phase,
)
from jaxr18.config.schema import (
  PhaseOptions,
)
from jaxr18.host.doing import doing
from jaxr18.host.paths import names
from jaxr18.nn import conv, network
from jaxr18.nn.network import Network
from jaxr18.nn.spec import HALF_BITS, NetSpec
from jaxr18.run import members, sources, teaching
from jaxr18.run.begin import begin, normalized, stacked, update_each
from jaxr18.run.place import write_together
from jaxr18.run.work import Run
from jaxr18.train import state as state_lib
from jaxr18.train.evaluate import Validation
from jaxr18.train.feed import Feed
from jaxr18.train.files import read_phase
from jaxr18.train.hooks import Hook, pruning
from jaxr18.train.loop import Training, train
from jaxr18.train.mesh import replicate, shard
from jaxr18.train.progress import Reporter
from jaxr18.train.step import make_gradients, make_train_step
from jaxr18.train.store import PhaseStore


def train_phases(run: Run) -> dict[str, dict[str, Any]]:
  """Trains what of the phases is not finished; looks at no test image.

  Returns:
    What each phase's phase.json holds, by name.
  """
  return {phase.name: run_phase(run, phase) for phase in run.experiment.phases}


def run_phase(run: Run, phase: Phase) -> dict[str, Any]:
  """Trains one phase, or reads what it left when it was finished.

  Returns:
    What phase.json holds: the chosen step, its validation accuracy, seconds.
  """
  directory = run.workdir / phase.name
  done = directory / "phase.json"
  if done.exists():
    return read_phase(directory)
  c = phase.options
  meta = {"config": run.experiment.saved(), "phase": phase.name}
  if c.ensemble.members:
    with run.stop.may_leave(f"config.{phase.name}"):
      info = members.save_ensemble(
        c, run.workdir, directory, run.dataset, meta,
        eval_batch_size=run.experiment.eval_batch_size, mesh=run.mesh,
      )  # fmt: skip
  else:
    info = _train_phase(run, phase, directory, meta)
  write_together(done, info)
  return info


def _train_phase(
  run: Run, phase: Phase, directory: pathlib.Path, meta: dict[str, Any]
) -> dict[str, Any]:
  """Trains a phase, or goes on with it; returns what its store tells."""
  c, dataset, mesh = phase.options, run.dataset, run.mesh
  steps_per_epoch = len(dataset.train) // c.batch_size
  seeds, each = member_seeds(c, run.experiment.seed), build.members(c)
  doing(f"{phase.name}: preparing its networks")
  with run.stop.may_leave(f"config.{phase.name}"):
    meta["sources"] = _identities(c, run.workdir)
    teachers = teaching.load_teachers(c, run.workdir)
    steps = c.epochs * steps_per_epoch
    begun = [begin(run, phase, teachers, steps, i) for i in range(len(seeds))]
    plan, dtype = begun[0].plan, training_type(phase, mesh)
    table = teaching.open_cache(
      run.experiment, phase, teachers, dataset, run.workdir, run.stop, dtype
    )
    net, projections, key = stacked(begun) if each else begun[0][:3]
    average = build.average(c, steps_per_epoch)
    estimate = None
    if c.average.estimate and (average is not None or _shifts(c, net.spec)):
      estimate = estimator(c, net.spec, key, dataset, mesh)
    movement = plan is not None and plan.criterion == "movement"
    optimizer = build.optimizer(c, steps_per_epoch, movement)
    terms, augment = build.terms(c), build.augment(c, dataset)
    state = state_lib.create(
      net, optimizer, average is not None, projections, estimate is not None,
      [term.name for term in terms],
    )  # fmt: skip
    if table is not None:
      teachers = teachers._replace(nets=())
    teachers, key = replicate((teachers, key), mesh)
  seed = seeds if each else seeds[0]
  feed = Feed(dataset.train, c.batch_size, seed, key, mesh, table)
  t = Training(
    phase.name,
    make_train_step(terms, optimizer, augment, average, mesh, dtype, each),
    feed,
    teachers,
    c.epochs,
    mesh,
    Validation(dataset, run.experiment.eval_batch_size, mesh),
    estimate,
  )
  hooks = _watchers(run, t)
  if plan is not None:
    gradients = make_gradients(terms, augment, average, mesh, dtype, each)
    update = update_each(begun)
    hooks = [pruning(feed, teachers, plan.due, update, gradients), *hooks]
  meta["network"] = "net" if average is None else "average"
  meta["spec"], meta["data"] = net.spec.to_json(), dataset.fingerprint
  store = PhaseStore(
    directory,
    meta,
    every_seconds=run.experiment.checkpoint.every_seconds,
    select_from=plan.last + 1 if plan is not None and c.epochs else 0,
  )
  train(t, state, store, hooks, run.stop)
  return store.close()


def _identities(c: PhaseOptions, workdir: pathlib.Path) -> dict[str, Any]:
  """What a phase learns from, by which a resumed one knows it again."""
  named = {
    "init": c.start.init,
    "rewind": c.start.rewind,
    "teacher": c.teacher.source,
    "others": c.loss.others,
  }
  return {k: sources.identities(workdir, v) for k, v in named.items()}


def _watchers(run: Run, t: Training) -> list[Hook]:
  """The hooks that show how far a phase is, and those that were given."""
  mode = run.experiment.progress if jax.process_index() == 0 else "none"
  shown = Reporter(t.name, t.epochs, t.feed.steps, t.feed.batch_size, mode)
  written = [] if run.writer is None else [run.writer.hook(t.name)]
  return [*written, shown.hook(), *run.hooks]


def training_type(phase: Phase, mesh) -> jnp.dtype:
  """Returns the type of a phase's convolutions; tells if it is another."""
  given = phase.options.dtype
  dtype, why = conv.training_type(given, mesh.devices.size)
  if why and jax.process_index() == 0:
    print(
      f"config.{phase.name}.dtype (={given!r}): this phase trains in {dtype},"
      f" since {why}.",
      file=sys.stderr,
      flush=True,
    )
  return dtype


def _shifts(c: PhaseOptions, spec: NetSpec) -> bool:
  """Whether the running statistics are those of other weights or inputs.

  They are where values are rounded, since a small step of a weight moves them
  by a whole level, and where several networks' weights are averaged.
  """
  soup = len(names(c.start.init)) not in (0, 1, c.population.size)
  return soup or any(min(x.w_bits, x.a_bits) < HALF_BITS for x in spec.layers())


def estimator(
  c: PhaseOptions, spec: NetSpec, key: jax.Array, dataset, mesh
) -> Callable[[Network], Network]:
  """Makes a function that estimates batch norm's statistics for a network.

  It looks at the same training images each time, as they are, in batches of
  the phase's size.

  Args:
    c: the phase's section.
    spec: of the network, or of each of the stacked ones.
    key: decides the images; of a population one for each member.
    mesh: over which each batch is split.
  """
  n, size = len(dataset.train), c.batch_size
  count = min(c.average.estimate, n // size)
  keys = key if key.ndim else key[None]
  order = [np.asarray(jax.random.permutation(k, n)) for k in keys]
  rows = np.stack([o[: count * size].reshape(count, size) for o in order], 1)
  normalize = functools.partial(normalized, dataset=dataset, spec=spec)
  if key.ndim:
    normalize = jax.vmap(normalize)
  else:
    rows = rows[:, 0]

  def batches():
    for part in rows:
      images = dataset.train.images[part]
      yield normalize(shard(images, mesh, part.ndim - 1))

  # A sum over images that are split may come out on a part of the devices.
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  everywhere = jax.jit(lambda net: net, out_shardings=whole)

  def estimate(net):
    with conv.split_over(mesh):
      net = network.recalibrate(net, batches())
    return everywhere(net)

  return estimate
