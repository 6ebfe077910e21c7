"""Regular expressions of a config end, or are refused."""

import re
import time

import pytest

from jaxr18.config import base
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.host import patterns

PATH = "stage4_block12/conv1/depthwise"


@pytest.mark.parametrize(
  "pattern",
  [
    ".*",
    "stem|head",
    "stage[12]_block1/conv[12]|stage3.*/conv2|.*proj",
    "stage4_.*/.*/(depthwise|pointwise)",
    "(?!stem|head).*",
    "stage.*block.*/conv.*/.*",
    "|".join(f"stage{i}.*/conv{j}.*" for i in range(1, 5) for j in (1, 2)),
    "(stage1|stage2)?.*",
    r"stage\d+_block\d+/conv1",
    "(ab)*",
    "",
  ],
)
def test_ordinary_ones_pass_and_are_quick(pattern):
  assert patterns.fault(pattern) == ""
  began = time.process_time()
  for text in (PATH, "s" * 40):
    re.fullmatch(pattern, text)
  assert time.process_time() - began < 2


@pytest.mark.parametrize(
  "pattern, told",
  [
    ("(a+)+b", "too long to match"),
    ("(.*)*x", "too long to match"),
    ("(.|s)*x", "too long to match"),
    ("((s|st)+)+x", "too long to match"),
    ("(s?){40}x", "too long to match"),
    (".*" * 20 + "x", "too long to match"),
    ("(s|ss)" * 30, "too long to match"),
    ("(?=(a+)+b).*", "too long to match"),
    ("s" * 501, "501 characters, expected at most 500"),
    ("(", "missing"),
    ("a{99999999999}", "repetition number"),
    ("(" * 250 + ")" * 249, ""),
  ],
)
def test_others_are_faults(pattern, told):
  began = time.process_time()
  found = patterns.fault(pattern)
  assert found and told in found
  assert time.process_time() - began < 1


@pytest.mark.parametrize(
  "field, value",
  [
    ("network.bits", (("(.+)+x", 4, 4),)),
    ("network.factorize", (("(.+)+x", "groups=2"),)),
    ("prune.layers", "(.+)+x"),
    ("prune.rules", (("(.+)+x", 0.5),)),
    ("start.drop_blocks", "(.+)+x"),
  ],
)
def test_a_config_is_refused(field, value):
  config = base(("train",))
  with config.unlocked():
    node = config.train
    *parents, last = field.split(".")
    for name in parents:
      node = node[name]
    assert last in node, f"config.train.{field} is gone: name another"
    node[last] = value
  began = time.process_time()
  with pytest.raises(ConfigError, match="too long to match"):
    parse(config)
  assert time.process_time() - began < 5
