"""Where a stop signal may end the process, in processes of their own."""

import os
import signal
import subprocess
import sys

import pytest

from jaxr18.host.stop import Stopped, StopSignal

# Says 'ready' in the block that is tested, then sleeps there for a moment.
CODE = """
import pathlib, time
from jaxr18.host import stop
signals = stop.on_stop_signals()
signals.alone = {alone}
def cleanup():
  print("cleaned", flush=True)
  {cleanup}
def wait():
  print("ready", flush=True)
  end = time.monotonic() + 20
  while time.monotonic() < end and not signals.received:
    time.sleep(0.01)
  time.sleep(0.3)
{block}
print("left the block", signals.received, flush=True)
try:
  with signals.may_leave("the next"):
    print("in the next", flush=True)
except stop.Stopped as e:
  print(e, flush=True)
"""
WITHIN = 'with signals.may_leave("it", cleanup):\n  wait()'
NESTED = f'with signals.may_leave("all"):\n  {WITHIN.replace("  ", "    ")}'
NOWHERE = "wait()"


def ended(block, *, alone=True, cleanup="pass", **env):
  code = CODE.format(block=block, alone=alone, cleanup=cleanup)
  process = subprocess.Popen(
    [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, env=os.environ | env,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert "Traceback" not in err
  return process.returncode, out.splitlines()


@pytest.mark.parametrize("block", [WITHIN, NESTED])
def test_in_a_block_it_cleans_up_and_leaves(block):
  status, out = ended(block, JAXR18_STOPPED_STATUS="75")
  assert status == 75
  assert out[0] == "cleaned" and out[1].startswith("Stopped; all is saved")
  assert out[2:] == []


def test_elsewhere_it_is_noted_and_the_next_block_raises():
  status, out = ended(NOWHERE)
  assert status == 0
  assert out == ["left the block True", "the next stopped"]


def test_with_other_processes_it_is_only_noted():
  status, out = ended(WITHIN, alone=False)
  assert status == 0
  assert out == ["left the block True", "in the next"]


def test_where_the_cleanup_fails_the_main_thread_goes_on_to_meet_it():
  status, out = ended(WITHIN, cleanup='raise OSError("full")')
  assert status == 0
  assert out == ["cleaned", "left the block True", "the next stopped"]


def test_a_second_signal_kills():
  again = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
  status, out = ended(f"{NOWHERE}; {again}; time.sleep(60)")
  assert status == 128 + signal.SIGTERM
  assert out == []


def test_a_block_closes_again_when_an_error_leaves_it():
  stop = StopSignal()
  with pytest.raises(KeyError), stop.may_leave("it"):
    raise KeyError
  stop.received = True
  stop.leave()  # would end this process
  with pytest.raises(Stopped, match="again stopped"), stop.may_leave("again"):
    pass
