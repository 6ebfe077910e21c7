"""What a finished run leaves for people and for other runs."""

import json
import pathlib
from typing import Any


class WorkdirError(Exception):
  """A folder that holds no finished run."""


def read_result(workdir: pathlib.Path) -> dict[str, Any]:
  """What result.json holds.

  Raises:
    WorkdirError: the run is not finished, there is none, or it is damaged.
  """
  path = workdir / "result.json"
  try:
    result = json.loads(path.read_text())
  except FileNotFoundError as e:
    what = "holds no run"
    if (workdir / "config.json").is_file():
      what = "is not finished"
    raise WorkdirError(
      f"{workdir} {what}: there is no {path}; run its command to its end, or"
      " give the --workdir of a finished run"
    ) from e
  except (OSError, ValueError) as e:
    raise WorkdirError(
      f"{path} is damaged ({e}); remove it and run the command again: only the"
      " test is done anew"
    ) from e
  missing = [k for k in ("test_correct", "test_count", "spec", "config")
             if not isinstance(result, dict) or k not in result]  # fmt: skip
  if missing:
    raise WorkdirError(
      f"{path} is not a result of jaxr18: it lacks {', '.join(missing)}; give"
      " the --workdir of a finished run"
    )
  return result
