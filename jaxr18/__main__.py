"""Runs one of the package's commands by a short name: jaxr18 train --config=...

`jaxr18 NAME` takes the same flags as the module that NAME stands for, and
`jaxr18 NAME --help` lists them.
"""

import runpy
import sys

from jaxr18 import __version__

# What each name runs, and what that does.
COMMANDS = {
  "train": ("jaxr18.main", "trains, tests and scores what a config describes"),
  "score": ("jaxr18.score", "scores a config or a finished run"),
  "evaluate": ("jaxr18.evaluate", "tests a finished run again"),
  "export": ("jaxr18.export", "writes a finished network as a file"),
  "report": ("jaxr18.report", "shows finished runs on one page"),
  "search": ("jaxr18.search", "searches networks by accuracy and score"),
  "sensitivity": ("jaxr18.sensitivity", "measures what pruning a layer costs"),
  "allocate": ("jaxr18.allocate", "chooses bits by layer for a target score"),
  "data": ("jaxr18.data", "prepares CIFAR-10 before the first run"),
  "weights": (
    "jaxr18.deploy.torch_weights",
    "tests a PyTorch state_dict as a network",
  ),
}


def usage() -> str:
  width = max(map(len, COMMANDS))
  rows = [f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items()]
  return "\n".join(
    [
      "usage: jaxr18 COMMAND [--help] [FLAGS], jaxr18 --version",
      "",
      "Commands:",
      *rows,
    ]
  )


def main() -> None:
  """Runs the command that the first argument names, as `python -m` would."""
  name = sys.argv[1] if sys.argv[1:] else ""
  if name == "--version":
    print(f"jaxr18 {__version__}")
  elif name in ("-h", "--help"):
    print(usage())
  elif name in COMMANDS:
    del sys.argv[1]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
  else:
    wrong = f"jaxr18: there is no command {name!r}\n" if name else ""
    print(f"{wrong}{usage()}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
