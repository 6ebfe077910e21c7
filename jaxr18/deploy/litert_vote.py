"""The vote of several networks in a LiteRT file, in floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxr18.deploy.litert_graph import TYPES, Graph, Tensor

LEAST = 1e-30  # is added to a probability before its logarithm


def voted(
  graph: Graph,
  each: Sequence[Tensor],
  method: str,
  weights: Sequence[float] | None,
) -> Tensor:
  """Adds the operators of `ensemble.voted_logits`; returns its tensor.

  Args:
    graph: takes them.
    each: float32 logits of the members.
    method: one of `ensemble.VOTES`.
    weights: of the members; used by 'weighted' alone.
  """
  (classes,), count = each[0].shape, len(each)

  def floats(op: str, name: str, *inputs: int, **how) -> Tensor:
    made = graph.tensor(name, (classes,), "float32")
    return graph(op, list(inputs), made, **how)

  def number(name: str, value: float) -> int:
    return graph.constant(name, np.array([value], np.float32))

  def mean(name: str, x: Sequence[Tensor], parts: Sequence[float]) -> Tensor:
    scaled = []
    for i, (one, part) in enumerate(zip(x, parts, strict=True)):
      part = number(f"{name}/part{i}", part)
      scaled.append(floats("MUL", f"{name}/{i}", one.index, part).index)
    return floats("ADD_N", name, *scaled)

  equal = [1 / count] * count
  if method == "logit":
    middle = mean("mean", each, equal)
    return floats("LOG_SOFTMAX", "logits", middle.index)
  each = [
    floats("SOFTMAX", f"probability{i}", x.index, beta=1.0)
    for i, x in enumerate(each)
  ]
  parts = weights if method == "weighted" and weights is not None else equal
  p = mean("mean", each, parts)
  if method == "majority":
    axis = graph.constant("axis", np.array([-1], np.int32))
    shape = graph.constant("classes", np.array(classes, np.int32))
    ends = [graph.constant(f"vote{x}", np.array(x, np.float32)) for x in (1, 0)]
    given = []
    for i, x in enumerate(each):
      answer = graph.tensor(f"answer{i}", (), "int32")
      graph("ARG_MAX", [x.index, axis], answer, outputType=TYPES["int32"])
      inputs = answer.index, shape, *ends
      given.append(floats("ONE_HOT", f"given{i}", *inputs, axis=-1))
    # As in `ensemble.vote`: less than half a vote, and all adds up to 1.
    whole = 1 + 0.5 / count
    shares = mean("shares", given, equal)
    parts = 1 / whole, 0.5 / count / whole
    p = mean("mixed", (shares, p), parts)
  p = floats("ADD", "above 0", p.index, number("least", LEAST))
  return floats("LOG", "logits", p.index)
