"""Figures of matplotlib as files, the same bytes for the same numbers."""

import pathlib

import matplotlib
from matplotlib.figure import Figure

DPI = 150


def save(fig: Figure, *paths: pathlib.Path) -> None:
  """Writes a figure to each path, a .svg or a .png."""
  for path in paths:
    # What would differ the next time: the day, a release, ids at random.
    named = {".svg": "Date", ".png": "Software"}[path.suffix]
    with matplotlib.rc_context({"svg.hashsalt": "jaxr18"}):
      fig.savefig(path, metadata={named: None}, dpi=DPI)
