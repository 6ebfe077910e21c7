"""Tables of trained networks: accuracy, score, what they cost."""

import json

from benchmarks.results import RESULTS, run, table
from jaxr18.cost.figures import FIGURES
from jaxr18.run.parts import Answers, Export
from jaxr18.run.result import accuracy_of

SCORES = ("score: per network", "per layer", "on disk")

# Runs of configs/quant.py, each with the bits behind its name.
QUANT_BITS = (8, 4, 3, 2)

# Runs of configs/prune_*.py, each with the share that it keeps behind its name.
PRUNED_WEIGHTS = tuple(f"prune_unstructured_{d}" for d in (1.0, 0.5, 0.3, 0.1))
PRUNED_STRUCTURED = tuple(f"prune_structured_{d}" for d in (0.75, 0.5, 0.3))


def runs(*names: str) -> str:
  """Runs by folder: accuracy, score, cost, time."""
  rows = []
  for name in names:
    r = run(name)
    s = r.score
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        _answers(r.test),
        f"{s.per_network.total:.4f}",
        f"{s.per_layer.total:.4f}",
        f"{s.on_disk.total:.4f}",
        f"{s.macs / 1e6:.1f} M",
        f"{s.per_network.w / 1e6:.2f} M",
        f"{s.stored_bytes / 1000:,.0f}",
        f"{r.activation_bytes / 1000:,.0f}",
        f"{r.seconds / 60:.0f}",
      ]
    )
  header = ["run", "test accuracy", *SCORES,
            "MACs", "parameters", "weights, kB", "activations, kB",
            "minutes"]  # fmt: skip
  return table(header, rows)


def quantization() -> str:
  """dense_narrow in fewer bits: calibrated alone, and trained on."""
  epochs = run(f"quant_{QUANT_BITS[0]}").config["quant"]["epochs"]

  def cell(name):
    accuracy = run(name).test.accuracy
    return f"[{100 * accuracy:.2f}%](docs/results/{name}/result.json)"

  rows = []
  for bits in (32, *QUANT_BITS):
    after = "dense_narrow" if bits == 32 else f"quant_ptq{bits}"
    trained = "dense_narrow" if bits == 32 else f"quant_{bits}"
    score = run(trained).score
    rows.append(
      [
        str(bits),
        cell(after),
        cell(trained),
        f"{score.per_layer.total:.4f}",
        f"{score.on_disk.total:.4f}",
      ]
    )
  header = ["bits", "calibrated only", f"trained {epochs} epochs, distilled",
            "score: per layer", "on disk"]  # fmt: skip
  return table(header, rows)


def _answers(found: Answers | Export) -> str:
  share = 100 * found.correct / found.count
  return f"{share:.2f}% ({found.correct:,} of {found.count:,})"


def exports(*names: str) -> str:
  """Runs by folder: each exported file beside the network, on the test set."""
  rows = []
  for name in names:
    for form, e in run(name).exports.items():
      weights = e.bytes_of_weights
      rows.append(
        [
          f"[{name}](docs/results/{name}/result.json), {form}",
          f"{e.bytes:,}",
          "" if weights is None else f"{weights:,}",
          _answers(e),
          f"{e.same_answers:,}",
          f"{e.images_apart:,}",
          f"{e.largest_difference:.2g}",
        ]
      )
  header = ["run, format", "bytes", "of them weights", "test accuracy",
            "same answers", "images with a logit off by over 1e-4",
            "largest difference"]  # fmt: skip
  return table(header, rows)


def pruned() -> str:
  """Pruned runs beside the dense network that all of them start from."""
  whole = run("dense_narrow").score.per_network.w
  rows = []
  for name in ("dense_narrow", *PRUNED_WEIGHTS, *PRUNED_STRUCTURED):
    r = run(name)
    s = r.score
    c = s.per_network
    what = ""
    if name in (*PRUNED_WEIGHTS, *PRUNED_STRUCTURED):
      of = "weights" if name in PRUNED_WEIGHTS else "channels"
      density = r.config["prune"]["prune"]["density"]
      what = f"{density:.0%} of {of}" if density < 1 else "all, trained on"
    kept = c.w * (1 - c.p_s - c.p_u)
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        what,
        _answers(r.test),
        f"{c.total:.4f}",
        f"{s.per_layer.total:.4f}",
        f"{s.on_disk.total:.4f}",
        f"{s.macs / 1e6:.2f} M",
        f"{kept / 1e3:,.1f} k ({kept / whole:.0%})",
        f"{r.seconds / 60:.0f}",
      ]
    )
  header = ["run", "keeps", "test accuracy", *SCORES,
            "MACs", "parameters kept", "minutes"]  # fmt: skip
  return table(header, rows)


def populations(*names: str) -> str:
  """Runs of a population by folder: accuracy over seeds."""
  rows = []
  for name in names:
    r = run(name)
    each = ", ".join(f"{100 * m.test.accuracy:.2f}" for m in r.members)
    mean, std = accuracy_of(r.members)
    rows.append(
      [
        f"[{name}](docs/results/{name}/result.json)",
        f"{100 * mean:.2f} ± {100 * std:.2f}%",
        each,
        f"{r.members[0].score['per_layer']:.4f}",
        f"{r.members[0].macs / 1e6:.1f} M",
        f"{r.seconds / 60:.0f}",
      ]
    )
  header = ["run", "test accuracy, mean ± standard deviation", "each seed, %",
            "per-layer score of one", "MACs of one", "minutes"]  # fmt: skip
  return table(header, rows)


def ensemble(name: str) -> str:
  """An ensemble's members, one a row, and what all of them answer."""
  r = run(name)
  sources = list(r.phases.values())[-1].sources or ()
  rows = [
    [
      source.removeprefix("runs/"),
      f"{100 * m.test.accuracy:.2f}%",
      *(f"{m.score[k]:.4f}" for k in FIGURES),
      f"{m.macs / 1e6:.2f} M",
      "",
    ]
    for source, m in zip(sources, r.members, strict=True)
  ]
  pairs = [x for i, row in enumerate(r.disagreement) for x in row[i + 1 :]]
  rows.append(
    [
      f"[all](docs/results/{name}/result.json), by {r.vote}",
      f"{100 * r.test.accuracy:.2f}%",
      *(f"{getattr(r.score, k).total:.4f}" for k in FIGURES),
      f"{r.score.macs / 1e6:.2f} M",
      f"{100 * sum(pairs) / len(pairs):.1f}%",
    ]
  )
  header = ["member", "test accuracy", *SCORES,
            "MACs", "two disagree on"]  # fmt: skip
  return table(header, rows)


def search(name: str) -> str:
  """A study's candidates, those on the front first, then the more accurate."""
  found = json.loads((RESULTS / name / "search.json").read_text())
  trained = [t for t in found["trials"] if t["state"] in ("complete", "halved")]
  best = set(found["front"])
  trained.sort(key=lambda t: (t["number"] not in best, -t["accuracy"]))
  rows = [
    [
      f"{t['number']}: {t['candidate']}",
      "yes" if t["number"] in best else "",
      f"{t['score']:.5f}",
      ", ".join(f"{100 * r['accuracy']:.1f}" for r in t["rungs"]),
      f"{100 * t['accuracy']:.2f}%" if t["state"] == "complete" else "halved",
      f"{t['seconds'] / 60:.1f}",
    ]
    for t in trained
  ]
  epochs = " and ".join(map(str, found["config"]["search"]["rungs"]))
  header = ["trial", "on the front", "per-layer score",
            f"validation accuracy after {epochs}, %", "trained to the end",
            "minutes"]  # fmt: skip
  over = sum(t["state"] == "over budget" for t in found["trials"])
  budget = found["config"]["search"]["score_budget"]
  kept = f"[search.json](docs/results/{name}/search.json)"
  return (
    table(header, rows)
    + f"\n{found['finished']} candidates were trained; {over} others were over"
    + f" the score budget of {budget:g} ({kept}).\n"
  )
