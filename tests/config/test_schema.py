"""The fields of a config: defaults, bounds, meanings, and how they are told."""

import re
import subprocess
import sys
from typing import get_args

import pytest

from jaxr18.config import base, schema
from jaxr18.config.faults import ConfigError
from jaxr18.config.fields import section_of
from jaxr18.config.file import set_field
from jaxr18.config.reading import parse
from jaxr18.config.schema import PhaseOptions, describe, fields
from jaxr18.nn import spec

PHASE_SECTIONS = {
  name: info.annotation
  for name, info in PhaseOptions.model_fields.items()
  if section_of(info)
}


class TestFields:
  def test_each_says_what_it_is(self):
    for field in fields(("train",), search=True):
      assert field.doc, field.name
      if field.kind in (int, float) and field.name not in NO_BOUNDS:
        assert field.low < field.high, field.name

  def test_each_default_is_of_its_kind(self):
    """Defaults are not validated, and 1 for 1.0 would stay an int."""

    def leaves(value):
      if isinstance(value, tuple):
        return [x for entry in value for x in leaves(entry)]
      return [value]

    for field in fields(("train",), search=True):
      if field.kind is not tuple:
        kinds = {type(x) for x in leaves(field.default)}
        assert kinds <= {field.kind}, field.name

  def test_one_entry_stands_for_all_stages(self):
    values = schema.defaults()
    values["train"]["network"]["widths"] = (8, 8, 16)
    network = parse(values).phases[0].options.network
    assert network.strides == (1, 2, 2) and network.groups == (1, 1, 1)
    for field in fields(("train",)):
      if field.by_stage:
        value = getattr(network, field.name.rpartition(".")[2])
        assert len(value) == 3, field.name

  @pytest.mark.parametrize("off", [-1, 1])
  def test_bounds_are_held(self, off):
    values, beyond = schema.defaults(("train",), search=True), set()
    for field in fields(("train",), search=True):
      if field.low is None:
        continue
      value = field.kind(field.low if off < 0 else field.high) + off
      nested = field.default
      while isinstance(nested, tuple):  # as deep as its default
        nested, value = nested[:1] and nested[0], (value,)
        if nested == ():
          break
      beyond.add(field.name)
      set_field(values, field.name, value)
    with pytest.raises(ConfigError) as error:
      parse(values)
    assert error.value.fields == beyond

  def test_other_kinds_are_refused(self):
    values = schema.defaults(("train",))
    for field in fields(("train",)):
      set_field(values, field.name, None)
    with pytest.raises(ConfigError) as error:
      parse(values)
    assert error.value.fields == {field.name for field in fields(("train",))}

  def test_describe_lists_each_once(self):
    text = describe(full=True)
    assert all(len(line) < 80 for line in text.splitlines())
    for field in fields(("train",)):
      name = field.name.removeprefix("train.")
      shown = f"\n  {name}={field.default or repr(field.default)}"
      assert text.count(shown) == 1

  def test_describe_names_each_in_fewer_lines(self):
    text = describe()
    lines = text.splitlines()
    assert all(len(line) < 80 for line in lines)
    assert len(lines) < 0.6 * len(describe(full=True).splitlines())
    alone = {f.name for f in fields(())} | {
      *PhaseOptions.model_fields.keys() - PHASE_SECTIONS.keys()
    }
    for name in alone:
      assert text.count(f"\n  {name}=") == 1
    for name, model in PHASE_SECTIONS.items():
      told = re.search(rf"\n  {name}: (.*(?:\n    .*)*)", text)[1]
      assert re.split(r",\s+", told) == list(model.model_fields)


@pytest.mark.parametrize(
  "names, known",
  [
    (schema.Scales, spec.SCALES),
    (schema.WeightScales, spec.W_SCALES),
    (schema.TwoBits, spec.TWO_BITS),
  ],
)
def test_names_are_those_that_layers_know(names, known):
  assert get_args(names) == known


# Each is one of a few.
NO_BOUNDS = ("train.network.inner_bits", "train.network.sum_bits")


def test_help_needs_nothing_slow():
  """A command's --help has to come at once."""
  slow = "jax", "numpy", "ml_collections", "yaml", "rich"
  code = (
    "import sys, runpy; sys.argv = ['x', '--help']\n"
    "try: runpy.run_module('jaxr18.main', run_name='__main__')\n"
    "except SystemExit: pass\n"
    f"found = [name for name in {slow} if name in sys.modules]\n"
    "assert not found, found"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


class TestBase:
  def test_has_each_field_and_no_more(self):
    config = base(("a", "b"))
    assert config.to_dict() == schema.defaults(("a", "b"))

  def test_phases_are_independent(self):
    config = base(("a", "b"))
    config.a.network.widths = (8, 8, 8, 8)
    assert config.b.network.widths != config.a.network.widths

  def test_is_locked_and_typed(self):
    config = base()
    with pytest.raises(AttributeError, match="epochs"):
      config.train.epoch = 3
    with pytest.raises(TypeError):
      config.train.epochs = "many"
