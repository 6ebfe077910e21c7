"""Whether a regular expression of a config can be matched in short time."""

import re
from re import _constants as kinds  # type: ignore[reportAttributeAccessIssue]
from re import _parser as parser  # type: ignore[reportAttributeAccessIssue]

_LONGEST = 500  # characters of a pattern
_PATH = 40  # characters of a layer's path, and more than any has
_WAYS = 3_000_000  # a fraction of a second

_REPEATS = (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT)


def fault(pattern: str) -> str:
  """Finds the fault of a pattern for layer paths; '' where there is none.

  Python's matcher tries one way after another to match a text, and `(a+)+b`
  has twice as many with each character. Patterns of more ways than can be
  tried in a fraction of a second are faults, as those that do not compile.
  """
  if len(pattern) > _LONGEST:
    return f"it has {len(pattern)} characters, expected at most {_LONGEST}"
  try:
    re.compile(pattern)
    ways = _ways(parser.parse(pattern))
  except (re.error, OverflowError, RecursionError) as e:
    return str(e) or type(e).__name__
  if ways > _WAYS:
    return (
      "it may take too long to match: repeat no group that itself repeats or"
      " chooses, and use at most four of * and + in one alternative"
    )
  return ""


def _ways(items) -> int:
  """The most ways in which items in a row can match a path, or a bound."""
  total = 1
  for kind, value in items:
    if kind in _REPEATS:
      low, high, inner = value
      times = min(int(high), max(_PATH, low))
      each = _ways(inner)
      if each > 1 and times * (each.bit_length() - 1) > 64:
        return _WAYS + 1
      total *= (times - low + 1) * each**times
    elif kind is kinds.BRANCH:
      total *= sum(map(_ways, value[1]))
    elif kind is kinds.GROUPREF_EXISTS:
      total *= sum(_ways(part) for part in value[1:] if part is not None)
    elif kind is kinds.SUBPATTERN:
      total *= _ways(value[-1])
    elif kind in (kinds.ASSERT, kinds.ASSERT_NOT):
      total *= _ways(value[1])
    elif kind is kinds.ATOMIC_GROUP:
      total *= _ways(value)
    if total > _WAYS:  # numbers stay small
      return total
  return total
