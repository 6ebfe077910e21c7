"""An experiment from its config to its result: train, test, score.

What trains knows no config: `phase`, `teaching` and `members` read the typed
`Experiment` and pass on plain arguments.
"""

import contextlib
import importlib.metadata
import pathlib
import platform
import shlex
from collections.abc import Mapping
from typing import Any

import jax

from jaxr18 import __version__
from jaxr18.config.experiment import (
  Experiment,
  Phase,
)
from jaxr18.config.reading import parse
from jaxr18.config.schema import (
  Data,
)
from jaxr18.cost import score as score_lib
from jaxr18.cost.figures import FIGURES
from jaxr18.data import dataset as data
from jaxr18.host import provenance
from jaxr18.host.doing import doing
from jaxr18.host.locks import alone_in
from jaxr18.host.stop import StopSignal
from jaxr18.nn.network import Network
from jaxr18.run import members, sources
from jaxr18.run import result as result_lib
from jaxr18.run.parts import Answers, Images, Made, PhaseResult
from jaxr18.run.phase import train_phases
from jaxr18.run.place import (
  check_config,
  place_of,
  prepare_workdir,
  write_together,
)
from jaxr18.run.result import Result
from jaxr18.run.work import Run
from jaxr18.train import starts
from jaxr18.train.evaluate import Evaluation, evaluate
from jaxr18.train.mesh import make_mesh
from jaxr18.train.writers import Writer


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
    platform=provenance.computer(),
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
