"""Configs that older versions have saved, as they would be saved now.

Fields of a phase were loose before they had sections, and some fields did not
exist. `VERSION` is that of a config.json which has all of today's names.
"""

import json
from collections.abc import Mapping
from typing import Any

from jaxr18.config.schema import defaults, staged

VERSION = 3

# Fields of a phase by their older names.
RENAMED = {
  "init": "start.init",
  "rewind": "start.rewind",
  "shrink": "start.shrink",
  "drop_blocks": "start.drop_blocks",
  "recalibrate": "start.recalibrate",
  "teacher": "teacher.source",
  "self_teach": "teacher.self_teach",
  "teacher_cache": "teacher.cache",
  "kd_loss": "teacher.loss",
  "kd_weight": "teacher.weight",
  "temperature": "teacher.temperature",
  "dkd_beta": "teacher.dkd_beta",
  "dkd_warmup": "teacher.dkd_warmup",
  "features": "teacher.features",
  "feature_weight": "teacher.feature_weight",
  "group_lasso": "loss.group_lasso",
  "label_smoothing": "loss.label_smoothing",
  "dampening": "loss.dampening",
  "others": "loss.others",
  "diversity_weight": "loss.diversity",
  "diversity": "loss.likeness",
  "optimizer": "optimizer.name",
  "learning_rate": "optimizer.learning_rate",
  "warmup_epochs": "optimizer.warmup_epochs",
  "momentum": "optimizer.momentum",
  "weight_decay": "optimizer.weight_decay",
  "clip_norm": "optimizer.clip_norm",
  "ema_decay": "average.ema_decay",
  "swa_from": "average.swa_from",
  "swa_rate": "average.swa_rate",
  "estimate": "average.estimate",
  "mixup": "augment.mixup",
  "population.members": "population.size",
}


def lift(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Gives a saved config today's fields, each doing what the run did.

  A field that did not exist yet has its default, but for four: CIFAR-10's
  images were in the folder's order, batch norm's statistics were the running
  ones, averages were of all steps under a falling rate, and DKD was what is
  called dkd_mixed now. A value that stands where a section should be stays.

  Args:
    saved: as JSON gives it; the names in it may be older.

  Raises:
    KeyError, TypeError, ValueError, AttributeError: it is no config.
  """
  phases, known = tuple(saved["phases"]), renamed(saved)
  for name in phases:  # each was saved whole
    known[name]  # noqa: B018
  complete = as_json(defaults(phases, "search" in saved))
  if known.get("data", {}).get("name") == "cifar10":
    complete["data"]["order"] = "folder"
  for name in phases:
    complete[name]["average"] |= {"estimate": 0, "swa_rate": 0}
    teacher = _section(known.get(name), "teacher")
    if teacher.get("loss") == "dkd" and "dkd_warmup" not in teacher:
      known[name]["teacher"] = teacher | {"loss": "dkd_mixed"}
  complete = _merged(complete, known)
  for name in phases:
    if isinstance(complete[name], dict) and _section(complete[name], "network"):
      complete[name]["network"] = as_json(staged(complete[name]["network"]))
  return complete


def renamed(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Gives the fields of a saved config today's names, and adds none."""
  out = {k: v for k, v in saved.items() if k != "version"}
  for name in out["phases"]:
    if isinstance(out.get(name), dict):
      out[name] = _renamed(out[name])
  return out


def _renamed(phase: Mapping[str, Any]) -> dict[str, Any]:
  """A phase's values with each field that has an older name in its section."""
  loose = {k for k in RENAMED if not isinstance(phase.get(k, {}), dict)}
  out = {k: v for k, v in phase.items() if k not in loose}
  for old in loose:
    section, _, field = RENAMED[old].partition(".")
    out[section] = {field: phase[old], **_section(out, section)}
  if "members" in (population := _section(out, "population")):
    rest = {k: v for k, v in population.items() if k != "members"}
    out["population"] = {"size": population["members"], **rest}
  return out


def _section(values: Any, name: str) -> dict[str, Any]:
  section = values.get(name) if isinstance(values, dict) else None
  return section if isinstance(section, dict) else {}


def _merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
  """Both trees' entries, in `new`'s values where it has them."""
  both = {
    k: _merged(old[k], v)
    if isinstance(v, dict) and isinstance(old.get(k), dict)
    else v
    for k, v in new.items()
  }
  return old | both


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested values as JSON gives them back: with lists for tuples."""
  return json.loads(json.dumps(values))
