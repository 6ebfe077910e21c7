"""The page's charts and images as files beside report.md."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from jaxr18.report import charts, draw, entry, evidence, layer_charts, layers
from jaxr18.report.points import GOAL

_SIDE = 96  # pixels of a small image


def save_all(
  entries: Sequence[entry.Entry],
  folder: pathlib.Path,
  score: str,
  each: bool = True,
) -> dict[tuple[str, str], str]:
  """Writes every picture of a report: charts as .svg and .png, images as .png.

  Args:
    entries: of the report.
    folder: to write to.
    score: one of `FIGURES`.
    each: with those of single runs.

  Returns:
    The file's path from the folder above, by the entry's name, or the task's
    of all together, and the picture's: 'pareto', 'curves', 'layers', 'mask
    LAYER', 'wrong NUMBER'.
  """
  out: dict[tuple[str, str], str] = {}

  def path(name: str, slug: str, what: str, suffix: str) -> pathlib.Path:
    below = folder / slug
    below.mkdir(parents=True, exist_ok=True)
    made = below / f"{what.replace('/', '-').replace(' ', '-')}{suffix}"
    out[name, what] = made.relative_to(folder.parent).as_posix()
    return made

  def save(name: str, slug: str, what: str, chart: Any) -> None:
    svg = path(name, slug, what, ".svg")
    draw.save(chart, svg, svg.with_suffix(".png"))

  with draw.quickly():
    for number, (task, own) in enumerate(entry.by_task(entries).items()):
      goal = GOAL if entry.is_published(own) else None
      label = entry.score_label(score)
      chart = charts.pareto(entry.all_points(own, score), label, goal=goal)
      save(str(task), f"task-{number}" if number else "", "pareto", chart)
    for e in entries if each else ():
      name, slug = e.group.name, f"run-{e.group.slug}"
      if chart := charts.curves(e.group.runs[0].metrics):
        save(name, slug, "curves", chart)
      save(name, slug, "layers", layer_charts.layers(layers.bars(e.result)))
      if e.evidence is None:
        continue
      for layer, kept in e.evidence.masks.items():
        png = evidence.mask_png(kept)
        path(name, slug, f"mask {layer}", ".png").write_bytes(_enlarged(png))
      for w in e.evidence.wrong:
        png = evidence.image_png(w.image)
        path(name, slug, f"wrong {w.index}", ".png").write_bytes(_enlarged(png))
  return out


def _enlarged(png: bytes) -> bytes:
  image = Image.open(io.BytesIO(png)).convert("RGBA")
  out = io.BytesIO()
  image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(
    out, "PNG", optimize=True
  )
  return out.getvalue()
