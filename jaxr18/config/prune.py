"""A phase's pruning: what of it does not fit together, and its `Plan`."""

import re

import ml_collections

from jaxr18.compress.gradual import Plan, moves
from jaxr18.config.schema import (
  CHANNEL_CRITERIA,
  CHANNEL_DISTRIBUTIONS,
  PHASE,
  WEIGHT_CRITERIA,
  WEIGHT_DISTRIBUTIONS,
)

_PATTERN = re.compile(r"([1-9]\d?):([1-9]\d?)")


def prunes(c: ml_collections.ConfigDict) -> bool:
  """Whether a phase changes masks."""
  p = c.prune
  return p.density < 1 or bool(p.pattern) or p.distribution == "explicit"


def make_plan(c: ml_collections.ConfigDict, steps: int) -> Plan | None:
  """What a phase of so many steps does to its masks; None for nothing."""
  p = c.prune
  if not prunes(c):
    return None
  pattern = _PATTERN.fullmatch(p.pattern)
  return Plan(
    density=p.density,
    structured=p.structured,
    criterion=p.criterion,
    distribution=p.distribution,
    rules=tuple((pattern, float(d)) for pattern, d in p.rules),
    pattern=tuple(map(int, pattern.groups())) if pattern else None,
    layers=p.layers,
    floor=p.floor,
    multiple=p.multiple,
    schedule=p.schedule,
    begin=round(p.begin * steps),
    end=round(p.end * steps),
    every=p.every,
    regrow=p.regrow,
    drop=p.drop,
  )


def check_prune(problems, name: str) -> None:
  """Notes what cannot be: combinations, and shrinking without a source."""
  c = problems.config[name]
  fields = ("init", "rewind", "shrink", "drop_blocks", "epochs")
  fields += tuple(f"prune.{field}" for field in PHASE["prune"])
  if not problems.good(*(f"{name}.{field}" for field in fields)):
    return
  if (c.shrink or c.rewind) and not c.init:
    field = "shrink" if c.shrink else "rewind"
    problems.add(
      f"{name}.{field}",
      f"must be left out where config.{name}.init is empty",
      "name a phase or a workdir in init",
    )
  if c.drop_blocks and not c.shrink:
    problems.add(
      f"{name}.drop_blocks",
      f"needs config.{name}.shrink=True: the network is no longer the one"
      " that `network` describes",
      "set it",
    )
  if prunes(c):
    _check_plan(problems, f"{name}.prune.", c.prune, c.epochs)


def _check_plan(problems, prefix: str, p, epochs: int) -> None:
  def no(field, must, mend):
    problems.add(prefix + field, must, mend)

  allowed = CHANNEL_CRITERIA if p.structured else WEIGHT_CRITERIA
  if p.criterion not in allowed:
    what = "channels" if p.structured else "single weights"
    no("criterion", f"must be one of {allowed} for {what}", "choose one")
  if (
    p.criterion == "movement"
    and p.schedule == "one_shot"
    and (not p.begin or not epochs)
  ):
    no("begin", "must be above 0, in a phase with epochs: criterion 'movement'"
       " sums what training does before", "raise it")  # fmt: skip
  if p.structured:
    if p.distribution not in CHANNEL_DISTRIBUTIONS:
      no("distribution", f"must be one of {CHANNEL_DISTRIBUTIONS} for channels",
         "choose one")  # fmt: skip
    for field, off in (("pattern", ""), ("regrow", "none"), ("layers", ".*")):
      if p[field] != off:
        no(field, "is of single weights", f"write {off!r}, or structured=False")
  elif p.distribution not in WEIGHT_DISTRIBUTIONS:
    no("distribution", f"must be one of {WEIGHT_DISTRIBUTIONS} for single"
       " weights", "choose one")  # fmt: skip
  elif p.distribution == "lamp" and not p.criterion.startswith("magnitude_"):
    no("criterion", "must be 'magnitude_l1' or 'magnitude_l2' where"
       " distribution='lamp', which ranks by w^2", "choose one")  # fmt: skip
  if (p.distribution == "explicit") != bool(p.rules):
    no("rules", "must be given with distribution='explicit', and only then",
       "such as (('stage4.*', 0.1),)")  # fmt: skip
  if p.pattern:
    found = _PATTERN.fullmatch(p.pattern)
    if not found or int(found[1]) > int(found[2]):
      no("pattern", "must be N:M with N at most M, such as '2:4'", "mend it")
    elif p.density < 1:
      no("pattern", f"must be '' beside a density (={p.density}): it is one of"
         " its own", "leave one of the two out")  # fmt: skip
    elif moves(p.schedule, p.regrow):
      no("pattern", "is set at once and does not move",
         "write schedule='one_shot' and regrow='none'")  # fmt: skip
  if p.regrow != "none" and p.schedule != "one_shot":
    no("regrow", "keeps the density that it starts with",
       "write schedule='one_shot'")  # fmt: skip
  often = moves(p.schedule, p.regrow)
  if often and p.begin >= p.end:
    no("end", f"must be above begin (={p.begin})", "raise it")
  if often and not epochs:
    no("schedule", "needs epochs, and the phase has none",
       "write 'one_shot' and regrow='none', or train")  # fmt: skip
  last = p.end if often else p.begin
  if epochs and last >= 1:
    no("end" if often else "begin", "must be below 1: the network is selected"
       " among those after the last update", "lower it")  # fmt: skip
