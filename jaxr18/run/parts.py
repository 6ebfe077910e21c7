"""The parts of a `Result`, each read from JSON and written to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxr18.cost.figures import FIGURES, Figure, LayerScore, PerNetwork, Score
from jaxr18.host.checked import Checked, OddValueError
from jaxr18.nn.spec import NetSpec

_LEAST_SCORE = 1e-12  # a logarithmic axis ends above 0


@dataclasses.dataclass(frozen=True)
class Answers:
  """How a network answers the images of a split.

  Attributes:
    correct: of `count` images; a population's members' are added up.
    loss: mean cross entropy.
  """

  correct: int
  count: int
  loss: float

  @property
  def accuracy(self) -> float:
    return self.correct / self.count


@dataclasses.dataclass(frozen=True)
class PhaseResult:
  """What a phase left in its phase.json.

  Attributes:
    step, epoch: of the checkpoint that was chosen.
    validation_accuracy: of it; None where no image is held out.
    seconds: of training.
    validation_accuracies: of a population's or an ensemble's members.
    sources, votes, vote, weights: of an ensemble: the members' workdirs, each
      vote's validation accuracy, the chosen vote, the weighted vote's weights.
  """

  step: int
  epoch: int
  validation_accuracy: float | None
  seconds: float
  validation_accuracies: tuple[float, ...] | None = None
  sources: tuple[str, ...] | None = None
  votes: Mapping[str, float | None] | None = None
  vote: str | None = None
  weights: tuple[float, ...] | None = None

  @staticmethod
  def from_json(values: Mapping[str, Any]) -> PhaseResult:
    """Reads what phase.json holds; raises OddValueError as `Result` does."""
    return phase_of(Checked(dict(values)))


@dataclasses.dataclass(frozen=True)
class Member:
  """A member of a population or an ensemble.

  Attributes:
    test: its own answers.
    macs: for one image.
    score: its three figures' totals, by `FIGURES`.
    validation_accuracy: None where no image is held out.
    seed, learning_rate, temperature: of a population's; else None.
  """

  test: Answers
  macs: int
  score: Mapping[str, float]
  validation_accuracy: float | None = None
  seed: int | None = None
  learning_rate: float | None = None
  temperature: float | None = None


@dataclasses.dataclass(frozen=True)
class Vote:
  """What an ensemble answers by one way to vote."""

  accuracy: float
  loss: float
  validation_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class Export:
  """A file for others, tested on the test split against the network.

  Attributes:
    file: its name.
    bytes: of all of it.
    correct: of `count` images of the test split.
    same_answers: images in which the network gives the same.
    largest_difference: of a logit.
    images_apart: images in which a logit differs by more than 1e-4.
    bytes_of_weights, bytes_charged: of a packed file, without its description,
      and by the on-disk score.
    bytes_of_memory: of a C program: its static arrays that are written to.
    milliseconds: of one image alone, where the file was written.
    images_per_second: there, in batches of `deploy.speed.BATCH`.
    measured_on: that machine.
  """

  file: str
  bytes: int
  correct: int
  count: int
  same_answers: int
  largest_difference: float
  images_apart: int
  bytes_of_weights: int | None = None
  bytes_charged: int | None = None
  bytes_of_memory: int | None = None
  milliseconds: float | None = None
  images_per_second: float | None = None
  measured_on: str | None = None

  @property
  def accuracy(self) -> float:
    return self.correct / self.count


@dataclasses.dataclass(frozen=True)
class Images:
  """The images that a run has seen.

  Attributes:
    name: of the data set; of a person's own, of the file alone.
    fingerprint: the same where all images and labels are.
    train, validation, test: how many.
    size, channels: of each.
    classes: that are told apart.
    mean, std: of each channel of the training images, in units of 0..1.
  """

  name: str
  fingerprint: str
  train: int
  validation: int
  test: int
  size: int
  channels: int
  classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Made:
  """What made a result.

  Attributes:
    command: makes it again.
    jaxr18: the version; None of a result from before it was kept.
    commit: of the code, None where it is not known.
    changed: whether the checkout differed from that commit.
    python, versions: of packages, by name.
    device, platform: what it was computed on.
    starts: of the workdir's starts.jsonl.
  """

  command: str
  python: str
  versions: Mapping[str, str]
  device: str
  platform: str
  jaxr18: str | None = None
  commit: str | None = None
  changed: bool | None = None
  starts: tuple[Mapping[str, Any], ...] = ()


def filled(at: Checked, key: str) -> list[Any]:
  found = at.at(key).kind(list)
  if not found:
    raise OddValueError(f"{key} is empty")
  return found


def share(at: Checked) -> float:
  return at.number(0, 1)


def numbers(at: Checked) -> tuple[float, ...]:
  return at.each(Checked.number)


def answers_of(at: Checked, count: int) -> Answers:
  found = Answers(
    at.at("test_correct").whole(0, count), count, at.at("test_loss").number()
  )
  accuracy = share(said := at.at("test_accuracy"))
  if abs(accuracy - found.accuracy) > 1e-9:
    raise OddValueError(
      f"{said.name} is {accuracy}, and not {found.correct} of {found.count}"
    )
  return found


def score_of(at: Checked) -> Score:
  whole = at.at("per_network")
  rows = at.at("rows").each(_row)
  if not rows:
    raise OddValueError(f"{at.name}.rows is empty")
  found = Score(
    PerNetwork(
      *_terms(whole),
      p_s=share(whole.at("p_s")),
      p_u=share(whole.at("p_u")),
      q_w=whole.at("q_w").whole(1, 64),
      q_a=whole.at("q_a").whole(1, 64),
      w=whole.at("w").whole(),
      f=whole.at("f").whole(),
    ),
    Figure(*_terms(at.at("per_layer"))),
    Figure(*_terms(at.at("on_disk"))),
    rows,
    at.at("members").whole(1),
    at.at("views").whole(1),
  )
  for name in FIGURES:
    if (total := getattr(found, name).total) < _LEAST_SCORE:
      raise OddValueError(
        f"{at.name}.{name}.total is {total:g}, and not above 0"
      )
  return found


def _terms(at: Checked) -> tuple[float, float]:
  return at.at("params_term").number(0), at.at("ops_term").number(0)


def _row(at: Checked) -> LayerScore:
  weights = at.at("weights").whole(1)
  return LayerScore(
    path=at.at("path").text(),
    kernel_shape=at.at("kernel_shape").each(lambda x: x.whole(1)),
    groups=at.at("groups").whole(1),
    w_bits=at.at("w_bits").whole(1, 64),
    a_bits=at.at("a_bits").whole(1, 64),
    weights=weights,
    kept=at.at("kept").whole(0, weights),
    biases=at.at("biases").whole(),
    biases_kept=at.at("biases_kept").whole(),
    macs=at.at("macs").whole(),
    encoding=at.at("encoding").text(),
    stored_bits=at.at("stored_bits").whole(),
  )


def spec_of(at: Checked) -> NetSpec:
  try:
    return NetSpec.from_json(json.dumps(at.value))
  except ValueError as e:
    raise OddValueError(f"{at.name}: {e}") from e


def config_of(at: Checked) -> dict[str, Any]:
  """Reads the resolved config, of which names of data and phases are used."""
  at.at("data").at("name").text()
  phases = at.at("phases").each(lambda x: x.kind(str))
  if not phases:
    raise OddValueError(f"{at.name}.phases is empty")
  for name in phases:
    at.at(name).kind(dict)
  return at.value


def phase_of(at: Checked) -> PhaseResult:
  return PhaseResult(
    step=at.at("step").whole(),
    epoch=at.at("epoch").whole(),
    validation_accuracy=at.maybe("validation_accuracy", share),
    seconds=at.at("seconds").number(0),
    validation_accuracies=at.maybe(
      "validation_accuracies", lambda x: x.each(share)
    ),
    sources=at.maybe("sources", lambda x: x.each(Checked.text)),
    votes=at.maybe("votes", lambda x: x.by_name(_share_or_none)),
    vote=at.maybe("vote", Checked.text),
    weights=at.maybe("weights", numbers),
  )


def _share_or_none(at: Checked) -> float | None:
  return None if at.value is None else share(at)


def member_of(at: Checked, count: int) -> Member:
  score = at.at("score")
  return Member(
    test=answers_of(at, count),
    macs=at.at("macs").whole(),
    score={k: score.at(k).number(_LEAST_SCORE) for k in FIGURES},
    validation_accuracy=at.maybe("validation_accuracy", share),
    seed=at.maybe("seed", Checked.whole),
    learning_rate=at.maybe("learning_rate", Checked.number),
    temperature=at.maybe("temperature", Checked.number),
  )


def member_to_json(m: Member) -> dict[str, Any]:
  out = {
    "test_accuracy": m.test.accuracy,
    "test_correct": m.test.correct,
    "test_loss": m.test.loss,
    "macs": m.macs,
    "score": dict(m.score),
    "validation_accuracy": m.validation_accuracy,
  }
  if m.seed is not None:
    out |= {"seed": m.seed, "learning_rate": m.learning_rate,
            "temperature": m.temperature}  # fmt: skip
  return out


def vote_of(at: Checked) -> Vote:
  return Vote(
    share(at.at("test_accuracy")),
    at.at("test_loss").number(),
    at.maybe("validation_accuracy", share),
  )


def export_of(at: Checked) -> Export:
  count = at.at("count").whole(1)
  return Export(
    file=at.at("file").text(),
    bytes=at.at("bytes").whole(),
    correct=at.at("correct").whole(0, count),
    count=count,
    same_answers=at.at("same_answers").whole(0, count),
    largest_difference=at.at("largest_difference").number(0),
    images_apart=at.at("images_beyond_1e-4").whole(0, count),
    bytes_of_weights=at.maybe("bytes_of_weights", Checked.whole),
    bytes_charged=at.maybe("bytes_charged", Checked.whole),
    bytes_of_memory=at.maybe("bytes_of_memory", Checked.whole),
    milliseconds=at.maybe("milliseconds", Checked.number),
    images_per_second=at.maybe("images_per_second", Checked.number),
    measured_on=at.maybe("measured_on", Checked.text),
  )


def export_to_json(e: Export) -> dict[str, Any]:
  out = plain(e) | {"accuracy": e.accuracy}
  out["images_beyond_1e-4"] = out.pop("images_apart")
  return out


def images_of(at: Checked) -> Images:
  whole = ("train", "test", "size", "channels", "classes")
  return Images(
    name=at.at("name").text(),
    fingerprint=at.at("fingerprint").text(),
    validation=at.at("validation").whole(),
    mean=numbers(at.at("mean")),
    std=numbers(at.at("std")),
    **{name: at.at(name).whole(1) for name in whole},
  )


def made_of(at: Checked) -> Made:
  return Made(
    command=at.at("command").text(),
    python=at.at("python").text(),
    versions=at.at("versions").by_name(Checked.text),
    device=at.at("device").text(),
    platform=at.at("platform").text(),
    jaxr18=at.maybe("jaxr18", Checked.text),
    commit=at.maybe("commit", Checked.text),
    changed=at.maybe("changed", lambda x: x.kind(bool)),
    starts=at.maybe("starts", lambda x: x.each(lambda s: s.kind(dict))) or (),
  )


def plain(value: Any) -> dict[str, Any]:
  """Lists the fields of a dataclass, without those that are None."""
  return {
    f.name: found
    for f in dataclasses.fields(value)
    if (found := getattr(value, f.name)) is not None
    or f.default is dataclasses.MISSING
  }
