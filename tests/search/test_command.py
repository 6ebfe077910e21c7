"""A search: what it may choose, what it trains, and that nothing is lost."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import postgres
import pytest
import tiny_run
from command import Running

from jaxr18.config import file as configfile
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.config.search import candidate_values, dimensions, per_layer_score
from jaxr18.cost.score import score
from jaxr18.host.stop import StopSignal
from jaxr18.report import palette
from jaxr18.run import experiment, sources
from jaxr18.search import halving, storage, table, trial
from jaxr18.train.mesh import make_mesh

pytest.importorskip("optuna")
ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "support" / "search_config.py"


def load(**changes):
  values = configfile.load(str(CONFIG))
  for name, value in changes.items():
    configfile.set_field(values, name.replace("__", "."), value)
  return parse(values)


def begin(config, workdir, where=None):
  workdir.mkdir(exist_ok=True)
  study = storage.open_study(where or workdir / "journal.log")
  storage.keep_config(study, config.saved())
  return study


def search(config, workdir, trials, stop=None):
  """One worker, to its end."""
  study = begin(config, workdir)
  dataset, mesh = experiment.load_data(config.data), make_mesh()
  while work := trial.find_work(study, config, workdir, trials):
    with work.lock:
      trial.train(study, config, work, dataset, mesh, stop or StopSignal())
  return study, table.write(study, workdir)


def command(*flags, **environment):
  return Running(
    [sys.executable, "-m", "jaxr18.search", *map(str, flags)],
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
  )


@pytest.fixture(scope="module")
def database():
  """The address of a real PostgreSQL server, which holds no study yet."""
  with postgres.server() as url:
    yield url


class TestHalving:
  """Against numbers worked out by hand."""

  COSTS = np.array(
    [[1, 5], [2, 3], [4, 1], [2, 4], [3, 3], [5, 5], [2, 3]], float
  )

  def test_ranks(self):
    # Of rank 0 are those that no other is below; the equal ones stay together.
    assert halving.ranks(self.COSTS).tolist() == [0, 0, 0, 1, 1, 2, 0]

  def test_crowding(self):
    # Deb et al.: ((4 - 1) / 6 + (9 - 4) / 8), ((7 - 2) / 6 + (6 - 1) / 8).
    front = np.array([[1, 9], [2, 6], [4, 4], [7, 1]], float)
    expected = [np.inf, 3 / 6 + 5 / 8, 5 / 6 + 5 / 8, np.inf]
    np.testing.assert_allclose(halving.crowding(front), expected)

  def test_order(self):
    costs = [[2, 6], [4, 4], [1, 9], [7, 1], [8, 8]]
    # The ends, the lower in the first objective before the other; then the
    # more distant one; then the second front.
    assert halving.order(np.array(costs)) == [2, 3, 1, 0, 4]

  @pytest.mark.parametrize(
    "earlier, mine, eta, expected",
    [
      ([], (0.1, 9.0), 2, True),
      ([(0.5, 1.0)], (0.4, 2.0), 2, False),
      ([(0.5, 1.0)], (0.6, 2.0), 2, True),  # both best: the more accurate
      ([(0.5, 1.0)], (0.4, 0.5), 2, False),
      ([(0.5, 1.0)], (0.4, 2.0), 3, True),  # too few to choose from
      ([(0.5, 1.0), (0.6, 2.0)], (0.7, 3.0), 3, True),
      ([(0.5, 1.0), (0.7, 3.0), (0.4, 2.0)], (0.3, 0.1), 2, True),
      ([(0.5, 1.0), (0.7, 3.0), (0.3, 0.1)], (0.4, 2.0), 2, False),
    ],
  )
  def test_goes_on(self, earlier, mine, eta, expected):
    assert halving.goes_on(earlier, mine, eta) is expected


class TestCandidates:
  def test_what_is_chosen_stands_in_the_config(self):
    bits = (("stem|head", (8,)), (".*", (4, 8)))
    config = load(search__bits=bits)
    params = {"widths1": 4, "widths2": 8, "blocks1": 1, "blocks2": 1,
              "groups1": 2, "groups2": 1, "bits:stem|head": 8, "bits:.*": 4,
              "density": 0.5, "resolution": 8}  # fmt: skip
    assert dimensions(config.search).keys() == params.keys()
    candidate = candidate_values(config.values, params)
    assert "search" not in candidate and "search" in config.values
    c = parse(candidate).phases[0].options
    assert c.network.widths == (4, 8) and c.network.groups == (2, 1)
    assert c.network.bits == (("stem|head", 8, 8), (".*", 4, 4))
    assert c.prune.density == 0.5 and c.network.resolution == 8

  def test_the_config_stays_as_it_is(self):
    """What was checked wrote the largest candidate into it."""
    assert load().values == configfile.load(str(CONFIG))

  def test_one_bit_is_of_weights_alone(self):
    config = load(search__bits=((".*", (1,)),))
    params = {k: v[0] for k, v in dimensions(config.search).items()}
    got = candidate_values(config.values, params)
    assert got["train"]["network"]["bits"] == ((".*", 1, 2),)

  @pytest.mark.parametrize(
    "changes, expected",
    [
      ({"search__groups": ((1, 3), (1,))}, r"has 3 at index 0.*divide 4"),
      ({"search__widths": ((4,),)}, "2 entries"),
      ({"search__widths": ((4, 4), (8,))}, "each once"),
      ({"search__widths": (4, 8)}, "of tuples"),
      ({"search__blocks": ((0,), (1,))},
       "has 0 at index 0 of entry 0, .*from 1 to 100"),
      ({"search__bits": ((".*", (9,)),)}, "has 9 in"),
      ({"search__bits": ((".*", 4),)}, r"such as \('\.\*', \(4, 8\)\)"),
      ({"search__bits": (("stem", (8,)), ("stage9.*", (8,)))},
       "cannot be run.*stage9"),
      ({"search__rungs": (2, 1)}, "must grow"),
      ({"search__rungs": (3,)}, "below the 3 epochs"),
      ({"search__resolution": (1,)}, "raise it to 4"),
      ({"search__budget": 1.0}, "not a field"),
      ({"data__validation": 0}, "held-out"),
      ({"train__prune__distribution": "global"}, "'uniform', 'erk'"),
      ({"train__prune__schedule": "cubic", "train__prune__end": 0.9},
       "at or after 2.7 epochs"),
      ({"train__population__size": 2}, "no place in a search"),
    ],
    ids=str,
  )  # fmt: skip
  def test_what_cannot_be_searched(self, changes, expected):
    with pytest.raises(ConfigError, match=expected):
      load(**changes)

  def test_a_search_is_of_one_phase(self):
    from jaxr18.config import base

    with pytest.raises(ConfigError, match="must be one"):
      parse(base(("a", "b"), search=True))


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
  """A study of 4 trained candidates, by one worker."""
  workdir = tmp_path_factory.mktemp("studied")
  config = load()
  study, rows = search(config, workdir, 4)
  return config, workdir, study, rows


@pytest.mark.slow
class TestStudy:
  def test_has_as_many_as_wanted(self, studied):
    _, _, _, rows = studied
    assert len(trial.finished(rows)) == 4
    assert {row["state"] for row in rows} == {
      storage.COMPLETE, storage.HALVED, storage.OVER, storage.SEEN,
    }  # fmt: skip

  def test_none_is_trained_twice(self, studied):
    _, _, _, rows = studied
    tried = [row["params"] for row in rows if row["state"] != storage.SEEN]
    assert all(tried.count(params) == 1 for params in tried)
    for row in rows:
      assert row["state"] != storage.SEEN or row["params"] in tried

  def test_over_the_budget_is_never_trained(self, studied):
    config, workdir, _, rows = studied
    budget = config.search.score_budget
    for row in rows:
      folder = workdir / "trials" / f"{row['number']:04d}"
      if row["state"] == storage.SEEN:
        assert not folder.exists()
        continue
      over = row["state"] == storage.OVER
      assert over == (row["score"] > budget) == (not folder.exists())
      assert bool(row["rungs"]) != over

  def test_the_score_was_known_before(self, studied):
    config, workdir, _, rows = studied
    pruned = set()
    for row in rows:
      if row["state"] != storage.COMPLETE:
        continue
      net = sources.load_network(workdir / "trials" / f"{row['number']:04d}")
      candidate = parse(candidate_values(config.values, row["params"]))
      planned = per_layer_score(candidate.phases[0])
      assert score(net.spec, masks=net.masks).per_layer.total == planned
      assert row["score"] == planned
      pruned.add(row["params"]["density"])
    assert pruned and max(pruned) < 1

  def test_a_halved_one_stopped_at_its_rung(self, studied):
    _, workdir, _, rows = studied
    for row in trial.finished(rows):
      train = workdir / "trials" / f"{row['number']:04d}" / "train"
      lines = (train / "metrics.jsonl").read_text().splitlines()
      lines = {
        r["epoch"]: r["validation_accuracy"] for r in map(json.loads, lines)
      }
      assert row["rungs"]
      for rung in row["rungs"]:
        assert rung["accuracy"] == lines[rung["epoch"]]
        assert rung["goes_on"] or rung == row["rungs"][-1]
      halved = row["state"] == storage.HALVED
      assert max(lines) == (row["rungs"][-1]["epoch"] if halved else 3)
      assert (train / "phase.json").exists() == (not halved)
      assert not (train.parent / "result.json").exists()  # nothing was tested

  def test_rungs_were_as_halving_says(self, studied):
    _, _, _, rows = studied
    for epoch in (1, 2):
      came = []
      for row in rows:
        for rung in row["rungs"]:
          if rung["epoch"] == epoch:
            mine = rung["accuracy"], row["score"]
            assert rung["goes_on"] == halving.goes_on(came, mine, 2)
            came.append(mine)

  def test_another_gives_the_same(self, studied, tmp_path):
    config, _, _, rows = studied
    study = begin(config, tmp_path)
    for row in rows[:3]:
      number, params = storage.ask(
        study, dimensions(config.search), config.seed
      )
      assert (number, params) == (row["number"], row["params"])

  def test_files_say_what_there_is(self, studied):
    _, workdir, _, rows = studied
    kept = json.loads((workdir / "search.json").read_text())
    assert [t["number"] for t in kept["trials"]] == list(range(len(rows)))
    assert kept["finished"] == 4
    front = [rows[i] for i in kept["front"]]
    complete = [r for r in rows if r["state"] == storage.COMPLETE]
    for row in complete:
      beaten = any(
        o["accuracy"] >= row["accuracy"]
        and o["score"] <= row["score"]
        and (o["accuracy"], o["score"]) != (row["accuracy"], row["score"])
        for o in complete
      )
      assert (row in front) == (not beaten)
    page = (workdir / "pareto.html").read_text()
    for row in trial.finished(rows):
      assert f"trial {row['number']}" in page
    marks = re.findall(
      r'<path aria-label="trial (\d+),[^>]* fill="(#\w+)"', page
    )
    best = {int(n) for n, fill in marks if fill != palette.PAPER}
    assert best == set(kept["front"])
    assert any(r["state"] == storage.HALVED for r in rows)
    assert 'class="dash"' not in page  # the goal of 90% is CIFAR-10's

  def test_the_page_shows_how_the_front_grew(self, studied):
    *_, rows = studied
    assert "How the front grew" not in table.page(rows[:1], "digits")
    # Both are set, since what tiny networks reach, and so which of them are
    # trained to their end, is the machine's to say.
    rows = [
      row | {"state": storage.COMPLETE, "score": 0.1 * i, "accuracy": 0.2 * i}
      for i, row in enumerate(trial.finished(rows), start=1)
    ]
    assert len(table.covered(rows)) == 4
    assert "How the front grew" in table.page(rows, "digits")

  def test_what_has_no_number_is_not_drawn(self, studied):
    *_, rows = studied
    for number in (None, np.nan, np.inf):
      for field in ("accuracy", "score"):
        changed = [row | {field: number} for row in rows]
        assert table.points(changed) == table.front(changed) == []

  def test_the_chosen_one_is_tested_by_main(self, studied):
    _, workdir, _, rows = studied
    folder = workdir / "trials" / f"{table.front(rows)[0]['number']:04d}"
    config = configfile.load(str(folder / "config.json"))
    stamp = (folder / "train" / "phase.json").stat().st_mtime_ns
    result = experiment.run(config, folder)
    assert result.test.count == 64
    assert (folder / "train" / "phase.json").stat().st_mtime_ns == stamp
    assert result.score.per_layer.total == table.front(rows)[0]["score"]
    (folder / "result.json").unlink()


class TestWork:
  """Who gets which trial; nothing is trained."""

  def test_each_has_its_own_and_a_dead_ones_is_taken_up(self, tmp_path):
    config = load()
    one, two = begin(config, tmp_path), begin(config, tmp_path)
    first = trial.find_work(one, config, tmp_path, 2)
    second = trial.find_work(two, config, tmp_path, 2)
    assert second.number > first.number and not second.begun
    assert trial.find_work(two, config, tmp_path, 2) is None  # both at work
    first.lock.close()  # as the end of its process does
    again = trial.find_work(two, config, tmp_path, 2)
    assert again.begun
    assert (again.number, again.params) == (first.number, first.params)
    again.lock.close(), second.lock.close()

  def test_a_trial_stays_where_its_checkpoints_are(self, tmp_path):
    config = load()
    here, there = tmp_path / "here", tmp_path / "there"
    study = begin(config, here)
    there.mkdir()
    lost = trial.find_work(study, config, here, 9)
    lost.lock.close()
    other = trial.find_work(study, config, there, 9)
    assert other.number > lost.number and not other.begun
    other.lock.close()

  def test_killed_while_it_was_sampled(self, tmp_path):
    config = load()
    study = begin(config, tmp_path)
    work = trial.find_work(study, config, tmp_path, 2)
    home = storage.row(study, work.number)["home"]
    study.optuna.ask()
    storage.note(study, work.number + 1, home=home)
    nobody = trial.find_work(study, config, tmp_path, 2)
    assert storage.row(study, work.number + 1)["state"] == storage.FAILED
    work.lock.close(), nobody.lock.close()

  def test_a_budget_that_nothing_meets(self, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "MOST_UNTRAINED", 5)
    config = load(search__score_budget=1e-7)
    study = begin(config, tmp_path)
    with pytest.raises(storage.StudyError, match="5 candidates.*score_budget"):
      trial.find_work(study, config, tmp_path, 2)
    assert not (tmp_path / "trials").exists()

  def test_a_space_that_is_exhausted(self, tmp_path):
    """12 candidates, of which the sampler chose the same ones 1,000 times."""
    config = load(search__score_budget=1.0)
    study = begin(config, tmp_path)
    choices = dimensions(config.search)
    while work := trial.find_work(study, config, tmp_path, 99):
      work.lock.close()
      storage.finish(study, work.number, storage.COMPLETE, 0.5)
    rows = storage.rows(study)
    assert len(trial.finished(rows)) == 12 and trial.exhausted(rows, choices)
    assert len(rows) <= 24  # one that was seen before, at most, for each

  def test_a_small_space_over_the_budget(self, tmp_path):
    config = load(search__score_budget=1e-7)
    study = begin(config, tmp_path)
    with pytest.raises(storage.StudyError, match="all 12 candidates .*0.000"):
      trial.find_work(study, config, tmp_path, 2)

  def test_budgets_of_bytes(self, tmp_path):
    budgets = dict(search__score_budget=1.0, search__memory_budget=4_000)
    config = load(**budgets)
    study = begin(config, tmp_path)
    seen = []
    while work := trial.find_work(study, config, tmp_path, 99):
      work.lock.close()
      storage.finish(study, work.number, storage.COMPLETE, 0.5)
      seen.append(work.params["widths1"])
    assert seen == [4] * 6  # 8 channels of 8x8 thrice are 6,144 bytes
    config = load(**budgets, search__bytes_budget=100)
    other = tmp_path / "other"
    other.mkdir()
    study = begin(config, other)
    told = r"over .*score_budget.*memory_budget \(=4000\).*bytes_budget"
    with pytest.raises(storage.StudyError, match=told):
      trial.find_work(study, config, other, 2)

  def test_a_copied_folder_is_another_one(self, tmp_path):
    """In one database: what runs in the first does not go on in the copy."""
    config = load()
    url = f"sqlite:///{tmp_path}/study.db"
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    study = begin(config, first, url)
    mine = trial.find_work(study, config, first, 9)
    shutil.copytree(first, copy)
    other = trial.find_work(study, config, copy, 9)
    assert other.number > mine.number and not other.begun
    mine.lock.close()
    again = trial.find_work(study, config, first, 9)
    assert again.number == mine.number and again.begun
    again.lock.close(), other.lock.close()

  def test_a_copied_study_is_its_own(self, tmp_path):
    """Its journal comes along, and all that it says is running lies in it."""
    config = load()
    first, copy = tmp_path / "first", tmp_path / "copy"
    study = begin(config, first)
    mine = trial.find_work(study, config, first, 9)
    shutil.copytree(first, copy)
    theirs = trial.find_work(begin(config, copy), config, copy, 9)
    assert theirs.number == mine.number and theirs.begun
    assert theirs.folder.is_relative_to(copy)
    mine.lock.close(), theirs.lock.close()

  @pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
  def test_a_database(self, kind, tmp_path, request):
    """Two machines, with a folder each, share a study by its address."""
    config = load(search__score_budget=1.0)
    url = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
      url = request.getfixturevalue("database")
    here, there = tmp_path / "here", tmp_path / "there"
    one, two = begin(config, here, url), begin(config, there, url)
    works = [trial.find_work(one, config, here, 2),
             trial.find_work(two, config, there, 2)]  # fmt: skip
    assert [work.number for work in works] == [0, 1]
    for work in works:
      work.lock.close()
      assert trial.reach(two, work.number, 1, 0.5 + work.number / 10, 2)
      storage.finish(one, work.number, storage.COMPLETE, 0.5)
    again = storage.open_study(url, new=False)
    assert len(trial.finished(storage.rows(again))) == 2
    assert storage.kept_config(again) == config.saved()
    table.write(again, here)
    assert not list(tmp_path.glob(f"{kind}*"))  # no folder of that name

  def test_a_wrong_password(self, database):
    url = database.replace("cret@", "wrong@")
    with pytest.raises(storage.StudyError, match="password auth.* failed") as e:
      storage.open_study(url)
    assert "wrong" not in str(e.value)

  @pytest.mark.parametrize(
    "url, told",
    [
      ("sqlite:////none/such/folder/s.db", "cannot be opened"),
      ("postgresql://me:secret@localhost:1/x", "cannot be opened"),
      ("nothing://x", "cannot be opened"),
    ],
  )
  def test_a_database_that_is_not_there(self, url, told):
    with pytest.raises(storage.StudyError, match=told) as e:
      storage.open_study(url)
    assert "secret" not in str(e.value)

  def test_an_empty_database_has_no_study(self, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(storage.StudyError, match="no study in sqlite"):
      storage.open_study(url, new=False)

  def test_failures_in_a_row(self, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "MOST_FAILED", 2)
    config = load(search__score_budget=1.0)
    study = begin(config, tmp_path)
    for _ in range(2):
      work = trial.find_work(study, config, tmp_path, 3)
      work.lock.close()
      storage.finish(study, work.number, storage.FAILED, reason="nan")
    with pytest.raises(storage.StudyError, match="last 2 .*nan"):
      trial.find_work(study, config, tmp_path, 3)

  def test_a_line_that_was_cut_off(self, tmp_path):
    config = load()
    study = begin(config, tmp_path)
    storage.ask(study, dimensions(config.search), 0)
    with (tmp_path / "journal.log").open("a") as f:
      f.write('{"op_code":5,"tri')
    again = begin(config, tmp_path)
    storage.ask(again, dimensions(config.search), 0)
    assert [r["number"] for r in storage.rows(again)] == [0, 1]
    assert len(storage.rows(storage.open_study(tmp_path / "journal.log"))) == 2

  def test_a_file_of_something_else(self, tmp_path):
    (tmp_path / "x.log").write_text('{"a": 1}\n')
    with pytest.raises(storage.StudyError, match="not the journal"):
      storage.open_study(tmp_path / "x.log")


@pytest.mark.slow
def test_what_the_front_covers():
  """Of three candidates, in halves of each axis, and one that adds nothing."""
  found = [(0.01, 0.5), (0.1, 0.6), (1.0, 0.7), (0.1, 0.55)]
  rows = [
    {"number": i, "state": storage.COMPLETE, "score": score,
     "accuracy": accuracy, "seconds": 1800}
    for i, (score, accuracy) in enumerate(found)
  ]  # fmt: skip
  rows.insert(1, rows[0] | {"number": 9, "state": storage.FAILED})
  rows.append(rows[0] | {"number": 10, "score": 0.0})  # has no logarithm
  expected = [(0.5, 0), (1.5, 0.25), (2, 0.25), (2.5, 0.25)]
  np.testing.assert_allclose(table.covered(rows), expected, atol=1e-12)
  assert table.covered(rows[:2]) == table.covered([]) == []


def test_training_that_is_not_finite_fails_its_trial_alone(tmp_path):
  config = load(
    train__optimizer__learning_rate=100.0, train__optimizer__weight_decay=10.0
  )
  study = begin(config, tmp_path)
  work = trial.find_work(study, config, tmp_path, 1)
  with work.lock:
    row = trial.train(
      study, config, work, experiment.load_data(config.data), make_mesh(),
      StopSignal(),
    )  # fmt: skip
  assert row["state"] == storage.FAILED
  # Whichever is seen first: the loss, or a variance that overflows.
  assert re.search(r"the loss is (nan|inf)|is not finite at", row["reason"])
  assert "try a lower learning_rate" in row["reason"]
  assert trial.finished(storage.rows(study)) == []


@pytest.mark.slow
def test_two_workers_one_killed(studied, tmp_path):
  """The other one takes its trial up; numbers are those of a quiet study."""
  _, _, _, quiet = studied
  first = trial.finished(quiet)[0]["number"]
  env = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # as here: to the same bits
    "PYTHONWARNINGS": "ignore",
  }
  flags = f"--config={CONFIG}", f"--workdir={tmp_path}", "--trials=4"
  workers = [command(*flags, **env) for _ in range(2)]
  folder = tmp_path / "trials" / f"{first:04d}"
  end = time.monotonic() + 200
  while not (folder / "train" / "metrics.jsonl").exists():
    assert time.monotonic() < end and workers[0].poll() is None
    time.sleep(0.005)
  # Whoever has that trial has trained an epoch of it, and is killed.
  victim = next(w for w in workers if _holds(w.pid, folder))
  victim.kill()
  victim.communicate()
  workers.remove(victim)
  text, _ = workers[0].communicate(timeout=200)
  assert workers[0].returncode == 0 and "Traceback" not in text, text
  assert f"trial {first} goes on" in text and "4 of 4" in text
  rows = storage.rows(storage.open_study(tmp_path / "journal.log"))
  assert len(rows) == len(quiet)
  for row, alone in zip(rows, quiet, strict=True):
    assert (row["params"], row["score"]) == (alone["params"], alone["score"])
    for a, b in zip(row["rungs"], alone["rungs"], strict=False):
      assert a["accuracy"] == b["accuracy"]


def _holds(pid: int, folder: pathlib.Path) -> bool:
  """Whether a process has a folder's lock open."""
  links = pathlib.Path(f"/proc/{pid}/fd").iterdir()
  return any(os.path.realpath(x) == str(folder / ".lock") for x in links)


@pytest.mark.slow
class TestCommand:
  @pytest.mark.parametrize(
    "flags, status, texts",
    [
      ([], 2, ["--config=FILE", "--trials=N"]),
      ([f"--config={CONFIG}"], 2, ["--trials=16"]),
      (
        ["--config=configs/baseline.py", "--trials=2"],
        2,
        ["base(search=True)"],
      ),
      (["--report"], 2, ["--workdir=DIR"]),
      (["--workdir=none_such", "--report"], 2, ["no study in none_such"]),
    ],
  )
  def test_what_cannot_be_run(self, flags, status, texts, tmp_path):
    process = command(*flags)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == status and "Traceback" not in text, text
    assert all(t in text for t in texts), text

  def test_a_full_disk_is_known_before_the_study(self, tmp_path, no_file_above):
    flags = [f"--config={CONFIG}", "--trials=1", f"--workdir={tmp_path}"]
    with no_file_above(1000):
      process = command(*flags)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "Traceback" not in text, text
    assert f"cannot write {tmp_path}/search.json: File too large" in text
    assert list(tmp_path.iterdir()) == []

  def test_another_config_is_refused_and_the_same_has_nothing_to_do(
    self, studied
  ):
    _, workdir, _, _ = studied
    flags = f"--config={CONFIG}", f"--workdir={workdir}", "--trials=4"
    other, same, report = (
      command(*flags, "--config.search.score_budget=0.5"),
      command(*flags, "--config.progress=plain"),
      command(f"--workdir={workdir}", "--report"),
    )
    text, _ = other.communicate(timeout=100)
    assert other.returncode == 1 and "Traceback" not in text
    assert "search.score_budget was 0.0004 and is 0.5" in text
    for process in (same, report):
      text, _ = process.communicate(timeout=100)
      assert process.returncode == 0, text
      assert "per-layer score  validation" in text and "search.json" in text

  def test_a_signal_saves_and_the_trial_goes_on(self, tmp_path):
    config = load()
    study = begin(config, tmp_path)
    work = trial.find_work(study, config, tmp_path, 1)
    stop = tiny_run.StopAfter(1)
    with work.lock:
      row = trial.train(
        study,
        config,
        work,
        experiment.load_data(config.data),
        make_mesh(),
        stop,
      )
    assert row["state"] == "running"
    steps = work.folder / "train" / "checkpoints"
    assert [p.name for p in steps.iterdir()] == ["1"]
    again = trial.find_work(study, config, tmp_path, 1)
    assert again.begun and again.number == work.number
    again.lock.close()
