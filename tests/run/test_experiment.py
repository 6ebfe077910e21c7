"""Experiments from config to result, each config on a tiny slice."""

import dataclasses
import itertools
import json
import math
import re
import shutil

import fields
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import remedy
import tiny_run
from jax.extend import core as jax_core

import jaxr18
from jaxr18.compress import shrink as shrink_lib
from jaxr18.compress.channels import channel_groups
from jaxr18.config import base
from jaxr18.config import file as configfile
from jaxr18.config.configdict import plain
from jaxr18.config.faults import ConfigError
from jaxr18.config.lift import VERSION
from jaxr18.config.network import network_spec
from jaxr18.config.reading import parse
from jaxr18.cost.figures import FIGURES
from jaxr18.cost.score import score
from jaxr18.data.augment import Augment
from jaxr18.host import sealed
from jaxr18.host.workdir import WorkdirError
from jaxr18.nn import network
from jaxr18.nn.spec import with_bits
from jaxr18.run import begin, experiment, finished, place, sources
from jaxr18.run import result as result_lib
from jaxr18.train import checkpoint, starts, terms
from jaxr18.train import state as state_lib
from jaxr18.train.mesh import make_mesh
from jaxr18.train.step import Batch, Teachers, make_train_step

pytestmark = pytest.mark.slow

CONFIGS = sorted(configfile.CONFIGS.glob("*.py"))


def shrink(config):
  """The same experiment in seconds: 64 digits, narrow, one epoch a phase.

  Two stages are the least that have every kind of layer; a third stays where a
  rule names it.
  """
  config.data.name = "digits"
  config.data.limit, config.data.validation = 64, 32
  config.progress = "none"
  config.eval_batch_size = 32  # one program for validation and test
  spared = ["search"]  # its candidates are tests/search/test_command.py's
  spared += ["ternary_learned", "four"]  # of two_bits' four, two have them all
  config.phases = tuple(name for name in config.phases if name not in spared)
  config.unlock()
  for name in set(spared).intersection(config):
    del config[name]
  config.lock()
  for name in config.phases:
    phase = config[name]
    stages = 3 if "stage3" in str(phase.network.bits) else 2
    phase.network.widths = (math.lcm(8, *phase.network.groups),) * stages
    phase.network.blocks = (1,) * stages
    for field in ("groups", "depthwise"):  # one entry stands for all stages
      values = phase.network[field]
      phase.network[field] = (values * stages)[:stages]
    phase.network.strides = (4, 2, 2)[:stages]
    phase.epochs, phase.optimizer.warmup_epochs, phase.batch_size = 1, 0.0, 32
    if phase.start.init.endswith(".safetensors"):  # of another shape
      phase.start.init, phase.start.drop_blocks = "", ""
      phase.start.shrink = False
  return config


def two_stages(*phases):
  """Phases of one network of 4 and 8 channels, each of another seed."""
  config = base(phases)
  for name in phases:
    n = config[name].network
    n.widths, n.blocks, n.strides = (4, 8), (1, 1), (4, 2)
    n.groups, n.depthwise = (1, 1), (False, False)
  config = shrink(config)
  for name in phases:
    config[name].network.widths = (4, 8)
  return config


def arrays(net):
  return checkpoint.flatten((net.params, net.batch_stats))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run of one phase; returns its config, workdir and result."""
  workdir = tmp_path_factory.mktemp("trained")
  config = two_stages("train")
  return config, workdir, experiment.run(config, workdir)


def expected_spec(config, workdir):
  """The last network's: as described, or what shrinking its source leaves."""
  last = config[config.phases[-1]]
  described = network_spec(last.network)
  if not last.start.shrink:
    return described
  source = sources.load_network(workdir, last.start.init)
  left = with_bits(shrink_lib.shrink(source).spec, last.network.bits)
  assert score(left).macs < score(described).macs
  dead = shrink_lib.dead_channels(source)
  for group in channel_groups(left):
    assert group.size == np.count_nonzero(~dead[group.name])
  assert any(d.any() for d in dead.values())
  return left


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_runs_to_its_result(path, tmp_path):
  config = shrink(fields.written(configfile.load(str(path))))
  result = experiment.run(config, tmp_path)
  spec = expected_spec(config, tmp_path)
  assert result.spec == spec
  assert list(result.phases) == list(config.phases)
  charged = result.score.members  # those that vote; seeds do not
  assert result.score.macs == charged * score(spec).macs
  tested = config[config.phases[-1]].population.size
  assert result.test.count == 64 * tested
  assert len(result.members or [0]) == max(charged, tested)


class TestResult:
  def test_its_fields(self, trained):
    config, workdir, result = trained
    saved = json.loads((workdir / "result.json").read_text())
    assert saved == sealed.seal(result.to_json())
    assert saved["hash"] == result.hash and len(result.hash) == 64
    assert list(saved)[0] == "format" and result_lib.read(workdir) == result
    assert set(saved) >= {
      "test_accuracy", "test_correct", "test_count", "test_loss",
      "validation_accuracy", "score", "phases", "seconds", "seed", "config",
      "spec", "command", "device", "platform", "versions", "jaxr18", "commit",
    }  # fmt: skip
    assert result.made.jaxr18 == jaxr18.__version__
    assert str(workdir / "config.json") in result.made.command
    assert result.test.count == 64
    assert saved["test_accuracy"] == result.test.correct / 64
    assert result.config == json.loads(config.to_json())
    kept = json.loads((workdir / "config.json").read_text())
    assert kept == {"version": VERSION} | result.config
    assert result.made.versions["jax"] == jax.__version__
    assert result.seconds == result.phases["train"].seconds > 0
    assert result.validation_accuracy * 32 == pytest.approx(
      round(result.validation_accuracy * 32)
    )

  def test_its_score(self, trained):
    config, _, result = trained
    expected = score(network_spec(config.train.network))
    assert result.score == expected
    saved = result.to_json()["score"]
    for name in FIGURES:
      s = saved[name]
      assert s["total"] == s["params_term"] + s["ops_term"] > 0

  def test_again_it_is_read_and_nothing_runs(self, trained):
    config, workdir, result = trained
    times = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    assert experiment.run(config, workdir) == result
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == times

  def test_without_result_only_the_test_is_done_anew(self, trained):
    config, workdir, result = trained
    path = workdir / "result.json"
    text = path.read_text()
    path.unlink()
    phase = (workdir / "train" / "phase.json").stat().st_mtime_ns
    try:
      again = experiment.run(config, workdir)
    finally:
      path.write_text(text)
    begun, later = again.made.starts
    assert (begun,) == result.made.starts and later["at"] == {"train": 2}
    made = dataclasses.replace(again.made, starts=(begun,))
    assert dataclasses.replace(again, made=made) == result
    assert (workdir / "train" / "phase.json").stat().st_mtime_ns == phase

  def test_a_damaged_one_is_not_trusted(self, trained):
    config, workdir, result = trained
    path = workdir / "result.json"
    text = path.read_text()
    path.write_text(text[:100])
    try:
      with pytest.raises(
        WorkdirError, match="result.json is damaged.*remove"
      ) as e:
        experiment.run(config, workdir)
      remedy.follow(e.value)
      again = experiment.run(config, workdir)
      assert again.test.correct == result.test.correct
    finally:
      path.write_text(text)

  def test_the_same_config_gives_the_same_network(self, trained, tmp_path):
    config, workdir, result = trained
    again = experiment.run(config, tmp_path)
    assert again.test.correct == result.test.correct
    here = arrays(sources.load_network(tmp_path))
    there = arrays(sources.load_network(workdir))
    assert all(np.array_equal(here[k], there[k]) for k in here | there)


class TestWorkdir:
  @pytest.mark.parametrize("name", ["cifar10", "digits"])
  def test_one_from_before_there_were_as_many_fields(self, name, tmp_path):
    config = base()
    config.data.name, config.data.validation = name, 200
    saved = json.loads(config.to_json())
    del saved["data"]["order"], saved["train"]["average"]["estimate"]
    del saved["train"]["optimizer"]["clip_norm"]  # as everything was
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    (tmp_path / "train" / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(checkpoint.CheckpointError) as error:
      place.prepare_workdir(parse(config), tmp_path)
    text = str(error.value)
    told = "data.order was 'folder' and is 'content' (which is 'folder' where a"
    assert (told in text) == (name == "cifar10")  # the digits have one order
    assert "train.average.estimate was 0 and is 50" in text
    assert "clip_norm" not in text

    # Both remedies: that config, or its values.
    assert f"--config={path}" in text
    kept = configfile.load(str(path))
    assert not place.prepare_workdir(parse(kept), tmp_path)
    values = plain(config)
    mends = ["data.order=folder", "train.average.estimate=0"]
    configfile.override(values, mends[name == "digits" :])
    assert not place.prepare_workdir(parse(values), tmp_path)

  def test_of_another_config(self, trained):
    config, workdir, _ = trained
    other = config.copy_and_resolve_references()
    other.train.optimizer.weight_decay, other.seed = 0.0, 7
    with pytest.raises(checkpoint.CheckpointError) as error:
      experiment.run(other, workdir)
    assert "seed was 0 and is 7" in str(error.value)
    assert "train.optimizer.weight_decay was 0.0005 and is 0.0" in str(
      error.value
    )

  def test_what_changes_no_number_may_differ(self, trained):
    config, workdir, result = trained
    other = config.copy_and_resolve_references()
    other.data.dir, other.data.cache_dir = "/other", "/another"
    other.progress, other.checkpoint.every_seconds = "plain", 1.0
    assert experiment.run(other, workdir) == result

  @pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
  def test_with_a_damaged_config(self, trained, text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path)):
      experiment.run(trained[0], tmp_path)

  def test_a_bad_config_touches_nothing(self, tmp_path):
    config = two_stages("train")
    config.train.epochs = -1
    with pytest.raises(ConfigError, match="config.train.epochs"):
      experiment.run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_config_that_is_not_the_results(trained, tmp_path):
  """A command that opens the run would look at it by another one's fields."""
  config, workdir, result = trained
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  path = copy / "config.json"
  assert finished.reopen(str(copy)).result.test.correct == (result.test.correct)
  text = path.read_text().replace('"split_seed": 0', '"split_seed": 1')
  path.write_text(text)
  with pytest.raises(WorkdirError, match="data.split_seed was 0 and is 1") as e:
    finished.reopen(str(copy))
  remedy.follow(e.value)
  again = experiment.run(config, copy)
  assert again.test.correct == result.test.correct
  finished.reopen(str(copy))


class TestGoingOn:
  """A first phase that is finished, and a second that has not begun."""

  @pytest.fixture(scope="class")
  @classmethod
  def of_two(cls, tmp_path_factory):
    config = tiny_run.phases("one", "two")
    workdir = tmp_path_factory.mktemp("two_phases") / "run"
    result = experiment.run(config, workdir)
    shutil.rmtree(workdir / "two")
    (workdir / "result.json").unlink()
    return config, workdir, result

  @pytest.fixture
  def begun(self, of_two, tmp_path):
    """A copy, whose files have other times and the same numbers."""
    config, workdir, result = of_two
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    return config.copy_and_resolve_references(), tmp_path, result

  @pytest.fixture(scope="class")
  @classmethod
  def teaching(cls, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    experiment.run(tiny_run.phases("one"), workdir)
    return workdir

  def test_what_has_not_begun_may_change(self, begun, capfd):
    config, workdir, _ = begun
    stamps = {p: p.stat().st_mtime_ns for p in workdir.glob("one/**/*")}
    other = config.copy_and_resolve_references()
    other.two.optimizer.learning_rate, other.data.dir = 0.05, "/elsewhere"
    result = experiment.run(other, workdir)
    told = "two.optimizer.learning_rate was 0.1 and is 0.05"
    assert (
      f"{workdir}: the config was changed: {told}" in capfd.readouterr().err
    )
    assert result.made.starts[-1]["changed"] == [told]
    assert result.config["two"]["optimizer"]["learning_rate"] == 0.05
    kept = configfile.from_json(workdir / "config.json")
    assert kept["two"]["optimizer"][
      "learning_rate"
    ] == 0.05 and sealed.demanded(workdir)
    for path, stamp in stamps.items():
      assert path.stat().st_mtime_ns == stamp
    fresh = experiment.run(other, workdir / "fresh")
    assert result.test == fresh.test
    assert result.validation_accuracy == fresh.validation_accuracy
    with pytest.raises(
      checkpoint.CheckpointError, match="two.optimizer.learning_rate"
    ):
      experiment.run(config, workdir)  # it is finished

  def test_what_has_begun_may_not(self, begun):
    config, workdir, _ = begun
    for field, value in (
      ("one.optimizer.weight_decay", 0.0), ("seed", 3), ("data.limit", 60)
    ):  # fmt: skip
      other = config.copy_and_resolve_references()
      fields.put(other, field, value)
      with pytest.raises(
        checkpoint.CheckpointError, match=f"has begun one: {field} was"
      ) as e:
        experiment.run(other, workdir)
    (file,) = re.findall("--config=(\\S+config.json)", str(e.value))
    assert experiment.run(configfile.load(file), workdir).test.count == 64

  def test_phases_may_be_added_behind_and_not_before(self, begun):
    _, workdir, _ = begun
    config = tiny_run.phases("zero", "one", "two")
    with pytest.raises(checkpoint.CheckpointError, match="phases was"):
      experiment.run(config, workdir)
    config = tiny_run.phases("one", "three")
    config.three.start.init, config.three.epochs = "one", 0
    assert list(experiment.run(config, workdir).phases) == ["one", "three"]

  def test_an_older_config_has_the_defaults_of_what_it_lacks(self, begun):
    config, workdir, result = begun
    path = workdir / "config.json"
    values = json.loads(path.read_text())
    del values["version"], values["one"]["average"]["swa_from"]
    del values["two"]["augment"]["mixup"]
    path.write_text(json.dumps(values))
    again = experiment.run(config, workdir)
    assert again.test.correct == result.test.correct

  def test_what_is_finished_needs_no_source(
    self, begun, teaching, tmp_path_factory
  ):
    """Only the test was lost, and the teacher's folder is gone since."""
    config, workdir, result = begun
    teacher = tmp_path_factory.mktemp("teacher") / "run"
    shutil.copytree(teaching, teacher)
    config.two.teacher.source = str(teacher)
    experiment.run(config, workdir)
    shutil.rmtree(teacher)
    (workdir / "result.json").unlink()
    assert experiment.run(config, workdir).test.count == 64
    (workdir / "two" / "phase.json").unlink()
    (workdir / "result.json").unlink()
    with pytest.raises(ConfigError, match="config.two.teacher.source"):
      experiment.run(config, workdir)

  def test_another_arithmetic_is_said_once_and_kept(
    self, begun, monkeypatch, capfd
  ):
    config, workdir, result = begun
    here = result.made.starts[0]["arithmetic"]
    other = "blocks" if here["convolutions"] == "xla" else "xla"
    told = f"convolutions was {here['convolutions']!r} and is {other!r}"
    monkeypatch.setenv("JAXR18_CONV", other)
    capfd.readouterr()
    begun = experiment.run(config, workdir).made.starts
    assert capfd.readouterr().err.count(told) == 1
    assert [start["at"] for start in begun] == [{}, {"one": 2}]
    assert begun[0]["differs"] == [] and told in begun[1]["differs"]
    (workdir / "result.json").unlink()
    again = experiment.run(config, workdir).made.starts
    assert again[:2] == begun and again[2]["differs"] == []
    assert told not in capfd.readouterr().err
    kept = sealed.read_lines(workdir / "starts.jsonl", True).rows
    assert list(again) == kept

  def test_a_start_that_left_nothing_is_no_other_arithmetic(self, begun):
    _, workdir, _ = begun
    add = lambda at, path: starts.add(workdir, at, {"convolutions": path}, [])
    (workdir / "starts.jsonl").unlink()
    assert add({}, "onednn") == add({}, "xla") == []
    assert add({"one": 1}, "onednn") == [
      "convolutions was 'xla' and is 'onednn'"
    ]
    assert add({"one": 1}, "xla") == []

  def test_a_config_that_is_damaged_is_made_again(self, begun):
    """And cannot become another one's, since the checkpoints keep it too."""
    config, workdir, result = begun
    path = workdir / "config.json"
    for text in ("{", '{"version": 3, "phases": ["one"]}'):
      path.write_text(text)
      (workdir / "result.json").write_text("{}")
      with pytest.raises(
        checkpoint.CheckpointError, match="as a workdir.*not a config"
      ) as e:
        place.check_config(parse(config), workdir, finished=True)
      remedy.follow(e.value)
      assert not path.exists() and not (workdir / "result.json").exists()
    other = config.copy_and_resolve_references()
    other.one.optimizer.weight_decay = 0.0
    with pytest.raises(
      checkpoint.CheckpointError,
      match="is gone.*one.optimizer.weight_decay was",
    ):
      experiment.run(other, workdir)
    again = experiment.run(config, workdir)
    assert again.test.correct == result.test.correct

  def test_a_teacher_that_has_changed_since(
    self, begun, teaching, tmp_path_factory
  ):
    """What is gone on with would be the work of two teachers."""
    config, workdir, _ = begun
    teacher = tmp_path_factory.mktemp("teacher") / "run"
    shutil.copytree(teaching, teacher)
    other = tiny_run.phases("one")
    config.two.teacher.source, config.two.epochs = str(teacher), 2
    result = experiment.run(config, workdir)
    for path in ("result.json", "two/phase.json"):
      (workdir / path).unlink()
    shutil.move(teacher, teacher.with_name("before"))
    other.seed = 1
    experiment.run(other, teacher)
    with pytest.raises(
      checkpoint.CheckpointError, match="other networks: those of teacher have"
    ):
      experiment.run(config, workdir)
    shutil.rmtree(teacher)
    shutil.move(teacher.with_name("before"), teacher)
    assert experiment.run(config, workdir).test.loss == result.test.loss

  def test_a_damaged_start(self, begun):
    config, workdir, result = begun
    path = workdir / "starts.jsonl"
    path.write_text(path.read_text().replace("devices", "devicez"))
    with pytest.raises(
      checkpoint.CheckpointError, match="starts.jsonl is damaged: line 1"
    ) as e:
      experiment.run(config, workdir)
    remedy.follow(e.value)
    again = experiment.run(config, workdir)
    assert again.test.correct == result.test.correct


class TestSources:
  """init and teacher, from a phase and from another workdir."""

  @pytest.fixture(scope="class")
  @classmethod
  def chained(cls, tmp_path_factory):
    """A float phase, then the same network in 4 bits, taught by it."""
    config = two_stages("first", "second")
    config.second.start.init = config.second.teacher.source = "first"
    config.second.network.bits = (("stem", 32, 32), (".*", 4, 4))
    workdir = tmp_path_factory.mktemp("chained")
    return config, workdir, experiment.run(config, workdir)

  def test_init_with_other_bits(self, chained):
    _, workdir, result = chained
    assert result.score.per_network.q_w == 32
    assert result.score.rows[1].w_bits == 4
    net = sources.load_network(workdir)
    bounds = {k: v for k, v in arrays(net).items() if "input_bound" in k}
    # stem is in 32 bits; the head and the four convolutions, and the
    # projection, of two blocks that change the size.
    assert len(bounds) == 7
    assert all(np.isfinite(b) and b > 0 for b in bounds.values())

  def test_init_takes_numbers_and_calibrates_what_is_new(self, chained):
    config, workdir, _ = chained
    source = sources.load_network(workdir, "first")
    spec = network_spec(config.second.network)
    images = jax.random.normal(jax.random.key(1), (16, 32, 32, 3))
    net = sources.initial_network(
      jax.random.key(0), spec, images, source, where="here"
    )
    new, old = arrays(net), arrays(source)
    assert {k for k in new if k not in old} == {
      k for k in new if k.endswith("input_bound")
    }
    assert all(np.array_equal(new[k], old[k]) for k in old)
    plain = network.calibrate(network.init(jax.random.key(0), spec), images)
    bound = next(k for k in new if "head" in k and "bound" in k)
    assert new[bound] != arrays(plain)[bound] != 1  # by the source's weights

  def test_init_keeps_bounds_that_were_learned(self, chained):
    config, workdir, _ = chained
    source = sources.load_network(workdir, "second")
    images = jax.random.normal(jax.random.key(1), (16, 32, 32, 3))
    net = sources.initial_network(
      jax.random.key(0), source.spec, images, source, where="here"
    )
    new, old = arrays(net), arrays(source)
    assert new.keys() == old.keys()
    assert all(np.array_equal(new[k], old[k]) for k in old)

  def test_bounds_of_other_bits_are_calibrated_anew(self, chained):
    _, workdir, _ = chained
    source = sources.load_network(workdir, "second")
    spec = with_bits(source.spec, [("stage.*/conv1", 2, 2), (".*", 4, 4)])
    images = jax.random.normal(jax.random.key(1), (16, 32, 32, 3))
    net = sources.initial_network(
      jax.random.key(0), spec, images, source, where="here"
    )
    old = {k: v for k, v in arrays(source).items() if "input_bound" in k}
    new = {k: v for k, v in arrays(net).items() if "input_bound" in k}
    fewer = [k for k in old if "conv1" in k]
    assert len(fewer) == 2
    assert all(new[k] < old[k] for k in fewer)  # of 16 levels 4 are left
    assert all(new[k] == old[k] for k in old if k not in fewer)
    assert set(new) - set(old) == {k for k in new if "stem" in k}

  def test_ends_of_kernels_are_kept_or_begin_anew(self, chained):
    _, workdir, _ = chained
    source = sources.load_network(workdir, "first")
    images = jax.random.normal(jax.random.key(1), (16, 32, 32, 3))

    def begun(source, bits):
      spec = with_bits(source.spec, bits, w_scales="learned")
      return sources.initial_network(
        jax.random.key(0), spec, images, source, where="here"
      )

    four = begun(source, [(".*", 4, 4)])
    ends = {k: v for k, v in arrays(four).items() if "kernel_bound" in k}
    assert len(ends) == len(four.spec.layers())
    assert all(1 < e < 4 and e != 1 for e in ends.values())
    learned = four.replace(params=jax.tree.map(lambda p: p * 1.01, four.params))
    mixed = begun(learned, [("head", 3, 4), (".*", 4, 4)])
    for name, end in ends.items():
      again = arrays(mixed)[name]
      if "head" in name:
        assert again < end  # of fewer levels the grid ends earlier
      else:
        assert again == arrays(learned)[name]

    # Other levels of as many bits are another grid.
    two = begun(source, [(".*", 2, 4)])
    spec = with_bits(two.spec, [(".*", 2, 4)], "lsq", "learned", "four_levels")
    levels = sources.initial_network(
      jax.random.key(0), spec, images, two, where="here"
    )
    for name in ends:
      assert arrays(levels)[name] != arrays(two)[name]
    masks = jax.tree.map(lambda m: m, two.masks)
    masks["stem"]["kernel"] = jnp.zeros((3, 3, 3, 4), bool)
    with pytest.raises(ConfigError, match="here: weights are masked in stem"):
      sources.initial_network(
        jax.random.key(0), spec, images, two.replace(masks=masks), where="here"
      )

  @pytest.mark.parametrize("field", ["start.init", "teacher.source"])
  def test_another_workdir(self, trained, field, tmp_path, monkeypatch):
    _, workdir, _ = trained
    section, name = field.split(".")
    config = two_stages("train")
    config.seed = 1
    # Relative to the current folder, and named as this run's own phase is.
    monkeypatch.chdir(workdir.parent)
    config.train[section][name] = f"./{workdir.name}"
    result = experiment.run(config, tmp_path)
    assert result.config["train"][section][name] == f"./{workdir.name}"

  def test_a_finished_run_needs_its_teacher_no_more(self, trained, tmp_path):
    config, workdir, result = trained
    copy = tmp_path / "run"
    copy.mkdir()
    other = config.copy_and_resolve_references()
    other.train.teacher.source = str(tmp_path / "gone")
    (copy / "config.json").write_text(other.to_json())
    (copy / "result.json").write_text((workdir / "result.json").read_text())
    assert experiment.run(other, copy) == result

  @pytest.mark.parametrize("field", ["start.init", "teacher.source"])
  def test_a_workdir_that_is_missing(self, field, tmp_path):
    config = two_stages("train")
    section, name = field.split(".")
    config.train[section][name] = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=f"train.{field}.*holds no run"):
      experiment.run(config, tmp_path / "run")

  def test_a_source_whose_checkpoint_is_gone(self, trained, tmp_path):
    """Its command alone would say that it is finished, and do nothing."""
    config, workdir, result = trained
    source = tmp_path / "source"
    shutil.copytree(workdir, source)
    step = result.phases["train"].step
    shutil.rmtree(source / "train" / "checkpoints" / str(step))
    student = two_stages("train")
    student.train.teacher.source = str(source)
    with pytest.raises(ConfigError, match="there is no .* any more") as e:
      experiment.run(student, tmp_path / "student")
    remedy.follow(e.value)
    again = experiment.run(config, source)
    assert again.test.correct == result.test.correct
    assert experiment.run(student, tmp_path / "student").test.count == 64

  def test_a_workdir_that_is_not_finished(self, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    config = two_stages("train")
    config.train.teacher.source = str(tmp_path / "begun")
    with pytest.raises(ConfigError, match="begun is not finished"):
      experiment.run(config, tmp_path / "run")

  def test_load_network_says_what_is_missing(self, trained, tmp_path):
    _, workdir, _ = trained
    with pytest.raises(checkpoint.CheckpointError, match="holds no run"):
      sources.load_network(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="holds no run"):
      sources.load_network(workdir, str(tmp_path))
    config = two_stages("train")
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(checkpoint.CheckpointError, match="is not finished"):
      sources.load_network(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="is not finished"):
      sources.load_network(tmp_path, "train")


class TestStatistics:
  """Batch norm's, of the networks that are evaluated and kept."""

  def config(self, **changes):
    config = tiny_run.phases("train")
    c = config.train
    # An epoch has a single batch, so which images it is does not matter.
    config.data.limit = c.batch_size = 32
    c.epochs, c.average.estimate = 2, 3
    for name, value in changes.items():
      setattr(c.average, name, value)
    return config

  def running(self, workdir):
    step = json.loads((workdir / "train/phase.json").read_text())["step"]
    found, meta = checkpoint.read(workdir / f"train/checkpoints/{step}")
    prefix = f"{meta['network']}.batch_stats."
    return found, {
      k.removeprefix(prefix): v
      for k, v in found.items()
      if k.startswith(prefix)
    }

  @pytest.mark.parametrize(
    "changes", [dict(ema_decay=0.9), dict(swa_from=0.5), dict(bits=3)]
  )
  def test_are_estimated_for_weights_of_other_grids(self, tmp_path, changes):
    config = self.config()
    bits = changes.pop("bits", 32)
    config.train.network.bits = ((".*", bits, bits),)
    for name, value in changes.items():
      setattr(config.train.average, name, value)
    experiment.run(config, tmp_path)
    net = sources.load_network(tmp_path)
    dataset = experiment.load_data(parse(config).data)
    assert len(dataset.train) == 32
    images = begin.normalized(dataset.train.images, dataset, net.spec)
    again = network.recalibrate(net, [images])
    kept = checkpoint.flatten(net.batch_stats)
    for name, value in checkpoint.flatten(again.batch_stats).items():
      np.testing.assert_allclose(kept[name], value, rtol=1e-4, atol=1e-6)
    _, running = self.running(tmp_path)
    assert kept.keys() == running.keys()
    assert any(np.abs(kept[k] - running[k]).max() > 0.01 for k in kept)

  @pytest.mark.parametrize("changes", [dict(), dict(ema_decay=0.9, estimate=0)])
  def test_are_the_running_ones_elsewhere(self, tmp_path, changes):
    experiment.run(self.config(**changes), tmp_path)
    found, running = self.running(tmp_path)
    assert not [name for name in found if name.startswith("statistics")]
    kept = checkpoint.flatten(sources.load_network(tmp_path).batch_stats)
    for name, value in running.items():
      np.testing.assert_array_equal(kept[name], value)

  def test_of_a_population_are_each_members_own(self, tmp_path):
    config = self.config(ema_decay=0.9)
    config.train.population.size = 2
    experiment.run(config, tmp_path / "both")
    pair = sources.load_networks(tmp_path / "both")
    dataset = experiment.load_data(parse(config).data)
    for net in pair:
      images = begin.normalized(dataset.train.images, dataset, net.spec)
      again = network.recalibrate(net, [images])
      kept = checkpoint.flatten(net.batch_stats)
      for name, value in checkpoint.flatten(again.batch_stats).items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-4, atol=1e-6)

  def test_of_a_soup_are_those_of_its_weights(self, tmp_path):
    config = tiny_run.phases("one", "two", "soup")
    config.soup.start.init, config.soup.epochs = "one,two", 0
    config.data.limit = config.soup.batch_size
    experiment.run(config, tmp_path)
    net = sources.load_network(tmp_path)
    dataset = experiment.load_data(parse(config).data)
    images = begin.normalized(dataset.train.images, dataset, net.spec)
    again = network.recalibrate(net, [images])
    kept = checkpoint.flatten(net.batch_stats)
    for name, value in checkpoint.flatten(again.batch_stats).items():
      np.testing.assert_allclose(kept[name], value, rtol=1e-4, atol=1e-6)


def _constants(jaxpr):
  """Elements of the largest constant in a jaxpr, at any depth."""
  sizes = [np.size(c) for c in getattr(jaxpr, "consts", ())]
  inner = jaxpr.jaxpr if isinstance(jaxpr, jax_core.ClosedJaxpr) else jaxpr
  for eqn in inner.eqns:
    for value in eqn.params.values():
      values = value if isinstance(value, tuple | list) else (value,)
      sizes += [
        _constants(v)
        for v in values
        if isinstance(v, jax_core.ClosedJaxpr | jax_core.Jaxpr)
      ]
    sizes += [
      np.size(v.val) for v in eqn.invars if isinstance(v, jax_core.Literal)
    ]
  return max(sizes, default=0)


def test_the_teacher_is_an_argument_of_the_step_and_no_constant(trained):
  config, workdir, _ = trained
  teacher = sources.load_network(workdir)
  net = network.init(jax.random.key(1), teacher.spec)
  c = config.train
  optimizer = state_lib.make_optimizer(
    "sgd", state_lib.Rate(0.1, 9), weight_decay=1e-4
  )
  augment = Augment(c.augment.pad, mean=(0.5,) * 3, std=(0.2,) * 3)
  answers = terms.cross_entropy(0.0, 0.1), terms.soft(4.0, 0.9)
  step = make_train_step(answers, optimizer, augment, None, make_mesh())
  state = state_lib.create(net, optimizer, average=False)
  batch = Batch(
    jnp.zeros((32, 32, 32, 3), jnp.uint8), jnp.zeros(32, jnp.int32),
    jnp.arange(32),
  )  # fmt: skip
  teacher = Teachers((teacher,))
  args = (state, teacher, batch, jax.random.key(0), jnp.int32(0))
  jaxpr = jax.make_jaxpr(step)(*args)
  # A size that only an array of numbers has; keys and tables are smaller.
  largest = max(np.size(x) for x in jax.tree.leaves(teacher.nets))
  assert largest > 500
  assert _constants(jaxpr) < 100
  assert len(jaxpr.in_avals) == len(jax.tree.leaves(args))
  # The test can fail: closed over, the teacher is found.
  closed = jax.make_jaxpr(lambda s, *rest: step(s, teacher, *rest))(
    *itertools.chain(args[:1], args[2:])
  )
  assert _constants(closed) == largest
