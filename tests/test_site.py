"""What docs/hooks.py makes; `mkdocs build --strict` checks every link."""

import pathlib
import re

import pytest

pytest.importorskip("mkdocs")
griffe = pytest.importorskip("griffe")
hooks = pytest.importorskip("docs.hooks")
ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  "page, link, expected",
  [
    ("README.md", "docs/score.md", "score.md"),
    ("README.md", "docs/results/results/results.svg",
     "results/results/results.svg"),
    ("README.md", "jaxr18/api.py", "reference/api.md"),
    ("README.md", "CHANGELOG.md", "changelog.md"),
    ("docs/tour.md", "../README.md", "index.md"),
    ("docs/tour.md", "tour.ipynb", "notebook.md"),
    ("docs/tour.md", "../configs/", "source/configs.md"),
    ("docs/search.md", "launch.md#names", "launch.md#names"),
    ("docs/data.md", "https://a.org/b.md", "https://a.org/b.md"),
    ("configs", "quant.py", "configs/quant.py.md"),
  ],
)  # fmt: skip
def test_links_lead_to_pages(page, link, expected):
  text, _ = hooks.relinked(f"[a]({link}), `b`", ROOT / page)
  assert text == f"[a]({expected}), `b`"


def test_code_is_left_alone():
  text = "```python\nx[0](../README.md)\n```\n"
  assert hooks.relinked(text, ROOT / "docs" / "tour.md") == (text, [])


def test_every_page_is_there():
  pages = hooks.pages()
  assert pages.keys() >= {"index.md", "reference/api.md", "reference/nn.md",
                          "source/configs/quant.py.md"}  # fmt: skip
  assert pages["index.md"].startswith("# jaxr18\n")
  assert "::: jaxr18.nn.resnet" in pages["reference/nn.md"]
  shown = pages["notebook.md"]
  assert shown.startswith("# jaxr18 from Python\n")
  assert "```python\nimport jaxr18\n" in shown and "```text\nNetwork(" in shown
  written = {f"{page.stem}.md" for page in (ROOT / "docs").glob("*.md")}
  assert written <= pages.keys()
  nav = (ROOT / "mkdocs.yml").read_text()
  for name in pages:
    assert name.startswith("source/") or re.search(rf" {name}$", nav, re.M)


def test_several_names_are_names():
  function = griffe.Function("f")
  text = "F.\n\nArgs:\n  stride, padding: of both.\n  x: one, two: three."
  function.docstring = griffe.Docstring(text)
  hooks.Names().on_instance(obj=function)
  assert "  stride,\u00a0padding: of" in function.docstring.value
  assert "x: one, two: three." in function.docstring.value
