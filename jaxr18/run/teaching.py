"""A phase's teachers, loaded: networks, logits from a table, projections."""

import pathlib
import sys
import time

import jax

from jaxr18.compress import distill
from jaxr18.config.experiment import Experiment, Phase
from jaxr18.config.faults import ConfigError
from jaxr18.config.schema import PhaseOptions
from jaxr18.data.dataset import Dataset
from jaxr18.host.paths import names
from jaxr18.host.stop import StopSignal
from jaxr18.nn.network import Network, stage_features, stage_sides
from jaxr18.run import sources
from jaxr18.train.step import Teachers
from jaxr18.train.teacher_table import CachedTeacher

FOLDER = "teacher_logits"  # of a workdir: one table for each teacher and data


def load_teachers(c: PhaseOptions, workdir: pathlib.Path) -> Teachers:
  """Loads the networks that teach a phase and those it is to differ from.

  A population's or an ensemble's members count one by one.
  """
  nets, others = (
    sources.load_networks(workdir, value) if names(value) else []
    for value in (c.teacher.source, c.loss.others)
  )
  return Teachers(tuple(nets), tuple(others))


def make_projections(
  c: PhaseOptions,
  key: jax.Array,
  net: Network,
  teachers: Teachers,
  where: str,
):
  """Makes FitNets' regressors; None where there is no such loss.

  Args:
    c: of the phase.
    key: for their kernels.
    net: the student.
    teachers: of the phase, one where there is a loss on features.
    where: names the phase in errors.

  Raises:
    ConfigError: stages that do not fit each other.
  """
  if c.teacher.features == "none":
    return None
  if len(teachers.nets) > 1:
    raise ConfigError(
      f"{where}.teacher.source (={c.teacher.source!r}) must be one network with"
      f" teacher.features (={c.teacher.features!r}), and holds"
      f" {len(teachers.nets)}; name one"
    )
  teacher = teachers.nets[0] if teachers.nets else net
  try:
    distill.check_stages(stage_sides(net.spec), stage_sides(teacher.spec))
  except ValueError as e:
    which = f"{where}.teacher.features (={c.teacher.features!r})"
    raise ConfigError(f"{which}: {e}") from e
  if c.teacher.features != "fitnets":
    return None
  return distill.init_projections(
    key, stage_features(net.spec), stage_features(teacher.spec)
  )


def open_cache(
  experiment: Experiment,
  phase: Phase,
  teachers: Teachers,
  dataset: Dataset,
  workdir: pathlib.Path,
  stop: StopSignal,
  dtype,
) -> CachedTeacher | None:
  """Opens the table of the teacher's logits, and fills it for 'full'.

  Args:
    experiment: says how many images a step of filling it takes, and whether
      its progress is told.
    phase: whose teachers they are.
    teachers: of the phase.
    dataset: of the experiment.
    workdir: of the run; holds the tables.
    stop: a signal may end the process while the table is filled.
    dtype: of the phase's convolutions, the teacher's among them.

  Raises:
    ConfigError: several processes would write one file.
    Stopped: a stop signal came; what was computed is kept.
  """
  c, where = phase.options, f"config.{phase.name}"
  if c.teacher.cache == "none":
    return None
  if jax.process_count() > 1:
    raise ConfigError(
      f"{where}.teacher.cache (={c.teacher.cache!r}) must be 'none' with"
      f" {jax.process_count()} processes: they would write one file; write"
      " 'none', or start one process"
    )
  cached = CachedTeacher(
    teachers.nets, dataset, workdir / FOLDER, pad=c.augment.pad,
    flip=c.augment.flip, dtype=dtype, loss=c.teacher.loss,
  )  # fmt: skip
  said = time.monotonic()

  def say(text: str) -> None:
    nonlocal said
    if experiment.progress != "none" and time.monotonic() - said > 10:
      said = time.monotonic()
      print(f"{where}: {text}", file=sys.stderr, flush=True)

  if c.teacher.cache == "full":
    with stop.may_leave(f"{where}.teacher.cache", cached.flush):
      cached.fill(min(experiment.eval_batch_size, len(dataset.train)), say)
  return cached
