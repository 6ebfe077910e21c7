"""Several networks in one run: a population's members, or an ensemble's.

Both are tested in one pass over the images, each member once. A population's
result is the mean over its members, an ensemble's what its vote answers.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxr18.compress import ensemble
from jaxr18.config.build import factors, member_seeds
from jaxr18.config.schema import PhaseOptions
from jaxr18.cost.figures import FIGURES
from jaxr18.cost.several import ensemble_score
from jaxr18.host.paths import names
from jaxr18.nn.network import Network
from jaxr18.run import sources
from jaxr18.run.parts import Answers, Member, PhaseResult, Vote
from jaxr18.train import checkpoint
from jaxr18.train.evaluate import Evaluation, count, predict


def predict_members(
  nets: Sequence[Network], split, dataset, batch_size: int, mesh
) -> np.ndarray:
  """Computes the logits of several networks on the same images.

  Args:
    nets: of any specs; those of one spec are computed by one program.
    split: the images.
    dataset: gives mean and deviation of the channels.
    batch_size: images a step, over all devices.
    mesh: over which a batch is split.

  Returns:
    [members, n, classes].
  """
  by_member: list = [None] * len(nets)
  for positions, stacked in ensemble.groups(nets):
    logits = predict(stacked, split.images, dataset, batch_size, mesh)
    for i, position in enumerate(positions):
      by_member[position] = logits[:, i]
  return np.stack(by_member)


def save_ensemble(
  c: PhaseOptions,
  workdir: pathlib.Path,
  directory: pathlib.Path,
  dataset,
  meta: dict[str, Any],
  *,
  eval_batch_size: int,
  mesh,
) -> dict[str, Any]:
  """Keeps a copy of all members, and chooses a vote on validation images.

  Args:
    c: of the phase.
    workdir: of the run.
    directory: of the phase; gets checkpoints/0.
    meta: goes into the checkpoint.

  Returns:
    What phase.json holds: accuracies on validation images of the members and
    of each vote, the vote, and weights that were fitted to them.
  """
  began = time.monotonic()
  nets = sources.load_networks(workdir, c.ensemble.members)
  split, votes, vote, weights, each = dataset.validation, {}, None, None, None
  if len(split):
    logits = predict_members(nets, split, dataset, eval_batch_size, mesh)
    each = [count(member, split.labels).accuracy for member in logits]
    weights = ensemble.fit_weights(logits, split.labels).tolist()
    votes = {
      name: answer(logits, split.labels, name, weights).accuracy
      for name in ensemble.VOTES
    }
    vote = max(votes, key=votes.__getitem__)  # of equal ones the simplest
  if c.ensemble.vote != "select":
    vote = c.ensemble.vote
  _keep(directory, nets, meta | {"data": dataset.fingerprint})
  return {
    "step": 0,
    "epoch": 0,
    "validation_accuracy": votes[vote] if vote in votes else None,
    "validation_accuracies": each,
    "sources": list(names(c.ensemble.members)),
    "votes": votes,
    "vote": vote,
    "weights": weights,
    "seconds": time.monotonic() - began,
  }


def _keep(
  directory: pathlib.Path, nets: Sequence[Network], meta: dict[str, Any]
) -> None:
  """Writes the members' arrays as checkpoint 0, unless it is there."""
  arrays = {}
  for i, net in enumerate(nets):
    parts = dict(
      params=net.params, batch_stats=net.batch_stats, masks=net.masks
    )
    arrays |= checkpoint.flatten({f"member{i}": parts})
  manager = checkpoint.open_manager(directory / "checkpoints", {})
  if manager.latest_step() is None:
    specs = [net.spec.to_json() for net in nets]
    checkpoint.save(manager, 0, arrays, meta | {"members": specs})
  checkpoint.finish(manager)
  manager.close()


def answer(
  logits: np.ndarray, labels: np.ndarray, vote: str, weights=None
) -> Evaluation:
  """Counts the right answers of a vote of logits [members, n, classes].

  Args:
    weights: [members], used by the weighted vote alone.
  """
  return count(ensemble.voted_logits(logits, vote, weights), labels)


def test_members(
  c: PhaseOptions,
  seed: int,
  nets: Sequence[Network],
  phase: PhaseResult,
  dataset,
  *,
  batch_size: int,
  mesh,
) -> tuple[Evaluation, dict[str, Any]]:
  """Tests a phase's networks, each once.

  Args:
    c, seed: the phase's section and the run's seed.
    nets: of the phase, several.
    phase: what its phase.json holds.
    dataset: whose test split is used.
    batch_size, mesh: of the evaluation.

  Returns:
    The ensemble's answers, or the sum over a population's; and more fields of
    a `Result`, by name: members, their disagreement, the votes.
  """
  labels = dataset.test.labels
  logits = predict_members(nets, dataset.test, dataset, batch_size, mesh)
  each = [count(member, labels) for member in logits]
  known = phase.validation_accuracies or [None] * len(nets)
  members = tuple(map(_member, nets, each, known))
  more: dict[str, Any] = {
    "disagreement": tuple(map(tuple, ensemble.disagreement(logits).tolist()))
  }
  if names(c.ensemble.members):
    chosen, votes = _test_votes(nets, logits, labels, phase)
    return chosen, more | votes | {"members": members}
  rates = factors(c, "learning_rates")
  temperatures = factors(c, "temperatures")
  more["members"] = tuple(
    dataclasses.replace(
      member,
      seed=member_seeds(c, seed)[i],
      learning_rate=c.optimizer.learning_rate * rates[i],
      temperature=c.teacher.temperature * temperatures[i],
    )
    for i, member in enumerate(members)
  )
  total = Evaluation(
    sum(member.correct for member in each),
    sum(member.count for member in each),
    statistics.mean(member.loss for member in each),
  )
  return total, more


def _test_votes(
  nets: Sequence[Network],
  logits: np.ndarray,
  labels: np.ndarray,
  phase: PhaseResult,
) -> tuple[Evaluation, dict[str, Any]]:
  """Counts what the chosen vote answers, and tells of all votes."""
  votes = {
    name: answer(logits, labels, name, phase.weights)
    for name in ensemble.VOTES
    if name != "weighted" or phase.weights is not None
  }
  return votes[str(phase.vote)], {
    "vote": phase.vote,
    "weights": phase.weights,
    "votes": {
      name: Vote(
        evaluation.accuracy, evaluation.loss, (phase.votes or {}).get(name)
      )
      for name, evaluation in votes.items()
    },
    "specs": tuple(net.spec for net in nets),
    "score": ensemble_score([(net.spec, net.masks) for net in nets]),
  }


def _member(
  net: Network, evaluation: Evaluation, validation_accuracy: float | None
) -> Member:
  score = ensemble_score([(net.spec, net.masks)])
  return Member(
    Answers(evaluation.correct, evaluation.count, evaluation.loss),
    score.macs,
    {name: getattr(score, name).total for name in FIGURES},
    validation_accuracy,
  )
