"""Charts as SVG for the page, and as files: needs the extra `report`.

vl-convert turns a chart into an SVG that draws by attributes alone, without a
script and without style= attributes, as a strict policy of the page demands.
"""

from __future__ import annotations

import html
import pathlib
import re
from typing import TYPE_CHECKING, Any

from jaxr18.report import palette

if TYPE_CHECKING:
  import altair as alt

HOW = "pip install 'jaxr18[report]'"
_ROOT_TAG = re.compile(r"<svg [^>]*>")


def missing() -> str:
  """Returns why nothing can be drawn, with the mend; '' where it can."""
  try:
    import altair
    import vl_convert
  except ImportError as e:
    return f"{e}; {HOW}"
  del altair, vl_convert
  return ""


def quickly() -> Any:
  """Returns a context in which Altair checks no chart; the tests check each."""
  from altair.utils import schemapi

  return schemapi.debug_mode(False)


def markup(chart: alt.TopLevelMixin) -> str:
  """Returns the chart as vl-convert draws it, in the light colors."""
  import vl_convert

  spec = chart.to_dict(validate=False)
  return vl_convert.vegalite_to_svg(spec)


def inline(
  chart: alt.TopLevelMixin,
  key: str,
  title: str,
  about: str,
  role: str = "img",
) -> str:
  """Returns the chart as an element of a page.

  Args:
    chart: of `charts`.
    key: makes its ids unique in the page.
    title, about: say what it is and what it shows, for who does not see it.
    role: 'group' where its marks are to be reached, else 'img'.
  """
  drawn = markup(chart)
  # Vega counts ids anew in each drawing.
  drawn = re.sub(r'\bid="(\w+)"', rf'id="{key}-\1"', drawn)
  drawn = re.sub(r"url\(#(\w+)\)", rf"url(#{key}-\1)", drawn)
  box = re.search(r'viewBox="([^"]*)"', drawn)
  assert box, "vl-convert gives each drawing a viewBox"
  begin = (
    f'<svg viewBox="{box[1]}" role="{role}" aria-labelledby="{key}-title"'
    f' aria-describedby="{key}-desc">'
    f'<title id="{key}-title">{html.escape(title)}</title>'
    f'<desc id="{key}-desc">{html.escape(about)}</desc>'
  )
  return _ROOT_TAG.sub(lambda _: begin, drawn, count=1)


def save(chart: alt.TopLevelMixin, *paths: pathlib.Path) -> None:
  """Writes the chart to each path, a .svg or a .png.

  The SVG is light or dark as the system is that shows it; the PNG is light.
  """
  import vl_convert

  drawn = markup(chart)
  paper = f'<rect width="100%" height="100%" fill="{palette.PAPER}"/>'
  begin = _ROOT_TAG.search(drawn)
  assert begin, "vl-convert gives each drawing an svg element"
  plain = begin[0] + paper + drawn[begin.end() :]
  for path in paths:
    if path.suffix == ".png":
      path.write_bytes(vl_convert.svg_to_png(plain, scale=2))
    else:
      style = f"<style>{palette.file_style()}</style>"
      path.write_text(begin[0] + style + paper + drawn[begin.end() :] + "\n")
