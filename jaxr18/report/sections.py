"""A run's part of the page, and the page of several runs, as markup."""

import html
import json
import math
from collections.abc import Sequence

import numpy as np

from jaxr18.report import curves, entry, evidence, layers, page, points, svg
from jaxr18.report.points import FIGURES

OPEN = 3  # so many runs are shown whole


def report(
  entries: Sequence[entry.Entry],
  remarks: Sequence[str] = (),
  figure: str = "per_network",
) -> str:
  """The whole page.

  Args:
    entries: at least one.
    remarks: lines that name the folders that were left out.
    figure: of the score, the one that is shown first.
  """
  names = ", ".join(e.group.name for e in entries)
  title = f"{len(entries)} networks" if len(entries) > 1 else names
  about = "Accuracy on the test split and the score of what it costs."
  tasks = entry.by_task(entries)
  body = []
  for number, (task, own) in enumerate(tasks.items()):
    if len(tasks) > 1:
      body.append(f'<h2 class="task">{html.escape(str(task))}</h2>')
    body.append(_pareto(own, figure, number))
    if entry.is_published(own):
      body.append(_sources())
    if len(entries) > 1:
      body.append("<h3>The runs</h3>" + overview(own))
  if remarks:
    items = "".join(f"<li>{html.escape(r)}</li>" for r in remarks)
    body.append(f'<p class="soft small">Left out:</p>'
                '<ul class="soft small" id="left-out">'
                f"{items}</ul>")  # fmt: skip
  whole = len(entries) <= OPEN
  body += [section(e, i, whole) for i, e in enumerate(entries)]
  body.append(
    "<footer>Made by <code>python -m jaxr18.report</code>; every number is"
    " from a run's result.json and metrics.jsonl, or was computed from its"
    " network.</footer>"
  )
  return page.document(f"jaxr18: {title}", "\n".join(body), about)


def _pareto(entries, figure, number: int) -> str:
  """One task's chart for each of the score's figures, one shown at a time."""
  goal = points.GOAL if entry.is_published(entries) else None
  inputs, panels = [], []
  for name in FIGURES:
    chosen = " checked" if name == figure else ""
    ident = f"figure-{number}-{name}"
    inputs.append(
      f'<input type="radio" name="figure-{number}" id="{ident}"'
      f' class="figure-{name}"{chosen}><label for="{ident}">{name}</label>'
    )
    chart = page.pareto(
      entry.all_points(entries, name),
      key=f"pareto-{number}-{name}",
      score_label=f"{name} score",
      goal=goal,
    )
    note = f'<p class="soft small">{html.escape(entry.NOTES[name])}</p>'
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
    " reference formula, whichever figure of the runs is shown. A bar is one"
    " standard deviation over seeds, and a point without one is a single"
    " seed.</p></details>"
  )


def overview(entries: Sequence[entry.Entry]) -> str:
  """The runs of one task as a table with links to their parts."""
  links = {e.group.name: f"#{points.anchor(e.group)}" for e in entries}
  head, *rows = entry.overview_texts(entries)
  return page.table_of(head, rows, links)


def section(e: entry.Entry, number: int, whole: bool = True) -> str:
  """All about a run; of several that differ in the seed, about the first.

  Args:
    number: its own, which keeps ids apart.
    whole: open, and not only its first line.
  """
  run = e.group.runs[0]
  parts = [
    f'<p class="soft">{html.escape(entry.sentence(e))}</p>',
    _cards(e),
    _curves(run, number),
    _members(e.result),
    "<h3>Layer by layer</h3>"
    '<p class="soft small">From the input to the head. The bars of a column'
    " share one scale; the last column is the layer's part of the per-layer"
    " score, its weights' term and its MACs' term.</p>",
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
    svg.tag("section", *parts, id=points.anchor(e.group)),
    class_="run",
    open="" if whole else None,
  )


def _cards(e: entry.Entry) -> str:
  cards = (
    f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}"
    f"<small>{html.escape(more)}</small></dd></div>"
    for name, value, more in entry.numbers(e)
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


def _members(result) -> str:
  head, rows = entry.member_texts(result)
  if not rows:
    return ""
  words = html.escape(entry.disagreement(result))
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
      shade = math.ceil(9 * n / (right if i == j else wrong))
      cells.append(f'<td class="{kind} v{shade}">{n}</td>')
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


def _again(run) -> str:
  r = run.result
  config = html.escape(json.dumps(r.config, indent=1))
  changes = html.escape("\n".join(points.changes(r.config)))
  return (
    "<h3>Make it again</h3>"
    f'<pre class="wrap">{html.escape(r.made.command)}</pre>'
    f'<p class="soft small">{html.escape(entry.versions(r))}</p>'
    "<details><summary>What its config sets otherwise than the defaults"
    f'</summary><pre class="wrap">{changes}</pre></details>'
    "<details><summary>The whole resolved config</summary>"
    f"<pre>{config}</pre></details>"
  )
