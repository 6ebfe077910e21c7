"""The forms a convolution can have, set by rules on layer paths.

A form is a short string, since it stands in configs:

- 'dense'
- 'groups=8': grouped
- 'depthwise': depthwise-separable, kernel x kernel by channel, then 1x1
- 'ranks=16,32': low-rank, 1x1 to 16 channels, kernel x kernel from 16 to 32,
  1x1 to all; 'ranks=1/4,1/4' in shares of the layer's channels (rounded up);
  0 leaves that 1x1 out, so that 'ranks=0,32' has two layers
"""

import dataclasses
import fractions
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxr18.host import patterns
from jaxr18.nn.spec import ConvSpec, NetSpec, check, decide

Rules = Sequence[tuple[str, str]]  # (regex on layer paths, form)

# The 3x3 convolutions of all blocks: what `resnet`'s groups apply to.
BLOCK_CONVS = "stage.*/conv."

_RANK = r"(\d{1,6}(?:/[1-9]\d{0,5})?)"
_FORM = re.compile(
  rf"(dense)|(depthwise)|groups=([1-9]\d{{0,5}})|ranks={_RANK},{_RANK}"
)
_FORMS = "'dense', 'groups=8', 'depthwise' or 'ranks=1/4,1/4'"


def form_of(conv: ConvSpec) -> str:
  """Returns the form of a convolution, with ranks in channels."""
  if conv.depthwise:
    return "depthwise"
  if any(conv.ranks):
    return f"ranks={conv.ranks[0]},{conv.ranks[1]}"
  return "dense" if conv.groups == 1 else f"groups={conv.groups}"


def with_forms(spec: NetSpec, rules: Rules) -> NetSpec:
  """Sets forms by ordered rules `(regex, form)`; all else stays as it is.

  The first rule whose regex matches the whole path of a convolution ('stem',
  'stage1_block2/conv1', 'stage2_block1/proj') decides it; one that no rule
  matches keeps its form. All 3x3 convolutions of the blocks are
  `BLOCK_CONVS`.

  Raises:
    ValueError: what is no form, a rule that decides no layer, or a form that
      does not fit a layer's channels.
  """
  paths = [path for path, _ in convolutions(spec)]
  first = decide(rules, paths)
  inputs = in_features(spec)

  def set_form(path: str, conv: ConvSpec) -> ConvSpec:
    rule = first[path]
    if rule is None:
      return conv
    try:
      return _in_form(conv, rule[1], inputs[path])
    except ValueError as e:
      raise ValueError(f"{path}: {e}") from e

  spec = _map_convolutions(set_form, spec)
  check(spec)
  return spec


def with_forms_of(spec: NetSpec, like: NetSpec) -> NetSpec:
  """Gives every convolution of `spec` the form that it has in `like`.

  Raises:
    ValueError: a convolution that only one of them has, or with other
      channels or another kernel.
  """
  here, there = dict(convolutions(spec)), dict(convolutions(like))
  for path in here | there:
    if path not in here or path not in there:
      raise ValueError(f"only one of the networks has {path}")
    for name in ("features", "kernel"):
      a, b = getattr(here[path], name), getattr(there[path], name)
      if a != b:
        raise ValueError(f"{path}: {name} (={a}) is {b} in the other network")
  spec = _map_convolutions(
    lambda path, conv: dataclasses.replace(conv, **_fields(there[path])), spec
  )
  check(spec)
  return spec


def dense(spec: NetSpec) -> NetSpec:
  """Returns `spec` with every convolution dense."""
  return with_forms(spec, ((".*", "dense"),))


def convolutions(spec: NetSpec) -> Iterator[tuple[str, ConvSpec]]:
  """Lists the convolutions with their paths, a factorized one as one."""
  for path, unit in spec.units():
    if isinstance(unit, ConvSpec):
      yield path, unit


def in_features(spec: NetSpec) -> dict[str, int]:
  """Returns the input channels of each convolution, by its path."""
  out: dict[str, int] = {}
  for layer in spec.layers():
    out.setdefault(layer.unit, layer.in_features)
  return out


def rule_faults(rules: Any) -> Iterator[tuple[str, str]]:
  """Yields the faults of rules: what they must be, and how to mend them."""
  must = "must be a tuple of rules (regex, form)"
  hint = f"such as (({BLOCK_CONVS!r}, 'groups=8'),), or () for none"
  if not isinstance(rules, tuple):
    yield must, hint
    return
  if len(rules) == 2 and isinstance(rules[0], str):
    yield must, f"write {(rules,)!r}"
    return
  for rule in rules:
    if (
      not isinstance(rule, tuple)
      or len(rule) != 2
      or not all(isinstance(r, str) for r in rule)
    ):
      yield f"has the rule {rule!r}, which must be (regex, form)", hint
      continue
    pattern, form = rule
    if fault := patterns.fault(pattern):
      yield f"has {pattern!r}, which must be a regex ({fault})", "mend it"
    if not _FORM.fullmatch(form):
      yield f"has the form {form!r}, which must be {_FORMS}", "choose one"


def _fields(conv: ConvSpec) -> dict[str, Any]:
  return {n: getattr(conv, n) for n in ("groups", "depthwise", "ranks")}


def _in_form(conv: ConvSpec, form: str, in_features: int) -> ConvSpec:
  match = _FORM.fullmatch(form)
  if not match:
    raise ValueError(f"form {form!r} must be {_FORMS}")
  _, depthwise, groups, r_in, r_out = match.groups()
  ranks = (0, 0)
  if r_in is not None:
    ranks = (_rank(r_in, in_features), _rank(r_out, conv.features))
    if not any(ranks):
      raise ValueError(f"form {form!r} has no rank; write 'dense'")
  return dataclasses.replace(
    conv, groups=int(groups or 1), depthwise=bool(depthwise), ranks=ranks
  )


def _rank(text: str, channels: int) -> int:
  rank = fractions.Fraction(text)
  if "/" in text:
    rank *= channels
  if rank > channels:
    raise ValueError(
      f"rank {text} is more than the {channels} channels there; lower it"
    )
  return math.ceil(rank)


def _map_convolutions(
  fn: Callable[[str, ConvSpec], ConvSpec], spec: NetSpec
) -> NetSpec:
  """`spec` with fn(path, convolution) in place of each convolution."""
  names = iter(spec.blocks())

  def block_of(block):
    name, _ = next(names)
    convs = {k: c for k, c in vars(block).items() if c is not None}
    return dataclasses.replace(
      block, **{k: fn(f"{name}/{k}", c) for k, c in convs.items()}
    )

  return dataclasses.replace(
    spec,
    stem=fn("stem", spec.stem),
    stages=tuple(tuple(map(block_of, stage)) for stage in spec.stages),
  )
