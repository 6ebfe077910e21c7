"""A small run of benchmarks.faults: what is damaged is told or mended."""

import pytest

from benchmarks import faults


@pytest.mark.slow
def test_no_fault_has_another_end(capsys):
  args = ["--flips=1", "--cuts=1", "--mends=1", "--calls=1", "--configs=20"]
  assert faults.main(args) == 0, capsys.readouterr().out
  said = capsys.readouterr().out
  for suite in ("flips", "cuts", "mends", "calls", "configs"):
    assert f"{suite}: {{" in said
  assert "'told'" in said and "'mended'" in said


def test_what_it_would_call_bad(tmp_path):
  """Another value, and an error that nobody was meant to read."""
  assert faults.judged(lambda: [1], [2]).startswith("BAD: another value")
  assert faults.judged(lambda: [1], [1, 2], prefix=True) == "made again"
  assert faults.judged(lambda: 1 / 0, 1).startswith("BAD: ZeroDivisionError")
