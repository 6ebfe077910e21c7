"""The page of several runs: what its template shows, as plain values."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxr18.config import schema as config_lib
from jaxr18.config.lift import lift
from jaxr18.report import curves, draw, entry, evidence, layers, page, points

OPEN = 3  # so many runs are shown whole


def report(
  entries: Sequence[entry.Entry],
  remarks: Sequence[str] = (),
  figure: str = "per_layer",
) -> str:
  """Returns the whole page.

  Args:
    entries: at least one.
    remarks: lines that name the folders that were left out.
    figure: of the score, the one that is shown first.
  """
  names = ", ".join(e.group.name for e in entries)
  title = f"{len(entries)} networks" if len(entries) > 1 else names
  expanded = len(entries) <= OPEN
  tasks = enumerate(entry.by_task(entries).items())
  body = page.environment().get_template("report.html").render(
    tasks=[_task(i, str(task), own, figure) for i, (task, own) in tasks],
    several=len(entries) > 1,
    compare=page.data_block(comparison(entries)) if entries[1:] else "",
    remarks=remarks,
    runs=[_run(e, i) | {"open": expanded} for i, e in enumerate(entries)],
  )  # fmt: skip
  about = "Accuracy on the test split and the score of what it costs."
  return page.document(f"jaxr18: {title}", body, about)


def _task(number: int, name: str, entries, figure: str) -> dict[str, Any]:
  """One task's chart for each of the score's figures, and its runs."""
  published = entry.is_published(entries)
  head, *rows = entry.overview_texts(entries)
  return {
    "number": number,
    "name": name,
    "figures": [
      {
        "name": f,
        "label": entry.LABELS[f],
        "chosen": f == figure,
        "note": entry.NOTES[f],
        "chart": page.pareto(
          entry.all_points(entries, f),
          key=f"pareto-{number}-{f}",
          score_label=entry.score_label(f),
          goal=points.GOAL if published else None,
        ),
      }
      for f in entry.SHOWN
    ],
    "sources": [
      (series, group["source"])
      for series, group in zip(points.SERIES, points.sources(), strict=True)
    ] if published else [],
    "head": head,
    "rows": rows,
    "links": {e.group.name: f"#{points.anchor(e.group)}" for e in entries},
  }  # fmt: skip


def run_texts(e: entry.Entry) -> dict[str, Any]:
  """Returns what the page and the Markdown show of a run, as texts.

  Of several that differ in the seed it is about the first.
  """
  run = e.group.runs[0]
  members_head, members = entry.member_texts(e.result)
  bars = layers.bars(e.result)
  return {
    "name": e.group.name,
    "anchor": points.anchor(e.group),
    "sentence": entry.sentence(e),
    "numbers": entry.numbers(e),
    "has_metrics": bool(run.metrics),
    "curves_words": curves.summary(run.metrics),
    "curves_head": curves.HEAD,
    "curves_rows": curves.texts(run.metrics),
    "members_head": members_head,
    "members": members,
    "disagreement": entry.disagreement(e.result),
    "layers_head": layers.HEAD,
    "layers_rows": layers.texts(bars),
    "why": e.why,
    "command": run.result.made.command,
    "versions": entry.versions(run.result),
    "config": json.dumps(run.result.config, indent=1),
  }


def _run(e: entry.Entry, number: int) -> dict[str, Any]:
  """All about a run; its number keeps ids apart."""
  run = e.group.runs[0]
  scores = (f"{entry.LABELS[f]} {e.group.scores[f]:.4f}" for f in entry.SHOWN)
  return run_texts(e) | {
    "line": f"{100 * e.group.accuracy:.2f}%; {', '.join(scores)}",
    "curves": _curves(run.metrics, f"c{number}"),
    "layers": layers.table(layers.bars(e.result)),
    "evidence": _evidence(e.evidence) if e.evidence else None,
    "changes": "\n".join(points.changes(run.result.config)),
  }


def _curves(metrics: curves.Metrics, key: str) -> Markup:
  if draw.missing():
    return Markup()
  from jaxr18.report import charts

  with draw.quickly():
    chart = charts.curves(metrics)
    if chart is None:
      return Markup()
    title, about = "Accuracy and loss by epoch", curves.summary(metrics)
    about += " The table below has the numbers."
    return Markup(draw.inline(chart, key, title, about))


def _evidence(seen: evidence.Evidence) -> dict[str, Any]:
  return {
    "classes": seen.classes,
    "remark": seen.remark,
    "masks": [
      {
        "path": path,
        "uri": evidence.data_uri(evidence.mask_png(kept)),
        "density": f"{100 * kept.mean():.1f}% kept",
      }
      for path, kept in seen.masks.items()
    ],
    "confusion": _confusion(seen),
    "wrong": [
      {
        "uri": evidence.data_uri(evidence.image_png(w.image)),
        "index": w.index,
        "label": seen.classes[w.label],
        "answer": seen.classes[w.answer],
        "p": f"{100 * w.p_answer:.2f}%",
      }
      for w in seen.wrong
    ],
  }


def _confusion(seen: evidence.Evidence) -> list[dict[str, Any]]:
  """A row for each class: its counts, shaded in ten steps, and the recall."""
  counts = seen.confusion
  each = counts.sum(1)
  right = max(1, counts.diagonal().max())
  wrong = max(1, (counts - np.diag(counts.diagonal())).max())
  rows = []
  for i, name in enumerate(seen.classes):
    cells = []
    for j, n in enumerate(counts[i]):
      kind = "right" if i == j else "wrong" if n else "wrong none"
      shade = math.ceil(9 * n / (right if i == j else wrong))
      cells.append({"class_": f"{kind} v{shade}", "count": n})
    recall = f"{100 * counts[i, i] / max(1, each[i]):.1f}%"
    rows.append({"name": name, "cells": cells, "right": recall})
  return rows


def comparison(entries: Sequence[entry.Entry]) -> dict[str, Any]:
  """Returns the runs' numbers and configs, for two to be compared.

  Returns:
    The names, the values by field that all have, and of each run the others.
  """
  every = [_fields(e) for e in entries]
  first = every[0]
  shared = {k: v for k, v in first.items() if all(x.get(k) == v for x in every)}
  own = [{k: v for k, v in x.items() if k not in shared} for x in every]
  names = [e.group.name for e in entries]
  return {"names": names, "shared": shared, "own": own}


def _fields(e: entry.Entry) -> dict[str, str]:
  r, g = e.result, e.group
  out = {"test accuracy, %": f"{100 * g.accuracy:.2f}"}
  for f in entry.SHOWN:
    out[f"score, {entry.LABELS[f]}"] = f"{g.scores[f]:.4f}"
  out |= {
    "MACs": f"{r.score.macs:,}",
    "weights kept": f"{r.kept:,}",
    "training, s": f"{r.seconds:.0f}",
    "device": r.made.device,
  }
  config = config_lib.flatten(lift(r.config))
  return out | {
    k: json.dumps(v).replace('"', "") for k, v in sorted(config.items())
  }
