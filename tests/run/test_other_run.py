"""What a config names that is no phase of it: other runs, files of weights."""

import json

import pytest
from results import values

from jaxr18.config import base, schema
from jaxr18.config.experiment import Place
from jaxr18.config.faults import ConfigError
from jaxr18.config.file import set_field
from jaxr18.config.reading import parse
from jaxr18.cost.score import score
from jaxr18.nn import spec
from jaxr18.run import other_run


def _set(changes):
  values = schema.defaults(("teacher", "student"))
  for name, value in changes.items():
    set_field(values, name, value)
  return values


def check(changes):
  return parse(_set(changes), Place(source=other_run.source))


def assert_told(changes, field, told):
  with pytest.raises(ConfigError) as error:
    check(changes)
  assert error.value.fields == {field}
  for fault in error.value.faults:
    assert fault.value == changes[field]
  assert told in str(error.value)


@pytest.mark.parametrize(
  "field, value, told",
  [
    ("student.start.init", "nobody", "there is no nobody/result.json"),
    ("student.teacher.source", "/nonexistent/run", "holds no run"),
    ("student.teacher.source", "/nonexistent/net.pth", "/nonexistent/net.pth"),
    ("student.start.init", "/nonexistent/net.pt", "/nonexistent/net.pt"),
    ("student.ensemble.members", "teacher,nobody", "holds no run"),
  ],
)
def test_what_is_not_there(field, value, told):
  assert_told({field: value}, field, told)
  parse(_set({field: value}))  # nobody looks


class TestOtherRuns:
  """init and teacher from another workdir."""

  @pytest.fixture
  def workdir(self, tmp_path):
    net = spec.resnet()
    config = base(("train",))
    result = values(
      charged=score(net),
      spec=json.loads(net.to_json()),
      config=json.loads(config.to_json()),
    )
    result["phases"]["train"]["step"] = 7
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "train" / "checkpoints" / "7").mkdir(parents=True)
    return tmp_path

  @pytest.mark.parametrize("field", ["start.init", "teacher.source"])
  def test_a_finished_one(self, workdir, field):
    check({f"student.{field}": str(workdir)})

  def test_home_is_expanded(self, workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir.parent))
    check({"student.teacher.source": f"~/{workdir.name}"})

  def test_init_of_another_shape(self, workdir):
    widths = {"student.network.widths": (8, 8, 8, 8)}
    changes = {"student.start.init": str(workdir)} | widths
    assert_told(changes, "student.start.init", "(3, 3, 3, 8) here")
    check({"student.teacher.source": str(workdir)} | widths)

  def test_other_data(self, workdir):
    changes = {"data.name": "digits", "data.validation": 200}
    changes |= {"student.teacher.source": str(workdir)}
    assert_told(changes, "student.teacher.source", "it was 'cifar10'")

  @pytest.mark.parametrize(
    "changes, told",
    [
      ({"data.split_seed": 1}, "split_seed=1, order='content'; give"),
      ({"data.validation": 100}, "here they are validation=100"),
      ({"data.order": "folder"}, "such as --config.data.order=content"),
    ],
  )
  def test_other_validation_images(self, workdir, changes, told):
    changes = changes | {"student.teacher.source": str(workdir)}
    assert_told(changes, "student.teacher.source", told)
    check(changes | {"data.validation": 0})

  def test_one_from_before_the_order_by_content(self, workdir):
    path = workdir / "result.json"
    result = json.loads(path.read_text())
    del result["config"]["data"]["order"]
    path.write_text(json.dumps(result))
    teacher = {"student.teacher.source": str(workdir)}
    assert_told(teacher, "student.teacher.source", "--config.data.order=folder")
    check(teacher | {"data.order": "folder"})

  def test_one_that_is_not_finished(self, workdir):
    (workdir / "result.json").unlink()
    changes = {"student.teacher.source": str(workdir)}
    assert_told(changes, "student.teacher.source", "is not finished")
    parse(_set(changes))

  @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": 3}'])
  def test_a_damaged_result(self, workdir, text):
    (workdir / "result.json").write_text(text)
    changes = {"student.teacher.source": str(workdir)}
    assert_told(changes, "student.teacher.source", "result.json")

  def test_a_damaged_spec(self, workdir):
    path = workdir / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spec": {}}))
    assert_told(
      {"student.start.init": str(workdir)}, "student.start.init", "description"
    )

  def test_a_checkpoint_that_was_removed(self, workdir):
    (workdir / "train" / "checkpoints" / "7").rmdir()
    changes = {"student.teacher.source": str(workdir)}
    assert_told(changes, "student.teacher.source", "any more")
