"""Where a run's numbers go: what a config's `writers` may name."""

import difflib
import importlib.util

from jaxr18.host.paths import names

# The package of each, which the extra of the same name installs.
WRITERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_writers(problems, installed: bool) -> None:
  """Notes what is no writer, or one whose package is missing.

  Args:
    problems: of the config.
    installed: whether the packages have to be there.
  """
  if not problems.good("writers"):
    return
  given = names(problems.get("writers"))
  for i, name in enumerate(given):
    if name not in WRITERS:
      near = difflib.get_close_matches(name, WRITERS, 1)
      problems.add(
        "writers",
        f"has {name!r}, which must be one of {', '.join(WRITERS)}",
        f"write {near[0]!r}" if near else "choose one, or '' for none",
      )
    elif name in given[:i]:
      problems.add("writers", f"must have {name!r} only once", "remove one")
    elif installed and importlib.util.find_spec(WRITERS[name]) is None:
      problems.add(
        "writers",
        f"has {name!r}, which needs the package {WRITERS[name]}",
        f"pip install 'jaxr18[{name}]', or leave it out",
      )
