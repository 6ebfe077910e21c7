"""The page as Markdown, for a repository or a wiki.

Texts of runs are escaped: a name is shown as it is, and is no markup.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jaxr18.report import draw, entry, page, points, sections
from jaxr18.report.entry import Entry

# By the entry's name, or the task's, and the picture's: its file.
Drawn = Mapping[tuple[str, str], str]


@functools.cache
def environment() -> jinja2.Environment:
  """Returns the templates; what they show is escaped as Markdown."""
  made = page.environment().overlay(
    finalize=lambda v: v if isinstance(v, Markup) else Markup(escape(str(v)))
  )
  made.filters |= {
    "line": lambda text: Markup(line_of(text)),
    "join_cells": lambda cells: Markup(" | ").join(map(_cell, cells)),
    "fenced": lambda text, kind: Markup("\n".join(fenced(kind, text))),
    "raw": lambda text: Markup(text),
  }
  return made


def report(
  entries: Sequence[Entry],
  remarks: Sequence[str] = (),
  figure: str = "per_layer",
  drawn: Drawn | None = None,
) -> str:
  """Returns the same as `sections.report`, with links to pictures.

  Args:
    entries: at least one.
    remarks: lines that name the folders that were left out.
    figure: of the score, the one of the pictures.
    drawn: as `pictures.draw` returns it; None where there are no pictures.
  """
  drawn = drawn or {}
  text = environment().get_template("report.md").render(
    note=entry.NOTES[figure],
    missing=draw.missing(),
    tasks=[
      _task(str(task), own, figure, drawn)
      for task, own in entry.by_task(entries).items()
    ],
    remarks=remarks,
    runs=[_run(e, drawn) for e in entries],
  )  # fmt: skip
  return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _task(name: str, entries, figure: str, drawn: Drawn) -> dict[str, Any]:
  """The runs of one task, and the published points where it is theirs."""
  every = entry.all_points(entries, figure)
  best = ", ".join(p.label for p in points.front(every))
  head, *rows = entry.overview_texts(entries)
  return {
    "name": name,
    "picture": drawn.get((name, "pareto")),
    "about": f"{len(every)} networks by test accuracy and"
    f" {entry.score_label(figure)}; on the Pareto front are {best}",
    "head": head,
    "rows": rows,
    "published": [
      [p.label, f"{100 * p.accuracy:.2f}", f"{p.score:.4f}",
       "; ".join(p.detail.splitlines())]
      for p in points.reference_points()
    ] if entry.is_published(entries) else [],
  }  # fmt: skip


def _run(e: Entry, drawn: Drawn) -> dict[str, Any]:
  name = e.group.name
  image = lambda what, about: (
    Markup(f"![{escape(about)}]({drawn[name, what]})")
    if (name, what) in drawn
    else ""
  )
  own = {what: file for (of, what), file in drawn.items() if of == name}
  out = sections.run_texts(e) | {
    "pictures": own,
    "evidence": None,
  }  # fmt: skip
  if found := e.evidence:
    out["evidence"] = {
      "classes": found.classes,
      "remark": found.remark,
      "masks": found.masks,
      "masks_cells": [
        [image(f"mask {path}", f"mask of {path}"), path,
         f"{100 * kept.mean():.1f}%"]
        for path, kept in found.masks.items()
      ],
      "confusion_cells": [
        [label, *map(str, counts)]
        for label, counts in zip(found.classes, found.confusion, strict=True)
      ],
      "wrong_cells": [
        [
          image(f"wrong {w.index}", f"test image {w.index}"),
          f"#{w.index}",
          found.classes[w.label],
          found.classes[w.answer],
          f"{100 * w.p_answer:.2f}%",
        ]
        for w in found.wrong
      ],
    }  # fmt: skip
  return out


def _cell(value: Any) -> Markup:
  return value if isinstance(value, Markup) else Markup(escape(str(value)))


def escape(text: str) -> str:
  """Escapes a text so that Markdown shows it as it is, in one line.

  A backslash goes before whatever could be markup. Underscores between letters
  are none, and stay readable.
  """
  text = " ".join(text.split())
  return re.sub(r"([\\`*{}\[\]<>|~&$#]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def line_of(text: str) -> str:
  """Escapes a text that begins a line, where it could begin a list."""
  return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escape(text))


def fenced(kind: str, text: str) -> list[str]:
  """Fences a block of code by more backticks than any fence in it has."""
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return [f"{fence}{kind}", text, fence]
