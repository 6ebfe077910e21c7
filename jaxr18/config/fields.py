"""The kinds of fields that a config has, and how each is described.

A section is a pydantic model, whose fields `field` makes with a default, a
meaning and bounds. Rules on layer paths are checked as a whole, since a
person is told nothing by a place such as `bits.1.2`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import (
  Annotated,
  Any,
  Literal,
  NamedTuple,
  TypeVar,
  get_args,
  get_origin,
)

import annotated_types
import pydantic
import pydantic_core
from pydantic.fields import FieldInfo

from jaxr18.host import own, paths, patterns
from jaxr18.nn.forms import rule_faults
from jaxr18.nn.spec import BITS, W_BITS

Faults = Iterator[tuple[str, str]]  # (what a value must be, how to mend it)

RULE = "rule"  # the type of pydantic's errors that come from here


class Section(pydantic.BaseModel):
  """The base of all sections: frozen, strict, and without other fields."""

  model_config = pydantic.ConfigDict(
    frozen=True,
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    defer_build=True,  # --help reads the fields and validates nothing
  )


class Mark:
  """What a kind of field says of itself beside its type."""


BY_STAGE = Mark()  # a tuple of one entry a stage, or of one for all stages
RULES = Mark()  # a tuple whose entries one function checks as a whole


class Field(NamedTuple):
  """A field of a section, as messages and --help describe it.

  Attributes:
    name: dotted, within its section or the whole config.
    default: its value where a config says nothing.
    doc: meaning and unit.
    kind: the type of the value, or of each entry of a tuple.
    many: whether it is a tuple of such entries, or of tuples of them.
    by_stage: whether such a tuple has one entry a stage.
    low, high: inclusive bounds of a number, or of each entry.
    choices: the strings that are allowed; () for any.
  """

  name: str
  default: Any
  doc: str
  kind: type
  many: bool = False
  by_stage: bool = False
  low: float | None = None
  high: float | None = None
  choices: tuple[str, ...] = ()

  def allowed(self) -> str:
    """Says what a value, or each entry of a tuple, must be."""
    if self.choices:
      return f"one of {', '.join(map(repr, self.choices))}"
    if self.kind in (int, float):
      name = "an int" if self.kind is int else "a number"
      bounded = self.low is not None
      return f"{name} from {self.low} to {self.high}" if bounded else name
    names = {bool: "True or False", str: "a string", tuple: "a tuple of rules"}
    return names[self.kind]


def field(default: Any, doc: str, low=None, high=None) -> Any:
  """Makes a field of a section.

  Args:
    default: its value where a config does not set it.
    doc: its meaning and unit, for --help and for errors.
    low, high: inclusive bounds of a number; None for none.
  """
  return pydantic.Field(default, description=doc, ge=low, le=high)


def section(model: type[Section]) -> Any:
  """Makes a field that is a section, with the defaults of a model."""
  return pydantic.Field(default_factory=model)


def described(name: str, info: FieldInfo) -> Field:
  """Describes a field of a model, by a name that it is known by."""
  kind: Any = info.annotation
  marks, many = list(info.metadata), False
  while get_origin(kind) is tuple and RULES not in info.metadata:
    many, kind = True, get_args(kind)[0]
    while get_origin(kind) is Annotated:
      kind, *inner = get_args(kind)
      marks += [m for x in inner for m in getattr(x, "metadata", (x,))]
  choices = get_args(kind) if get_origin(kind) is Literal else ()
  low: list[Any] = [m.ge for m in marks if isinstance(m, annotated_types.Ge)]
  high: list[Any] = [m.le for m in marks if isinstance(m, annotated_types.Le)]
  return Field(
    name,
    info.default,
    info.description or "",
    kind=str if choices else get_origin(kind) or kind,
    many=many,
    by_stage=BY_STAGE in info.metadata,
    low=low[0] if low else None,
    high=high[0] if high else None,
    choices=choices,
  )


def walk(model: type[Section], prefix: str = "") -> Iterator[Field]:
  """Yields every field of a section and of those within it."""
  for name, info in model.model_fields.items():
    if inner := section_of(info):
      yield from walk(inner, f"{prefix}{name}.")
    else:
      yield described(prefix + name, info)


def section_of(info: FieldInfo) -> type[Section] | None:
  """Returns the model of a field that is a section; None for others."""
  kind: Any = info.annotation
  inner = isinstance(kind, type) and issubclass(kind, Section)
  return kind if inner else None


def _refuse(faults: list[tuple[str, str]]) -> None:
  raise pydantic_core.PydanticCustomError(RULE, "rules", {"faults": faults})


def _held(check: Callable[[Any], Faults]) -> Callable[[Any], Any]:
  """A validator that refuses a value with all that a check finds in it."""

  def validate(value: Any) -> Any:
    if faults := list(check(value)):
      _refuse(faults)
    return value

  return validate


def _text_faults(value: str) -> Faults:
  if paths.remote(value):
    yield paths.LOCAL, paths.MOUNT


def _regex_faults(value: str) -> Faults:
  if fault := patterns.fault(value):
    yield f"must be a regex ({fault})", "mend it"


def _bits_faults(rules: Any) -> Faults:
  form = "(regex, w_bits, a_bits)"
  hint = "such as (('stem|head', 8, 8), ('.*', 4, 4)); quote it in a shell"
  if not isinstance(rules, tuple) or not rules:
    yield f"must be a tuple of rules {form}, not empty", hint
    return
  if isinstance(rules[0], str):
    yield f"must be a tuple of rules {form}", f"write {(rules,)!r}"
    return
  for rule in rules:
    if not isinstance(rule, tuple) or len(rule) != 3:
      yield f"has the rule {rule!r}, which must be a tuple {form}", hint
      continue
    pattern, *bits = rule
    if not isinstance(pattern, str):
      yield f"has {pattern!r} in {rule!r}, which must be a regex", hint
    elif fault := patterns.fault(pattern):
      yield (
        f"has {pattern!r}, which must be a regex ({fault})",
        "mend it; it has to match whole layer paths, such as 'stage1_.*/conv1'",
      )
    for name, b, allowed in zip(
      ("w_bits", "a_bits"), bits, (W_BITS, BITS), strict=True
    ):
      if type(b) is not int or b not in allowed:
        yield (
          f"has {name}={b!r} in {rule!r}, which must be one of {allowed}",
          "choose one; 32 is unquantized",
        )


def _is_pair(entry: Any, named: Callable[[Any], bool], most: float) -> bool:
  """Returns whether an entry is a name and a number in (0, most]."""
  return (
    isinstance(entry, tuple)
    and len(entry) == 2
    and named(entry[0])
    and type(entry[1]) in (int, float)
    and 0 < entry[1] <= most
  )


def _term_faults(terms: Any) -> Faults:
  must = "must be a tuple of terms ('module:function', weight)"
  hint = "such as (('mine:confidence', 0.1),), or () for none"
  if not isinstance(terms, tuple):
    yield must, hint
    return
  for term in terms:
    if not _is_pair(term, own.is_own, 1e6):
      yield (
        f"has the term {term!r}, which must be ('module:function', weight), the"
        " weight above 0 and at most 1e6",
        hint,
      )


def _density_faults(rules: Any) -> Faults:
  must = "must be a tuple of rules (regex, density)"
  hint = "such as (('stage4.*', 0.1),), or () for none"
  if not isinstance(rules, tuple):
    yield must, hint
    return
  for rule in rules:
    if not _is_pair(rule, lambda name: isinstance(name, str), 1):
      yield (
        f"has the rule {rule!r}, which must be (regex, density), the density"
        " above 0 and at most 1",
        hint,
      )
    elif fault := patterns.fault(rule[0]):
      yield f"has {rule[0]!r}, which must be a regex ({fault})", "mend it"


def _bit_choices_faults(value: Any) -> Faults:
  form, hint = "(regex, bits)", "such as (('stem|head', (8,)), ('.*', (4, 8)))"
  if not isinstance(value, tuple) or not value:
    yield f"must be a tuple, not empty, of tuples: {form}", hint
    return
  for entry in value:
    if (
      not isinstance(entry, tuple)
      or len(entry) != 2
      or not isinstance(entry[0], str)
      or not isinstance(entry[1], tuple)
      or not entry[1]
    ):
      yield f"has {entry!r}, which must be {form}", "such as ('.*', (4, 8))"
      continue
    pattern, bits = entry
    if fault := patterns.fault(pattern):
      yield f"has {pattern!r}, which must be a regex ({fault})", "mend it"
    for b in bits:
      if type(b) is not int or b not in W_BITS:
        yield f"has {b!r} in {entry!r}, which must be one of {W_BITS}", hint


# The names of folders, files and phases, on this machine's file systems.
Text = Annotated[str, pydantic.AfterValidator(_held(_text_faults))]
Regex = Annotated[str, pydantic.AfterValidator(_held(_regex_faults))]
BitsRules = Annotated[
  tuple[tuple[str, int, int], ...],
  pydantic.PlainValidator(_held(_bits_faults)),
  RULES,
]
FormRules = Annotated[
  tuple[tuple[str, str], ...],
  pydantic.PlainValidator(_held(rule_faults)),
  RULES,
]
Terms = Annotated[
  tuple[tuple[str, float], ...],
  pydantic.PlainValidator(_held(_term_faults)),
  RULES,
]
DensityRules = Annotated[
  tuple[tuple[str, float], ...],
  pydantic.PlainValidator(_held(_density_faults)),
  RULES,
]
BitChoices = Annotated[
  tuple[tuple[str, tuple[int, ...]], ...],
  pydantic.PlainValidator(_held(_bit_choices_faults)),
  RULES,
]

# For a choice of names: a function of the user's own serves too.
OR_OWN = pydantic.WrapValidator(
  lambda value, check: value if own.is_own(value) else check(value)
)

T = TypeVar("T")
Some = Annotated[tuple[T, ...], annotated_types.MinLen(1)]
ByStage = Annotated[tuple[T, ...], annotated_types.MinLen(1), BY_STAGE]
MaybeByStage = Annotated[tuple[T, ...], BY_STAGE]


def between(low: float, high: float) -> Any:
  """Marks an entry of a tuple with its inclusive bounds."""
  return pydantic.Field(ge=low, le=high)


def one_of(values: tuple[int, ...], mend: str) -> Any:
  """Marks an int that must be one of these, and says how to mend others."""

  def faults(value: int) -> Faults:
    if value not in values:
      yield f"must be one of {values}", mend

  return pydantic.AfterValidator(_held(faults))


def without(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
  """Removes the fields of these dotted names from nested values."""
  out = {}
  for key, value in values.items():
    if key in names:
      continue
    inner = {n[len(key) + 1 :] for n in names if n.startswith(f"{key}.")}
    out[key] = without(value, inner) if inner else value
  return out
