"""What benchmarks.house counts, on sources that are known."""

import pytest

from benchmarks import house


def of(source):
  return {f.name: f for f in house.functions(source, "a.py")}


def test_a_docstring_is_no_line():
  body = "\n".join(["  x = 1"] * 60)
  f = of(f'def f():\n  """One.\n\n  Two.\n  """\n{body}\n')["a.py:f"]
  assert f.lines == 61
  assert house.too_much([f])["long"] == {"a.py:f": 61}
  assert not house.too_much([f._replace(lines=60)])["long"]


def test_parameters_of_every_kind_count_and_self_does_not():
  found = of(
    "class C:\n"
    "  def f(self, a, /, b, *c, d, **e): pass\n"
    "  @classmethod\n"
    "  def g(cls, a): pass\n"
    "def h(a, b, c, d, e, f, g, h, i): pass\n"
  )
  assert found["a.py:C.f"].parameters == 5
  assert found["a.py:C.g"].parameters == 1
  assert house.too_much(list(found.values()))["wide"] == {"a.py:h": 9}


@pytest.mark.parametrize(
  "source, told",
  [
    ("def f(a, b, c, d): pass", ["a.py:f"]),
    ("def f(a, b, c): pass", []),
    ("def _f(a, b, c, d): pass", []),
    ("class _C:\n  def f(self, a, b, c, d): pass", []),
    ("class C:\n  def f(self, a, b, c, d): pass", ["a.py:C.f"]),
    ("def g():\n  def f(a, b, c, d): pass", []),
    ('def f(a, b, c, d):\n  """F.\n\n  Args:\n    a: x.\n  """', []),
    ("if True:\n  def f(a, b, c, d): pass", ["a.py:f"]),
  ],
)
def test_public_functions_without_args(source, told):
  found = house.too_much(list(of(source).values()))
  assert list(found["undocumented"]) == told


def test_an_idle_exception_is_an_error(capsys):
  assert house._tell("t", {"a": 1}, {"a": "why"})
  assert not house._tell("t", {}, {"a": "why"})
  assert not house._tell("t", {"a": 1}, {})
  assert "no exception any more: a" in capsys.readouterr().out
