"""Tells a person at a terminal what is being done before there is a result."""

import sys

from jaxr18.host.stop import say


def doing(what: str) -> None:
  """Says on a terminal's stderr what takes some seconds now; a log has none.

  Args:
    what: such as 'loading JAX'.
  """
  if sys.stderr.isatty():
    say(f"{what} ...", sys.stderr)
