"""Checkpoints and the small files: exact, or an error that says what to do."""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import remedy
import tiny_run

from jaxr18.host import sealed
from jaxr18.host.errors import FileError
from jaxr18.host.files import NotFiniteError, write_atomically, write_json
from jaxr18.host.locks import OccupiedError, alone_in
from jaxr18.train import checkpoint, files, state
from jaxr18.train.files import CheckpointError

pytestmark = pytest.mark.versions

META = {"network": "net", "seconds": 1.5}


def some_arrays(seed=0, size=1000):
  rng = np.random.default_rng(seed)
  return {
    "net.params.kernel": rng.standard_normal((size, 3)).astype(np.float32),
    "net.params.half": rng.standard_normal(7).astype(jnp.bfloat16),
    "net.masks.kernel": rng.random((size, 3)) < 0.5,
    "net.masks.whole": np.array(True),
    "step": np.array(seed, np.int32),
  }


def assert_equal(got, want):
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got[name], array, err_msg=name)


def write(folder, *steps, validation=None):
  manager = checkpoint.open_manager(folder, validation or {})
  for step in steps:
    checkpoint.save(manager, step, some_arrays(step), META)
  checkpoint.finish(manager)
  return manager


def kept(folder):
  return sorted(int(p.name) for p in pathlib.Path(folder).iterdir())


def test_round_trip(tmp_path):
  write(tmp_path, 3)
  arrays, meta = checkpoint.read(tmp_path / "3")
  assert_equal(arrays, some_arrays(3))
  assert meta["seconds"] == 1.5 and meta["step"] == 3


@pytest.mark.parametrize(
  ("accuracy", "best", "left"),
  [
    ({}, 5, [4, 5]),
    ({1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2}, 1, [1, 4, 5]),
    ({1: 0.5, 2: 0.5, 3: 0.3}, 2, [2, 4, 5]),
    ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}, 5, [4, 5]),
  ],
)
def test_two_latest_and_the_best_stay_over_a_resume(
  tmp_path, accuracy, best, left
):
  known = {}
  for step in (1, 2, 3, 4, 5):
    manager = write(tmp_path, step, validation=known)  # opened anew each time
    known |= {step: accuracy[step]} if step in accuracy else {}
  assert kept(tmp_path) == left
  assert checkpoint.best_step(manager.all_steps(), known) == best


def test_what_it_saves_is_what_it_was_then(tmp_path):
  """The writer works in the background while the arrays change."""
  manager = checkpoint.open_manager(tmp_path, {})
  x = {"a": jnp.arange(100_000)}
  double = jax.jit(lambda t: jax.tree.map(lambda a: a * 2, t), donate_argnums=0)
  checkpoint.save(manager, 1, checkpoint.flatten(x), META)
  for _ in range(5):
    x = double(x)
  jax.block_until_ready(x)
  checkpoint.finish(manager)
  assert_equal(
    checkpoint.read(tmp_path / "1")[0],
    {"a": np.arange(100_000, dtype=np.int32)},
  )


def test_an_older_step_is_refused(tmp_path):
  manager = write(tmp_path, 5)
  with pytest.raises(CheckpointError, match="step 5 is there already"):
    checkpoint.save(manager, 5, some_arrays(), META)


def test_one_that_vanishes_is_missed(tmp_path):
  manager = write(tmp_path, 5)
  shutil.rmtree(tmp_path / "5")
  with pytest.raises(
    CheckpointError, match="step 5 .*not there.*none is there"
  ):
    checkpoint.finish(manager)


def damaged(path, how):
  content = bytearray(path.read_bytes())
  if how == "delete":
    path.unlink()
  elif how == "truncate":
    path.write_bytes(content[: len(content) // 2])
  else:
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_damage_is_told_and_the_earlier_one_is_whole(tmp_path, how):
  """Of every file in turn: it is an error, or it did no harm."""
  write(tmp_path / "whole", 1, 2)
  names = [
    p.relative_to(tmp_path / "whole/2")
    for p in sorted((tmp_path / "whole/2").rglob("*"))
    if p.is_file()
  ]
  told = 0
  for i, name in enumerate(names):
    folder = tmp_path / str(i)
    shutil.copytree(tmp_path / "whole", folder)
    damaged(folder / "2" / name, how)
    try:
      assert_equal(checkpoint.read(folder / "2")[0], some_arrays(2))
    except CheckpointError as e:
      told += 1
      assert f"{folder / '2'} is damaged" in str(e)
      assert remedy.follow(e) == f"rm -r {folder / '2'}"
      assert "goes on at step 1" in str(e)
    shutil.rmtree(folder / "2", ignore_errors=True)
    assert checkpoint.open_manager(folder, {}).latest_step() == 1
    assert_equal(checkpoint.read(folder / "1")[0], some_arrays(1))
  assert told >= 3  # the data, the description and the tree's


def test_a_description_with_another_number(tmp_path):
  write(tmp_path, 1)
  file = tmp_path / "1" / "meta" / "metadata"
  file.write_text(file.read_text().replace("1.5", "1.6"))
  with pytest.raises(CheckpointError, match="1 is damaged: its description"):
    checkpoint.read(tmp_path / "1")


def test_a_step_that_is_gone(tmp_path):
  run = tmp_path / "run"
  write(run / "checkpoints", 1)
  (run / "phase.json").write_text("{}")
  (tmp_path / "result.json").write_text("{}")
  with pytest.raises(
    CheckpointError, match="there is no checkpoint .*/2; .*goes on at step 1"
  ) as e:
    checkpoint.read(run / "checkpoints" / "2")
  remedy.follow(e.value)
  assert [p.name for p in tmp_path.iterdir()] == ["run"]
  assert kept(run / "checkpoints") == [1] and len(list(run.iterdir())) == 1


def test_foreign_checkpoints(tmp_path):
  (tmp_path / "7").mkdir()
  (tmp_path / "7" / "model.pt").write_text("PK")
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(8, args=ocp.args.PyTreeSave({"w": np.ones(3)}))
  with ocp.CheckpointManager(tmp_path) as manager:
    pass
  meta = ocp.args.Composite(meta=ocp.args.JsonSave({"format": "other 3"}))
  with ocp.CheckpointManager(tmp_path / "other") as manager:
    manager.save(9, args=meta)
  for path in ("7", "8"):
    with pytest.raises(CheckpointError, match="not a checkpoint of jaxr18"):
      checkpoint.read(tmp_path / path)
  with pytest.raises(CheckpointError, match="jaxr18 checkpoint 1.*'other 3'"):
    checkpoint.read(tmp_path / "other" / "9")


def test_other_shapes_are_named():
  net = tiny_run.tiny_network()
  arrays = checkpoint.flatten(net)
  kernel = "params.stem.kernel"
  arrays[kernel] = arrays[kernel][..., :2]
  arrays["masks.head.bias"] = arrays.pop("params.head.bias")
  arrays["masks.extra"] = np.zeros(2)
  with pytest.raises(CheckpointError) as e:
    checkpoint.unflatten(arrays, net, "runs/x")
  for part in (
    "runs/x does not fit",
    "params.stem.kernel is float32[3, 3, 3, 2], expected float32[3, 3, 3, 4]",
    "params.head.bias is missing",
    "masks.extra is not expected",
    "another --workdir",
  ):
    assert part in str(e.value)


def test_a_network_comes_back_from_its_description(tmp_path):
  net = tiny_run.half_pruned(tiny_run.tiny_network())
  tx = tiny_run.optimizer()
  whole = state.create(net, tx, average=True)
  whole = whole.replace(net=jax.tree.map(jnp.zeros_like, net))
  meta = META | {"network": "average", "spec": net.spec.to_json()}
  manager = checkpoint.open_manager(tmp_path, {})
  checkpoint.save(manager, 1, checkpoint.flatten(whole), meta)
  checkpoint.finish(manager)
  back = checkpoint.network_from(*checkpoint.read(tmp_path / "1"))
  assert back.spec == net.spec
  chex.assert_trees_all_equal(back, whole.average)


@pytest.fixture
def small_files(no_file_above):
  with no_file_above(20_000):
    yield


def test_a_full_disk_loses_nothing(tmp_path, capfd, no_file_above):
  manager = write(tmp_path, 1, 2)
  told = rf"in {tmp_path} .*File too large.*good one is 2; make room"
  with no_file_above(20_000), pytest.raises(CheckpointError, match=told):
    checkpoint.save(manager, 3, some_arrays(3, size=100_000), META)
    checkpoint.finish(manager)
  printed = capfd.readouterr().err
  assert "Traceback" not in printed and "Error" not in printed
  for step in (1, 2):
    assert_equal(checkpoint.read(tmp_path / str(step))[0], some_arrays(step))
  for _ in range(50):  # the failed writer may still be at work
    with contextlib.suppress(CheckpointError):
      write(tmp_path, 3)  # with room it goes on
      break
    time.sleep(0.1)
  assert kept(tmp_path) == [2, 3]


def test_a_full_disk_and_the_small_files(tmp_path, small_files):
  path = tmp_path / "result.json"
  write_atomically(path, "1")
  with pytest.raises(FileError, match=f"cannot write {path}.*make room"):
    write_atomically(path, "2" * 30_000)
  assert path.read_text() == "1"
  metrics = files.MetricsFile(tmp_path / "metrics.jsonl", writes=True)
  row = {"step": 6, "validation_accuracy": 0.5, "text": "x" * 15_000}
  metrics.write(row)
  with pytest.raises(FileError, match="metrics.jsonl.*make room"):
    metrics.write(row | {"step": 12})
  again = files.MetricsFile(tmp_path / "metrics.jsonl", writes=True)
  assert again.validation == {6: 0.5}


@pytest.mark.parametrize("where", ["file/below", "/proc/jaxr18"])
def test_an_unwritable_folder(tmp_path, where):
  (tmp_path / "file").write_text("")
  folder = tmp_path / where
  with pytest.raises(FileError, match=f"cannot write {folder}"):
    checkpoint.open_manager(folder, {})
  with pytest.raises(FileError, match=f"cannot write {folder}"):
    write_atomically(folder / "x.json", "{}")


def test_read_phase(tmp_path):
  """By its own command a finished run is not run: its result is in the way."""
  phase, path = tmp_path / "train", tmp_path / "train" / "phase.json"
  phase.mkdir()
  with pytest.raises(CheckpointError, match="train is not finished.*run its"):
    files.read_phase(phase)
  (tmp_path / "result.json").write_text("{}")
  with pytest.raises(CheckpointError, match="train is not finished") as e:
    files.read_phase(phase)
  remedy.follow(e.value)
  assert not (tmp_path / "result.json").exists()
  sealed.write(path, {"step": 1})
  assert files.read_phase(phase) == {"step": 1}
  for text in ('{"step": 1', '{"step": 1, "hash": "0"}', "\0", "[]"):
    path.write_text(text)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{path} is damaged") as e:
      files.read_phase(phase)
    remedy.follow(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["train"]
    assert not list(phase.iterdir())


def test_a_phase_without_its_hash(tmp_path):
  """Is of an older version, or was cut: the workdir's config tells."""
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "phase.json").write_text('{"step": 1}')
  (tmp_path / "config.json").write_text('{"phases": ["train"]}')
  assert files.read_phase(tmp_path / "train") == {"step": 1}
  (tmp_path / "config.json").write_text('{"version": 2, "phases": ["train"]}')
  with pytest.raises(CheckpointError, match="its hash is missing"):
    files.read_phase(tmp_path / "train")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_written(number, tmp_path):
  path = tmp_path / "result.json"
  write_json(path, {"score": {"exact": [0.5]}})
  before = path.read_bytes()
  value = {"score": {"exact": [0.5, number]}, "later": np.nan}
  with pytest.raises(NotFiniteError) as e:
    write_json(path, value)
  assert f"{path} is not written: score.exact[1] is {number}" in str(e.value)
  assert "lower learning_rate" in str(e.value)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

  metrics = files.MetricsFile(tmp_path / "metrics.jsonl", writes=True)
  row = {"step": 6, "validation_accuracy": 0.5}
  metrics.write(row)
  with pytest.raises(NotFiniteError, match="validation_accuracy is"):
    metrics.write({"step": 12, "validation_accuracy": number})
  assert metrics.rows == [row]
  assert files.MetricsFile(tmp_path / "metrics.jsonl", False).rows == [row]


def test_metrics_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [
    {"step": 6, "validation_accuracy": 0.5},
    {"step": 12, "validation_accuracy": None},
    {"step": 18, "validation_accuracy": 0.25},
  ]
  metrics = files.MetricsFile(path, writes=True)
  validation = metrics.validation
  for row in rows:
    metrics.write(row)
  assert validation == {6: 0.5, 18: 0.25} and metrics.last_step == 18
  other = files.MetricsFile(path, writes=False)
  other.go_on_from(12)
  other.write(rows[2])
  assert sealed.read_lines(path, True).rows == rows
  metrics.go_on_from(12)
  assert validation == {6: 0.5} and metrics.last_step == 12
  assert sealed.read_lines(path, True).rows == rows[:2]
  metrics.go_on_from(0)
  for row in (rows[2], rows[0], rows[1]):  # whatever is measured first
    metrics.write(row)
  assert sealed.read_lines(path, True).rows == rows


@pytest.mark.parametrize(
  "change, reason",
  [
    (lambda x: [x[0], x[0], x[1]], "line 2: its step is 6, and 6 is before"),
    (lambda x: [x[1], x[0]], "line 2: its step is 6, and 12 is before it"),
    (lambda x: [x[0].replace("6", "7"), x[1]], "line 1: its hash"),
    (lambda x: ["[]\n", x[1]], "line 1: it is list"),
    (lambda x: ["\0\n", "{}\n", x[1]], "line 1: .*2 such lines"),
  ],
)
def test_damaged_lines(tmp_path, change, reason):
  path = tmp_path / "metrics.jsonl"
  metrics = files.MetricsFile(path, writes=True)
  for step in (6, 12):
    metrics.write({"step": step, "validation_accuracy": 0.5})
  path.write_text("".join(change(path.read_text().splitlines(True))))
  with pytest.raises(CheckpointError, match=reason) as e:
    files.MetricsFile(path, writes=True)
  remedy.follow(e.value)
  assert files.MetricsFile(path, writes=True).last_step == 12


def test_lines_of_an_older_version_get_their_hashes(tmp_path):
  path = tmp_path / "run" / "metrics.jsonl"
  path.parent.mkdir()
  path.write_text('{"step": 6, "validation_accuracy": 0.5}\n')
  metrics = files.MetricsFile(path, writes=True)
  metrics.go_on_from(6)
  metrics.write({"step": 12, "validation_accuracy": 0.25})
  assert len(sealed.read_lines(path, demanded=True).rows) == 2


def test_two_runs_in_one_workdir(tmp_path):
  with alone_in(tmp_path):
    with pytest.raises(OccupiedError, match="another process is running in"):
      with alone_in(tmp_path):
        pass
    with alone_in(tmp_path, first=False):
      pass
  held = subprocess.Popen(
    [sys.executable, "-c", f"""if True:
      import pathlib, time
      from jaxr18.host.locks import alone_in
      with alone_in(pathlib.Path({str(tmp_path)!r})):
        print("held", flush=True)
        time.sleep(60)
    """],
    stdout=subprocess.PIPE,
  )  # fmt: skip
  assert held.stdout.readline() == b"held\n"
  with pytest.raises(OccupiedError, match="another process is running in"):
    with alone_in(tmp_path):
      pass
  held.kill()
  held.wait()
  with alone_in(tmp_path):
    pass
