"""Damages a run's files and fails its writes: python -m benchmarks.faults

A small run of two phases is made once. Then, in copies of its workdir:

  flips    one bit of one file is another: it is told, or nothing is changed
  cuts     a file ends too early: it is told, or what is gone is made again
  mends    a bit is flipped, the command that the error names is done, and the
           run's own command ends with the same bits
  calls    the n-th operation on a file in the workdir fails, as on a full
           disk; the same command then ends with the same bits
  configs  odd values in fields of the config: refused, or no fault is found

Exits with 1 where anything else comes out: another value without a word, or an
error that is not meant for people. `benchmarks.kill_resume` kills with -9.
"""

import argparse
import collections
import errno
import hashlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import results
from jaxr18.cli import told
from jaxr18.config import base
from jaxr18.config import file as configfile
from jaxr18.config.configdict import plain
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.config.schema import fields as fields_of
from jaxr18.deploy import packed
from jaxr18.host import workdir
from jaxr18.run import experiment, place
from jaxr18.run import export as exporting
from jaxr18.train import checkpoint, files, starts

ODD = (
  None, True, -1, 0, 1, 10**30, 0.5, -0.5, float("nan"), float("inf"), "", "x",
  "(", (), (0,), ("x", 1), ((".*", 4, 4),), [1], {}, np.float32(1),
)  # fmt: skip


def small() -> Any:
  """A config of two phases of two epochs on digits of 8x8."""
  config = base(("one", "two"))
  config.data.name, config.data.limit, config.data.validation = "digits", 64, 32
  config.progress, config.eval_batch_size = "none", 32
  for name in config.phases:
    c = config[name]
    n = c.network
    n.widths, n.blocks, n.strides = (4, 8), (1, 1), (1, 2)
    n.groups, n.depthwise, n.resolution = (1, 1), (False, False), 8
    c.epochs, c.batch_size, c.optimizer.warmup_epochs = 2, 32, 0.0
    c.augment.pad = 1
  config.two.start.init = "one"
  return config


def outcome(folder: pathlib.Path) -> dict[str, Any]:
  """All that must be the same: hashes of arrays, and numbers but times."""
  result = workdir.read_result(folder)
  for key in ("seconds", "command", "starts"):
    result.pop(key)
  phases = result.pop("phases")
  out = {f"result {k}": v for k, v in result.items() if k != "export"}
  for name, info in phases.items():
    info.pop("seconds")
    out[f"{name} info"] = info
    arrays, _ = checkpoint.read(
      folder / name / "checkpoints" / str(info["step"])
    )
    for k, a in arrays.items():
      out[f"{name} {k}"] = hashlib.sha256(a.tobytes()).hexdigest()
  return out


class Full:
  """Fails the n-th operation on a file below a folder from now on.

  An audit hook stays, so there is one, which is told when.
  """

  def __init__(self):
    self.folder, self.left = "", 0
    sys.addaudithook(self._hook)

  def arm(self, folder: pathlib.Path, left: int) -> None:
    self.folder, self.left = f"{folder}{os.sep}", left

  def _hook(self, event: str, args) -> None:
    if self.left <= 0 or event not in ("open", "os.rename", "os.mkdir"):
      return
    path = args[0]
    path = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    writes = event != "open" or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    if writes and str(path).startswith(self.folder):
      self.left -= 1
      if self.left == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def readers(folder: pathlib.Path, config) -> dict[str, Callable[[], Any]]:
  """What reads each file of a workdir, by the file's name in it."""

  def metrics(phase: str) -> list:
    return files.MetricsFile(folder / phase / "metrics.jsonl", False).rows

  def kept_config() -> list:
    parse(configfile.from_json(folder / "config.json"))
    return place.check_config(parse(config), folder, finished=True)

  def logits() -> np.ndarray:
    images = np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3)
    return packed.load(folder / "export" / "network.safetensors")[0](images)

  found = {
    "result.json": lambda: workdir.read_result(folder),
    "config.json": kept_config,
    "starts.jsonl": lambda: starts.read(folder),
    "export/network.safetensors": logits,
  }
  for phase in config.phases:
    found[f"{phase}/metrics.jsonl"] = lambda phase=phase: metrics(phase)
    found[f"{phase}/phase.json"] = lambda phase=phase: files.read_phase(
      folder / phase
    )
    for step in (folder / phase / "checkpoints").iterdir():
      read = lambda step=step: checkpoint.read(step)
      for path in step.rglob("*"):
        if path.is_file():
          found[str(path.relative_to(folder))] = read
  return found


def same(got: Any, want: Any) -> bool:
  try:
    np.testing.assert_equal(got, want)
  except AssertionError:
    return False
  return True


def judged(read: Callable[[], Any], want: Any, prefix: bool = False) -> str:
  """How it ends to read a file: 'told', 'same', 'made again' or what is bad."""
  try:
    got = read()
  except Exception as e:
    return "told" if told(e) else f"BAD: {type(e).__name__}: {e}"
  if same(got, want):
    return "same"
  # Lines that are missing at the end are made again: `mends` holds that.
  if prefix and isinstance(got, list) and got == want[: len(got)]:
    return "made again"
  return "BAD: another value without a word"


def flip(path: pathlib.Path, chance: random.Random) -> str:
  content = bytearray(path.read_bytes())
  at, bit = chance.randrange(len(content)), chance.randrange(8)
  content[at] ^= 1 << bit
  path.write_bytes(content)
  return f"bit {bit} of byte {at}"


def cut(path: pathlib.Path, chance: random.Random) -> str:
  content = path.read_bytes()
  end = chance.randrange(len(content))
  path.write_bytes(content[:end])
  return f"from byte {end}"


def damage(
  how, folder, config, count: int, chance
) -> Iterator[tuple[str, str]]:
  """Damages each file `count` times; yields what was done and its end."""
  for name, read in readers(folder, config).items():
    path, want = folder / name, read()
    whole = path.read_bytes()
    prefix = how is cut and name.endswith(".jsonl")
    for _ in range(count if whole else 0):
      what = how(path, chance)
      yield f"{name}: {what}", judged(read, want, prefix)
      path.write_bytes(whole)


def mends(whole, config, home, count: int, chance) -> Iterator[tuple[str, str]]:
  """Damages a file, does what the error says, and runs the command again."""
  want = outcome(whole)
  names = [n for n in readers(whole, config) if not n.startswith("export")]
  for i in range(count):
    folder = home / f"mend{i}"
    shutil.copytree(whole, folder)
    name = chance.choice([n for n in names if n != "config.json"])
    if "metrics" in name:  # it is read where the phase goes on
      (folder / "result.json").unlink()
      (folder / name).with_name("phase.json").unlink()
    read = readers(folder, config)[name]
    what = f"{name}: {flip(folder / name, chance)}"
    try:
      read()
    except Exception as e:
      commands = re.findall(r"`([^`]+)`", str(e))
      if len(commands) != 1:
        yield what, f"BAD: {len(commands)} commands in: {e}"
        continue
      subprocess.run(commands[0], shell=True, check=True)
    yield what, _again(folder, config, want, "mended")
    shutil.rmtree(folder)


def calls(config, home, count: int, full: Full, want) -> Iterator[tuple]:
  """Fails one operation on a file of a run, and runs the command again."""
  for n in range(1, 1 + 3 * count, 3):
    folder = home / f"call{n}"
    full.arm(folder, n)
    try:
      experiment.run(config, folder)
      ended = "never came" if full.left else "made up for"
    except Exception as e:
      ended = "told" if told(e) else f"BAD: {type(e).__name__}: {e}"
    full.arm(folder, 0)
    if not ended.startswith("BAD"):
      ended = _again(folder, config, want, ended)
    yield f"operation {n}", ended
    shutil.rmtree(folder, ignore_errors=True)


def _again(folder, config, want, ended: str) -> str:
  try:
    experiment.run(config, folder)
    got = outcome(folder)
  except Exception as e:
    return f"BAD: then {type(e).__name__}: {e}"
  wrong = [k for k in want if got.get(k) != want[k]]
  return f"BAD: then others are {wrong[:3]}" if wrong else ended


def configs(count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
  """Puts odd values into fields; any error must be a ConfigError."""
  fields = [field.name for field in fields_of(("one", "two"))]
  for _ in range(count):
    values, put = plain(small()), {}
    for name in chance.sample(fields, chance.choice((1, 1, 2))):
      put[name] = chance.choice(ODD)
      configfile.set_field(values, name, put[name])
    try:
      parse(values)
      ended = "valid"
    except ConfigError:
      ended = "told"
    except Exception as e:
      ended = f"BAD: {type(e).__name__}: {e}"
    yield str(put), ended


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--flips", type=int, default=20, help="of each file")
  parser.add_argument("--cuts", type=int, default=5, help="of each file")
  parser.add_argument("--mends", type=int, default=20)
  parser.add_argument("--calls", type=int, default=20)
  parser.add_argument("--configs", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", help="write the result here, as JSON")
  args = parser.parse_args(argv)
  began, chance = time.monotonic(), random.Random(args.seed)
  counts, bad = collections.defaultdict(collections.Counter), []

  def note(suite: str, ends: Iterator[tuple[str, str]]) -> None:
    for what, ended in ends:
      counts[suite][ended.partition(":")[0]] += 1
      if ended.startswith("BAD"):
        bad.append(f"{suite}, {what}: {ended}".replace(str(home), "HOME"))
        print(bad[-1], flush=True)
    print(f"{suite}: {dict(counts[suite])}", flush=True)

  with tempfile.TemporaryDirectory() as name:
    home, config = pathlib.Path(name).resolve(), small()
    experiment.run(config, home / "whole")
    exporting.export_run(str(home / "whole"), "packed")
    want = outcome(home / "whole")
    shutil.copytree(home / "whole", home / "copy")
    how = home / "copy", config
    note("flips", damage(flip, *how, args.flips, chance))
    note("cuts", damage(cut, *how, args.cuts, chance))
    note("mends", mends(home / "whole", config, home, args.mends, chance))
    note("calls", calls(config, home, args.calls, Full(), want))
    note("configs", configs(args.configs, chance))
  total = sum(sum(c.values()) for c in counts.values())
  print(f"{total} faults, {len(bad)} with another end than they must have")
  if args.out:
    result = {
      "command": "python -m benchmarks.faults " + " ".join(
        f"--{k}={v}" for k, v in vars(args).items() if k != "out"
      ),
      "counts": {k: dict(v) for k, v in counts.items()},
      "bad": bad,
      "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    results.write(result, args.out)
  return 1 if bad else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
