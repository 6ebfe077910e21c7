"""What a run found, as one typed value, and the result.json that holds it.

On disk all is flat, so that a script of a few lines reads it; here it has
types. Results of older formats are lifted when they are read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxr18.cost import memory
from jaxr18.cost.figures import Score
from jaxr18.host import sealed
from jaxr18.host.checked import Checked, OddValueError
from jaxr18.host.workdir import WorkdirError, read_result
from jaxr18.nn.spec import NetSpec
from jaxr18.run import parts
from jaxr18.run.parts import (
  Answers,
  Export,
  Images,
  Made,
  Member,
  PhaseResult,
  Vote,
)

FORMAT = 3  # 2 was the first with a hash, and 1 had no format
_NAME = "jaxr18 result "
# What the score's figures were called up to format 2.
_RENAMED = {"course": "per_network", "exact": "per_layer", "stored": "on_disk"}


@dataclasses.dataclass(frozen=True)
class Result:
  """All that a table or a reader needs of a finished run.

  Attributes:
    test: the last phase's answers on the test split, by an ensemble's vote; a
      population's are its members' added up.
    validation_accuracy: None where no image is held out.
    score: of the network, or of an ensemble's members together.
    spec: of the network, of an ensemble's the first member's.
    phases: by name, in their order.
    config: resolved, as in config.json.
    seed, seconds: the run's, and those of all its phases.
    made: command, versions and machine.
    members: of a population or an ensemble.
    disagreement: [members, members], the share of test images that two answer
      differently.
    specs: of an ensemble's members.
    votes, vote, weights: of an ensemble: what each way to vote answers, the
      chosen one, the weights of the weighted one.
    exports: by format.
    seen: the images; None of a result from before it was kept.
  """

  test: Answers
  validation_accuracy: float | None
  score: Score
  spec: NetSpec
  phases: Mapping[str, PhaseResult]
  config: Mapping[str, Any]
  seed: int
  seconds: float
  made: Made
  members: tuple[Member, ...] = ()
  disagreement: tuple[tuple[float, ...], ...] = ()
  specs: tuple[NetSpec, ...] = ()
  votes: Mapping[str, Vote] = dataclasses.field(default_factory=dict)
  vote: str | None = None
  weights: tuple[float, ...] | None = None
  exports: Mapping[str, Export] = dataclasses.field(default_factory=dict)
  seen: Images | None = None

  @property
  def is_population(self) -> bool:
    """Whether its members differ in their seeds, and do not vote."""
    return bool(self.members) and not self.votes

  @property
  def images(self) -> int:
    """Images of the test split."""
    each = len(self.members) if self.is_population else 1
    return self.test.count // each

  @property
  def kept(self) -> int:
    """Kernels' weights that no mask removes."""
    return sum(row.kept for row in self.score.rows)

  @functools.cached_property  # of some milliseconds
  def activation_bytes(self) -> int:
    """What the activations of one image need at most, one member at a time."""
    return max(memory.peak(s).bytes for s in self.specs or (self.spec,))

  @property
  def hash(self) -> str:
    """SHA-256 of the content, as result.json has it."""
    return sealed.seal(self.to_json())[sealed.KEY]

  def to_json(self) -> dict[str, Any]:
    """Returns what result.json holds, but for the hash."""
    out = {
      "format": f"{_NAME}{FORMAT}",
      "test_accuracy": self.test.accuracy,
      "test_correct": self.test.correct,
      "test_count": self.test.count,
      "test_loss": self.test.loss,
      "validation_accuracy": self.validation_accuracy,
      "score": self.score.as_dict(),
      "phases": {k: parts.plain(v) for k, v in self.phases.items()},
      "seconds": self.seconds,
      "seed": self.seed,
      "config": self.config,
      "spec": json.loads(self.spec.to_json()),
      **parts.plain(self.made),
    }
    for name in ("jaxr18", "commit", "changed"):
      out.setdefault(name, None)  # that it is not known is said
    if self.seen is not None:
      out["images"] = parts.plain(self.seen)
    if self.members:
      mean, std = accuracy_of(self.members)
      out["members"] = [parts.member_to_json(m) for m in self.members]
      out["members_accuracy_mean"] = mean
      out["members_accuracy_std"] = std
      out["disagreement"] = self.disagreement
    if self.votes:
      out |= {"vote": self.vote, "weights": self.weights}
      out["votes"] = {
        how: {
          "test_accuracy": v.accuracy,
          "test_loss": v.loss,
          "validation_accuracy": v.validation_accuracy,
        }
        for how, v in self.votes.items()
      }
      out["specs"] = [json.loads(spec.to_json()) for spec in self.specs]
    if self.exports:
      out["export"] = {
        k: parts.export_to_json(v) for k, v in self.exports.items()
      }
    return json.loads(json.dumps(out))

  @staticmethod
  def from_json(values: Mapping[str, Any]) -> Result:
    """Reads what result.json holds, of this format or an older one.

    Raises:
      OddValueError: a value is missing, of another kind or out of its range.
    """
    at = Checked(_lifted(values))
    test = parts.answers_of(at, at.at("test_count").whole(1))
    result = Result(
      test=test,
      validation_accuracy=at.maybe("validation_accuracy", parts.share),
      score=parts.score_of(at.at("score")),
      spec=parts.spec_of(at.at("spec")),
      phases=at.at("phases").by_name(parts.phase_of),
      config=parts.config_of(at.at("config")),
      seed=at.at("seed").whole(),
      seconds=at.at("seconds").number(0),
      made=parts.made_of(at),
      specs=at.maybe("specs", lambda x: x.each(parts.spec_of)) or (),
      votes=at.maybe("votes", lambda x: x.by_name(parts.vote_of)) or {},
      vote=at.maybe("vote", Checked.text),
      weights=at.maybe("weights", parts.numbers),
      exports=at.maybe("export", lambda x: x.by_name(parts.export_of)) or {},
      seen=at.maybe("images", parts.images_of),
    )
    if "members" not in at.value:
      return result
    voting = bool(result.votes)
    count = (
      test.count if voting else test.count // len(parts.filled(at, "members"))
    )
    return dataclasses.replace(
      result,
      members=at.at("members").each(lambda x: parts.member_of(x, count)),
      disagreement=at.maybe(
        "disagreement", lambda x: x.each(lambda row: row.each(parts.share))
      ) or (),
    )  # fmt: skip


def read(workdir: pathlib.Path) -> Result:
  """Reads a finished run's result.

  Raises:
    WorkdirError: the run is not finished, there is none, or it is damaged.
  """
  values = read_result(workdir)
  try:
    return Result.from_json(values)
  except (OddValueError, RecursionError) as e:
    why = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
    raise WorkdirError(
      f"{workdir}/result.json is not a result that this release can read:"
      f" {why}; give the --workdir of a finished run",
      why,
    ) from e


def _lifted(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a result of an older format with the names of today's."""
  out, said = dict(values), values.get("format", f"{_NAME}1")
  if said not in [f"{_NAME}{i}" for i in range(1, FORMAT + 1)]:
    raise OddValueError(
      f"its format is {said!r}, and this release reads up to {_NAME}{FORMAT}:"
      " it was written by a newer jaxr18"
    )
  if isinstance(members := out.get("members"), list):
    out["members"] = [_renamed(member) for member in members]
  return _renamed(out)


def _renamed(holder: Any) -> Any:
  if not isinstance(holder, dict) or not isinstance(holder.get("score"), dict):
    return holder
  score = {_RENAMED.get(k, k): v for k, v in holder["score"].items()}
  return holder | {"score": score}


def accuracy_of(members: Sequence[Member]) -> tuple[float, float]:
  """Returns mean and standard deviation (n - 1) of members' test accuracies."""
  found = [m.test.accuracy for m in members]
  return statistics.mean(found), statistics.stdev(found) if found[1:] else 0.0
