"""A result in a few lines of text."""

from jaxr18.cost.figures import FIGURES
from jaxr18.run.result import Result, accuracy_of


def summary(result: Result) -> str:
  """Returns the few lines that people want to see at the end of a run."""
  lines = [members_table(result)] if result.members else []
  test, score = result.test, result.score
  lines.append(
    f"test accuracy {test.accuracy:.2%} ({test.correct} of {test.count})"
  )
  for name in FIGURES:
    figure = getattr(score, name)
    lines.append(
      f"score, {name}: {figure.total:.6f} = {figure.params_term:.6f} (weights)"
      f" + {figure.ops_term:.6f} (MACs)"
    )
  lines.append(
    f"{score.macs:,} MACs, {score.per_network.w:,} parameters,"
    f" {result.seconds:.0f} s of training"
  )
  return "\n".join(lines)


def members_table(result: Result) -> str:
  """Returns a line for each member, what they differ in, and each vote."""
  sources = list(result.phases.values())[-1].sources or ()
  lines = ["member   test accuracy  validation   per-layer score"]

  def line(name, test, validation, rest):
    shown = "" if validation is None else f"{validation:.2%}"
    lines.append(f"{name:<12} {test:>9.2%} {shown:>11}   {rest}")

  for i, m in enumerate(result.members):
    what = "" if m.seed is None else f"seed {m.seed}"
    if len(sources) == len(result.members):
      what = sources[i]
    line(str(i), m.test.accuracy, m.validation_accuracy,
         f"{m.score['per_layer']:15.6f}  {what}")  # fmt: skip
  mean, std = accuracy_of(result.members)
  lines.append(f"mean {mean:.2%}, standard deviation {100 * std:.2f} points")
  lines.append("share of test images on which two members answer differently:")
  for row in result.disagreement:
    lines.append("  " + " ".join(f"{x:.4f}" for x in row))
  for name, v in result.votes.items():
    chosen = "the vote" if name == result.vote else ""
    line(name, v.accuracy, v.validation_accuracy, chosen)
  if result.vote == "weighted" and result.weights:
    weights = ", ".join(f"{w:.3f}" for w in result.weights)
    lines.append(f"weights, fitted on validation images: {weights}")
  return "\n".join(lines)
