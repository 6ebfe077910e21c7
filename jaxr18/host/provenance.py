"""Which code of jaxr18 runs, the commit it was taken from, and on what."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import NamedTuple

_ROOT = pathlib.Path(__file__).parents[2]  # of a checkout


class Commit(NamedTuple):
  """A commit of git.

  Attributes:
    name: its hash; None where the code comes from no commit that is known.
    changed: whether files of the checkout differ from it; None as `name`, and
      for an install, which cannot tell.
  """

  name: str | None = None
  changed: bool | None = None


def commit() -> Commit:
  """Finds the commit of the checkout, else the one that pip installed from."""
  if (_ROOT / ".git").exists():
    try:
      return Commit(_git("rev-parse", "HEAD"), bool(_git("status", "-suno")))
    except (OSError, subprocess.SubprocessError):
      return Commit()  # git is not here, or does not trust the folder's owner
  try:
    about = importlib.metadata.distribution("jaxr18")
    source = json.loads(about.read_text("direct_url.json") or "{}")
    return Commit(source["vcs_info"]["commit_id"])
  except (importlib.metadata.PackageNotFoundError, LookupError, ValueError):
    return Commit()


def computer() -> str:
  """Names the kind of processor and counts its cores: 'x86_64, 2 cores'."""
  return f"{platform.machine()}, {os.cpu_count()} cores"


def _git(*arguments: str) -> str:
  # Inside a hook git names its own repository in the environment.
  env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
  done = subprocess.run(
    ["git", "-C", str(_ROOT), *arguments],
    capture_output=True, check=True, env=env, text=True, timeout=30,
  )  # fmt: skip
  return done.stdout.strip()
