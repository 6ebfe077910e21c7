"""Values of JSON that are checked where they are taken out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

LARGEST = 1e15  # beyond it a number is no count, no loss and no score
T = TypeVar("T")


class OddValueError(ValueError):
  """A value that is missing, of another kind, or out of its range."""


class Checked:
  """A value of JSON and the dotted name at which it stands."""

  def __init__(self, value: Any, name: str = ""):
    self.value, self.name = value, name

  def at(self, key: str) -> Checked:
    """Returns the object's value of that key; a missing one raises."""
    section = self.kind(dict)
    name = f"{self.name}.{key}" if self.name else key
    if key not in section:
      raise OddValueError(f"it lacks {name}")
    return Checked(section[key], name)

  def maybe(self, key: str, take: Callable[[Checked], T]) -> T | None:
    """Takes the object's value of that key; None where it is null or absent."""
    if self.kind(dict).get(key) is None:
      return None
    return take(self.at(key))

  def each(self, take: Callable[[Checked], T]) -> tuple[T, ...]:
    """Takes each value of a list."""
    return tuple(
      take(Checked(v, f"{self.name}.{i}"))
      for i, v in enumerate(self.kind(list))
    )

  def by_name(self, take: Callable[[Checked], T]) -> dict[str, T]:
    """Takes each value of an object."""
    return {k: take(self.at(k)) for k in self.kind(dict)}

  def kind(self, kind: type[T]) -> T:
    """Returns the value if it is of exactly that type."""
    if type(self.value) is not kind:
      raise OddValueError(
        f"{self.name or 'it'} is {short(self.value)}, and no {kind.__name__}"
      )
    return self.value

  def text(self) -> str:
    """Returns a text that can be printed; a JSON's may be halves of one."""
    return self.kind(str).encode("utf-8", "replace").decode()

  def number(self, low: float = -LARGEST, high: float = LARGEST) -> float:
    """Returns an int or a float within [low, high]."""
    return self._within((int, float), "a number", low, high)

  def whole(self, low: int = 0, high: float = LARGEST) -> int:
    """Returns an int within [low, high]."""
    return self._within((int,), "a whole number", low, high)

  def _within(self, kinds, what: str, low, high):
    if type(self.value) not in kinds or not low <= self.value <= high:
      raise OddValueError(
        f"{self.name} is {short(self.value)}, and not {what} from {low:g} to"
        f" {high:g}"
      )
    return self.value


def short(value: Any) -> str:
  """Returns a value as text of at most 40 letters."""
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:37]}..."
