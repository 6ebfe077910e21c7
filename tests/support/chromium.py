"""A Chromium that is there, and what tests ask of its pages."""

import contextlib
import shutil

import pytest

BROWSER = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                  "google-chrome"))), None,
)  # fmt: skip
needs_browser = pytest.mark.skipif(
  BROWSER is None, reason="no chromium, chromium-browser or google-chrome"
)
ARGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run"
        " --disable-background-networking --disable-component-update"
        " --disable-sync").split()  # fmt: skip

# Texts whose contrast with what is behind them is too low, WCAG 2's formula.
LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const c = canvas.getContext("2d", {willReadFrequently: true});
  const over = (colors) => {  // from what is behind to what is in front
    c.clearRect(0, 0, 1, 1);
    for (const color of colors) { c.fillStyle = color; c.fillRect(0, 0, 1, 1); }
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = [];
  let seen = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !e.checkVisibility()) continue;
    if (e.closest("script, style, title, desc")) continue;
    const style = getComputedStyle(e);
    const behind = [];
    for (let b = e; b; b = b.parentElement) {
      behind.unshift(getComputedStyle(b).backgroundColor);
    }
    const color = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [over(behind), over([...behind, color])].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5 || style.opacity < 1) {
      out.push(`${e.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`);
    }
  }
  return [seen, out];
}"""


@contextlib.contextmanager
def launched():
  """Starts it, and ends it."""
  from playwright import sync_api

  with sync_api.sync_playwright() as p:
    browser = p.chromium.launch(executable_path=BROWSER, args=ARGS)
    yield browser
    browser.close()
