"""Compares what two commits compute: python -m benchmarks.same_bits OLD NEW

Each variant is a tiny run of the real command, in a git worktree of either
commit, with XLA's own optimizations. Of every variant the two must have

- the same programs: the multiset of the StableHLO texts that JAX compiles,
  without debug information, and
- the same bits: every array of the checkpoints that are left (the last two and
  the best of each phase), and every number of metrics.jsonl that both have.

Programs that are equal as text compute the same, so arrays that differ beside
them come from the host. A field of a config that has another name in one of the
commits is found by `RENAMED`.

  python -m benchmarks.same_bits HEAD~1 .              (this working tree)
  python -m benchmarks.same_bits trunk HEAD --variants=kd_quant,gradual

Exits with 1 where anything differs.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxr18.config.lift import RENAMED  # a commit has one of the two names

ROOT = pathlib.Path(__file__).parents[1]
# Lists a commit's fields of a config with one phase.
FIELDS = """
import json
from jaxr18.config import base
def walk(tree, prefix):
  for k, v in tree.items():
    yield from walk(v, f"{prefix}{k}.") if isinstance(v, dict) else [prefix + k]
print(json.dumps(list(walk(base(phases=("phase",)).to_dict(), ""))))
"""
TIMING = ("seconds", "images_per_second", "hash")  # of a line of metrics.jsonl


class Variant(NamedTuple):
  """One run.

  Attributes:
    phases: the fields of each phase that are not `TINY`'s, by its name; of a
      config in configs/ a dotted field's value.
    config: such as 'configs/kd_quant.py:digits'; '' is made of `phases`.
  """

  phases: Mapping[str, Mapping[str, Any]]
  config: str = ""


DATA = {
  "data.name": "digits",
  "data.limit": 64,
  "data.validation": 32,
  "eval_batch_size": 32,
}
TINY = {
  "network.widths": (4, 8),
  "network.blocks": (1, 1),
  "network.strides": (1, 2),
  "network.groups": (1, 1),
  "network.depthwise": (False, False),
  "network.resolution": 8,
  "epochs": 2,
  "batch_size": 32,
  "warmup_epochs": 1.0,
  "augment.pad": 1,
}
FOUR_BITS = (("stem|head", 8, 8), (".*", 4, 4))
TAUGHT = {"teacher": "teacher"}
AVERAGED = {"ema_decay": 0.9}
VARIANTS = {
  "plain": Variant(
    {
      "train": {
        "label_smoothing": 0.1,
        "augment.cutout": 2,
        "augment.flip": "alternating",
      }
    }
  ),
  "kd_quant": Variant(
    {
      "teacher": AVERAGED,
      "student": TAUGHT
      | AVERAGED
      | {"network.bits": FOUR_BITS, "kd_weight": 0.5, "label_smoothing": 0.1},
    }
  ),
  "dkd": Variant({"teacher": {}, "student": TAUGHT | {"kd_loss": "dkd"}}),
  "learned_bounds": Variant(
    {
      "teacher": {},
      "student": TAUGHT
      | {
        "kd_loss": "dkd_mixed",
        "network.bits": FOUR_BITS,
        "network.w_scales": "learned",
        "bounds.learning_rate": 0.5,
        "bounds.weight_decay": 1e-4,
      },
    }
  ),
  "fitnets": Variant(
    {
      "teacher": {"network.widths": (8, 12)},
      "student": TAUGHT | {"features": "fitnets", "clip_norm": 1.0},
    }
  ),
  "attention": Variant(
    {
      "teacher": {"network.widths": (8, 12)},
      "student": TAUGHT | {"features": "attention", "group_lasso": 1e-3},
    }
  ),
  "self_teach": Variant(
    {"train": AVERAGED | {"self_teach": True, "swa_from": 0.5}}
  ),
  "swa_of_steps": Variant(
    {"train": AVERAGED | {"swa_from": 0.5, "swa_rate": 0.0}}
  ),
  "others": Variant(
    {
      "teacher": {},
      "student": TAUGHT | {"others": "teacher", "diversity_weight": 0.5},
    }
  ),
  "log_det": Variant(
    {
      "one": {},
      "two": {
        "others": "one",
        "diversity": "log_det",
        "diversity_weight": 0.5,
      },
    }
  ),
  "mixup": Variant({"teacher": {}, "student": TAUGHT | {"mixup": 0.4}}),
  "adamw": Variant(
    {
      "train": {
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "clip_norm": 1.0,
        "dtype": "bfloat16",
        "group_lasso": 1e-3,
      }
    }
  ),
  "population": Variant(
    {
      "teacher": {},
      "student": TAUGHT
      | AVERAGED
      | {
        "teacher_cache": "lazy",
        "population.members": 2,
        "population.learning_rates": (1.0, 0.5),
        "population.temperatures": (1.0, 2.0),
      },
    }
  ),
  "gradual": Variant(
    {
      "train": AVERAGED
      | {
        "prune.density": 0.5,
        "prune.schedule": "cubic",
        "prune.criterion": "movement",
        "prune.every": 1,
      }
    }
  ),
  "rigl": Variant(
    {
      "train": {
        "prune.density": 0.5,
        "prune.distribution": "uniform",
        "prune.regrow": "rigl",
        "prune.every": 1,
      }
    }
  ),
  "structured": Variant(
    {
      "train": {
        "prune.density": 0.5,
        "prune.structured": True,
        "prune.criterion": "bn_scale",
      },
      "small": TAUGHT
      | {"init": "train", "teacher": "train", "shrink": True, "recalibrate": 1},
    }
  ),
  "transformed": Variant(
    {
      "train": {},
      "quant": {"init": "train", "network.bits": FOUR_BITS, "epochs": 0},
    }
  ),
  "kd_quant:digits": Variant(
    {"teacher": {"epochs": 1}, "student": {"epochs": 1}},
    "configs/kd_quant.py:digits",
  ),
  "prune_quant:tiny": Variant({}, "configs/prune_quant.py:tiny"),
  "kd_population:tiny": Variant({}, "configs/kd_population.py:tiny"),
}


class Outcome(NamedTuple):
  """What a run computed.

  Attributes:
    programs: how often each StableHLO text was compiled, by name and hash.
    arrays: a hash of each array, by phase, step and path.
    metrics: each line's numbers, by phase and step.
  """

  programs: collections.Counter
  arrays: dict[str, str]
  metrics: dict[str, dict[str, Any]]


@contextlib.contextmanager
def tree(commit: str, folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a worktree of a commit, or the folder itself where it names one."""
  if (pathlib.Path(commit) / "jaxr18").is_dir():
    yield pathlib.Path(commit).resolve()
    return
  git = ["git", "-C", str(ROOT), "worktree"]
  add = [*git, "add", "--quiet", "--detach", str(folder), commit]
  subprocess.run(add, check=True)
  try:
    yield folder
  finally:
    subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def environment(root: pathlib.Path, **more: str) -> dict[str, str]:
  return os.environ | {"PYTHONPATH": str(root)} | more


def fields_of(root: pathlib.Path) -> set[str]:
  """Returns the names of a commit's fields; a phase is called 'phase'."""
  run = [sys.executable, "-c", FIELDS]
  out = subprocess.check_output(run, cwd=root, env=environment(root), text=True)
  return set(json.loads(out))


def named(field: str, known: set[str]) -> str:
  """Returns the name that a commit has for a field of a phase."""
  names = (field, RENAMED.get(field, field))
  for name in names:
    if f"phase.{name}" in known:
      return name
  sys.exit(f"a commit has no field {' or '.join(names)}: mend RENAMED in"
           f" {pathlib.Path(__file__).name}")  # fmt: skip


def flags_of(
  variant: Variant, known: set[str], file: pathlib.Path
) -> list[str]:
  """Returns a run's flags, and writes its config where it needs one."""
  if variant.config:
    return [f"--config={variant.config}"] + [
      f"--config.{phase}.{named(field, known)}={value}"
      for phase, fields in variant.phases.items()
      for field, value in fields.items()
    ]
  lines = ["from jaxr18.config import base", "", "", "def get_config():"]
  lines += [f"  config = base(phases={tuple(variant.phases)!r})"]
  lines += [f"  config.{field} = {value!r}" for field, value in DATA.items()]
  lines += [
    f"  config.{phase}.{named(field, known)} = {value!r}"
    for phase, fields in variant.phases.items()
    for field, value in (TINY | fields).items()
  ]
  file.write_text("\n".join([*lines, "  return config", ""]))
  return [f"--config={file}"]


def run(
  variant: Variant, root: pathlib.Path, known: set[str], home: pathlib.Path
) -> Outcome:
  """Runs the real command of a commit in an empty folder.

  Args:
    root: the commit's worktree.
    known: of `fields_of`.
    home: for the config, the programs and the workdir.
  """
  home.mkdir()
  flags = flags_of(variant, known, home / "config.py")
  env = environment(
    root,
    JAX_DUMP_IR_TO=str(home / "programs"),
    JAX_INCLUDE_DEBUG_INFO_IN_DUMPS="0",
  )
  command = [sys.executable, "-m", "jaxr18.main", *flags]
  command += [f"--workdir={home / 'run'}", "--config.progress=none"]
  ended = subprocess.run(
    command, cwd=root, env=env, text=True, capture_output=True
  )
  if ended.returncode:
    sys.exit(f"{root}: {' '.join(flags)} failed:\n{ended.stdout}{ended.stderr}")
  return outcome(home)


def outcome(home: pathlib.Path) -> Outcome:
  from jaxr18.train import checkpoint

  programs = collections.Counter(
    (re.sub(r"^jax_ir\d+_|_compile$", "", p.stem), digest(p.read_bytes()))
    for p in (home / "programs").glob("*_compile.mlir")
  )
  arrays, metrics = {}, {}
  for phase in sorted(p.parent for p in (home / "run").glob("*/checkpoints")):
    for step in sorted((phase / "checkpoints").iterdir()):
      for name, a in checkpoint.read(step)[0].items():
        text = f"{a.dtype} {a.shape} ".encode() + a.tobytes()
        arrays[f"{phase.name} {step.name} {name}"] = digest(text)
    for line in (phase / "metrics.jsonl").read_text().splitlines():
      row = {k: v for k, v in json.loads(line).items() if k not in TIMING}
      metrics[f"{phase.name} {row['step']}"] = row
  return Outcome(programs, arrays, metrics)


def digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def differences(old: Outcome, new: Outcome) -> dict[str, list[str]]:
  """Names what differs: 'programs', 'arrays' and 'metrics'; empty if nothing.

  Of a program its name is told, with '-' where only the older commit compiles
  it and '+' where only the newer does.
  """
  gone, come = old.programs - new.programs, new.programs - old.programs
  programs = [f"-{name} {h[:8]}" for name, h in gone.elements()]
  programs += [f"+{name} {h[:8]}" for name, h in come.elements()]
  arrays = [
    name
    for name in sorted(old.arrays.keys() | new.arrays.keys())
    if old.arrays.get(name) != new.arrays.get(name)
  ]
  metrics = [
    f"{line} {name}"
    for line in sorted(old.metrics.keys() | new.metrics.keys())
    for name in _unequal(old.metrics.get(line), new.metrics.get(line))
  ]
  return {"programs": programs, "arrays": arrays, "metrics": metrics}


def _unequal(old: dict | None, new: dict | None) -> list[str]:
  if old is None or new is None:
    return ["is in one alone"]
  return sorted(k for k in old.keys() & new.keys() if old[k] != new[k])


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("old", help="a commit, or a folder that holds jaxr18/")
  parser.add_argument("new")
  parser.add_argument(
    "--variants",
    default=",".join(VARIANTS),
    help="comma-separated; by default %(default)s",
  )
  parser.add_argument(
    "--keep", help="leave configs, programs and workdirs in this new folder"
  )
  args = parser.parse_args(argv)
  names = args.variants.split(",")
  if unknown := set(names) - VARIANTS.keys():
    parser.error(f"no variant {', '.join(unknown)}; there are {list(VARIANTS)}")
  failed = []
  with contextlib.ExitStack() as stack:
    home = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    out = pathlib.Path(args.keep).resolve() if args.keep else home / "runs"
    out.mkdir()
    roots = {
      side: stack.enter_context(tree(commit, home / side))
      for side, commit in (("old", args.old), ("new", args.new))
    }
    known = {side: fields_of(root) for side, root in roots.items()}
    for name in names:
      began = time.monotonic()
      old, new = (
        run(VARIANTS[name], root, known[side], out / f"{name}-{side}")
        for side, root in roots.items()
      )
      found = {k: v for k, v in differences(old, new).items() if v}
      failed += [name] if found else []
      size = f"{old.programs.total()} programs, {len(old.arrays)} arrays"
      print(f"{name:20s} {size:26s} {'DIFFERS' if found else 'equal'}"
            f" {time.monotonic() - began:6.1f} s", flush=True)  # fmt: skip
      for kind, what in found.items():
        print(f"  {len(what)} {kind}: {', '.join(what[:6])}", flush=True)
  print(f"{len(names)} variants, {len(failed)} differ")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
