"""An experiment from its config to its result: train, test, score.

What trains knows no config: `teaching`, `members` and this file read the typed
`Experiment` and pass on plain arguments.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxr18 import __version__
from jaxr18.compress import ensemble, factorize, gradual, prune
from jaxr18.config import build
from jaxr18.config import file as configfile
from jaxr18.config.build import member_seeds
from jaxr18.config.experiment import (
  Experiment,
  Phase,
  Place,
  is_installed,
)
from jaxr18.config.faults import ConfigError, within
from jaxr18.config.lift import VERSION, as_json, lift, renamed
from jaxr18.config.network import quantized
from jaxr18.config.reading import parse
from jaxr18.config.schema import (
  FREE,
  Data,
  PhaseOptions,
  flatten,
)
from jaxr18.cost import score as score_lib
from jaxr18.cost.figures import FIGURES
from jaxr18.data import dataset as data
from jaxr18.data import named
from jaxr18.data.augment import normalize
from jaxr18.data.facts import KNOWN, Facts
from jaxr18.host import paths, provenance, sealed
from jaxr18.host.doing import doing
from jaxr18.host.errors import writing
from jaxr18.host.files import removing, write_json
from jaxr18.host.locks import alone_in
from jaxr18.host.paths import names
from jaxr18.host.stop import StopSignal
from jaxr18.nn import conv, machine, network
from jaxr18.nn.network import Network
from jaxr18.nn.spec import HALF_BITS, NetSpec
from jaxr18.run import members, other_run, sources, teaching
from jaxr18.run import result as result_lib
from jaxr18.run.parts import Answers, Images, Made, PhaseResult
from jaxr18.run.result import Result
from jaxr18.train import checkpoint, starts
from jaxr18.train import state as state_lib
from jaxr18.train.evaluate import Evaluation, Validation, evaluate
from jaxr18.train.feed import Feed
from jaxr18.train.files import latest_step, read_phase
from jaxr18.train.hooks import Hook, pruning
from jaxr18.train.loop import Training, train
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.progress import Reporter
from jaxr18.train.step import make_gradients, make_train_step
from jaxr18.train.store import PhaseStore
from jaxr18.train.writers import Writer


@dataclasses.dataclass(frozen=True)
class Run:
  """An experiment at work: where, on what, and who is told.

  Attributes:
    experiment: of the workdir.
    workdir: of the run.
    dataset: of the experiment.
    mesh: over which batches are split.
    stop: says whether a signal has come.
    writer: gets each epoch's numbers too.
    hooks: of the training loop, after those that prune and show.
  """

  experiment: Experiment
  workdir: pathlib.Path
  dataset: data.Dataset
  mesh: jax.sharding.Mesh
  stop: StopSignal
  writer: Writer | None = None
  hooks: tuple[Hook, ...] = ()


def run(
  config: Any,
  workdir: pathlib.Path,
  stop: StopSignal | None = None,
  command: str = "",
) -> Result:
  """Runs a config's phases in order, then tests and scores the last network.

  Every phase resumes in its middle; a finished one is read from its files.

  Args:
    config: a `ConfigDict`, or nested values, as `config.parse` takes it.
    workdir: where the run lives.
    stop: says whether a signal has come.
    command: makes the result again; '' is the one that takes the workdir's
      config.json.
  """
  stop = stop or StopSignal()
  stop.alone = jax.process_count() == 1
  finished = (workdir / "result.json").exists()
  experiment = parse(config, place_of(workdir, finished))
  if finished:
    check_config(experiment, workdir, finished=True)
    return result_lib.read(workdir)
  first = jax.process_index() == 0
  with alone_in(workdir, first), contextlib.ExitStack() as stack:
    prepare_workdir(experiment, workdir)
    to = experiment.writers if first else ()
    writer = Writer(workdir, to, experiment.saved())
    stack.callback(writer.close)
    with stop.may_leave(str(workdir)):
      doing("reading the images")
      dataset, mesh = load_data(experiment.data), make_mesh()
    left = train_phases(Run(experiment, workdir, dataset, mesh, stop, writer))
    phases = {k: PhaseResult.from_json(v) for k, v in left.items()}
    with stop.may_leave(str(workdir)):
      doing("testing the last network")
      nets = sources.load_networks(workdir, experiment.phases[-1].name)
      last = experiment.phases[-1]
      test, more = test_networks(experiment, last, nets, phases, dataset, mesh)
    made = made_by(workdir, command)
    more["seen"] = seen_images(dataset)
    result = make_result(experiment, nets[0], test, phases, made, **more)
    writer.result(summary_numbers(result))
    write_together(workdir / "result.json", result.to_json())
  return result


def place_of(workdir: pathlib.Path, finished: bool = False) -> Place:
  """Describes what an experiment has to fit: devices, packages, other runs.

  What is finished needs neither its sources nor as many devices.

  Args:
    workdir: of the run.
    finished: whether all of it is.
  """
  if finished:
    return Place(images=lambda d: _facts_of_result(workdir))
  return Place(
    devices=jax.device_count(),
    processes=jax.process_count(),
    ended=lambda name: (workdir / name / "phase.json").is_file(),
    source=other_run.source,
    installed=is_installed,
  )


def _facts_of_result(workdir: pathlib.Path) -> Facts:
  """What is known of a finished run's images, which may be gone."""
  result = result_lib.read(workdir)
  section, seen = result.config["data"], result.seen
  if section["name"] in KNOWN or seen is None:
    return named.facts_of(section["name"], section.get("dir", ""))
  total = section["validation"] + seen.train  # `limit` may have left some out
  return Facts(total, seen.classes, seen.size, seen.channels)


def train_phases(run: Run) -> dict[str, dict[str, Any]]:
  """Trains what of the phases is not finished; looks at no test image.

  Returns:
    What each phase's phase.json holds, by name.
  """
  return {phase.name: run_phase(run, phase) for phase in run.experiment.phases}


def write_together(
  path: pathlib.Path, value: Any, write: Callable = sealed.write
) -> None:
  """Calls write(path, value) in the first process; the others wait for it."""
  if jax.process_index() == 0:
    write(path, value)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(path.name)


def prepare_workdir(experiment: Experiment, workdir: pathlib.Path) -> None:
  """Makes the workdir and keeps the config in it, or checks the one there.

  Another config takes its place where no phase that it touches has begun. What
  it changes is said and kept with this start, and so is what of the machine's
  arithmetic is not as it was.

  Raises:
    checkpoint.CheckpointError: it cannot be written, or was begun with another
      config.
  """
  path, new = workdir / "config.json", experiment.saved()
  with writing(path):
    workdir.mkdir(parents=True, exist_ok=True)
    write_together(path, {"version": VERSION} | new, _write_new)
  changed = check_config(experiment, workdir)
  if changed:
    version = {"version": VERSION} if sealed.demanded(workdir) else {}
    write_together(path, version | new, write_json)
  if jax.process_index() == 0:
    _keep_start(experiment, workdir, changed)


def _keep_start(
  experiment: Experiment, workdir: pathlib.Path, changed: list[str]
) -> None:
  """Adds this start to the workdir's, and says what is not as it was."""
  steps = {name: latest_step(workdir / name) for name in experiment.names}
  at = {name: step for name, step in steps.items() if step is not None}
  differs = starts.add(workdir, at, machine.arithmetic(), changed)
  if changed:
    print(f"{workdir}: the config was changed: {'; '.join(changed)}",
          file=sys.stderr, flush=True)  # fmt: skip
  if differs:
    print(
      f"{workdir} goes on by another arithmetic, and its bits will differ from"
      f" those of a run that was never stopped: {'; '.join(differs)}",
      file=sys.stderr,
      flush=True,
    )


def check_config(
  experiment: Experiment, workdir: pathlib.Path, finished: bool = False
) -> list[str]:
  """Lists what differs from the config in the workdir, a line for each field.

  Raises:
    checkpoint.CheckpointError: the run is finished, or the change touches a
      phase that has begun.
  """
  path, new = workdir / "config.json", experiment.saved()
  try:
    old = as_json(configfile.from_json(path))
  except ValueError as e:
    raise _unusable(workdir, e) from e
  changed = changes(old, new)
  begun = [
    name for name in old["phases"] if latest_step(workdir / name) is not None
  ]
  late = {
    k: v for k, v in changed.items() if finished or _touches(k, old, new, begun)
  }
  if late:
    what = "is finished" if finished else f"has begun {', '.join(begun)}"
    kept = shlex.quote(f"--config={paths.escaped(str(path))}")
    raise checkpoint.CheckpointError(
      f"{workdir} was begun with another config and {what}:"
      f" {'; '.join(late.values())}; set it back (it is in {kept}), or give"
      " another --workdir"
    )
  return list(changed.values())


def _touches(field: str, old, new, begun: list[str]) -> bool:
  """Whether a field has a say in a phase that has begun.

  A phase's own does in all later ones, which may have learned from it, and the
  place of a phase in the others' seeds.
  """
  if not begun:
    return False
  phases, last = old["phases"], old["phases"].index(begun[-1])
  if field == "phases":
    return new["phases"][: last + 1] != phases[: last + 1]
  section = field.partition(".")[0]
  if section in phases:
    return phases.index(section) <= last
  return section not in new["phases"]


def _write_new(path: pathlib.Path, value: Any) -> None:
  """Keeps a config where there is none, of a run that began with no other."""
  if path.exists():
    return
  for name in value["phases"]:
    directory = path.parent / name
    if latest := latest_step(directory):
      kept = directory / "checkpoints" / str(latest)
      meta = checkpoint.read_meta(kept)
      changed = changes(meta["config"], value)
      known = flatten(renamed(meta["config"]))
      if late := [said for field, said in changed.items() if field in known]:
        raise checkpoint.CheckpointError(
          f"{path} is gone, and {kept} was made with another config:"
          f" {'; '.join(late)}; set it back, or give another --workdir"
        )
  write_json(path, value)


def _unusable(workdir: pathlib.Path, e: Exception):
  gone = removing([workdir / "config.json", workdir / "result.json"])
  return checkpoint.CheckpointError(
    f"cannot use {workdir} as a workdir: {e}; {gone}, and the run's own command"
    " makes it again: nothing is trained anew"
  )


def changes(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, str]:
  """Lists what differs between two configs of a run and is not FREE.

  Both are as `as_json` gives them; `before` may have been saved when there were
  fewer fields.
  """
  before, after = flatten(lift(before)), flatten(lift(after))
  older = {
    "data.order": " (which is 'folder' where a config was saved without it)"
  }
  return {
    k: f"{k} was {before.get(k)!r} and is {after.get(k)!r}{older.get(k, '')}"
    for k in sorted(before.keys() | after.keys())
    if before.get(k) != after.get(k) and not within(k, FREE)
  }


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


def load_data(d: Data) -> data.Dataset:
  """Loads the images that a config's section `data` names."""
  return data.load(
    d.name,
    data_dir=d.dir,
    validation=d.validation,
    split_seed=d.split_seed,
    limit=d.limit,
    cache_dir=d.cache_dir,
    order=d.order,
  )


def test_networks(
  experiment: Experiment,
  phase: Phase,
  nets: list[Network],
  phases: Mapping[str, PhaseResult],
  dataset,
  mesh,
) -> tuple[Evaluation, dict[str, Any]]:
  """Tests a phase's networks; of several, more fields of a `Result`.

  Args:
    experiment: of the run.
    phase: of it.
    nets: of that phase.
    phases: what each phase left.
    dataset: whose test split is used.
    mesh: over which batches are split.
  """
  size = experiment.eval_batch_size
  if len(nets) == 1 and not phase.options.ensemble.members:
    return evaluate(nets[0], dataset.test, dataset, size, mesh), {}
  return members.test_members(
    phase.options, experiment.seed, nets, phases[phase.name], dataset,
    batch_size=size, mesh=mesh,
  )  # fmt: skip


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
    update = _update_each(begun)
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
  normalize = functools.partial(_normalized, dataset=dataset, spec=spec)
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
  return lambda net: everywhere(network.recalibrate(net, batches()))


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
    images=_normalized(seen.images, dataset, net.spec),
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


def _update_each(begun: list[Beginning]):
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
  images = _normalized(images, dataset, spec)
  method = c.calibrate.method
  net = sources.initial_network(key, spec, images, source, where, method)
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
        _normalized(dataset.train.images[rows], dataset, spec)
        for rows in order[: c.start.recalibrate]
      ),
    )
  return net


def _prune(net: Network, step: int, *, plan, key, where, **seen) -> Network:
  key = jax.random.fold_in(key, step)
  try:
    return gradual.update(net, plan, step, key=key, **seen)
  except ValueError as e:
    raise ConfigError(f"{where}: {e}") from e


def _normalized(images, dataset, spec: NetSpec) -> jax.Array:
  return normalize(images, dataset.mean, dataset.std, spec.resolution)


def make_result(
  experiment: Experiment,
  net: Network,
  test: Evaluation,
  phases: Mapping[str, PhaseResult],
  made: Made,
  **more,
) -> Result:
  """Puts together what a run found.

  Args:
    experiment: of the run.
    net: the last phase's network, of several the first.
    test: its answers, or those of all.
    phases: by name, in their order.
    made: what made the result.
    more: the images, and fields of several networks, of
      `members.test_members`.
  """
  score = more.pop("score", None) or score_lib.score(net.spec, masks=net.masks)
  return Result(
    test=Answers(test.correct, test.count, test.loss),
    validation_accuracy=phases[experiment.phases[-1].name].validation_accuracy,
    spec=net.spec,
    phases=phases,
    config=experiment.saved(),
    seed=experiment.seed,
    seconds=sum(p.seconds for p in phases.values()),
    made=made,
    score=score,
    **more,
  )


def made_by(workdir: pathlib.Path, command: str = "") -> Made:
  """Says what makes a result here and now.

  Args:
    workdir: of the run.
    command: makes it again; '' is the one that takes the workdir's config.json.
  """
  packages = ("jax", "flax", "optax", "orbax-checkpoint", "aqtp", "numpy")
  config = f"--config={workdir / 'config.json'}"
  commit = provenance.commit()
  return Made(
    command=command or shlex.join(["python", "-m", "jaxr18.main", config]),
    jaxr18=__version__,
    commit=commit.name,
    changed=commit.changed,
    starts=tuple(starts.read(workdir)),
    device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    platform=f"{platform.machine()}, {os.cpu_count()} cores",
    python=platform.python_version(),
    versions={v: importlib.metadata.version(v) for v in packages},
  )


def seen_images(dataset: data.Dataset) -> Images:
  """What a result keeps of the images of a data set."""
  _, size, _, channels = dataset.test.images.shape
  return Images(
    dataset.name,
    dataset.fingerprint,
    len(dataset.train),
    len(dataset.validation),
    len(dataset.test),
    size,
    channels,
    dataset.classes,
    dataset.mean,
    dataset.std,
  )


def summary_numbers(result: Result) -> dict[str, float]:
  """Returns the numbers that writers show of a finished run, by name."""
  numbers = {
    "test_accuracy": result.test.accuracy,
    "test_loss": result.test.loss,
    "validation_accuracy": result.validation_accuracy,
  }
  for name in FIGURES:
    numbers[f"score/{name}"] = getattr(result.score, name).total
  return {k: v for k, v in numbers.items() if v is not None}
