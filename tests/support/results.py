"""Results of small networks that nobody has trained."""

import json
from typing import Any

from jaxr18.config import base
from jaxr18.cost.figures import FIGURES, Score
from jaxr18.cost.score import score
from jaxr18.nn import spec
from jaxr18.run.result import Result

NET = spec.resnet((8, 16), (1, 1), (1, 2), (1, 2), (False, False))
NET = spec.with_bits(NET, (("stem", 8, 4), (".*", 4, 8)))


def values(
  seed: int = 0,
  correct: int = 80,
  learning_rate: float = 0.1,
  charged: Score | None = None,
  **more,
) -> dict[str, Any]:
  """Returns what a result.json holds, of 100 test images.

  Args:
    seed, learning_rate: of the config.
    correct: answers.
    charged: the score; that of `NET` with half of its weights if there is none.
    more: fields in place of these.
  """
  config = base(("train",))
  config.seed, config.train.optimizer.learning_rate = seed, learning_rate
  count = more.get("test_count", 100)
  charged = charged or score(NET, sparsity=0.5)
  return {
    "test_accuracy": more.get("test_correct", correct) / count,
    "test_correct": correct,
    "test_count": count,
    "test_loss": 0.5,
    "validation_accuracy": None,
    "score": json.loads(charged.to_json()),
    "phases": {"train": {"step": 9, "epoch": 1, "validation_accuracy": None,
                         "seconds": 1.5}},
    "seed": seed,
    "config": json.loads(config.to_json()),
    "spec": json.loads(NET.to_json()),
    "seconds": 1.5,
    "command": "python -m jaxr18.main",
    "device": "1 x cpu",
    "platform": "x86_64",
    "python": "3.11",
    "versions": {"jax": "0.10"},
  } | more  # fmt: skip


def member(
  seed: int, correct: int, per_layer: float = 0.1, count: int = 100
) -> dict[str, Any]:
  """Returns a population's member as result.json has it."""
  return {
    "seed": seed,
    "test_accuracy": correct / count,
    "test_correct": correct,
    "test_loss": 0.5,
    "macs": 9,
    "score": dict.fromkeys(FIGURES, 0.1) | {"per_layer": per_layer},
    "validation_accuracy": 0.5,
  }


def result(*args, **kwargs) -> Result:
  """Returns `values` as a `Result`."""
  return Result.from_json(values(*args, **kwargs))
