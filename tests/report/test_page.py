"""The report's page in a real browser, from disk, with one run made here."""

import json
import os
import re
import subprocess
import sys

import pytest
import tiny_run
from chromium import LOW_CONTRAST, launched, needs_browser

from jaxr18.host import sealed
from jaxr18.report import page as page_lib
from jaxr18.report import palette, points
from jaxr18.run import experiment, result

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("playwright")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """(folder, what was said) of a report on a run and results without one."""
  root = tmp_path_factory.mktemp("report")
  config = tiny_run.phases("train")
  config.train.prune.density, config.train.epochs = 0.5, 0
  tiny = root / "runs" / "tiny_s0"
  experiment.run(config, tiny)  # an untrained step, which compiles, is spared
  first = result.read(tiny).to_json()
  row = sealed.read_lines(tiny / "train" / "metrics.jsonl").rows[0]
  rows = [row | {"epoch": i, "loss": 2 - i / 9, "train_accuracy": i / 9}
          for i in range(4)]  # fmt: skip
  rows = [sealed.seal(r, sealed.LINE) for r in rows]
  lines = "".join(json.dumps(r) + "\n" for r in rows)
  (tiny / "train" / "metrics.jsonl").write_text(lines)

  def write(name, change, changed=None):
    found = first | change | {"config": first["config"] | (changed or {})}
    (root / "runs" / name).mkdir()
    sealed_text = json.dumps(sealed.seal(found))
    (root / "runs" / name / "result.json").write_text(sealed_text)

  cifar10 = {"data": first["config"]["data"] | {"name": "cifar10"}}
  of_10000 = {"test_count": 10_000, "test_correct": 9_100,
              "images": first["images"] | {"name": "cifar10"}}  # fmt: skip
  write("ours", of_10000 | {"test_accuracy": 0.91}, cifar10)
  write("odd", {"test_loss": float("nan")})

  half = {"test_accuracy": 0.5, "test_correct": 32}
  write("tiny_s1", {"seed": 1} | half, {"seed": 1})
  most = {"test_accuracy": 0.9375, "test_correct": 60}
  write("a<b>&quot;", most, {"eval_batch_size": 7})
  (root / "runs" / "speed").mkdir()
  (root / "runs" / "speed" / "result.json").write_text('{"rows": []}')
  (root / "runs" / "begun").mkdir()
  (root / "runs" / "begun" / "config.json").write_text("{}")
  done = subprocess.run(
    [sys.executable, "-m", "jaxr18.report", "runs", "--out=out"],
    capture_output=True, text=True, cwd=root,
    env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return root / "out", done.stdout, first


def test_files(site):
  out, said, first = site
  assert "left out, not finished: begun" in said
  assert "no result of a run: speed" in said
  assert "test_loss is nan, and not a number from" in said
  page = (out / "index.html").read_text()
  assert len(page) < 700_000
  assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
  assert "@import" not in page and "url(" not in page
  text = (out / "report.md").read_text()
  pictures = re.findall(r"!\[[^]]+\]\((.*?)\)", text)
  assert {p.rpartition("/")[2] for p in pictures} >= {
    "pareto.svg", "curves.svg", "layers.svg", "mask-stem.png",
  }  # fmt: skip
  assert any("/wrong-" in picture for picture in pictures)
  for picture in pictures:
    path = out / picture
    assert path.stat().st_size > 100, picture
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
  mean = 100 * (first["test_accuracy"] + 0.5) / 2
  assert f"| {mean:.2f} ± " in text
  assert first["command"] in text and "dense ResNet18 fp32" in text


def test_numbers_of_the_network(site):
  page, _, first = site[0] / "index.html", *site[1:]
  text = page.read_text()
  cells = re.findall(r'<td class="right[^>]*>(\d+)</td>', text)
  assert sum(map(int, cells)) == first["test_correct"]
  assert "Computed here" not in text
  assert "checkpoints are not beside" in text  # of the result alone
  assert text.count('alt="mask of ') == len(first["score"]["rows"])


@pytest.fixture(scope="module")
def chromium(site):
  with launched() as browser:
    yield browser


@pytest.fixture
def visit(chromium, site):
  """Opens the page; at the end nothing was fetched and nothing complained."""
  said, contexts = [], []

  def go(theme="light", width=1100, **more):
    context = chromium.new_context(
      color_scheme=theme, viewport={"width": width, "height": 800}, **more
    )
    contexts.append(context)
    context.set_default_timeout(5000)
    page = context.new_page()
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))

    def asked(request):
      first = request.url == f"file://{site[0]}/index.html"
      if not first and not request.url.startswith("data:"):
        said.append(request.url)

    page.on("request", asked)
    page.goto(f"file://{site[0]}/index.html")
    return page

  yield go
  for context in contexts:
    context.close()
  assert said == []


def _point(page, label, size="wide"):
  of = f'path[aria-label^="{label}, "]'
  return page.locator(f".panel:visible .{size} {of}")


@needs_browser
class TestPage:
  def test_one_chart_a_task(self, visit):
    page = visit()
    names = page.locator("h2.task").all_inner_texts()
    assert names == [
      "digits, 64 test images, 10 classes",
      "cifar10, 10,000 test images, 10 classes",
    ]
    of = lambda tabs, what: tabs.locator(f".panel:visible .wide {what}").count()
    tiny, ours = page.locator(".tabs").all()  # in the order of the runs
    goal = f'[stroke="{palette.GOAL}"]'
    ours_and_published = 1 + len(points.reference_points())
    assert of(ours, ".point") == ours_and_published and of(ours, goal) == 1
    assert of(tiny, ".point") == 2 and of(tiny, goal) == 0
    assert "90%" in ours.inner_text() and "90%" not in tiny.inner_text()
    heads = page.locator("table:has(a) thead").all_inner_texts()
    assert ["90%" in head for head in heads] == [False, True]
    assert "odd" in page.locator("#left-out").inner_text()

  def test_nothing_but_its_own_style_and_script(self, visit, tmp_path):
    page = visit()
    assert page.locator("[style]").count() == 0
    own = page_lib.document(
      "mine",
      "<script>document.title = 'x'</script><style>h1 { color: red }</style>"
      '<p style="color: red" onclick="document.title = 1">a</p>'
      '<img src="https://example.com/a.png" onerror="document.title = 2">',
    )
    (tmp_path / "own.html").write_text(own)
    context = page.context.browser.new_context()
    other, asked = context.new_page(), []
    other.on("requestfinished", lambda request: asked.append(request.url))
    other.goto(f"file://{tmp_path}/own.html")
    other.locator("p").click()
    color = "(e) => getComputedStyle(e).color"
    assert other.title() == "mine" and len(asked) == 1
    black = other.locator("body").evaluate(color)
    assert other.locator("p").evaluate(color) == black
    assert other.locator("h1").evaluate(color) == black
    assert other.locator("#theme").is_visible()  # its own script ran
    context.close()

  def test_pointing_shows_the_config(self, visit):
    page = visit()
    tip = page.locator("#tip")
    assert not tip.is_visible()
    _point(page, "tiny").hover()
    assert "2 seeds" in tip.inner_text()
    assert len(tip.inner_text().splitlines()) <= 8
    _point(page, "dense ResNet18 fp32").hover()
    assert "selimgit-hub" in tip.inner_text()
    assert "93.60% at a score of 3.988" in tip.inner_text()
    page.locator("h1").hover()
    assert not tip.is_visible()

  def test_an_error_bar_is_of_seeds_alone(self, visit):
    page = visit()
    bars = page.locator(".panel:visible .wide line[aria-label]")
    assert bars.count() == 1
    assert bars.get_attribute("aria-label").startswith("tiny, ")
    assert bars.bounding_box()["height"] > 2

  def test_tapping_on_a_phone(self, visit):
    page = visit(width=375, has_touch=True, is_mobile=True)
    tip = page.locator("#tip")
    _point(page, "tiny", "narrow").tap()
    assert "weights kept" in tip.inner_text()
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 375
    page.locator("h1").tap()
    assert not tip.is_visible()
    _point(page, "tiny", "narrow").tap()
    tip.locator("a").tap()
    assert not tip.is_visible()
    assert page.url.endswith("#run-tiny")

  def test_keyboard(self, visit):
    page = visit()
    tip = page.locator("#tip")
    page.locator(".panel:visible .legend button").first.focus()
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.ariaLabel")
    assert re.match(r".+: \d+\.\d\d%.* at a score of", focused)
    assert focused.startswith(tip.locator("strong").inner_text() + ", ")
    page.keyboard.press("Enter")
    assert "pinned" in tip.get_attribute("class")
    page.keyboard.press("Escape")
    assert not tip.is_visible()

  def test_figures_and_series(self, visit):
    page = visit()
    said = lambda: _point(page, "tiny").get_attribute("aria-label")
    before = said()
    tiny, ours = page.locator(".tabs").all()
    tiny.get_by_text("on disk", exact=True).click()
    panels = [x.locator(".panel:visible") for x in (ours, tiny)]
    assert panels[0].get_attribute("class") == "panel per_layer"
    assert panels[1].get_attribute("class") == "panel on_disk"
    assert said() != before and said().startswith("tiny, runs: ")
    button = panels[0].locator(".legend button").nth(1)
    dense = _point(page, "dense ResNet18 fp32")
    assert dense.is_visible()
    button.click()
    assert not dense.is_visible() and _point(page, "tiny").is_visible()
    button.click()
    assert dense.is_visible()

  def test_names_are_shown_as_they_are(self, visit):
    page = visit()
    assert "a<b>&quot;" in page.locator("h2").all_inner_texts()

  @pytest.mark.parametrize("theme", ["light", "dark"])
  def test_contrast(self, theme, visit):
    page = visit(theme)
    background = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(background)
    page.evaluate("for (const d of document.querySelectorAll('details'))"
                  " d.open = true")  # fmt: skip
    _point(page, "tiny").click()
    seen, low = page.evaluate(LOW_CONTRAST)
    assert seen > 500 and low == []
    page.locator("#theme").click()
    assert page.evaluate(background) != first
    seen, low = page.evaluate(LOW_CONTRAST)
    assert seen > 500 and low == []
    page.evaluate("document.querySelector('h1').style.color = '#777'")
    assert len(page.evaluate(LOW_CONTRAST)[1]) == 1
    page.reload()  # the choice is kept
    assert page.evaluate(background) != first

  def test_a_phone_is_wide_enough(self, visit):
    page = visit(width=375, is_mobile=True)
    page.evaluate("for (const d of document.querySelectorAll('details'))"
                  " d.open = true")  # fmt: skip
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 375
    # The name of a run alone is the page's.
    page.evaluate("document.querySelector('h1').textContent = 'x'.repeat(40)")
    assert page.evaluate(wide) <= 375
    for name in ("per network", "on disk"):
      page.locator(".tabs").get_by_text(name, exact=True).first.click()
      assert page.evaluate(wide) <= 375
    # Nothing that is no box of its own sticks out either.
    assert (
      page.evaluate("""() => [...document.querySelectorAll("body *")]
      .filter((e) => !e.closest(".scroll, pre, svg, .tabs > input, #tip")
        && e.checkVisibility() && e.getBoundingClientRect().right > 376)
      .map((e) => e.outerHTML.slice(0, 80))""")
      == []
    )

  def test_every_chart_has_a_text(self, visit):
    page = visit()
    missing = page.evaluate("""() => {
      const said = (svg, how) => (svg.getAttribute(how) || "").split(" ")
        .map((id) => document.getElementById(id)?.textContent || "").join("");
      return [...document.querySelectorAll("svg:not([aria-hidden])")]
        .filter((svg) => !svg.role || !said(svg, "aria-labelledby")
          || said(svg, "aria-describedby").length < 40)
        .concat([...document.querySelectorAll("img:not([alt])")])
        .concat([...document.querySelectorAll(".chart")]
          .filter((e) => e.querySelectorAll("tbody tr").length
            !== e.querySelectorAll(".wide .point").length))
        .map((e) => e.outerHTML.slice(0, 100));
    }""")
    assert missing == []
    assert page.locator("svg[role=img]").count() >= 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))

  def test_tables_are_sorted_by_their_heads(self, visit):
    page = visit()
    table = page.locator("table:has(a)").first
    column = lambda: table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    head = table.get_by_role("button", name="accuracy, %")
    head.click()
    found = [float(text.split()[0]) for text in column()]
    assert found == sorted(found, reverse=True) and len(set(found)) > 1
    assert table.locator("th[aria-sort=descending]").count() == 1
    head.press("Enter")
    again = [float(text.split()[0]) for text in column()]
    assert again == found[::-1]

  def test_two_runs_are_compared(self, visit):
    page = visit()
    part = page.locator("#compare")
    fields = lambda: part.locator("tbody th").all_inner_texts()
    names = part.locator("select").first.locator("option").all_inner_texts()
    assert set(names) == {"tiny", "ours", "a<b>&quot;"}
    part.locator("select").first.select_option("tiny")
    part.locator("select").last.select_option("ours")
    assert "data.name" in fields() and "seed" not in fields()
    part.locator("select").last.select_option("tiny")
    assert fields() == [] and "Nothing differs" in part.inner_text()

  def test_a_phone_shows_accuracy_and_score(self, visit):
    page = visit(width=375, is_mobile=True)
    table = page.locator("table:has(a)").first
    for column in (2, 3):
      cell = table.locator(f"tbody tr:first-child td:nth-child({column})")
      box = cell.bounding_box()
      assert box["x"] + box["width"] <= 375
    name = table.locator("tbody tr:first-child th").bounding_box()
    assert name["width"] >= 90

  def test_without_a_script(self, visit):
    page = visit(java_script_enabled=False)
    assert _point(page, "tiny").is_visible()
    page.locator(".tabs").get_by_text("on disk", exact=True).first.click()
    assert page.locator(".panel.on_disk").first.is_visible()

  def test_a_dark_chart_has_other_colors(self, visit):
    """The variables that replace the literal colors are all there."""
    page = visit("dark")
    one = page.locator(".panel:visible .wide path[aria-label]").first
    literal = one.get_attribute("stroke")
    drawn = one.evaluate("(e) => getComputedStyle(e).stroke")
    rgb = tuple(int(literal[i : i + 2], 16) for i in (1, 3, 5))
    assert drawn.startswith("rgb(") and drawn != f"rgb{rgb}"


def test_without_the_extra(site, tmp_path):
  """The page keeps its tables, and says how to get charts."""
  code = (
    "import sys; sys.modules['vl_convert'] = None; sys.argv[1:] ="
    f" ['{site[0].parent}/runs', '--quick', '--out={tmp_path}'];"
    "import runpy; runpy.run_module('jaxr18.report', run_name='__main__')"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "No charts: " in done.stdout and "jaxr18[report]" in done.stdout
  page = (tmp_path / "index.html").read_text()
  assert "jaxr18[report]" in page and "<figure" in page
  assert not re.search(r"<svg[^>]* role=", page)
  assert "dense ResNet18 fp32" in page and not (tmp_path / "pictures").exists()
  assert "No charts: " in (tmp_path / "report.md").read_text()


def test_the_network_of_another_phase(tmp_path):
  config = tiny_run.phases("dense", "sparse")
  config.dense.epochs = config.sparse.epochs = 0
  config.sparse.start.init, config.sparse.prune.density = "dense", 0.5
  experiment.run(config, tmp_path / "run")

  def report(*flags):
    return subprocess.run(
      [sys.executable, "-m", "jaxr18.report", "run", "--out=out", *flags],
      capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip

  done = report("--phase=dense")
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "out" / "report.md").read_text()
  assert "This is the network of the phase dense, of whose 64 answers" in text
  assert "The run's result is of sparse." in text
  assert not list((tmp_path / "out" / "pictures").rglob("mask-*"))
  done = report("--phase=dens")
  assert (
    done.returncode == 2
    and "one of the runs, which have dense, sparse" in (done.stderr)
  )
