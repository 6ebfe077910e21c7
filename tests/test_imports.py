"""No import points up: each file sees only what stands above it in ORDER."""

import ast
import functools
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "jaxr18"
pytestmark = pytest.mark.versions

# From what knows least to what knows most; a folder's files may import each
# other as long as no circle closes. What stands in one row does not import each
# other. A file at the top is a command or the public API; a command, as a
# folder's __main__, imports what it likes and is imported by nobody.
ORDER = (
  ("host",),
  ("nn", "data"),
  ("cost",),
  ("compress", "deploy"),
  ("train",),
  ("config",),
  ("run", "cli"),
  ("report",),
  ("search",),
)
COMMAND = len(ORDER)


def read(folder: pathlib.Path) -> dict[str, str]:
  """Sources by dotted name relative to the package."""
  return {
    ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text()
    for path in sorted(folder.rglob("*.py"))
  }


@functools.cache
def imports(name: str, source: str) -> list[tuple[int, str]]:
  """Every import at any depth, as (line, absolute dotted name)."""
  out = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      out += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parents = [PACKAGE, *name.split(".")][: -node.level]
        base = ".".join([*parents, *([base] if base else [])])
      out += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
  return out


def target(dotted: str, modules: dict[str, str]) -> str | None:
  """The package's file that an import reads; None for another package's.

  'jaxr18.nn.conv.conv' is nn.conv; what is no file of the package is itself.
  The version, which the package itself holds, is no file.
  """
  first, *rest = dotted.split(".")
  if first != PACKAGE or rest == ["__version__"]:
    return None
  for end in range(len(rest), 0, -1):
    if ".".join(rest[:end]) in modules:
      return ".".join(rest[:end])
  return ".".join(rest)


def rank(name: str) -> int:
  first, *_, last = name.split(".") * 2
  if last == "__main__":
    return COMMAND
  rows = [i for i, row in enumerate(ORDER) if first in row]
  return rows[0] if rows else COMMAND


def violations(modules: dict[str, str]) -> list[str]:
  out = []
  graph = {}
  for name, source in modules.items():
    graph[name] = set()
    for line, dotted in imports(name, source):
      to = target(dotted, modules)
      if to is None:
        continue
      graph[name].add(to)
      where = f"{name.replace('.', '/')}.py:{line} imports {to}"
      if to not in modules:
        out.append(f"{where}, which does not exist")
      elif rank(to) == COMMAND:
        out.append(f"{where}, a command; if it is a library, put it in ORDER")
      elif rank(to) > rank(name):
        out.append(f"{where}, which stands below it")
      elif rank(to) == rank(name) and to.split(".")[0] != name.split(".")[0]:
        out.append(f"{where}, which stands beside it")
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as e:
    out.append(f"a circle of imports: {' <- '.join(e.args[1])}")
  return out


MODULES = read(ROOT / PACKAGE)


def importers(package: str) -> set[str]:
  return {
    name
    for name, source in MODULES.items()
    for _, dotted in imports(name, source)
    if dotted.split(".")[0] == package
  }


class TestChecker:
  GOOD = {
    "host.paths": "import json",
    "nn.conv": "from jaxr18.nn import onednn",
    "nn.onednn": "import jax",
    "data.augment": "from jaxr18.host import paths",
    "cost.macs": "from jaxr18.nn import conv\nfrom jaxr18.host import paths",
    "nn.__main__": "from jaxr18.cost import macs\nfrom jaxr18.nn import conv",
    "main": "from jaxr18.cost import macs",
  }

  def test_accepts(self):
    assert violations(self.GOOD) == []

  @pytest.mark.parametrize(
    "name, source, expected",
    [
      (
        "host.paths",
        "from jaxr18.cost import macs",
        "host/paths.py:1 imports cost.macs, which stands below it",
      ),
      (
        "host.paths",
        "\nimport jaxr18.cost.macs",
        "paths.py:2 imports cost.macs",
      ),
      (
        "nn.onednn",
        "def f():\n  from jaxr18.cost.macs import count_macs",
        "nn/onednn.py:2 imports cost.macs, which stands below it",
      ),
      ("nn.onednn", "from ..cost.macs import f", "imports cost.macs, which"),
      ("nn.onednn", "from . import conv", "circle of imports: nn.conv"),
      (
        "nn.onednn",
        "from jaxr18.data import augment",
        "imports data.augment, which stands beside it",
      ),
      ("cost.macs", "from jaxr18 import main", "main, a command"),
      ("main", "from jaxr18 import gone", "gone, which does not exist"),
      ("evaluate", "from jaxr18 import main", "main, a command"),
      ("nn.conv", "from jaxr18.nn import __main__", "nn.__main__, a command"),
    ],
  )
  def test_rejects(self, name, source, expected):
    found = violations(self.GOOD | {name: source})
    assert any(expected in v for v in found), found


class TestPackage:
  def test_no_import_points_up(self):
    found = violations(MODULES)
    assert not found, "\n".join(found)

  def test_what_is_not_in_order_is_a_command(self):
    others = {n for n in MODULES if rank(n) == COMMAND and "__init__" not in n}
    assert others >= {"main", "api"}
    others.remove("api")  # what `import jaxr18` gives, lazily
    for name in others:
      assert '__name__ == "__main__"' in MODULES[name], (
        f"{name} is neither in ORDER nor a command"
      )

  def test_spec_needs_the_standard_library_alone(self):
    names = {
      dotted.split(".")[0] for _, dotted in imports("", MODULES["nn.spec"])
    }
    assert "dataclasses" in names
    assert names <= sys.stdlib_module_names

  def test_one_file_knows_each_of_these(self):
    assert importers("aqt") == {"nn.quantize"}
    assert importers("torch") == {"deploy.state_dict"}
    assert importers("orbax") == {"train.checkpoint"}
    assert importers("onnx") == {
      "deploy.onnx_graph",
      "deploy.onnx_values",
      "deploy.to_onnx",
      "deploy.to_qonnx",
      "deploy.judge",
      "deploy.onnx_facts",
      "deploy.onnx_layers",
      "deploy.from_onnx",
      "deploy.onnx_vote",
    }
    assert importers("ai_edge_litert") == {
      "deploy.litert_graph",
      "deploy.to_litert",
    }
    assert importers("optuna") == {"search.storage"}
    assert importers("tensorboardX") == importers("wandb") == {"train.writers"}

  def test_torch_is_imported_late(self):
    tree = ast.parse(MODULES["deploy.state_dict"])
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert len(top) > 5
    assert "torch" not in {a.name for n in top for a in n.names}

  def test_no_tensorflow(self):
    assert importers("tensorflow_datasets")
    assert importers("tensorflow") == set()

  def test_counting_macs_knows_no_network(self):
    got = {target(d, MODULES) for _, d in imports("", MODULES["cost.macs"])}
    own = {"cost.counted", "cost.convolution", "cost.primitives"}
    assert got - {None} <= own | {"nn.conv"}

  def test_nothing_outside_the_package(self):
    for folder in ("tests", "benchmarks", "configs", "launch"):
      assert importers(folder) == set()

  def test_no_file_of_odds_and_ends(self):
    names = {n.split(".")[-1] for n in MODULES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}

  def test_configs_know_only_the_defaults(self):
    configs = read(ROOT / "configs")
    assert "kd_quant" in configs
    for name, source in configs.items():
      got = {target(d, MODULES) for _, d in imports("", source)} - {None}
      known = {"config.base", "config.tiny", "config.for_images"}
      assert got <= known, name
