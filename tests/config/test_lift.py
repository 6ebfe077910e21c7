"""Configs of older versions open, and their names are told by today's."""

import json
import pathlib

import pytest

from jaxr18.config import schema
from jaxr18.config.experiment import as_json
from jaxr18.config.faults import ConfigError, at
from jaxr18.config.file import from_json, load
from jaxr18.config.lift import RENAMED, VERSION, lift
from jaxr18.config.reading import parse
from jaxr18.config.schema import fields

RESULTS = sorted(
  path
  for path in pathlib.Path("docs/results").glob("*/result.json")
  if "phases" in json.loads(path.read_text()).get("config", {})
)


def _older(values):
  """Saved values with each phase's fields by their older names."""
  out = as_json(values)
  for name in out["phases"]:
    phase, loose = out[name], {}
    for old, new in RENAMED.items():
      section, field = new.split(".")
      if old == "population.members":
        phase["population"]["members"] = phase["population"].pop("size")
      else:
        loose[old] = phase[section].pop(field)
    out[name] = {k: v for k, v in phase.items() if v} | loose
  return out


def test_each_new_name_is_a_field():
  known = {field.name for field in fields(("p",))}
  assert {f"p.{new}" for new in RENAMED.values()} <= known
  assert not {f"p.{old}" for old in RENAMED} & known


def test_older_names_are_lifted():
  values = parse(schema.defaults(("one", "teacher"))).values
  values["one"]["start"]["init"] = "elsewhere"
  values["teacher"]["teacher"] |= {"source": "one", "weight": 0.25}
  values["teacher"]["population"]["size"] = 3
  older = _older(values)
  assert older["teacher"]["teacher"] == "one"
  assert older["teacher"]["kd_weight"] == 0.25
  assert lift(older) == as_json(values) == lift(as_json(values))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_published_config_opens(path, tmp_path):
  saved = json.loads(path.read_text())["config"]
  kept = tmp_path / "config.json"
  kept.write_text(json.dumps(saved))
  experiment = parse(from_json(kept))
  opened = as_json(experiment.values)
  for name, phase in zip(saved["phases"], experiment.phases, strict=True):
    if isinstance(saved[name]["optimizer"], dict):  # no name in it is older
      for section, values in saved[name].items():
        if isinstance(values, dict):
          assert opened[name][section] | values == opened[name][section]
    else:
      for old in ("learning_rate", "teacher", "kd_weight"):
        if not isinstance(saved[name][old], dict):
          assert at(experiment.values[name], RENAMED[old]) == saved[name][old]
    assert phase.options.epochs == saved[name]["epochs"]


def test_one_of_a_newer_version_is_told(tmp_path):
  path = tmp_path / "config.json"
  values = {"version": VERSION + 1} | as_json(schema.defaults())
  path.write_text(json.dumps(values))
  with pytest.raises(ConfigError, match="a newer jaxr18"):
    from_json(path)


@pytest.mark.parametrize("old", [o for o in RENAMED if "." not in o])
def test_an_older_name_is_told_by_the_new_one(old, tmp_path):
  values = schema.defaults(("one",))
  values["one"][old] = 3
  with pytest.raises(ConfigError, match=f"config.one.{RENAMED[old]}") as error:
    parse(values)
  assert error.value.fields == {f"one.{old}"}
  path = tmp_path / "mine.py"
  path.write_text(
    "from jaxr18.config import base\ndef get_config():\n"
    f"  config = base(('one',))\n  config.one.{old} = 3\n  return config\n"
  )
  with pytest.raises(ConfigError, match=f"{RENAMED[old]} of a phase now"):
    load(str(path))
