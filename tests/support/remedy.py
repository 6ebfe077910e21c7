"""Does what an error says would mend it."""

import re
import subprocess


def follow(error) -> str:
  """Runs the shell's command that an error names between back quotes."""
  (command,) = re.findall(r"`([^`]+)`", str(error))
  subprocess.run(command, shell=True, check=True)
  return command
