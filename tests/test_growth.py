"""The benchmark of growth, on what takes seconds."""

import json
import math

import pytest

import jaxr18
from benchmarks import growth


def macs(widths):
  return jaxr18.score(jaxr18.resnet(widths)).macs


def test_exponents_are_between_the_two_largest_sizes(monkeypatch):
  at = {4: (1, 1.0, 0), 8: (2, 3.0, 0), 32: (8, 48.0, 5)}
  keys = ("work", "seconds", "bytes")
  monkeypatch.setitem(growth.ROWS, "made: size", tuple(at))
  monkeypatch.setattr(
    growth, "elsewhere", lambda _, size: dict(zip(keys, at[size], strict=True))
  )
  row = growth.row("made: size", 2)
  assert row["seconds"] == [1.0, 3.0, 48.0]
  assert row["work_exponent"] == pytest.approx(1)
  assert row["seconds_exponent"] == pytest.approx(math.log(16) / math.log(4))
  assert row["bytes_exponent"] is None  # there was nothing to grow from


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, size, work",
  [
    ("score: blocks of a stage", 2, 16),
    ("search: trials", 3, 3),
    ("report: runs", 2, 2),
    ("step: members", 2, 3 * 2 * 128 * macs((16, 32, 64))),
    ("step, 4 bits: width", 4, 3 * 128 * macs((4, 8, 16))),
  ],
)
def test_each_row_can_be_measured(name, size, work, monkeypatch):
  monkeypatch.setattr(growth, "SECONDS", 0.0)
  found = growth.measure(name, size)
  assert found["seconds"] > 0 and found["bytes"] >= 0
  assert found["work"] == work


def test_an_unknown_row_is_told(capsys):
  with pytest.raises(SystemExit):
    growth.main(["--rows=nothing"])
  assert "there are step: width" in capsys.readouterr().err


def test_numbers_are_kept_and_shown(monkeypatch, capsys, tmp_path):
  found = {"work": 4, "seconds": 0.5, "bytes": 2**20}
  monkeypatch.setattr(growth, "elsewhere", lambda _, size: found)
  growth.main(["--rows=report", f"--out={tmp_path}/result.json"])
  assert "| report: runs: 10, 40, 160 | 0.5 / 0.5 / 0.5 |" in (
    capsys.readouterr().out
  )
  kept = json.loads((tmp_path / "result.json").read_text())
  assert kept["rows"]["report: runs"]["bytes"] == [2**20] * 3
