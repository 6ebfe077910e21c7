"""The page as Markdown, for a repository or an issue."""

import json
from collections.abc import Mapping, Sequence

from jaxr18.report import curves, entry, layers, points
from jaxr18.report.entry import Entry

# By the entry's name ('' for all together) and the picture's: its files.
Drawn = Mapping[tuple[str, str], str]


def report(
  entries: Sequence[Entry],
  remarks: Sequence[str] = (),
  figure: str = "course",
  drawn: Drawn | None = None,
) -> str:
  """The same as `sections.report` gives, with links to pictures.

  Args:
    drawn: as `pictures.draw` returns it; None where there are no pictures.
  """
  drawn = drawn or {}
  every = entry.all_points(entries, figure)
  best = points.front(every)
  lines = ["# jaxr18: accuracy and score", ""]
  about = (
    f"{len(every)} networks by test accuracy and {figure} score;"
    f" on the Pareto front are {', '.join(p.label for p in best)}"
  )
  lines += [entry.NOTES[figure], ""]
  lines += _picture(drawn, "", "pareto", about)
  lines += table(entry.OVERVIEW, entry.overview_texts(entries))
  lines += ["Published points, by the course's formula:", ""]
  head = ("network", "accuracy, %", "score", "from")
  sources = {
    p["label"]: g["source"] for g in points.sources() for p in g["points"]
  }
  lines += table(
    head,
    [
      [p.label, f"{100 * p.accuracy:.2f}", f"{p.score:.4f}", sources[p.label]]
      for p in points.reference_points()
    ],
  )
  lines += [*(f"Left out, {remark}." for remark in remarks), ""]
  for e in entries:
    lines += section(e, drawn)
  return "\n".join(lines).rstrip() + "\n"


def section(e: Entry, drawn: Drawn) -> list[str]:
  run, name = e.group.runs[0], e.group.name
  lines = [f"## {name}", "", entry.sentence(e), ""]
  lines += table(("", "", ""), [list(number) for number in entry.numbers(e)])
  lines += ["### Curves", ""]
  if run.metrics:
    lines += [curves.summary(run.metrics), ""]
    lines += _picture(drawn, name, "curves", f"curves of {name}")
  else:
    lines += ["Left out: no metrics.jsonl is there.", ""]
  head, rows = entry.member_texts(e.result)
  if rows:
    lines += ["### Members", "", entry.disagreement(e.result), ""]
    lines += table(head, rows)
  lines += ["### Layer by layer", ""]
  lines += _picture(drawn, name, "layers", f"{name} by layer, as below")
  lines += table(layers.HEAD, layers.texts(layers.bars(e.result)))
  if e.evidence is None:
    lines += ["### Masks, confusions, wrong answers", ""]
    lines += [f"Left out: {e.why}", ""]
  else:
    lines += _evidence(e, drawn)
  lines += ["### Make it again", "", "```bash", e.result["command"], "```", ""]
  lines += [entry.versions(e.result), ""]
  config = json.dumps(e.result["config"], indent=1)
  lines += ["<details><summary>The whole resolved config</summary>", ""]
  lines += ["```json", config, "```", "", "</details>", ""]
  return lines


def _evidence(e: Entry, drawn: Drawn) -> list[str]:
  found, name = e.evidence, e.group.name
  lines = ["### Masks", ""]
  if found.masks:
    kept = (f"{p} {100 * m.mean():.1f}%" for p, m in found.masks.items())
    lines += _picture(drawn, name, "masks", f"masks of {name}")
    lines += [f"Kept: {', '.join(kept)}.", ""]
  else:
    lines += ["No mask removes a weight.", ""]
  lines += ["### Confusion matrix", ""]
  lines += ["Rows are what images are, columns what they are called."]
  lines += [found.remark, ""] if found.remark else [""]
  lines += _picture(drawn, name, "confusion", "the matrix below")
  rows = [
    [label, *map(str, counts)]
    for label, counts in zip(found.classes, found.confusion, strict=True)
  ]
  lines += table(("", *found.classes), rows)
  lines += ["### What it is most wrong about", ""]
  lines += _picture(drawn, name, "wrong", "the images of the table below")
  head = ("test image", "is", "called", "probability of that")
  return lines + table(
    head,
    [
      [
        f"#{w.index}",
        found.classes[w.label],
        found.classes[w.answer],
        f"{100 * w.p_answer:.2f}%",
      ]
      for w in found.wrong
    ],
  )


def _picture(drawn: Drawn, name: str, what: str, about: str) -> list[str]:
  file = drawn.get((name, what))
  return [f"![{about}]({file})", ""] if file else []


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A Markdown table; numbers to the right, an empty line behind it."""
  line = lambda cells: f"| {' | '.join(c.replace('|', '/') for c in cells)} |"
  rule = ["---", *["---:"] * (len(head) - 1)]
  return [line(head), line(rule), *map(line, rows), ""]
