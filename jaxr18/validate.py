"""A config is checked once and whole, before anything runs.

ml_collections lets None through for any field, a list for a tuple, and any
type inside a tuple. What is checked here can be relied on everywhere else.
"""

import math
import os
import pathlib
import re
from typing import Any

import ml_collections

from jaxr18 import spec as spec_lib
from jaxr18.config import EXPERIMENT, Knob, knobs

NAME = re.compile(r"[a-z][a-z0-9_]*")


class ConfigError(ValueError):
  """Everything that is wrong with a config, one line each."""


def validate(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError where the config cannot be run.

  Each line names the field, its value, what is allowed and how to mend it.
  """
  problems = _phase_names(config)
  if not problems:
    fields = dict(knobs(config.phases))
    problems += _unknown("config", config.to_dict(), fields)
    for name, knob in fields.items():
      problems += _field(f"config.{name}", _get(config, name), knob)
  if not problems:
    for i, name in enumerate(config.phases):
      problems += _phase(config, name, config.phases[:i])
  if problems:
    raise ConfigError("\n".join(problems))


def network_spec(network: ml_collections.ConfigDict, classes: int):
  """The `NetSpec` that a phase's network section describes.

  Raises:
    ValueError: sections that do not fit each other, bits rules that do not
      fit the layers.
  """
  widths, blocks, resolution = (
    network.widths,
    network.blocks,
    network.resolution,
  )
  if network.scale:
    widths, blocks, resolution = spec_lib.compound_scale(
      network.scale,
      widths,
      blocks,
      resolution,
      multiple=network.scale_multiple,
    )
  spec = spec_lib.resnet(
    widths,
    blocks,
    network.strides,
    network.groups,
    network.depthwise,
    stem_features=network.stem_features or None,
    classes=classes,
    resolution=resolution,
  )
  return spec_lib.with_bits(spec, network.bits)


def _phase_names(config) -> list[str]:
  names = config.get("phases")
  where = f"config.phases (={names!r})"
  if not isinstance(names, tuple) or not names:
    return [f"{where} must be a tuple of names, such as ('teacher', 'student')"]
  out = []
  for name in names:
    if not isinstance(name, str) or not NAME.fullmatch(name):
      out.append(
        f"{where}: {name!r} must be a name of small letters, digits and _;"
        " rename it"
      )
    elif name in EXPERIMENT or name == "phases":
      out.append(f"{where}: {name!r} is a field of its own; rename the phase")
    elif not isinstance(config.get(name), ml_collections.ConfigDict):
      out.append(
        f"{where}: there is no section config.{name}; start the config from"
        f" base(phases={names!r})"
      )
  if len(set(names)) != len(names):
    out.append(f"{where} must not name a phase twice; rename one")
  return out


def _unknown(where: str, given: dict[str, Any], fields) -> list[str]:
  known = set(fields) | {"phases"}
  sections = {n.rsplit(".", k)[0] for n in known for k in range(1, 3)}
  out = []
  for k, v in given.items():
    name = f"{where}.{k}".removeprefix("config.")
    if name in known:
      continue
    if name in sections and isinstance(v, dict):
      out += _unknown(f"config.{name}", v, fields)
    else:
      out.append(
        f"config.{name} (={v!r}) is not a field that anything reads; remove"
        " it, or name the phase in config.phases"
      )
  return out


def _get(config, dotted: str):
  value = config
  for part in dotted.split("."):
    value = value.get(part) if hasattr(value, "get") else None
  return value


def _field(where: str, value: Any, knob: Knob) -> list[str]:
  where = f"{where} (={value!r})"
  if where.split(" ")[0].endswith(".bits"):
    return _bits(where, value)
  if not isinstance(knob.default, tuple):
    return _scalar(where, value, knob, type(knob.default))
  kind = type(knob.default[0])
  if not isinstance(value, tuple) or not value:
    hint = (
      f"write {tuple(value)!r}"
      if isinstance(value, list)
      else (f"such as {knob.default!r}")
    )
    return [f"{where} must be a tuple of {kind.__name__}s, not empty; {hint}"]
  out = []
  for entry in value:
    out += _scalar(f"{where}: entry {entry!r}", entry, knob, kind)
  return out


def _scalar(where: str, value: Any, knob: Knob, kind: type) -> list[str]:
  right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    right = True
  if not right:
    example = knob.default[0] if isinstance(knob.default, tuple) else None
    example = knob.default if example is None else example
    return [f"{where} must be of type {kind.__name__}; such as {example!r}"]
  if knob.choices and value not in knob.choices:
    return [f"{where} must be one of {', '.join(knob.choices)}; choose one"]
  if kind in (int, float):
    low = -math.inf if knob.low is None else knob.low
    high = math.inf if knob.high is None else knob.high
    if not low <= value <= high or not math.isfinite(value):
      return [
        f"{where} must be from {low} to {high} ({knob.doc}); such as"
        f" {knob.default!r}"
      ]
  return []


def _bits(where: str, rules: Any) -> list[str]:
  form = "a tuple of (regex, w_bits, a_bits), such as (('.*', 32, 32),)"
  if not isinstance(rules, tuple) or not rules:
    return [f"{where} must be {form}"]
  out = []
  for rule in rules:
    if (
      not isinstance(rule, tuple)
      or len(rule) != 3
      or not isinstance(rule[0], str)
      or any(type(b) is not int for b in rule[1:])
    ):
      out.append(f"{where}: rule {rule!r} must be in {form}")
      continue
    try:
      re.compile(rule[0])
    except re.error as e:
      out.append(f"{where}: {rule[0]!r} is not a regex ({e}); mend it")
    for b in rule[1:]:
      if b not in spec_lib.BITS:
        out.append(
          f"{where}: {b} bits in rule {rule!r} must be one of"
          f" {spec_lib.BITS}; 32 is unquantized"
        )
  return out


def _phase(config, name: str, earlier: tuple[str, ...]) -> list[str]:
  """What can only be seen once all fields have their types."""
  c = config[name]
  where = f"config.{name}"
  out = []
  stages = len(c.network.widths)
  for field, knob in knobs((name,)):
    if knob.length == "stages" and field.startswith(f"{name}."):
      value = _get(config, field)
      if len(value) != stages:
        out.append(
          f"config.{field} (={value!r}) must have {stages} entries, one a"
          f" stage, as {where}.network.widths has; write"
          f" {(value * stages)[:stages]!r}"
        )
  if not out:
    try:
      network_spec(c.network, classes=10)
    except ValueError as e:
      out.append(
        f"{where}.network (={c.network.to_dict()!r}): {e}; change widths,"
        " groups or bits"
      )
  size = c.network.resolution
  for stride in c.network.strides:
    size = (size - 1) // stride + 1
  if c.warmup_epochs > c.epochs:
    out.append(
      f"{where}.warmup_epochs (={c.warmup_epochs}) must be at most epochs"
      f" (={c.epochs}); lower it"
    )
  if c.kd_weight == 0 and c.teacher:
    out.append(
      f"{where}.kd_weight (=0) must be above 0 where a teacher is given;"
      f" raise it or clear {where}.teacher (={c.teacher!r})"
    )
  for field in ("init", "teacher"):
    value = c[field]
    if value and value not in earlier and not _finished(value):
      what = (
        "is a later phase"
        if value in config.phases
        else ("is neither a phase before this one nor a finished workdir")
      )
      out.append(
        f"{where}.{field} (={value!r}) {what}; the phases before it are"
        f" {earlier}, and a finished workdir holds a result.json"
      )
  return out


def _finished(workdir: str) -> bool:
  return pathlib.Path(os.path.expanduser(workdir), "result.json").is_file()
