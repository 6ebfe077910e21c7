"""Configs from files and command lines, as nested values."""

import json

import pytest

from jaxr18.config import base, tiny
from jaxr18.config import file as configfile
from jaxr18.config.faults import ConfigError, at
from jaxr18.config.file import from_json, load, override, set_field
from jaxr18.config.reading import parse
from jaxr18.config.schema import defaults

CONFIGS = sorted(configfile.CONFIGS.glob("*.py"))


def _equal(a, b):
  """Equal, and of the same types all the way down."""
  assert a == b
  assert repr(sorted(a.items())) == repr(sorted(b.items()))


class TestJson:
  @pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
  def test_a_saved_config_comes_back(self, path, tmp_path):
    experiment = parse(load(str(path)))
    (tmp_path / "config.json").write_text(json.dumps(experiment.saved()))
    _equal(load(str(tmp_path / "config.json")), experiment.values)

  def test_a_field_that_was_not_there_yet_gets_its_default(self, tmp_path):
    values = json.loads(base().to_json())
    del values["train"]["optimizer"]["clip_norm"], values["progress"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    _equal(from_json(tmp_path / "config.json"), parse(defaults()).values)

  @pytest.mark.parametrize("name", ["cifar10", "digits"])
  def test_one_from_before_the_order_by_content(self, name, tmp_path, caplog):
    values = json.loads(base().to_json())
    values["data"]["name"] = name
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert load(str(path))["data"]["order"] == "content"
    assert not caplog.records

    del values["data"]["order"]
    path.write_text(json.dumps(values))
    old = name == "cifar10"  # the digits have had one order
    assert load(str(path))["data"]["order"] == ("folder" if old else "content")
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == old
    for text in told:
      assert f"{path} was saved before" in text
      assert "--config.data.order=content" in text

  def test_one_from_before_names_were_the_references(self, tmp_path):
    values = json.loads(base(("teacher", "student")).to_json())
    for name in ("teacher", "student"):
      del values[name]["teacher"]["dkd_warmup"]
      del values[name]["average"]["swa_rate"]
    values["student"]["teacher"]["loss"] = "dkd"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    config = load(str(path))
    losses = [
      config[name]["teacher"]["loss"] for name in ("teacher", "student")
    ]
    assert losses == ["kd", "dkd_mixed"]
    for name in ("teacher", "student"):
      assert config[name]["average"]["swa_rate"] == 0

  def test_a_whole_number_is_a_number(self, tmp_path):
    values = json.loads(base().to_json())
    values["train"]["optimizer"]["learning_rate"] = 1
    (tmp_path / "config.json").write_text(json.dumps(values))
    train = parse(from_json(tmp_path / "config.json")).phases[-1]
    assert repr(train.options.optimizer.learning_rate) == "1.0"

  def test_wrong_values_are_left_to_validation(self, tmp_path):
    values = json.loads(base().to_json())
    values["train"]["epochs"] = None
    values["train"]["network"]["widths"] = [8, "8", 8, 8]
    values["train"]["optimizer"]["learning_rate"] = True
    values["train"]["extra"] = {"x": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError) as error:
      parse(from_json(tmp_path / "config.json"))
    text = str(error.value)
    for shown in (
      "config.train.epochs (=None)",
      "config.train.network.widths (=(8, '8', 8, 8))",
      "config.train.optimizer.learning_rate (=True)",
      "config.train.extra (={'x': 1})",
    ):
      assert shown in text
    assert len(text.splitlines()) == 4

  @pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"phases": 3}', '{"phases": [3]}',
     '{"phases": ["seed"]}', '{"phases": "train"}', '{"phases": ["a.b"]}'],
  )  # fmt: skip
  def test_what_is_no_config(self, text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
      parse(from_json(path))
    named = (f"{path} is not a config", "config.phases (=")
    assert str(error.value).startswith(named)


class TestOverride:
  @pytest.mark.parametrize(
    "text, value",
    [
      ("seed=3", 3),
      ("train.optimizer.learning_rate=1e-3", 0.001),
      ("train.optimizer.learning_rate=2", 2),
      ("train.network.widths=(8, 16)", (8, 16)),
      ("train.network.widths=8,16", (8, 16)),
      ("train.network.depthwise=(True,False)", (True, False)),
      ("train.network.widths=8", (8,)),
      ("train.network.bits=('.*', 4, 4)", ((".*", 4, 4),)),
      ("train.teacher.self_teach=true", True),
      ("train.network.bits=(('stem', 8, 8), ('.*', 4, 4))",
       (("stem", 8, 8), (".*", 4, 4))),
      ("train.teacher.source=runs/a=b", "runs/a=b"),
      ("train.teacher.source=3", "3"),
      ("train.teacher.source=", ""),
      ("data.name=digits", "digits"),
      # Wrong ones stay as they are.
      ("train.epochs=ten", "ten"),
      ("train.epochs=", ""),
      ("train.epochs=1e1", 10.0),
      ("train.optimizer.learning_rate=nan", "nan"),
      ("train.network.widths=[8, 16]", (8, 16)),
      ("train.network.widths=(8, 16", "(8, 16"),
      ("train.new.field=3", 3),
      ("other=true", True),
    ],
  )  # fmt: skip
  def test_text_is_read_by_the_field(self, text, value):
    values = defaults()
    override(values, [text])
    got = at(values, text.partition("=")[0])
    assert repr(got) == repr(value)

  def test_the_last_one_counts(self):
    values = defaults()
    override(values, ["seed=1", "seed=2"])
    assert values["seed"] == 2

  def test_a_field_in_place_of_a_section(self):
    values = defaults()
    override(values, ["phases=3", "train.network=4", "train.network.x.y=5"])
    assert values["phases"] == 3
    assert at(values, "train.network.x.y") == 5


class TestLoad:
  def write(self, tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path

  @pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
  def test_the_projects_own_from_any_folder(self, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _equal(load(f"configs/{path.name}"), load(str(path)))

  def test_the_current_folder_comes_first(self, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "baseline.py").write_text(
      "from jaxr18.config import base\n"
      "def get_config():\n  return base(('mine',))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load("configs/baseline.py")["phases"] == ("mine",)

  def test_the_argument(self, tmp_path):
    path = self.write(
      tmp_path,
      "from jaxr18.config import base\n"
      "def get_config(arg=''):\n"
      "  config = base()\n"
      "  config.train.teacher.source = arg\n"
      "  return config\n",
    )
    assert load(str(path))["train"]["teacher"]["source"] == ""
    assert load(f"{path}:x")["train"]["teacher"]["source"] == "x"
    assert load(f"{path}:a:b")["train"]["teacher"]["source"] == "a:b"

  def test_a_frozen_one(self, tmp_path):
    path = self.write(
      tmp_path,
      "import ml_collections\nfrom jaxr18.config import base\n"
      "def get_config():\n  return ml_collections.FrozenConfigDict(base())\n",
    )
    values = load(str(path))
    override(values, ["seed=3"])
    assert parse(values).seed == 3

  def test_a_file_that_is_not_there(self):
    with pytest.raises(ConfigError) as error:
      load("configs/nope.py")
    for path in CONFIGS:
      assert f"configs/{path.name}" in str(error.value)

  def test_a_name_that_is_nearly_right(self, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="mean configs/kd_quant.py"):
      load("configs/kd_qant.py")
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean mine.py"):
      load("mime.py")

  def test_a_file_of_another_kind(self, tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match="config.json"):
      load(str(tmp_path / "x.yaml"))

  @pytest.mark.parametrize(
    "text, expected",
    [
      ("x = ", "line 1"),
      ("import nothing_of_the_kind", "nothing_of_the_kind"),
      ("x = 1", "get_config"),
      ("def get_config():\n  return None", "returned None"),
      ("def get_config():\n  return {'seed': 0}", "'return config'"),
      ("def get_config():\n  raise ValueError('so it is')", "so it is"),
      ("from jaxr18.config import base\ndef get_config():\n"
       "  c = base()\n  c.train.epoch = 3\n  return c",
       "line 4.*Did you mean \"epochs\""),
      ("from jaxr18.config import base\ndef get_config():\n"
       "  c = base()\n  c.train.epochs = 'x'\n  return c", "line 4.*int"),
    ],
  )  # fmt: skip
  def test_one_that_fails_names_itself(self, text, expected, tmp_path):
    path = self.write(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as error:
      load(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)

  def test_scalars_of_numpy_and_jax(self, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("""
import jax.numpy as jnp
import numpy as np
from jaxr18.config import base

def get_config():
  config = base()
  train = config.train
  train.epochs = np.int64(7)
  train.optimizer.learning_rate = np.float32(0.5)
  train.optimizer.momentum = np.linspace(0, 0.5, 2)[1]
  train.batch_size = jnp.array(64)
  train.network.widths = tuple(np.array([8, 8, 16, 16]))
  train.network.bits = (("stem", np.int64(8), 8), (".*", np.int64(4), 4))
  train.prune.structured = np.bool_(True)
  return config

def sweep(add):
  for rate in np.geomspace(0.1, 0.4, 3):
    add({"train.optimizer.learning_rate": rate}, seed=np.int64(2))
""")
    values = load(str(path))
    assert values["train"]["prune"]["structured"] is True
    set_field(values, "train.prune.structured", False)
    train = parse(values).phases[-1].options
    assert train.epochs == 7 and train.batch_size == 64
    assert train.optimizer.learning_rate == train.optimizer.momentum == 0.5
    assert type(values["train"]["network"]["widths"][0]) is int
    rates = [
      run["train.optimizer.learning_rate"]
      for run in configfile.sweep(str(path))
    ]
    assert all(type(rate) is float for rate in rates)
    assert rates == pytest.approx([0.1, 0.2, 0.4])
    json.dumps(configfile.sweep(str(path)))

  def test_an_argument_that_is_not_known(self):
    for path in CONFIGS:
      told = "nothing_such.*" + ("no data" if path.stem == "own" else "must be")
      with pytest.raises(ConfigError, match=told):
        load(f"{path}:nothing_such")


def test_each_config_tells_its_command():
  for path in CONFIGS:
    text = path.read_text()
    command = "search" if path.stem == "search" else "main"
    assert f"python -m jaxr18.{command} --config=configs/{path.name}" in text
    assert f"configs/{path.name}" in configfile.catalog()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_short(path):
  assert len(path.read_text().splitlines()) <= 40


def test_tiny_changes_what_takes_time():
  config = tiny(base(("one", "two")), strides=(2,))
  assert config.data.name == "digits"
  for phase in parse(config).phases:
    assert phase.options.epochs == 2
    assert phase.options.network.blocks == (1, 1, 1, 1)
    assert phase.options.network.strides == (2, 2, 2, 2)
    assert phase.options.average.ema_decay == 0  # an average is not added
