"""The page as Markdown, for a repository or a wiki.

Texts of runs are escaped: a name is shown as it is, and is no markup.
"""

import json
import re
from collections.abc import Mapping, Sequence

from jaxr18.report import curves, entry, layers, points
from jaxr18.report.entry import Entry
from jaxr18.report.points import Task

# By the entry's name, or the task's, and the picture's: its file.
Drawn = Mapping[tuple[str, str], str]


def report(
  entries: Sequence[Entry],
  remarks: Sequence[str] = (),
  figure: str = "per_network",
  drawn: Drawn | None = None,
) -> str:
  """The same as `sections.report` gives, with links to pictures.

  Args:
    drawn: as `pictures.draw` returns it; None where there are no pictures.
  """
  drawn = drawn or {}
  lines = ["# jaxr18: accuracy and score", "", entry.NOTES[figure], ""]
  for task, own in entry.by_task(entries).items():
    lines += _of_task(task, own, figure, drawn)
  if remarks:
    lines += ["Left out:", ""]
    lines += [*(f"- {line_of(remark)}" for remark in remarks), ""]
  for e in entries:
    lines += section(e, drawn)
  return "\n".join(lines).rstrip() + "\n"


def _of_task(task: Task, entries, figure: str, drawn: Drawn) -> list[str]:
  """The runs of one task, and the published points where it is theirs."""
  every = entry.all_points(entries, figure)
  best = points.front(every)
  about = (
    f"{len(every)} networks by test accuracy and {figure} score;"
    f" on the Pareto front are {', '.join(p.label for p in best)}"
  )
  lines = [f"## {escape(str(task))}", ""]
  lines += _picture(drawn, str(task), "pareto", about)
  head, *rows = entry.overview_texts(entries)
  lines += table(head, rows)
  if not entry.is_published(entries):
    return lines
  sources = {
    p["label"]: g["source"] for g in points.sources() for p in g["points"]
  }
  lines += ["Published points, by the reference formula:", ""]
  return lines + table(
    ("network", "accuracy, %", "score", "from"),
    [
      [p.label, f"{100 * p.accuracy:.2f}", f"{p.score:.4f}", sources[p.label]]
      for p in points.reference_points()
    ],
  )


def section(e: Entry, drawn: Drawn) -> list[str]:
  run, name = e.group.runs[0], e.group.name
  lines = [f"## {escape(name)}", "", line_of(entry.sentence(e)), ""]
  lines += table(("", "", ""), [list(number) for number in entry.numbers(e)])
  lines += ["### Curves", ""]
  if run.metrics:
    lines += [line_of(curves.summary(run.metrics)), ""]
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
    lines += [f"Left out: {escape(e.why)}", ""]
  else:
    lines += _evidence(e, drawn)
  lines += ["### Make it again", "", *fenced("bash", e.result.made.command), ""]
  lines += [line_of(entry.versions(e.result)), ""]
  config = json.dumps(e.result.config, indent=1)
  lines += ["<details><summary>The whole resolved config</summary>", ""]
  lines += [*fenced("json", config), "", "</details>", ""]
  return lines


def _evidence(e: Entry, drawn: Drawn) -> list[str]:
  found, name = e.evidence, e.group.name
  lines = ["### Masks", ""]
  if found.masks:
    kept = (
      f"{escape(p)} {100 * m.mean():.1f}%" for p, m in found.masks.items()
    )
    lines += _picture(drawn, name, "masks", f"masks of {name}")
    lines += [f"Kept: {', '.join(kept)}.", ""]
  else:
    lines += ["No mask removes a weight.", ""]
  lines += ["### Confusion matrix", ""]
  lines += ["Rows are what images are, columns what they are called."]
  lines += [line_of(found.remark), ""] if found.remark else [""]
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
  return [f"![{escape(about)}]({file})", ""] if file else []


def escape(text: str) -> str:
  """A text that Markdown shows as it is, in one line.

  A backslash goes before whatever could be markup. Underscores between letters
  are none, and stay readable.
  """
  text = " ".join(text.split())
  return re.sub(r"([\\`*{}\[\]<>|~&$#]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def line_of(text: str) -> str:
  """As `escape`, where the text begins a line and could begin a list."""
  return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escape(text))


def fenced(kind: str, text: str) -> list[str]:
  """A block of code whose fence is longer than any that is in it."""
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return [f"{fence}{kind}", text, fence]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A Markdown table; numbers to the right, an empty line behind it."""
  line = lambda cells: f"| {' | '.join(cells)} |"
  rule = ["---", *["---:"] * (len(head) - 1)]
  texts = [list(map(escape, cells)) for cells in (head, *rows)]
  return [line(texts[0]), line(rule), *map(line, texts[1:]), ""]
