"""What a finished run leaves for people and for other runs."""

import pathlib
import shlex
from typing import Any

from jaxr18.host import sealed
from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import read_bytes


class WorkdirError(ToldError):
  """A folder that holds no finished run.

  Attributes:
    why: the same in a few words, without the folder and the mend.
  """

  def __init__(self, message: str, why: str = ""):
    super().__init__(message)
    self.why = why


def read_result(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads result.json as it is; `jaxr18.run.result.read` gives it types.

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
      " give the --workdir of a finished run", "not finished"
    ) from e  # fmt: skip
  except (OSError, ValueError, TypeError) as e:
    raise WorkdirError(
      f"{path} is damaged ({e}); `{shlex.join(['rm', str(path)])}` removes it,"
      " and the run's own command makes it again: only the test is done anew",
      f"damaged ({e})",
    ) from e
  keys = ("test_correct", "test_count", "spec", "config")
  missing = [k for k in keys if k not in result]
  if missing:
    raise WorkdirError(
      f"{path} is not a result of jaxr18: it lacks {', '.join(missing)}; give"
      " the --workdir of a finished run", "no result of a run"
    )  # fmt: skip
  return result
