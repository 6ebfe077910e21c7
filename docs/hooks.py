"""Makes the website's pages of what stands elsewhere in the repository.

MkDocs calls what begins with `on_` (mkdocs.yml). README.md becomes the front
page, a notebook a page, every folder of the package a reference; a link that
leaves docs/ leads to a page with that file's text.
"""

import json
import os
import pathlib
import re
import sys

import griffe
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT))  # which the program `mkdocs` leaves out

import jaxr18  # noqa: E402
from docs.browser import vendor  # noqa: E402

DOCS = ROOT / "docs"
PAGES = {
  ROOT / "README.md": "index.md",
  ROOT / "CONTRIBUTING.md": "contributing.md",
  ROOT / "CHANGELOG.md": "changelog.md",
  DOCS / "tour.ipynb": "notebook.md",
} | {page: page.name for page in sorted(DOCS.glob("*.md"))}  # fmt: skip
LINK = re.compile(r"^```.*?^```|\]\(([^)\s#]+)(#[^)\s]*)?\)", re.S | re.M)
LEXERS = {".cc": "cpp", ".py": "python"}


def on_pre_build(config):
  """Fetches ONNX Runtime Web before MkDocs lists the files in docs/."""
  try:
    vendor.fetch()
  except vendor.MissingError as e:
    log = get_plugin_logger("browser")
    # Who has no npm gets a website whose one page says what it lacks.
    (log.warning if vendor.npm() else log.info)("browser/index.html: %s", e)


def on_files(files, config):
  """Adds the pages; see https://www.mkdocs.org/user-guide/plugins/#on_files."""
  for name, text in pages().items():
    if name in files.src_uris:
      files.remove(files.src_uris[name])
    files.append(File.generated(config, name, content=text))
  return files


def on_post_page(output, page, config):
  """Warns where a page would load anything from another server."""
  what = r"<(?:script|img|iframe|link rel=.?stylesheet)\b[^>]*"
  for found in re.findall(what + r"=[\"']?(?:\w+:)?//", output):
    get_plugin_logger("elsewhere").warning("%s: %s", page.file.src_uri, found)


def pages() -> dict[str, str]:
  """Returns the Markdown of every page, by its path in the website."""
  out = reference()
  todo = dict.fromkeys(PAGES)
  while todo:
    path = next(iter(todo))
    del todo[path]
    text, linked = relinked(markdown(path), path)
    out[name_of(path)] = text
    todo |= {p: None for p in linked if name_of(p) not in out}
  return out


def reference() -> dict[str, str]:
  """Returns a page for the public API and one for each folder."""
  readme = (ROOT / "README.md").read_text()
  rooms = re.findall(r"^\| `jaxr18/(\w+)/` \| (.*) \|$", readme, re.M)
  names = ", ".join(n for n in jaxr18.__all__ if not n.startswith("_"))
  api = f"::: jaxr18.api\n    options:\n      members: [{names}]\n"
  out = {"reference/api.md": f"# The public API\n\n{api}"}
  for room, what in rooms:
    text = f"# jaxr18.{room}\n\n{what[0].upper()}{what[1:]}.\n"
    for module in sorted((ROOT / "jaxr18" / room).glob("[a-z]*.py")):
      name = f"jaxr18.{room}.{module.stem}"
      text += f"\n## {name} {{ #{name} }}\n\n::: {name}\n"
      text += "    options:\n      heading_level: 3\n"
    out[f"reference/{room}.md"] = text
  return out


def name_of(path: pathlib.Path) -> str:
  """Returns the website's path for a file or folder of the repository."""
  if path in PAGES:
    return PAGES[path]
  if path == ROOT / "jaxr18" / "api.py":
    return "reference/api.md"
  if path.is_relative_to(DOCS) and path.is_file():
    return path.relative_to(DOCS).as_posix()  # copied as it is
  return f"source/{path.relative_to(ROOT).as_posix()}.md"


def markdown(path: pathlib.Path) -> str:
  """Returns a page, notebook, folder or source as Markdown."""
  if path.suffix == ".md":
    return path.read_text()
  if path.suffix == ".ipynb":
    return "\n\n".join(map(_cell, json.loads(path.read_text())["cells"]))
  head = "---\nsearch:\n  exclude: true\n---\n\n"
  title = f"{head}# {path.relative_to(ROOT)}\n\n"
  if path.is_dir():
    files = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
    files = [f for f in files if "__pycache__" not in f.parts]
    return title + "".join(f"- [{f}]({f})\n" for f in files)
  lexer = LEXERS.get(path.suffix, path.suffix[1:] or "text")
  return f"{title}~~~~{lexer}\n{path.read_text()}\n~~~~\n"


def _cell(cell: dict) -> str:
  source = "".join(cell["source"])
  if cell["cell_type"] == "markdown":
    return source
  said = "".join("".join(o.get("text", "")) for o in cell["outputs"])
  text = f"```python\n{source}\n```"
  return f"{text}\n\n```text\n{said.rstrip()}\n```" if said else text


def relinked(text: str, path: pathlib.Path) -> tuple[str, list[pathlib.Path]]:
  """Turns a page's links to files into links to pages.

  Args:
    text: Markdown.
    path: of the file that it comes from.

  Returns:
    The text, and the files whose pages must be made.
  """
  linked = []
  folder = path if path.is_dir() else path.parent

  def link(found: re.Match) -> str:
    to, heading = found[1], found[2] or ""
    if not to or "://" in to:
      return found[0]
    target = pathlib.Path(os.path.normpath(folder / to))
    name = name_of(target)
    if name in PAGES.values() or name.startswith("source/"):
      linked.append(target)
    here = pathlib.PurePosixPath(name_of(path)).parent
    return f"]({os.path.relpath(name, here)}{heading})"

  is_source = path.is_file() and path not in PAGES
  return (text, []) if is_source else (LINK.sub(link, text), linked)


class Names(griffe.Extension):
  """Shows `stride, padding: ...` as two names, and not as a name and a type."""

  def on_instance(self, *, obj: griffe.Object, **_) -> None:
    """Ties such names by spaces that griffe does not split at."""
    if obj.docstring:
      several = re.compile(r"^ +\**\w+(?:, \**\w+)+(?=:)", re.M)
      tie = lambda found: found[0].replace(", ", ",\u00a0")
      obj.docstring.value = several.sub(tie, obj.docstring.value)
