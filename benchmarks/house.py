"""Counts what makes the package hard to read: python -m benchmarks.house

Prints the entries at the top of the package, its files and lines, and then what
must be 0: functions that are too long or take too many parameters, type errors
of pyright, and public functions with many parameters and no `Args`. Each
exception is named with its reason and must still be one.

Exit status: 0 when each of those numbers is 0, apart from the exceptions; 1
otherwise.
"""

import argparse
import ast
import collections
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxr18"
LINES, PARAMETERS, DOCUMENTED = 60, 8, 4

# Why a function may be an exception, by kind and name.
EXCEPTIONS: dict[str, dict[str, str]] = {
  "long": {},
  "wide": {},
  "undocumented": {},
}


class Function(NamedTuple):
  """A function or method of the package.

  Attributes:
    name: such as 'nn/conv.py:conv' or 'nn/spec.py:NetSpec.layers'.
    lines: of code and comments, without its docstring.
    parameters: without `self` and `cls`.
    public: whether it is at the top of a module or a class, and neither its
      name nor one around it begins with an underscore.
    args: whether its docstring has a section of arguments.
  """

  name: str
  lines: int
  parameters: int
  public: bool
  args: bool


def functions(source: str, path: str) -> list[Function]:
  """Lists all functions of a file, nested ones too."""
  return list(_functions(ast.parse(source), f"{path}:", True))


def _functions(node: ast.AST, prefix: str, public: bool) -> Iterator[Function]:
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.ClassDef):
      shown = public and not child.name.startswith("_")
      yield from _functions(child, f"{prefix}{child.name}.", shown)
    elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
      name = f"{prefix}{child.name}"
      yield _measure(child, name, public and not child.name.startswith("_"))
      yield from _functions(child, f"{name}.", False)
    else:
      yield from _functions(child, prefix, public)


def _measure(
  node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, public: bool
) -> Function:
  lines = (node.end_lineno or node.lineno) - node.lineno + 1
  docstring = ast.get_docstring(node)
  if docstring is not None:
    text = node.body[0]
    lines -= (text.end_lineno or text.lineno) - text.lineno + 1
  a = node.args
  names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
  names += [x.arg for x in (a.vararg, a.kwarg) if x]
  if names[:1] in (["self"], ["cls"]):
    del names[0]
  return Function(name, lines, len(names), public, "Args:" in (docstring or ""))


def too_much(found: list[Function]) -> dict[str, dict[str, int]]:
  """Sorts the functions that break a rule by the rule's name.

  Returns:
    'long', 'wide' and 'undocumented', each a number by function: lines for the
    first, parameters for the others.
  """
  return {
    "long": {f.name: f.lines for f in found if f.lines > LINES},
    "wide": {f.name: f.parameters for f in found if f.parameters > PARAMETERS},
    "undocumented": {
      f.name: f.parameters
      for f in found
      if f.public and not f.args and f.parameters >= DOCUMENTED
    },
  }


def type_errors() -> dict[str, int] | None:
  """Counts pyright's errors by file; None where pyright is not installed."""
  command = shutil.which("pyright", path=pathlib.Path(sys.executable).parent)
  command = command or shutil.which("pyright")
  if command is None:
    return None
  done = subprocess.run(
    [command, "--outputjson", "--pythonpath", sys.executable],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  rows = json.loads(done.stdout)["generalDiagnostics"]
  names = [
    str(pathlib.Path(row["file"]).relative_to(PACKAGE))
    for row in rows
    if row["severity"] == "error"
  ]
  return dict(collections.Counter(names))


def main(argv: list[str] | None = None) -> int:
  """Prints the counts; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.house",
    description=(__doc__ or "").partition("\n\n")[2],
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--without_types", action="store_true", help="do not run pyright, a minute"
  )
  types = not parser.parse_args(argv).without_types
  paths = sorted(PACKAGE.rglob("*.py"))
  texts = {str(p.relative_to(PACKAGE)): p.read_text() for p in paths}
  top = [p for p in PACKAGE.iterdir() if p.name != "__pycache__"]
  print(f"entries at the top of the package: {len(top)}")
  print(f"files: {len(texts)}")
  print(f"lines: {sum(text.count(chr(10)) for text in texts.values()):,}")
  found = [f for path, text in texts.items() for f in functions(text, path)]
  titles = {
    "long": f"functions of more than {LINES} lines",
    "wide": f"functions of more than {PARAMETERS} parameters",
    "undocumented": f"public functions of {DOCUMENTED} or more parameters"
    " without Args",
  }
  good = True
  for kind, names in too_much(found).items():
    good &= _tell(titles[kind], names, EXCEPTIONS[kind])
  if types:
    errors = type_errors()
    if errors is None:
      print("pyright errors: not counted; pip install 'jaxr18[dev]'")
      return 1
    good &= _tell("pyright errors", errors, {})
  return 0 if good else 1


def _tell(title: str, counts: dict[str, int], reasons: dict[str, str]) -> bool:
  """Prints a count and what it is made of; returns whether it is allowed."""
  wrong = {name: n for name, n in counts.items() if name not in reasons}
  idle = reasons.keys() - counts.keys()
  total = sum(wrong.values()) if title == "pyright errors" else len(wrong)
  print(f"{title}: {total}")
  for name, n in sorted(wrong.items()):
    print(f"  {name}: {n}")
  for name in sorted(counts.keys() & reasons.keys()):
    print(f"  allowed, {name}: {counts[name]}; {reasons[name]}")
  for name in sorted(idle):
    print(f"  no exception any more: {name}")
  return not wrong and not idle


if __name__ == "__main__":
  sys.exit(main())
