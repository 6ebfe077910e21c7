"""A self-contained HTML page: style and script inside, nothing to fetch."""

import base64
import hashlib
import html
import json
import pathlib
from collections.abc import Mapping, Sequence

from jaxr18.report import scatter, svg
from jaxr18.report.points import GOAL, Point, front

_HERE = pathlib.Path(__file__).parent


def document(title: str, body: str, subtitle: str = "") -> str:
  """A whole page around markup such as `pareto` gives.

  Args:
    title: plain text.
    body: markup, without style= attributes and scripts: a browser lets in
      the page's own alone.
    subtitle: plain text below the title.
  """
  style = "\n" + (_HERE / "page.css").read_text()
  script = "\n" + (_HERE / "page.js").read_text()
  # Nothing is fetched, and of styles and scripts these two alone are let in;
  # a style= attribute is not, nor is what the name of a run may hold.
  policy = "; ".join(
    [
      "default-src 'none'",
      "img-src data:",
      f"style-src '{_hash(style)}'",
      f"script-src '{_hash(script)}'",
      "base-uri 'none'",
      "form-action 'none'",
    ]
  )
  about = f'<p class="soft">{html.escape(subtitle)}</p>' if subtitle else ""
  name = html.escape(title)
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header class="top"><div><h1>{name}</h1>{about}</div>
<button id="theme" type="button" hidden aria-label="Change between light and \
dark">Dark</button></header>
<main>
{body}
</main>
<div id="tip" role="status" hidden></div>
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
  """A text between its element's tags, as a content security policy has it."""
  digest = hashlib.sha256(text.encode()).digest()
  return f"sha256-{base64.b64encode(digest).decode()}"


def pareto(
  points: Sequence[Point],
  *,
  key: str = "pareto",
  score_label: str = "score",
  split: str = "test",
  goal: float | None = GOAL,
  table: bool = True,
) -> str:
  """Accuracy against score with the Pareto front and the goal, as markup.

  A legend that hides and shows each series; the picture, wide and for a phone;
  a table of the same numbers. In a `document`, pointing at a point, tapping it
  or going there with the keyboard shows its `detail`.

  Args:
    points: the first one's series gets the strongest color and labels first.
    key: an id, unique in the page.
    score_label: which score it is.
    split: whose images the accuracy is of.
    goal: an accuracy that is drawn as a line; None on a task that has none.
    table: whether to add the table.
  """
  entries = []
  for i, name in enumerate(scatter.series_of(points)):
    mark = svg.tag("path", class_="mark", d=scatter.MARKS[i % 4])
    icon = svg.tag(
      "svg", mark, viewBox="-7 -7 14 14", class_=f"s{i % 6}", aria_hidden="true"
    )
    entries.append(
      svg.tag(
        "button",
        icon,
        html.escape(name),
        type="button",
        aria_pressed="true",
        data_series=i,
      )  # fmt: skip
    )
  filled = svg.tag("path", class_="mark", d=scatter.MARKS[0])
  filled = svg.tag("svg", filled, viewBox="-7 -7 14 14", aria_hidden="true")
  entries.append(
    f'<span class="is"><i class="step"></i>{filled}Pareto front</span>'
  )
  if goal:
    entries.append(
      f'<span class="is"><i class="dash"></i>{100 * goal:g}%</span>'
    )
  shown = [
    {
      "label": p.label,
      "said": scatter.said(p),
      "detail": p.detail,
      "link": p.link,
    }
    for p in points
  ]
  # A text in a script element ends at the first "</", wherever that stands.
  data = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
  draw = lambda part, **size: scatter.draw(
    points,
    key=f"{key}-{part}",
    score_label=score_label,
    split=split,
    goal=goal,
    **size,
  )
  return svg.tag(
    "figure",
    svg.tag("div", *entries, class_="legend"),
    svg.tag("div", draw("wide"), class_="wide"),
    svg.tag(
      "div", draw("narrow", width=360, height=430, letters=20), class_="narrow"
    ),
    f'<script type="application/json">{data}</script>',
    _table(points, score_label) if table else "",
    class_="chart",
    id=key,
  )


def _table(points: Sequence[Point], score_label: str) -> str:
  best = set(front(points))
  rows = [
    [
      p.label,
      p.series,
      f"{100 * p.accuracy:.2f}",
      f"{100 * p.error:.2f}" if p.error else "",
      f"{p.score:.4g}",
      "yes" if p in best else "",
    ]
    for p in sorted(points, key=lambda p: p.score)
  ]
  head = ["network", "series", "accuracy, %", "±", score_label, "on the front"]
  return svg.tag(
    "details", "<summary>The same as a table</summary>", table_of(head, rows)
  )


def table_of(
  head: Sequence[str],
  rows: Sequence[Sequence[str]],
  links: Mapping[str, str] | None = None,
) -> str:
  """A table of plain texts whose first column names the row.

  Args:
    links: by what the first column says, where it leads.
  """
  cells = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
  lines = []
  for first, *rest in rows:
    name = html.escape(first)
    if links and first in links:
      name = svg.tag("a", name, href=links[first])
    name = f'<th scope="row">{name}</th>'
    numbers = "".join(f"<td>{html.escape(c)}</td>" for c in rest)
    lines.append(f"<tr>{name}{numbers}</tr>")
  return scrolled(
    f"<table><thead><tr>{cells}</tr></thead>"
    f"<tbody>{''.join(lines)}</tbody></table>"
  )


def scrolled(table: str, label: str = "Table") -> str:
  """A box that scrolls by itself where the table is wider than the page."""
  return svg.tag(
    "div", table, class_="scroll", tabindex=0, role="region", aria_label=label
  )
