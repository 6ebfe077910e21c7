"""A phase's teachers, members and votes: what of them does not fit together."""

import ml_collections

from jaxr18.host.paths import names

TEACHING = ("teacher", "self_teach", "teacher_cache", "kd_loss", "kd_weight",
            "features", "others", "diversity_weight", "mixup", "ema_decay",
            "augment.cutout")  # fmt: skip


def member_seeds(c: ml_collections.ConfigDict, seed: int) -> tuple[int, ...]:
  """A population's seeds: a member is what a run alone with its seed is."""
  return tuple(range(seed, seed + c.population.members))


def factors(c: ml_collections.ConfigDict, field: str) -> tuple[float, ...]:
  """A population's factors by member."""
  values = tuple(map(float, c.population[field]))
  return values * c.population.members if len(values) == 1 else values


def check_teaching(problems, name: str, processes: int = 1) -> None:
  """Notes what cannot be of a phase's teachers and losses."""
  c = problems.config[name]
  if not problems.good(*(f"{name}.{field}" for field in TEACHING)):
    return

  def no(field, must, mend):
    problems.add(f"{name}.{field}", must, mend)

  teachers = names(c.teacher)
  taught = bool(teachers) or c.self_teach
  mixed = c.kd_loss != "dkd"  # which weighs itself
  if c.kd_weight == 0 and taught and mixed and c.features == "none":
    no("kd_weight", "must be above 0 where there is a teacher",
       f"raise it, or take the teacher (={c.teacher!r}) away")  # fmt: skip
  if c.self_teach and teachers:
    no("self_teach", f"must be False beside config.{name}.teacher"
       f" (={c.teacher!r})", "leave one of the two out")  # fmt: skip
  if c.self_teach and not c.ema_decay:
    no("self_teach", f"needs config.{name}.ema_decay above 0: the average is"
       " the teacher", "such as ema_decay=0.998")  # fmt: skip
  if c.features != "none" and len(teachers) + c.self_teach != 1:
    no("features", "needs one teacher", "name it in teacher, or write 'none'")
  if c.teacher_cache != "none":
    if processes > 1:
      no("teacher_cache", f"must be 'none' with {processes} processes: they"
         " would write one file",
         "write 'none', or start one process")  # fmt: skip
    if not teachers:
      no("teacher_cache", "must be 'none' without a teacher that stays the"
         " same", "write 'none', or name a teacher")  # fmt: skip
    for field, off, why in (
      ("mixup", 0, "a mixture is no view of an image"),
      ("augment.cutout", 0, "there are too many places of the square"),
      ("features", "none", "stage outputs are not kept"),
    ):
      value = problems.get(f"{name}.{field}")
      if value != off:
        no("teacher_cache", f"must be 'none' with config.{name}.{field}"
           f" (={value!r}): {why}",
           f"write 'none', or {field}={off!r}")  # fmt: skip
  if bool(names(c.others)) != bool(c.diversity_weight):
    no("diversity_weight", f"must be above 0 with config.{name}.others"
       f" (={c.others!r}), and only then", "such as 0.1")  # fmt: skip
  if c.mixup and taught and c.kd_loss.startswith("dkd"):
    no("mixup", f"must be 0 with kd_loss={c.kd_loss!r}, which needs one right"
       " class", "write 0, or kd_loss='kd'")  # fmt: skip
  if c.mixup and c.others:
    no("mixup", "must be 0 with others: their likeness needs one right class",
       "write 0")  # fmt: skip


def check_members(problems, name: str) -> None:
  """Notes what cannot be of a phase's population or ensemble."""
  c = problems.config[name]
  fields = ("population.members", "population.learning_rates",
            "population.temperatures", "ensemble.members", "ensemble.vote",
            "init", "shrink", "teacher", "self_teach", "others",
            "prune.density", "prune.pattern")  # fmt: skip
  if not problems.good(*(f"{name}.{field}" for field in fields)):
    return
  p = c.population
  for field in ("learning_rates", "temperatures"):
    if len(p[field]) not in (1, p.members):
      problems.add(
        f"{name}.population.{field}",
        f"must have 1 or config.{name}.population.members (={p.members})"
        " entries",
        f"write {(p[field] * p.members)[: p.members]!r}",
      )
    elif p.members == 1 and p[field][0] != 1:
      problems.add(
        f"{name}.population.{field}",
        "must be (1.0,) where there is one member",
        f"set config.{name}.{field.removesuffix('s')} itself",
      )
  if p.members > 1 and c.shrink:
    problems.add(
      f"{name}.shrink",
      f"must be False with config.{name}.population.members (={p.members}):"
      " members that have lost different channels are of several specs",
      "shrink one network in a phase of its own",
    )
  if not names(c.ensemble.members):
    return
  for field, off in (
    ("population.members", 1), ("init", ""), ("shrink", False), ("teacher", ""),
    ("self_teach", False), ("others", ""), ("prune.density", 1),
    ("prune.pattern", ""),
  ):  # fmt: skip
    if problems.get(f"{name}.{field}") != off:
      problems.add(
        f"{name}.{field}",
        f"must be {off!r} beside config.{name}.ensemble.members: an ensemble"
        " trains nothing",
        "do it in a phase of its own",
      )
  if problems.good("data.validation") and not problems.config.data.validation:
    if c.ensemble.vote in ("select", "weighted"):
      problems.add(
        f"{name}.ensemble.vote",
        "must be 'probability', 'logit' or 'majority' without validation images"
        " (config.data.validation is 0)",
        "choose one, or hold some out",
      )
