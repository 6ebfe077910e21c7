"""A run's part of the page, and the page of several runs, as markup."""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxr18.report import curves, evidence, layers, page, points, svg
from jaxr18.report.points import FIGURES, Group, Point

NOTES = {
  "course": "By the published points' own formula: one number of bits for a"
  " whole network, the largest of any layer.",
  "exact": "Summed over layers, each with its own bits and the MACs that are"
  " really done; the published points stay by their formula.",
  "stored": "As exact, the weights at what a file of them needs, scales and"
  " all; the published points stay by their formula.",
}


OPEN = 3  # so many runs are shown whole


class Entry(NamedTuple):
  """A group of runs, and what the network of its first one shows.

  Attributes:
    group: what differs in the seed alone.
    evidence: None where there is none.
    why: then the reason, as a sentence.
  """

  group: Group
  evidence: evidence.Evidence | None
  why: str = ""

  @property
  def anchor(self) -> str:
    kept = (c if c.isalnum() or c in "-_." else "-" for c in self.group.name)
    return "run-" + "".join(kept)

  @property
  def result(self) -> dict[str, Any]:
    return self.group.runs[0].result


def all_points(entries: Sequence[Entry], figure: str) -> list[Point]:
  """The entries, and then the public reference points."""
  own = [points.of_group(e.group, figure) for e in entries]
  return own + points.reference_points()


def report(
  entries: Sequence[Entry],
  remarks: Sequence[str] = (),
  figure: str = "course",
) -> str:
  """The whole page.

  Args:
    entries: at least one.
    remarks: a line for each folder that was left out.
    figure: of the score, the one that is shown first.
  """
  names = ", ".join(e.group.name for e in entries)
  title = f"{len(entries)} networks" if len(entries) > 1 else names
  about = "Accuracy on the test split and the score of what it costs."
  links = {e.group.name: f"#{e.anchor}" for e in entries}
  body = [_pareto(entries, figure, links), _sources()]
  if len(entries) > 1:
    body.append("<h3>The runs</h3>" + overview(entries, links))
  if remarks:
    items = "".join(f"<li>{html.escape(r)}</li>" for r in remarks)
    body.append(f'<p class="soft small">Left out:</p><ul class="soft small">'
                f"{items}</ul>")  # fmt: skip
  whole = len(entries) <= OPEN
  body += [section(e, i, whole) for i, e in enumerate(entries)]
  body.append(
    "<footer>Made by <code>python -m jaxr18.report</code>; every number is"
    " from a run's result.json and metrics.jsonl, or was computed from its"
    " network.</footer>"
  )
  return page.document(f"jaxr18: {title}", "\n".join(body), about)


def _pareto(entries, figure, links) -> str:
  """One chart for each of the score's figures, one shown at a time."""
  inputs, panels = [], []
  for name in FIGURES:
    chosen = " checked" if name == figure else ""
    ident = f"figure-{name}"
    inputs.append(
      f'<input type="radio" name="figure" id="{ident}"{chosen}>'
      f'<label for="{ident}">{name}</label>'
    )
    chart = page.pareto(
      all_points(entries, name),
      key=f"pareto-{name}",
      score_label=f"{name} score",
      links=links,
    )
    note = f'<p class="soft small">{html.escape(NOTES[name])}</p>'
    panels.append(f'<div class="panel {name}">{note}{chart}</div>')
  return (
    '<fieldset class="tabs"><legend>Score of the runs</legend>'
    f"{''.join(inputs)}{''.join(panels)}</fieldset>"
  )


def _sources() -> str:
  rows = zip(points.SERIES, points.sources(), strict=True)
  items = "".join(
    f"<li><b>{series}</b>: {html.escape(group['source'])}</li>"
    for series, group in rows
  )
  return (
    "<details><summary>Where the published points are from</summary>"
    f'<ul class="small">{items}</ul><p class="small soft">Their score is the'
    " course's formula, whichever figure of the runs is shown. A bar is one"
    " standard deviation over seeds, and a point without one is a single"
    " seed.</p></details>"
  )


OVERVIEW = ("run", "accuracy, %", "seeds", "score: course", "exact", "stored",
            "MACs", "weights kept", "90%")  # fmt: skip


def overview_texts(entries: Sequence[Entry]) -> list[list[str]]:
  """A row of texts for each entry, as `OVERVIEW` names them."""
  rows = []
  for e in entries:
    g, score = e.group, e.result["score"]
    bar = f" ± {100 * g.error:.2f}" if len(g.accuracies) > 1 else ""
    rows.append(
      [
        g.name,
        f"{100 * g.accuracy:.2f}{bar}",
        str(len(g.accuracies)),
        *(f"{g.scores[f]:.4f}" for f in FIGURES),
        f"{score['macs']:,}",
        f"{sum(r['kept'] for r in score['rows']):,}",
        "yes" if g.accuracy >= points.GOAL else "no",
      ]
    )
  return rows


def overview(entries: Sequence[Entry], links: dict[str, str]) -> str:
  return page.table_of(OVERVIEW, overview_texts(entries), links)


def section(e: Entry, number: int, whole: bool = True) -> str:
  """All about a run; of several that differ in the seed, about the first.

  Args:
    number: its own, which keeps ids apart.
    whole: open, and not only its first line.
  """
  run = e.group.runs[0]
  parts = [
    f'<p class="soft">{html.escape(sentence(e))}</p>',
    _cards(e),
    _curves(run, number),
    _members(e.result),
    "<h3>Layer by layer</h3>"
    '<p class="soft small">From the input to the head. The bars of a column'
    " share one scale; the last column is the layer's part of the exact score,"
    " its weights' term and its MACs' term.</p>",
    layers.table(layers.bars(e.result)),
  ]
  if e.evidence is None:
    parts.append(
      "<h3>Masks, confusions, wrong answers</h3>"
      f'<p class="soft">Left out: {html.escape(e.why)}</p>'
    )
  else:
    parts += [_masks(e.evidence), _confusion(e.evidence), _wrong(e.evidence)]
  parts.append(_again(run))
  figures = ", ".join(f"{f} {e.group.scores[f]:.4f}" for f in FIGURES)
  line = (
    f"<h2>{html.escape(e.group.name)}</h2>"
    f'<span class="soft small">{100 * e.group.accuracy:.2f}%; {figures}</span>'
  )
  return svg.tag(
    "details",
    f"<summary>{line}</summary>",
    svg.tag("section", *parts, id=e.anchor),
    class_="run",
    open="" if whole else None,
  )


def sentence(e: Entry) -> str:
  """What was trained, in a line."""
  r, g = e.result, e.group
  phases = " → ".join(r["config"]["phases"])
  if points.is_population(r):
    seeds = f"{len(g.accuracies)} members, one seed each"
  elif len(g.runs) > 1:
    names = ", ".join(run.name for run in g.runs[1:])
    seeds = (
      f"{len(g.runs)} seeds; what follows is of {g.runs[0].name}, seed"
      f" {r['seed']}, and like it are {names}"
    )
  else:
    seeds = f"seed {r['seed']}"
  return f"{r['config']['data']['name']}; phases {phases}; {seeds}."


def numbers(e: Entry) -> list[tuple[str, str, str]]:
  """(name, number, more of it) for what matters most."""
  r, g = e.result, e.group
  score = r["score"]
  if len(g.accuracies) > 1:
    more = f"± {100 * g.error:.2f} over {len(g.accuracies)} seeds"
  else:
    more = f"{r['test_correct']:,} of {r['test_count']:,}"
  out = [("test accuracy", f"{100 * g.accuracy:.2f}%", more)]
  for name in FIGURES:
    f = score[name]
    terms = f"{f['params_term']:.4f} weights + {f['ops_term']:.4f} MACs"
    if len(g.accuracies) > 1:
      terms = "mean over seeds"
    out.append((f"score, {name}", f"{g.scores[name]:.4f}", terms))
  rows = score["rows"]
  kept, weights = sum(x["kept"] for x in rows), sum(x["weights"] for x in rows)
  out += [
    ("MACs", _short(score["macs"]), f"{score['macs']:,}"),
    (
      "weights kept",
      _short(kept),
      f"{100 * kept / weights:.1f}% of {weights:,}",
    ),
    ("training", _time(r["seconds"]), r["device"]),
  ]  # fmt: skip
  return out


def _short(n: int) -> str:
  for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
    if n >= unit:
      return f"{n / unit:.3g}{name}"
  return str(n)


def _time(seconds: float) -> str:
  if seconds < 100:
    return f"{seconds:.0f} s"
  minutes = seconds / 60
  return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _cards(e: Entry) -> str:
  cards = (
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}"
    f"<small>{html.escape(more)}</small></dd></div>"
    for name, value, more in numbers(e)
  )
  return f'<dl class="cards">{"".join(cards)}</dl>'


def _curves(run, number: int) -> str:
  head = "<h3>Curves</h3>"
  if not run.metrics:
    return f'{head}<p class="soft">Left out: no metrics.jsonl is there.</p>'
  charts = [
    curves.draw(run.metrics, curves.ACCURACIES, "accuracy, %", f"a{number}"),
    curves.draw(run.metrics, curves.LOSSES, "training loss", f"l{number}"),
  ]
  if not any(len(rows) > 1 for rows in run.metrics.values()):
    charts = []
  figures = "".join(f"<figure>{c}</figure>" for c in charts if c)
  table = page.table_of(curves.HEAD, curves.texts(run.metrics))
  words = html.escape(curves.summary(run.metrics))
  return (
    f'{head}<p class="soft small">{words}</p><div class="pair">{figures}</div>'
    f"<details><summary>The same as a table</summary>{table}</details>"
  )


def member_texts(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Head and rows of texts: members of a population or ensemble, its votes."""
  if "members" not in result:
    return [], []
  head = ["member", "test accuracy, %", "validation, %", "score: course",
          "exact", "stored"]  # fmt: skip
  percent = lambda x: "" if x is None else f"{100 * x:.2f}"
  rows = []
  for i, m in enumerate(result["members"]):
    name = f"{i}, seed {m['seed']}" if "seed" in m else str(i)
    scores = [f"{m['score'][f]:.4f}" for f in FIGURES]
    found = m["test_accuracy"], m.get("validation_accuracy")
    rows.append([name, *map(percent, found), *scores])
  for how, v in result.get("votes", {}).items():
    chosen = " (the vote)" if how == result.get("vote") else ""
    scores = [f"{result['score'][f]['total']:.4f}" for f in FIGURES]
    found = v["test_accuracy"], v.get("validation_accuracy")
    rows.append([how + chosen, *map(percent, found), *scores])
  return head, rows


def disagreement(result: dict[str, Any]) -> str:
  """In words, '' where there are not several members."""
  table = result.get("disagreement") or []
  pairs = [x for i, row in enumerate(table) for x in row[i + 1 :]]
  if not pairs:
    return ""
  return (
    f"Two members answer differently on {100 * min(pairs):.1f}% to"
    f" {100 * max(pairs):.1f}% of the test images."
  )


def _members(result) -> str:
  head, rows = member_texts(result)
  if not rows:
    return ""
  words = html.escape(disagreement(result))
  return (
    f'<h3>Members</h3><p class="soft small">{words}</p>'
    f"{page.table_of(head, rows)}"
  )


def _masks(found: evidence.Evidence) -> str:
  head = "<h3>Masks</h3>"
  if not found.masks:
    return f'{head}<p class="soft">No mask removes a weight.</p>'
  items = []
  for path, kept in found.masks.items():
    uri = evidence.data_uri(evidence.mask_png(kept))
    density = f"{100 * kept.mean():.1f}% kept"
    alt = f"mask of {path}, {density}"
    items.append(
      f'<li><img src="{uri}" alt="{html.escape(alt)}">'
      f"<b>{html.escape(path).replace('/', '/<wbr>')}</b><br>{density}</li>"
    )
  return (
    f'{head}<p class="soft small">Rows are input channels, columns output'
    " channels; the fuller the color, the more of a kernel's taps are kept."
    f'</p><ul class="images masks">{"".join(items)}</ul>'
  )


def _confusion(found: evidence.Evidence) -> str:
  counts = found.confusion
  each = counts.sum(1)
  right = max(1, counts.diagonal().max())
  wrong = max(1, (counts - np.diag(counts.diagonal())).max())
  head = "".join(
    f'<th scope="col">{html.escape(c)}</th>' for c in found.classes
  )
  rows = []
  for i, name in enumerate(found.classes):
    cells = []
    for j, n in enumerate(counts[i]):
      kind = "right" if i == j else "wrong" if n else "wrong none"
      share = 45 * n / (right if i == j else wrong)
      cells.append(f'<td class="{kind}" style="--v:{share:.0f}">{n}</td>')
    recall = f"<td>{100 * counts[i, i] / max(1, each[i]):.1f}%</td>"
    label = f'<th scope="row">{html.escape(name)}</th>'
    rows.append(f"<tr>{label}{''.join(cells)}{recall}</tr>")
  table = (
    f'<table class="confusion"><thead><tr><th scope="col">is \\ called</th>'
    f'{head}<th scope="col">right</th></tr></thead>'
    f"<tbody>{''.join(rows)}</tbody></table>"
  )
  note = f" {found.remark}" if found.remark else ""
  return (
    '<h3>Confusion matrix</h3><p class="soft small">Test images by what they'
    f" are, in rows, and what the network calls them.{html.escape(note)}</p>"
    + page.scrolled(table, "Confusion matrix")
  )


def _wrong(found: evidence.Evidence) -> str:
  head = "<h3>What it is most wrong about</h3>"
  if not found.wrong:
    return f'{head}<p class="soft">Every test image is right.</p>'
  items = []
  for w in found.wrong:
    label, answer = found.classes[w.label], found.classes[w.answer]
    uri = evidence.data_uri(evidence.image_png(w.image))
    alt = f"test image {w.index}, {label}, called {answer}"
    items.append(
      f'<li><img src="{uri}" alt="{html.escape(alt)}">'
      f"<b>{html.escape(label)}</b><br>called {html.escape(answer)},"
      f" {100 * w.p_answer:.2f}%<br>#{w.index}</li>"
    )
  return (
    f'{head}<p class="soft small">The wrong answers with the least probability'
    " of the right class; each with the probability that the network gives its"
    f' answer, and its number in the test split.</p><ul class="images">'
    f"{''.join(items)}</ul>"
  )


def versions(result: dict[str, Any]) -> str:
  packages = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
  return (
    f"Python {result['python']}, {packages}; {result['device']},"
    f" {result['platform']}"
  )


def _again(run) -> str:
  r = run.result
  config = html.escape(json.dumps(r["config"], indent=1))
  changes = html.escape("\n".join(points.changes(r["config"])))
  return (
    "<h3>Make it again</h3>"
    f'<pre class="wrap">{html.escape(r["command"])}</pre>'
    f'<p class="soft small">{html.escape(versions(r))}</p>'
    "<details><summary>What its config sets otherwise than the defaults"
    f'</summary><pre class="wrap">{changes}</pre></details>'
    "<details><summary>The whole resolved config</summary>"
    f"<pre>{config}</pre></details>"
  )
