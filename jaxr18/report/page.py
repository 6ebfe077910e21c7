"""A self-contained HTML page: style and script inside, nothing to fetch."""

import base64
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jaxr18.report import draw, palette, places
from jaxr18.report.points import GOAL, Point, front

_HERE = pathlib.Path(__file__).parent
_MARKS = (  # of the legend: a disk, a square, a diamond, a triangle
  "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
  "M-4.5-4.5h9v9h-9z",
  "M0-6L6 0L0 6L-6 0z",
  "M0-6L5.5 4.5h-11z",
)


@functools.cache
def environment() -> jinja2.Environment:
  """Returns the page's templates; what they show is escaped."""
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def document(title: str, body: str, subtitle: str = "") -> str:
  """Returns a whole page around markup such as `pareto` gives.

  Args:
    title: plain text.
    body: markup, without style= attributes and scripts: a browser lets in
      the page's own alone.
    subtitle: plain text below the title.
  """
  variables = "".join(
    f"  --{name}: light-dark({light}, {dark});\n"
    for name, (light, dark) in palette.VARIABLES.items()
  )
  style = f"\n:root {{\n  color-scheme: light dark;\n{variables}}}\n"
  style += (_HERE / "page.css").read_text() + palette.rules() + "\n"
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
  page = environment().get_template("document.html")
  return page.render(
    title=title,
    subtitle=subtitle,
    body=Markup(body),
    policy=Markup(policy),
    style=Markup(style),
    script=Markup(script),
  )


def _hash(text: str) -> str:
  """A text between its element's tags, as a content security policy has it."""
  digest = hashlib.sha256(text.encode()).digest()
  return f"sha256-{base64.b64encode(digest).decode()}"


def data_block(value: Any) -> Markup:
  """Returns JSON for a script element, which ends at the first "</"."""
  text = json.dumps(value, ensure_ascii=False, allow_nan=False)
  return Markup(text.replace("<", "\\u003c"))


def _macros() -> Any:
  return environment().get_template("macros.html").module


def pareto(
  points: Sequence[Point],
  *,
  key: str = "pareto",
  score_label: str = "score",
  split: str = "test",
  goal: float | None = GOAL,
  table: bool = True,
) -> Markup:
  """Returns accuracy against score with the front and the goal, as markup.

  A legend that hides and shows each series; the picture, wide and for a phone;
  a table of the same numbers. In a `document`, pointing at a point, tapping it
  or going there with the keyboard shows its `detail`. Without the extra
  `report` there is the table alone, and how to get the picture.

  Args:
    points: the first one's series gets the strongest color and labels first.
    key: an id, unique in the page.
    score_label: which score it is.
    split: whose images the accuracy is of.
    goal: an accuracy that is drawn as a line; None on a task that has none.
    table: whether to add the table.
  """
  order = places.series_of(points)
  drawn = _drawn(points, key, score_label, split, goal)
  shown = [
    {
      "label": p.label,
      "said": places.said(p),
      "aria": places.spoken(p),
      "short": [places.shorten(p.label, n) for n in (_WIDE, _NARROW)],
      "series": order.index(p.series),
      "detail": p.detail,
      "link": p.link,
    }
    for p in points
  ]
  return _macros().pareto(
    {
      "key": key,
      "missing": draw.missing(),
      "series": [
        {"name": name, "mark": _MARKS[i % 4]} for i, name in enumerate(order)
      ],
      "goal": f"{100 * goal:g}%" if goal else "",
      "data": data_block(shown),
      "head": ["network", "series", "accuracy, %", "±", score_label,
               "on the front"],
      "rows": _rows(points) if table else [],
      **drawn,
    }
  )  # fmt: skip


_WIDE, _NARROW = 26, 16  # letters of the longest label


def growth(covered: Sequence[tuple[float, float]]) -> Markup:
  """Returns how a search's front grew, as markup; '' where nothing can be seen.

  Args:
    covered: (hours, share of the plane that the front covers) so far.
  """
  if len(covered) < 2:
    return Markup()
  words = "".join(
    f" {share:.0%} after {hours:.2g} hours," for hours, share in
    (covered[0], covered[len(covered) // 2], covered[-1])
  )  # fmt: skip
  about = (
    "Of the plane between the worst and the best accuracy and score that were"
    f" found, the front covers{words[:-1]} of training."
  )
  drawn = Markup()
  if not draw.missing():
    from jaxr18.report import charts

    with draw.quickly():
      title = "How the front grew"
      drawn = Markup(draw.inline(charts.growth(covered), "grown", title, about))
  return _macros().growth({"about": about, "chart": drawn})


def _drawn(points, key, score_label, split, goal) -> dict[str, Markup]:
  if draw.missing():
    return {"wide": Markup(), "narrow": Markup()}
  from jaxr18.report import charts

  names = ", ".join(p.label for p in front(points))
  about = (
    f"{len(points)} networks by {split} accuracy, upwards, and {score_label},"
    " to the right, both on logarithmic axes; the line joins the best at each"
    f" score: {names}. The table below has the numbers."
  )
  out = {}
  for part, size, letters in (
    ("wide", (860, 410), _WIDE),
    ("narrow", (300, 380), _NARROW),
  ):
    with draw.quickly():
      chart = charts.pareto(
        points, score_label, split=split, goal=goal, size=size,
        letters=letters, legend=False,
      )  # fmt: skip
      title = f"{split.title()} accuracy against score"
      drawn = draw.inline(chart, f"{key}-{part}", title, about, "group")
      out[part] = Markup(drawn)
  return out


def _rows(points: Sequence[Point]) -> list[list[str]]:
  best = set(front(points))
  return [
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
