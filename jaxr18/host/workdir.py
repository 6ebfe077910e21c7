"""What a finished run leaves for people and for other runs."""

import pathlib
import shlex
from typing import Any

from jaxr18.host import sealed
from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import read_bytes

FORMAT = "jaxr18 result 3"  # 2 had a hash, and 1 had no format
# What the score's figures were called until format 2.
_RENAMED = {
  "course": "per_network", "exact": "per_layer", "stored": "on_disk"
}  # fmt: skip


class WorkdirError(ToldError):
  """A folder that holds no finished run."""


def read_result(workdir: pathlib.Path) -> dict[str, Any]:
  """What result.json holds, with the names of today.

  Raises:
    WorkdirError: the run is not finished, there is none, or it is damaged.
  """
  path = workdir / "result.json"
  try:
    result = sealed.parse(read_bytes(path))
    demanded = "format" in result or sealed.demanded(workdir)
    result = sealed.unseal(result, sealed.FILE, demanded)
  except FileNotFoundError as e:
    what = "holds no run"
    if (workdir / "config.json").is_file():
      what = "is not finished"
    raise WorkdirError(
      f"{workdir} {what}: there is no {path}; run its command to its end, or"
      " give the --workdir of a finished run"
    ) from e
  except (OSError, ValueError, TypeError) as e:
    raise WorkdirError(
      f"{path} is damaged ({e}); `{shlex.join(['rm', str(path)])}` removes it,"
      " and the run's own command makes it again: only the test is done anew"
    ) from e
  keys = ("test_correct", "test_count", "spec", "config")
  missing = [k for k in keys if k not in result]
  if missing:
    raise WorkdirError(
      f"{path} is not a result of jaxr18: it lacks {', '.join(missing)}; give"
      " the --workdir of a finished run"
    )
  return lift(result)


def lift(result: dict[str, Any]) -> dict[str, Any]:
  """Returns a result of an older format with the names of today's."""
  out = dict(result)
  if isinstance(members := out.get("members"), list):
    out["members"] = [_renamed(member) for member in members]
  return _renamed(out)


def _renamed(holder: Any) -> Any:
  if not isinstance(holder, dict) or not isinstance(holder.get("score"), dict):
    return holder
  score = {_RENAMED.get(k, k): v for k, v in holder["score"].items()}
  return holder | {"score": score}
