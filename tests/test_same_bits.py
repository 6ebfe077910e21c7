"""The comparison of two commits, without running them."""

import collections
import pathlib

import pytest

from benchmarks import same_bits

ROOT = pathlib.Path(__file__).parents[1]


def outcome(**changes):
  whole = same_bits.Outcome(
    collections.Counter({("jit_step", "a" * 64): 1, ("jit_run", "b" * 64): 2}),
    {"train 4 net.params.stem.kernel": "c"},
    {"train 4": {"step": 4, "loss": 1.5}},
  )
  return whole._replace(**changes)


@pytest.mark.parametrize(
  ("changes", "kind", "named"),
  [
    (
      {"programs": collections.Counter({("jit_step", "a" * 64): 1})},
      "programs",
      ["-jit_run bbbbbbbb"] * 2,
    ),
    (
      {"arrays": {"train 4 net.params.stem.kernel": "d"}},
      "arrays",
      ["train 4 net.params.stem.kernel"],
    ),
    ({"arrays": {}}, "arrays", ["train 4 net.params.stem.kernel"]),
    (
      {"metrics": {"train 4": {"step": 4, "loss": 1.25}}},
      "metrics",
      ["train 4 loss"],
    ),
    ({"metrics": {}}, "metrics", ["train 4 is in one alone"]),
  ],
)
def test_whatever_differs_is_named(changes, kind, named):
  found = same_bits.differences(outcome(), outcome(**changes))
  assert {k: v for k, v in found.items() if v} == {kind: named}


def test_equal_outcomes_and_a_number_that_only_one_has():
  more = {"train 4": {"step": 4, "loss": 1.5, "terms": {}}}
  found = same_bits.differences(outcome(), outcome(metrics=more))
  assert not any(found.values())


def test_every_variant_names_fields_that_a_config_has(tmp_path):
  known = same_bits.fields_of(ROOT)
  for name, variant in same_bits.VARIANTS.items():
    flags = same_bits.flags_of(variant, known, tmp_path / name)
    assert flags[0].startswith("--config=")


def test_a_field_that_no_commit_has(tmp_path):
  with pytest.raises(SystemExit, match="no field warmth"):
    same_bits.named("warmth", {"phase.epochs"})
