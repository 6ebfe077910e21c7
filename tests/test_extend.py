"""docs/extend.md: a loss, a criterion and data of a user's own, in one file."""

import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config
import tiny_run

from jaxr18.compress import criteria
from jaxr18.config import build
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.data import dataset
from jaxr18.train import terms

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = re.findall(
  r"^```python\n(.*?)^```", (ROOT / "docs/extend.md").read_text(), re.M | re.S
)


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """The folder of the page's file, from which Python imports."""
  (tmp_path / "mine.py").write_text(BLOCKS[0])
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "mine", raising=False)
  yield tmp_path
  sys.modules.pop("mine", None)


def _config():
  """The tiny config with the page's lines."""
  config = tiny_config.get_config("1")
  config.data.limit = 0
  exec(BLOCKS[1], {"config": config})
  config.train.prune.density = 0.5
  return config


def test_each_is_what_the_page_says(mine):
  phase = parse(_config()).phases[0]
  *_, own_term = build.terms(phase.options)
  logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
  value, each = terms.total(
    (own_term,), terms.Context(logits, jnp.array([0, 1]))
  )
  p = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()
  entropy = (-(p * np.log(p)).sum() + np.log(2)) / 2
  assert value == pytest.approx(-0.1 * entropy, rel=1e-6)
  assert list(each) == ["mine:confidence"]

  net = tiny_run.tiny_network()
  scores = criteria.score("mine:filter_norm", net)
  kernel = np.asarray(net.params["stem"]["kernel"])
  np.testing.assert_allclose(
    scores["stem"][1, 2, 0], np.sqrt((kernel**2).sum((0, 1, 2))), rtol=1e-6
  )

  data = dataset.load("mine:stripes", validation=50)
  sizes = [len(x) for x in (data.train, data.validation, data.test)]
  assert sizes == [450, 50, 100]
  again = dataset.load("mine:stripes", validation=0)
  assert again.fingerprint == data.fingerprint


def test_what_cannot_be_had_is_told_before_anything_is_trained(mine):
  config = _config()
  config.train.loss.extra = (("mine:nothing", 0.1),)
  config.train.prune.criterion = "nowhere:at_all"
  with pytest.raises(ConfigError) as e:
    parse(config)
  assert e.value.fields == {
    "train.loss.extra", "train.prune.criterion"
  }  # fmt: skip
  config = _config()
  config.train.loss.extra = (("mine", 0.1),)
  with pytest.raises(ConfigError) as e:
    parse(config)
  assert e.value.fields == {"train.loss.extra"}


def test_scores_of_another_shape_are_refused(mine):
  with (mine / "mine.py").open("a") as f:
    f.write('\n\ndef flat(net, images, labels):\n  return {"stem": [1.0]}\n')
  with pytest.raises(ValueError, match="mine:flat.* expected the shape"):
    criteria.score("mine:flat", tiny_run.tiny_network())


@pytest.mark.slow
def test_a_run_with_all_three(mine):
  source = (ROOT / "tests/support/tiny_config.py").read_text()
  lines = "".join(f"  {line}\n" for line in BLOCKS[1].splitlines())
  lines += "  config.train.prune.density = 0.5\n  return config\n"
  (mine / "config.py").write_text(source.replace("  return config\n", lines))
  subprocess.run(
    [sys.executable, "-m", "jaxr18.main", "--config=config.py:1",
     "--workdir=run"],
    cwd=mine, check=True, timeout=400,
  )  # fmt: skip
  (row,) = map(
    json.loads, (mine / "run/train/metrics.jsonl").read_text().splitlines()
  )
  assert set(row["terms"]) == {"cross_entropy", "mine:confidence"}
