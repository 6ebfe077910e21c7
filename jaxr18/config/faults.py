"""What is wrong with a config: the field, its value, what is allowed, the mend.

All of it comes at once. Pydantic finds what is wrong with a field by itself;
its errors become faults here.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from jaxr18.config.fields import RULE, Field, Section, walk, without
from jaxr18.config.lift import RENAMED
from jaxr18.host.errors import ToldError

S = TypeVar("S", bound=Section)

_SECTION = "must be a section of fields"
MISSING = object()  # the value of a field that is not there


@dataclasses.dataclass(frozen=True)
class Fault:
  """One thing that is wrong with a config.

  Attributes:
    field: its dotted name; '' is the whole config.
    value: what it is, or `MISSING`.
    must: what it must be, as the end of a sentence.
    mend: how to mend it.
  """

  field: str
  value: Any
  must: str
  mend: str

  def __str__(self) -> str:
    shown = f"(={_show(self.value)})"
    if self.value is MISSING:
      shown = "is missing and"
    name = f"config.{self.field}".rstrip(".")
    return f"{name} {shown} {self.must}; {self.mend}"


class ConfigError(ToldError, ValueError):
  """Everything that is wrong with a config, one line each.

  Attributes:
    faults: what fields have.
    fields: their names.
  """

  status = 2

  def __init__(self, *said: Fault | str):
    super().__init__("\n".join(map(str, said)))
    self.faults = tuple(x for x in said if isinstance(x, Fault))
    self.fields = frozenset(fault.field for fault in self.faults)


class Findings:
  """What is wrong with a config, found so far.

  Attributes:
    values: the whole config, plain.
    faults: in the order in which they were found.
  """

  def __init__(self, values: Any):
    self.values = values
    self.faults: list[Fault] = []

  def add(self, name: str, must: str, mend: str) -> None:
    """Notes what a field must be and how to mend it."""
    self.faults.append(Fault(name, at(self.values, name), must, mend))

  def good(self, *names: str) -> bool:
    """Returns whether fields or sections have no fault so far."""
    return not any(
      within(fault.field, (name,)) or within(name, (fault.field,))
      for fault in self.faults
      for name in names
    )

  def read(
    self,
    model: type[S],
    values: Any,
    prefix: str,
    known: Sequence[str],
  ) -> S:
    """Reads a section from plain values; a wrong field gets its default.

    Args:
      model: of the section.
      values: of its fields, nested.
      prefix: of the names in faults, with its dot.
      known: the dotted names of all of the config's fields.
    """
    try:
      return model.model_validate(values)
    except pydantic.ValidationError as e:
      errors = list(_told(e, {f.name: f for f in walk(model)}))
    for name, must, mend in errors:
      full = f"{prefix}{name}".rstrip(".")
      if must == _SECTION:
        mend = f"leave it as base() makes it and set {_within(full)}"
      self.add(full, must, mend or self._meant(full, known))
    bad = {name for name, *_ in errors}
    # The defaults of what is left out are right, and so is all that remains.
    return model.model_validate({} if "" in bad else without(values, bad))

  def _meant(self, name: str, known: Sequence[str]) -> str:
    """What may have been meant: the same name elsewhere, or one like it."""
    phase, _, old = name.partition(".")
    if old in RENAMED and f"{phase}.{RENAMED[old]}" in known:
      return f"it is config.{phase}.{RENAMED[old]} now"
    prefix, _, last = name.rpartition(".")
    near = [n for n in known if n.rpartition(".")[2] == last]
    if not near:
      start = f"{prefix}." if prefix else ""
      siblings = dict.fromkeys(
        n[len(start) :].partition(".")[0] for n in known if n.startswith(start)
      )
      near = [start + n for n in difflib.get_close_matches(last, siblings, 1)]
    if near:
      return f"did you mean {' or '.join(f'config.{n}' for n in near)}?"
    if not prefix and isinstance(at(self.values, name), Mapping):
      return "remove it, or name it in config.phases"
    return "remove it; --help lists the fields"


def _within(section: str) -> str:
  """A field of a section, or the one that had the section's name before."""
  phase, _, name = section.partition(".")
  field = RENAMED.get(name)
  return f"config.{phase}.{field}" if field else f"config.{section}.FIELD"


def within(name: str, sections: Iterable[str]) -> bool:
  """Returns whether a dotted name is one of these fields or in a section."""
  return any(name == s or name.startswith(f"{s}.") for s in sections)


def _told(
  error: pydantic.ValidationError, known: Mapping[str, Field]
) -> Iterator[tuple[str, str, str]]:
  """Name, what it must be and the mend of each error; no mend if unknown."""
  for e in error.errors(include_url=False):
    name, inner = _split(e["loc"])
    if e["type"] == "model_type":
      yield name, _SECTION, ""
    elif e["type"] == "extra_forbidden":
      yield name, "is not a field that anything reads", ""
    elif e["type"] == RULE:
      for must, mend in e.get("ctx", {})["faults"]:
        yield name, must, mend
    elif e["type"] != "too_short" or not e["input"]:
      yield name, *_entry(known[name], inner, e)


def _split(place: Sequence[str | int]) -> tuple[str, tuple[int, ...]]:
  """A field's dotted name, and the indices within its value."""
  parts = [x for x in place if isinstance(x, str)]
  return ".".join(parts), tuple(x for x in place if isinstance(x, int))


def _entry(
  f: Field, inner: tuple[int, ...], e: Mapping[str, Any]
) -> tuple[str, str]:
  """What a value, or an entry of it, must be; how to mend it."""
  if e["type"] in ("tuple_type", "too_short"):
    of = "of tuples, " if any(isinstance(x, tuple) for x in f.default) else ""
    must = f"must be a tuple, not empty, {of}each entry {f.allowed()}"
    value = e["input"] if not inner and type(e["input"]) is f.kind else None
    return (
      must,
      f"such as {f.default!r}" if value is None else f"write {(value,)}",
    )
  which, hint = "", f"such as {f.default!r}"
  if inner:
    where = " of entry ".join(map(str, reversed(inner)))
    which, hint = f"has {e['input']!r} at index {where}, which ", "change it"
  elif f.default == "":
    hint = "write '' for none"
  must = f"{which}must be {f.allowed()} ({f.doc})"
  if e["type"] == "literal_error":
    text = e["input"] if isinstance(e["input"], str) else ""
    near = difflib.get_close_matches(text, f.choices, 1)
    return must, f"write {near[0]!r}" if near else "choose one"
  if e["type"] == "greater_than_equal":
    return must, f"raise it to {f.low} or more"
  if e["type"] == "less_than_equal":
    return must, f"lower it to {f.high} or less"
  return must, hint


def at(values: Any, name: str) -> Any:
  """Returns a nested value by its dotted name, or `MISSING`; '' is all."""
  for part in name.split(".") if name else ():
    if not isinstance(values, Mapping) or part not in values:
      return MISSING
    values = values[part]
  return values


def _show(value: Any) -> str:
  """Its repr; of a section only the beginning."""
  text = repr(value)
  if isinstance(value, Mapping) and len(text) > 100:
    return f"{text[:96]} ..."
  return text
