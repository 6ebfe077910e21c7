"""docs/browser/ in a real browser, against ONNX Runtime in Python."""

import functools
import http.server
import io
import pathlib
import threading

import numpy as np
import pytest
from chromium import LOW_CONTRAST, launched, needs_browser
from PIL import Image

from docs.browser import vendor
from jaxr18.report.evidence import CLASSES
from jaxr18.run.result import read

pytest.importorskip("playwright")
DOCS = pathlib.Path(__file__).parents[1] / "docs"
needs_runtime = pytest.mark.skipif(
  not vendor.is_there(),
  reason="no ONNX Runtime Web: python -m docs.browser.vendor fetches it",
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@pytest.fixture(scope="module")
def address():
  """Of docs/ as `python -m http.server` serves it."""
  handler = functools.partial(_Quiet, directory=str(DOCS))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def context(address):
  """What a person has open; in the end nothing complained or came from afar."""
  said = []
  with launched() as browser:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(15_000)
    context.on("console", lambda m: said.append(m.text))
    context.on("weberror", lambda e: said.append(str(e.error)))
    context.on("request", lambda r: r.url.startswith((address, "data:"))
               or said.append(r.url))  # fmt: skip
    yield context
  assert not said, said


@pytest.fixture(scope="module")
def page(context, address):
  """Opened once, which compiles 14 MB of WebAssembly."""
  page = context.new_page()
  page.goto(f"{address}browser/index.html")
  page.wait_for_selector("body[data-network]")
  return page


def _png(pixels: np.ndarray) -> dict:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()}


def _after(page, act) -> list[float]:
  """The logits that the page shows next."""
  values = page.locator("#logits data")
  first = values.first.get_attribute("value")
  act()
  page.wait_for_function(
    "old => document.querySelector('#logits data').value !== old", arg=first
  )
  return [float(v) for v in values.evaluate_all("a => a.map(d => d.value)")]


def _open(page, name: str) -> None:
  page.locator("#network").select_option(name)
  page.wait_for_selector(f"body[data-network={name}]")


def _pixels(page) -> np.ndarray:
  """uint8 [32, 32, 3], what the canvas shows."""
  shown = page.locator("#picture").evaluate(
    "c => [...c.getContext('2d').getImageData(0, 0, 32, 32).data]"
  )
  return np.array(shown, np.uint8).reshape(32, 32, 4)[..., :3]


def _pictures(count: int) -> np.ndarray:
  """uint8 [count, 32, 32, 3]: noise on smooth colors, as in photographs."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
  smooth = [Image.fromarray(c).resize((32, 32), Image.BICUBIC) for c in coarse]
  noisy = np.stack(smooth) + rng.normal(0, 8, (count, 32, 32, 3))
  return noisy.clip(0, 255).astype(np.uint8)


@needs_browser
@needs_runtime
class TestPage:
  def test_logits_are_those_of_python(self, page):
    """Within 1e-5: both compute in float32, and sum in their own order.

    A sum at the border of two levels of the next layer's inputs may be rounded
    to either, which moves logits by far more. One picture of six may be such.
    """
    ort = pytest.importorskip("onnxruntime")
    file = DOCS / "results" / "three_bits_small" / "network.onnx"
    pictures = _pictures(6)
    session = ort.InferenceSession(str(file))
    expected = session.run(None, {"images": pictures})[0]
    _open(page, "three_bits_small")
    shown = []
    for picture in pictures:
      choose = functools.partial(page.set_input_files, "#file", _png(picture))
      shown.append(_after(page, choose))
      assert np.array_equal(_pixels(page), picture)
    far = np.abs(np.array(shown) - expected).max(1)
    assert np.sort(far)[-2] < 1e-5, far
    answer = CLASSES["cifar10"][np.argmax(shown[-1])]
    assert page.locator("tr.first").inner_text().startswith(answer)

  @pytest.mark.parametrize("name", ["three_bits", "train_on"])  # older, newer
  def test_layers_and_facts_are_the_results(self, page, name):
    _open(page, name)
    result = read(DOCS / "results" / name)
    rows = page.locator("#layers tbody tr").all_inner_texts()
    expected = [[row.path, str(row.w_bits), str(row.a_bits)]
                for row in result.score.rows]  # fmt: skip
    assert [row.split()[:3] for row in rows] == expected
    about = page.locator("#about").inner_text()
    assert f"{result.test.accuracy:.2%} of the test images right" in about
    assert f"score {result.score.per_layer.total:.4f}" in about
    assert " ms for a picture" in page.locator("#time").inner_text()

  def test_drawing_by_pointer_and_by_keys(self, page):
    _after(page, page.locator("#clear").click)
    paper = _pixels(page)
    assert (paper == paper[0, 0]).all()
    page.locator("#color").fill("#ff0000")
    canvas = page.locator("#picture")
    _after(page, lambda: canvas.click(position={"x": 5, "y": 5}))
    red = (_pixels(page) == (255, 0, 0)).all(-1)
    assert red[0, 0] and not red[10:].any()
    page.keyboard.press("ArrowDown")
    _after(page, lambda: page.keyboard.press("Space"))
    red = (_pixels(page) == (255, 0, 0)).all(-1)
    assert red[17, 16] and "row 17" in page.locator("#place").inner_text()

  def test_what_is_no_picture(self, page):
    file = {"name": "a.png", "mimeType": "image/png", "buffer": b"no"}
    page.set_input_files("#file", file)
    page.wait_for_function(
      "() => document.getElementById('status').textContent"
    )
    assert "a.png is not a picture" in page.locator("#status").inner_text()

  @pytest.mark.parametrize("width", [1100, 375])
  @pytest.mark.parametrize("theme", ["light", "dark"])
  def test_it_can_be_read(self, page, theme, width):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 800})
    seen, low = page.evaluate(LOW_CONTRAST)
    assert seen > 150 and low == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width

  def test_without_the_runtime(self, context, address):
    other = context.browser.new_context()  # this one may complain
    page = other.new_page()
    page.route("**/vendor/*", lambda route: route.fulfill(status=404))
    page.goto(f"{address}browser/index.html")
    text = "docs.browser.vendor"
    page.locator("#status").get_by_text(text).wait_for(timeout=20_000)
    other.close()


class TestVendor:
  def test_without_npm(self, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(vendor.MissingError, match=r"npm .* install Node\.js"):
      vendor.fetch(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()

  def test_another_package(self, tmp_path):
    archive = tmp_path / "a.tgz"
    archive.write_bytes(b"x")
    with pytest.raises(vendor.MissingError, match="a.tgz has the hash sha512-"):
      vendor.unpack(archive, tmp_path / "vendor")
    assert not vendor.is_there(tmp_path / "vendor")
