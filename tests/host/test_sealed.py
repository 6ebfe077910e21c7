"""Small files with a hash: what is wrong is found, what is older is read."""

import hashlib
import json
import subprocess

import pytest

from jaxr18.host import sealed

ROW = {"step": 6, "loss": 0.1, "text": "ä", "each": (0.5, 1e-9), "none": None}


def write_lines(path, rows, digits=sealed.LINE):
  path.write_text(
    "".join(json.dumps(sealed.seal(row, digits)) + "\n" for row in rows)
  )


def test_there_and_back():
  value = sealed.seal(ROW)
  assert list(value)[-1] == "hash" and len(value["hash"]) == 64
  back = json.loads(json.dumps(value, indent=3, sort_keys=True))
  assert sealed.unseal(back, 64, demanded=True) == {**ROW, "each": [0.5, 1e-9]}
  assert sealed.seal(value) == value


def test_the_hash_is_of_the_sorted_compact_json():
  made = hashlib.sha256(b'{"a":0.5,"b":1}').hexdigest()
  assert sealed.seal({"b": 1, "a": 0.5})["hash"] == made
  assert sealed.seal({"b": 1, "a": 0.5}, 16)["hash"] == made[:16]


@pytest.mark.parametrize(
  "change, reason",
  [
    (lambda v: v | {"loss": 0.2}, "its hash is '.*', and its content has"),
    (lambda v: v | {"hash": "0" * 64}, "its hash is '0000"),
    (lambda v: v | {"hash": v["hash"][:16]}, "its hash is"),
    (lambda v: v | {"hash": None}, "its hash is None"),
    (lambda v: {**ROW}, "its hash is missing"),
    (lambda v: [v], "it is list, expected an object"),
  ],
)
def test_what_is_wrong_is_found(change, reason):
  with pytest.raises(sealed.SealError, match=reason):
    sealed.unseal(change(sealed.seal(ROW)), 64, demanded=True)


def test_of_an_older_one_the_same(tmp_path):
  path = tmp_path / "phase.json"
  path.write_text('{"step": 1}')
  assert not sealed.demanded(tmp_path)
  assert sealed.read(path, demanded=False) == {"step": 1}
  (tmp_path / "config.json").write_text('{"seed": 1}')
  assert not sealed.demanded(tmp_path)
  (tmp_path / "config.json").write_text('{"version": 2, "seed": 1}')
  assert sealed.demanded(tmp_path)


def test_every_flipped_bit_of_a_line_is_found_or_changes_nothing(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [{"step": i, "accuracy": i / 7, "phase": "train"} for i in range(3)]
  write_lines(path, rows)
  whole = path.read_bytes()
  assert sealed.read_lines(path, True) == (rows, [1, 2, 3], {})
  start = whole.index(b"\n") + 1  # of the second line; the last ends the file
  found = 0
  for i in range(start, len(whole)):
    for bit in range(8):
      content = bytearray(whole)
      content[i] ^= 1 << bit
      path.write_bytes(content)
      lines = sealed.read_lines(path, True)
      found += bool(lines.damaged)
      assert lines.damaged or lines.rows == rows
  assert found > 8 * 120


def test_what_a_kill_cut_off_is_left_out(tmp_path):
  path = tmp_path / "metrics.jsonl"
  write_lines(path, [ROW, ROW])
  whole = path.read_bytes()
  for end in range(whole.index(b"\n") + 1, len(whole) - 1):
    path.write_bytes(whole[:end])
    lines = sealed.read_lines(path)
    assert len(lines.rows) == 1 and not lines.damaged
  path.write_bytes(whole[:-1])  # all of it but the end of the line
  assert len(sealed.read_lines(path).rows) == 2


def test_older_lines_are_read_and_no_mixture(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n')
  assert sealed.read_lines(path).rows == [{"step": 1}, {"step": 2}]
  assert list(sealed.read_lines(path, demanded=True).damaged) == [1, 2]
  write_lines(path, [{"step": 1}])
  with path.open("a") as f:
    f.write('{"step": 2}\n')
  assert sealed.read_lines(path).damaged == {2: "its hash is missing"}


def test_the_command_that_removes_lines(tmp_path):
  path = tmp_path / "a file's metrics.jsonl"
  write_lines(path, [{"step": i} for i in range(1, 5)])
  lines = path.read_text().splitlines(True)
  path.write_text(lines[0] + "{}\n" + lines[2] + "\0\n")
  damaged = sealed.read_lines(path).damaged
  assert list(damaged) == [2, 4]
  subprocess.run(sealed.without(path, damaged), shell=True, check=True)
  assert sealed.read_lines(path, True).rows == [{"step": 1}, {"step": 3}]
