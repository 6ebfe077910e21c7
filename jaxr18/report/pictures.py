"""The page's charts as files, each an SVG and a PNG, through matplotlib."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxr18.report import curves as curves_lib
from jaxr18.report import entry, figure, scatter
from jaxr18.report import evidence as evidence_lib
from jaxr18.report import layers as layers_lib
from jaxr18.report.points import GOAL, Point

BLUE, TEAL, GRAY, RED = "#1b59c4", "#0b7069", "#d8dce2", "#a83218"
COLORS = (BLUE, "#5c6672", "#a04f00", TEAL, "#8d2b93", "#5d6b00")


def draw(
  entries: Sequence[entry.Entry],
  folder: pathlib.Path,
  score: str,
  each: bool = True,
) -> dict[tuple[str, str], str]:
  """Writes every picture of a report as .svg and .png.

  Args:
    score: 'per_network', 'per_layer' or 'on_disk'.
    each: with those of single runs, some seconds a run.

  Returns:
    The .svg's path from the folder above, by the entry's name, or the task's
    of all together, and the picture's: 'pareto', 'curves', 'layers', 'masks',
    'confusion', 'wrong'. Images of pixels are .png alone.
  """
  # A name may have two $, and is no formula.
  with matplotlib.rc_context({"text.parse_math": False}):
    return _draw(entries, folder, score, each)


def _draw(entries, folder, score, each):
  out = {}

  def save(name: str, slug: str, what: str, fig, only_png: bool = False):
    below = folder / slug
    below.mkdir(parents=True, exist_ok=True)
    suffixes = (".png",) if only_png else (".png", ".svg")
    paths = [below / f"{what}{suffix}" for suffix in suffixes]
    figure.save(fig, *paths)
    out[name, what] = paths[-1].relative_to(folder.parent).as_posix()

  for number, (task, own) in enumerate(entry.by_task(entries).items()):
    goal = GOAL if entry.is_published(own) else None
    fig = pareto(entry.all_points(own, score), f"{score} score", goal=goal)
    save(str(task), f"task-{number}" if number else "", "pareto", fig)
  for e in entries if each else ():
    metrics = e.group.runs[0].metrics
    add = functools.partial(save, e.group.name, f"run-{e.group.slug}")
    if any(len(rows) > 1 for rows in metrics.values()):
      add("curves", curves(metrics))
    add("layers", layers(layers_lib.bars(e.result)))
    if e.evidence is None:
      continue
    add("confusion", confusion(e.evidence))
    if e.evidence.masks:
      add("masks", masks(e.evidence), True)
    if e.evidence.wrong:
      add("wrong", wrong(e.evidence), True)
  return out


def pareto(
  points: Sequence[Point],
  score_label: str,
  split: str = "test",
  goal: float | None = GOAL,
):
  """As `scatter.draw`, with its axes and its places of labels."""
  width, height = 920, 470
  f = scatter.frame(points, width, height, goal)
  above = 34  # for the legend
  fig = Figure(figsize=(width / 100, (height + above) / 100))
  # The axes' unit is a pixel of the page's picture.
  ax = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, -above))
  ax.axis("off")
  left, top, right, bottom = f.box
  text = dict(fontsize=8.5, color="#535b67")
  for tick in scatter.score_ticks(f):
    ax.plot([f.x(tick)] * 2, [top, bottom], color=GRAY, lw=0.7)
    ax.text(f.x(tick), bottom + 17, f"{tick:g}", ha="center", **text)
  for tick in scatter.accuracy_ticks(f, goal):
    own = tick == goal
    style = dict(color=RED, ls="--", lw=1) if own else dict(color=GRAY, lw=0.7)
    ax.plot([left, right], [f.y(tick)] * 2, **style)
    ax.text(left - 7, f.y(tick), f"{100 * tick:g}", ha="right", va="center",
            **text | ({"color": RED} if own else {}))  # fmt: skip
  ax.text((left + right) / 2, height - 8, f"{score_label}, lower is better",
          ha="center", **text)  # fmt: skip
  ax.text(12, (top + bottom) / 2, f"{split} accuracy, %", rotation=90,
          ha="center", va="center", **text)  # fmt: skip
  line = scatter.steps(points, f)
  ax.plot(*zip(*line, strict=True), color="#777777", lw=1, label="Pareto front")
  order = scatter.series_of(points)
  best = set(scatter.front(points))
  for number, name in enumerate(order):
    color = COLORS[number % 6]
    style = dict(ls="", marker="osD^"[number % 4], ms=5.5, mec=color)
    for p in (p for p in points if p.series == name):
      x, y = f.x(p.score), f.y(p.accuracy)
      if p.error:
        ends = [f.y(p.accuracy - p.error), f.y(p.accuracy + p.error)]
        ax.plot([x, x], ends, color=color, lw=1.2, marker="_", ms=5)
      ax.plot(x, y, mfc=color if p in best else "white", **style)
    ax.plot([], [], mfc="white", label=name, **style)
  placed = scatter.label_places(points, f, 26, goal)
  for i, (words, x, y) in placed.items():
    color = COLORS[order.index(points[i].series) % 6]
    ax.text(x, y, words, fontsize=8, color=color, va="baseline")
  ax.legend(loc="upper left", bbox_to_anchor=(left / width, 1), ncols=5,
            frameon=False, fontsize=8.5)  # fmt: skip
  return fig


def curves(metrics: curves_lib.Metrics):
  """Accuracy and loss by epoch, beside each other."""
  fig = Figure(figsize=(9.2, 3), layout="constrained")
  axes = fig.subplots(1, 2)
  panels = (
    (curves_lib.ACCURACIES, "accuracy, %", 100),
    (curves_lib.LOSSES, "training loss", 1),
  )
  for ax, (fields, label, scale) in zip(axes, panels, strict=True):
    named = set()
    for c in curves_lib.curves(metrics, fields):
      color = COLORS[list(fields.values()).index(c.name) % 2 * 2]
      x, y = zip(*c.points, strict=True)
      y = [scale * v for v in y]
      style = dict(lw=0.7, alpha=0.45) if c.faint else dict(lw=1.6)
      if len(x) == 1:
        style["marker"] = "o"
      name = None if c.faint or c.name in named else c.name
      named.add(name)
      ax.plot(x, y, color=color, label=name, **style)
    begins = curves_lib.starts(metrics)
    for phase, start in begins.items():
      if start:
        ax.axvline(start, color="#535b67", ls=":", lw=0.8)
      if len(begins) > 1 and max(r["epoch"] for r in metrics[phase]):
        ax.text(start, 1.01, f" {phase}", fontsize=8, color="#535b67",
                transform=ax.get_xaxis_transform())  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)
    if len(fields) > 1:
      ax.legend(fontsize=8)
  return fig


def layers(bars: Sequence[layers_lib.LayerBar]):
  """Five panels whose rows are the same layers."""
  fig = Figure(figsize=(11.5, 1 + 0.24 * len(bars)), layout="constrained")
  axes = fig.subplots(1, 5, sharey=True)
  rows = np.arange(len(bars))
  each = lambda get: np.array([get(x) for x in bars], float)
  kept = each(lambda x: x.kept)
  axes[0].barh(rows, kept, color=BLUE, label="kept")
  axes[0].barh(rows, each(lambda x: x.weights) - kept, left=kept, color=GRAY,
               label="removed")  # fmt: skip
  axes[1].barh(rows, each(lambda x: x.density), color=BLUE)
  axes[1].set_xlim(0, 1)
  axes[2].barh(rows, each(lambda x: x.macs), color=TEAL)
  w, a = each(lambda x: max(x.w_bits)), each(lambda x: max(x.a_bits))
  axes[3].barh(rows - 0.2, w, 0.38, color=BLUE, label="weights")
  axes[3].barh(rows + 0.2, a, 0.38, color=TEAL, label="inputs")
  axes[3].set_xlim(0, max(w.max(), a.max()) * 1.1)
  params, ops = each(lambda x: x.params_term), each(lambda x: x.ops_term)
  axes[4].barh(rows, params, color=BLUE, label="weights")
  axes[4].barh(rows, ops, left=params, color=TEAL, label="MACs")
  titles = ("weights", "density", "MACs", "bits", "per-layer score")
  for ax, title in zip(axes, titles, strict=True):
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)
    ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    ax.grid(axis="x", alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
      ax.legend(fontsize=7, ncols=2, loc="upper center",
                bbox_to_anchor=(0.5, -0.06), frameon=False)  # fmt: skip
  axes[0].set_yticks(rows, [x.path for x in bars])
  axes[0].invert_yaxis()
  return fig


def confusion(found: evidence_lib.Evidence):
  """Counts, the wrong ones colored by how many they are."""
  counts = found.confusion
  apart = np.where(np.eye(len(counts), dtype=bool), 0, counts)
  fig = Figure(figsize=(5.6, 4.8), layout="constrained")
  ax = fig.subplots()
  ax.imshow(apart, cmap="Oranges", vmax=1.6 * max(1, apart.max()))
  for (i, j), n in np.ndenumerate(counts):
    weight = "bold" if i == j else "normal"
    ax.text(j, i, str(n), ha="center", va="center", fontsize=8, weight=weight)
  ax.set_xticks(range(len(counts)), found.classes, rotation=40, ha="right")
  ax.set_yticks(range(len(counts)), found.classes)
  ax.set_xlabel("called")
  ax.set_ylabel("is")
  return fig


def masks(found: evidence_lib.Evidence):
  """Share of kept weights, inputs downwards and outputs to the right."""
  draw_one = lambda ax, kept: ax.imshow(
    kept, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
  )
  names = [f"{p}\n{100 * m.mean():.1f}% kept" for p, m in found.masks.items()]
  return _grid(list(found.masks.values()), names, draw_one)


def wrong(found: evidence_lib.Evidence):
  """The images that the network is most wrong about."""
  draw_one = lambda ax, w: ax.imshow(w.image, interpolation="nearest")
  names = [
    f"{found.classes[w.label]},\ncalled {found.classes[w.answer]}"
    for w in found.wrong
  ]
  return _grid(found.wrong, names, draw_one)


def _grid(items: Sequence, names: Sequence[str], draw_one: Callable):
  columns = min(8, len(items))
  lines = -(-len(items) // columns)
  fig = Figure(figsize=(1.3 * columns, 1.6 * lines), layout="constrained")
  axes = fig.subplots(lines, columns, squeeze=False)
  for ax in axes.flat:
    ax.axis("off")
  for ax, item, name in zip(axes.flat, items, names, strict=False):
    draw_one(ax, item)
    ax.set_title(name, fontsize=6)
  return fig
