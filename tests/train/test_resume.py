"""Whatever stops a run, the same command ends with the same bits."""

import functools
import json
import shutil
import signal

import command
import numpy as np
import pytest
import remedy
import tiny_run

from jaxr18.host import sealed
from jaxr18.host.stop import Stopped, StopSignal
from jaxr18.train import checkpoint, loop, state
from jaxr18.train.files import CheckpointError
from jaxr18.train.hooks import Hook

LAST = tiny_run.STEPS


def steps(directory):
  return sorted(int(p.name) for p in (directory / "checkpoints").iterdir())


def read(directory, step):
  return checkpoint.read(directory / "checkpoints" / str(step))[0]


def metrics(directory):
  rows = sealed.read_lines(directory / "metrics.jsonl", True).rows
  for row in rows:
    assert row.pop("seconds") > 0 and row.pop("images_per_second") >= 0
  return rows


def assert_same(directory, info, expected):
  """Every array of the last checkpoint and of the best, and every metric."""
  other, other_info = expected
  assert metrics(directory) == metrics(other)
  assert {**info, "seconds": 0} == {**other_info, "seconds": 0}
  for step in {LAST, info["step"]}:
    got, want = read(directory, step), read(other, step)
    assert got.keys() == want.keys()
    for name, array in want.items():
      np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing interrupted, and what it returned."""
  directory = tmp_path_factory.mktemp("whole")
  return directory, tiny_run.run_phase(directory)[1]


def test_a_run_keeps_the_two_latest_and_the_best(whole):
  directory, info = whole
  accuracy = {r["step"]: r["validation_accuracy"] for r in metrics(directory)}
  assert list(accuracy) == [6, 12, 18]
  best = max(accuracy, key=lambda step: (accuracy[step], step))
  assert info["step"] == best and info["validation_accuracy"] == accuracy[best]
  assert steps(directory) == sorted({12, 18, best})


@pytest.mark.parametrize("n", [1, 6, 9, 17, 18])
def test_stopped_in_an_epoch_and_at_its_end(tmp_path, whole, n):
  with pytest.raises(Stopped, match=f"at step {n} of 18"):
    tiny_run.run_phase(tmp_path, stop=tiny_run.StopAfter(n))
  assert max(steps(tmp_path)) == n
  assert_same(tmp_path, tiny_run.run_phase(tmp_path)[1], whole)


@pytest.mark.slow
def test_stopped_in_bfloat16_on_3_bits(tmp_path):
  run = functools.partial(tiny_run.run_phase, dtype="bfloat16", bits=3)
  whole = tmp_path / "whole", run(tmp_path / "whole")[1]
  with pytest.raises(Stopped, match="at step 8 of 18"):
    run(tmp_path / "stopped", stop=tiny_run.StopAfter(8))
  info = run(tmp_path / "stopped")[1]
  assert_same(tmp_path / "stopped", info, whole)


@pytest.mark.slow
def test_stopped_at_every_third_step(tmp_path, whole):
  for n in range(3, 18, 3):
    with pytest.raises(Stopped, match=f"at step {n} of 18"):
      tiny_run.run_phase(tmp_path, stop=tiny_run.StopAfter(3))
  assert_same(tmp_path, tiny_run.run_phase(tmp_path)[1], whole)


@pytest.mark.slow
def test_checkpoints_by_the_clock_change_nothing(tmp_path, whole):
  info = tiny_run.run_phase(tmp_path, every_seconds=0)[1]
  assert {17, 18} <= set(steps(tmp_path))
  assert_same(tmp_path, info, whole)


def test_a_signal_that_came_before_the_phase(tmp_path):
  stop = StopSignal()
  stop.received = True
  with pytest.raises(Stopped, match="at step 0 of 18"):
    tiny_run.run_phase(tmp_path, stop=stop)
  assert steps(tmp_path) == []


def killed_in_the_validation(directory):
  file = directory / "metrics.jsonl"
  file.write_text("".join(file.read_text().splitlines(True)[:-1]))


def killed_while_writing_the_line(directory):
  file = directory / "metrics.jsonl"
  file.write_text(file.read_text()[:-30])


def killed_while_rewriting_the_lines(directory):
  (directory / "metrics.jsonl.part").write_text("{")


def killed_while_writing_the_checkpoint(directory):
  killed_in_the_validation(directory)
  last = directory / "checkpoints" / str(LAST)
  last.rename(last.with_name(f"{LAST}.orbax-checkpoint-tmp"))


def killed_while_removing_a_checkpoint(directory):
  old = directory / "checkpoints" / "3"
  shutil.copytree(directory / "checkpoints" / "12", old)
  shutil.rmtree(old / "arrays")
  (old / "meta" / "metadata").unlink()


def relieved_of_its_latest_checkpoint(directory):
  shutil.rmtree(directory / "checkpoints" / str(LAST))


@pytest.mark.slow
@pytest.mark.parametrize(
  "kill",
  [
    killed_in_the_validation,
    killed_while_writing_the_line,
    killed_while_rewriting_the_lines,
    killed_while_writing_the_checkpoint,
    killed_while_removing_a_checkpoint,
    relieved_of_its_latest_checkpoint,
  ],
)
def test_what_a_kill_leaves_behind(tmp_path, whole, kill):
  directory = tmp_path / "run"
  shutil.copytree(whole[0], directory)
  kill(directory)
  assert_same(directory, tiny_run.run_phase(directory)[1], whole)
  left = [p.name for p in (directory / "checkpoints").iterdir()]
  assert not [name for name in left if "tmp" in name]


@pytest.mark.slow
def test_a_loss_that_is_not_finite(tmp_path):
  with pytest.raises(
    loop.TrainingError,
    match=r"tiny: .* at step (\d+); the last good checkpoint",
  ) as e:
    tiny_run.run_phase(tmp_path, learning_rate=1e9, every_seconds=0)
  good = max(steps(tmp_path))
  assert f"checkpoint is step {good} in " in str(e.value)
  assert f"at step {good + 1};" in str(e.value)
  assert "learning_rate" in str(e.value)
  for step in steps(tmp_path):
    assert all(np.isfinite(a).all() for a in read(tmp_path, step).values())
  # What it says would mend it: a lower rate in a new folder.
  assert tiny_run.run_phase(tmp_path / "new")[1]["step"] in (6, 12, 18)


def test_an_error_leaves_nothing_in_the_middle_of_a_write(tmp_path, whole):
  """The same process may go on in the folder, as after a full disk."""

  def fail(step, state):
    raise OSError("at step 3")

  hook = Hook(due=lambda step: step == 3, change=fail)
  with pytest.raises(OSError, match="at step 3"):
    tiny_run.run_phase(tmp_path, every_seconds=0, hooks=lambda t: [hook])
  assert steps(tmp_path) == [2, 3]
  assert not [*tmp_path.rglob("*tmp*")]
  assert_same(tmp_path, tiny_run.run_phase(tmp_path)[1], whole)


def test_a_damaged_checkpoint_stops_and_the_one_before_goes_on(tmp_path, whole):
  directory = tmp_path / "run"
  shutil.copytree(whole[0], directory)
  last = directory / "checkpoints" / str(LAST)
  (file,) = (last / "arrays" / "d").iterdir()
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  with pytest.raises(CheckpointError, match=f"{last} is damaged.*at step") as e:
    tiny_run.run_phase(directory)
  assert remedy.follow(e.value) == f"rm -r {last}"
  assert_same(directory, tiny_run.run_phase(directory)[1], whole)


def test_a_run_of_before_terms_were_summed_goes_on(tmp_path):
  tx = tiny_run.optimizer(clip_norm=0.0)
  step, nets = tiny_run.train_step(tx, taught=True), (tiny_run.tiny_network(1),)
  start = functools.partial(state.create, tiny_run.tiny_network(), tx, True)
  with pytest.raises(Stopped):
    stop = tiny_run.StopAfter(7)
    tiny_run.train(start(), step, tmp_path, nets=nets, stop=stop)
  names = ("cross_entropy", "distillation")
  tiny_run.train(start(terms=names), step, tmp_path, nets=nets)
  before, after = metrics(tmp_path)
  assert "terms" not in before and after["terms"].keys() == set(names)


def flipped(path, at):
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [[0], [1], [2], [0, 1, 2]])
def test_a_damaged_line_is_told_and_what_is_needed_of_it_measured_again(
  tmp_path, whole, lines
):
  """Without its accuracy another checkpoint would be taken for the best."""
  directory = tmp_path / "run"
  shutil.copytree(whole[0], directory)
  file = directory / "metrics.jsonl"
  text = file.read_text().splitlines(True)
  for i in lines:
    at = sum(map(len, text[:i])) + text[i].index('"validation_accuracy": 0.')
    flipped(file, at + len('"validation_accuracy": 0.'))
  told = _told(directory)
  assert f"{file} is damaged: line {lines[0] + 1}: its hash" in str(told)
  assert remedy.follow(told).startswith("sed -i")
  info = tiny_run.run_phase(directory)[1]
  assert {**info, "seconds": 0} == {**whole[1], "seconds": 0}
  kept = [r for r in metrics(whole[0]) if r["step"] in {*steps(directory)}]
  rows = metrics(directory)
  assert [r for r in rows if r["step"] in {*steps(directory)}] == kept


def _told(directory):
  with pytest.raises(CheckpointError) as e:
    tiny_run.run_phase(directory)
  return e.value


def best_before_the_last_two(tmp_path, whole):
  """A run whose best checkpoint is that of its first epoch."""
  directory = tmp_path / "run"
  with pytest.raises(Stopped):
    tiny_run.run_phase(directory, stop=tiny_run.StopAfter(7))
  best = directory / "checkpoints" / "6"
  file = directory / "metrics.jsonl"
  (row,) = sealed.read_lines(file, True).rows
  row["validation_accuracy"] = 2.0
  file.write_text(json.dumps(sealed.seal(row, sealed.LINE)) + "\n")
  assert tiny_run.run_phase(directory)[1]["step"] == 6
  assert steps(directory) == [6, 12, 18]
  return directory, best


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_trained_again(tmp_path, whole):
  """To go on from a later one would test another network without a word."""
  directory, best = best_before_the_last_two(tmp_path, whole)
  (file,) = (best / "arrays" / "d").iterdir()
  flipped(file, file.stat().st_size // 2)
  (directory / "phase.json").write_text("{}")
  told = _told(directory)
  assert f"{best} is damaged" in str(told) and "begins the phase" in str(told)
  remedy.follow(told)
  assert steps(directory) == [] and not (directory / "phase.json").exists()
  assert_same(directory, tiny_run.run_phase(directory)[1], whole)


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_is_missed(tmp_path, whole):
  directory, best = best_before_the_last_two(tmp_path, whole)
  shutil.rmtree(best)
  told = _told(directory)
  assert f"there is no checkpoint {best}, the best so far" in str(told)
  remedy.follow(told)
  assert_same(directory, tiny_run.run_phase(directory)[1], whole)


@pytest.mark.slow
def test_sigterm_and_the_same_command(tmp_path):
  """While it compiles, then in training; what is compiled is kept or not."""
  run, other, cache = (tmp_path / name for name in ("run", "other", "cache"))
  # Nothing that another test has compiled may shorten this.
  process = command.start(run, epochs=20, JAX_ENABLE_COMPILATION_CACHE="false")
  command.wait_for(run / "train" / "checkpoints", process)
  process.send_signal(signal.SIGTERM)
  assert "all is saved" in command.finish(process)
  assert steps(run / "train") == []

  process = command.start(run, epochs=20, cache=cache)
  command.wait_for(run / "train" / "metrics.jsonl", process)
  process.send_signal(signal.SIGTERM)
  said = command.finish(process)
  assert "all is saved" in said
  assert 6 <= max(steps(run / "train")) < 120
  assert "goes on at step" in command.finish(
    command.start(run, epochs=20, cache=cache)
  )

  command.finish(command.start(other, epochs=20, cache=cache))
  assert command.metrics(run) == command.metrics(other)
  got, want = command.last_arrays(run), command.last_arrays(other)
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
  results = [json.loads((w / "result.json").read_text()) for w in (run, other)]
  for key in ("test_correct", "test_loss", "validation_accuracy", "score"):
    assert results[0][key] == results[1][key]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_status_1(tmp_path):
  process = command.start(tmp_path / "run", LARGEST_FILE="8000")
  text = command.finish(process, status=1)
  (line,) = [x for x in text.splitlines() if x.startswith("Error: ")]
  assert "cannot write a checkpoint in" in line and "make room" in line
  assert "File too large" in line and "none is there" in line
