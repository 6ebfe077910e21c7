"""Several ONNX models of one input as one that answers what their vote does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import compose, helper

from jaxr18.deploy.onnx_graph import Graph

LEAST = 1e-30  # is added to a probability before its logarithm


def together(
  models: Sequence[bytes], vote: str, weights: Sequence[float] | None
) -> bytes:
  """Makes one model of several, with `ensemble.voted_logits` of theirs.

  Args:
    models: of `to_onnx`, for the same images.
    vote: one of `ensemble.VOTES`.
    weights: of the members; used by 'weighted' alone.

  Returns:
    The serialized model, with the first one's metadata.
  """
  parts = [onnx.load_from_string(data) for data in models]
  graph, first = Graph(), parts[0]
  named = [
    compose.add_prefix(part, f"member{i}/", rename_inputs=False).graph
    for i, part in enumerate(parts)
  ]
  logits = [f"member{i}/logits" for i in range(len(parts))]
  _vote(graph, logits, vote, weights, first.graph.output[0])
  made = helper.make_graph(
    [*(node for part in named for node in part.node), *graph.nodes],
    "jaxr18",
    first.graph.input,
    first.graph.output,
    [*(x for part in named for x in part.initializer),
     *graph.constants.values()],
  )  # fmt: skip
  first.graph.CopyFrom(made)
  onnx.checker.check_model(first, full_check=True)
  return first.SerializeToString()


def _vote(graph: Graph, logits: list[str], vote: str, weights, output) -> None:
  """Adds the nodes of `ensemble.vote` and a logarithm."""
  if vote == "logit":
    graph("Mean", *logits, name="mean")
    graph("LogSoftmax", "mean", name="logits")
    return
  each = [graph("Softmax", x, name=f"{x}/probability") for x in logits]
  if vote == "weighted":
    each = [
      graph("Mul", p, graph.floats(f"{p}/weight", w), name=f"{p}/weighted")
      for p, w in zip(each, weights, strict=True)
    ]
  mean = graph("Sum" if vote == "weighted" else "Mean", *each, name="mean")
  if vote == "majority":
    classes = output.type.tensor_type.shape.dim[1].dim_value
    how = (
      graph.constant("classes", np.array(classes)),
      graph.floats("votes", [0, 1]),
    )
    given = []
    for x, p in zip(logits, each, strict=True):
      graph("ArgMax", p, name=f"{x}/answer", axis=-1, keepdims=0)
      given.append(graph("OneHot", f"{x}/answer", *how, name=f"{x}/vote"))
    shares = graph("Mean", *given, name="shares")
    # As in `ensemble.vote`: less than half a vote, and all adds up to 1.
    part = graph.floats("part of a vote", 0.5 / len(each))
    graph("Mul", mean, part, name="parts")
    graph("Add", shares, "parts", name="mixed")
    whole = graph.floats("whole", 1 + 0.5 / len(each))
    mean = graph("Div", "mixed", whole, name="shares of 1")
  graph("Add", mean, graph.floats("least", LEAST), name="above 0")
  graph("Log", "above 0", name="logits")
