"""What is known before training is what the finished run says, or bounds it."""

import json
import pathlib

import fields
import pytest
import tiny_run

from jaxr18.config import file as configfile
from jaxr18.config.experiment import Place, Source
from jaxr18.config.faults import ConfigError
from jaxr18.config.forecast.outlook import (
  outlooks_of_networks,
  outlooks_of_result,
)
from jaxr18.config.forecast.score import score_of
from jaxr18.config.reading import parse
from jaxr18.cost.figures import FIGURES, Score
from jaxr18.deploy import torch_weights
from jaxr18.host import workdir
from jaxr18.host.paths import names
from jaxr18.run import experiment, other_run
from jaxr18.run import result as result_lib

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = sorted(
  path.parent.name
  for path in ROOT.glob("docs/results/*/result.json")
  if "spec" in json.loads(path.read_text())
)


def forecast(config, read=lambda value: None):
  place = Place(source=lambda data, name: Source(read(name)))
  last = parse(config, place).phases[-1]
  return score_of(last.outlooks, bool(names(last.options.ensemble.members)))


def holds(found, result) -> None:
  """A forecast's figures are a result's, or have them between them."""
  for name in FIGURES:
    real = getattr(result.score, name)
    if isinstance(found, Score):
      figure = getattr(found, name)
      # Some results were summed in order, and not rounded once.
      for term in ("params_term", "ops_term"):
        there = pytest.approx(getattr(real, term), rel=1e-15)
        assert getattr(figure, term) == there, (name, term)
      continue
    low, high = found.low[name], found.high[name]
    for term in ("params_term", "ops_term"):
      there = getattr(real, term)
      slack = 1e-12 * there
      assert getattr(low, term) <= there + slack, (name, term)
      assert there - slack <= getattr(high, term), (name, term)


@pytest.mark.parametrize("name", RESULTS)
def test_of_every_published_run(name, tmp_path):
  folder = ROOT / "docs" / "results" / name
  result = result_lib.read(folder)
  path = tmp_path / "config.json"
  path.write_text(json.dumps(result.config))

  def read(value):
    if torch_weights.is_name(ROOT / value):
      return outlooks_of_networks([torch_weights.load(ROOT / value)], value)
    source = ROOT / "docs" / "results" / pathlib.Path(value).name
    return outlooks_of_result(workdir.read_result(source), value)

  holds(forecast(configfile.from_json(path), read), result)


@pytest.mark.parametrize(
  "name, figure, expected",
  [
    ("ensemble.py", "per_network", 0.2109271),  # was scored as 3.979
    ("kd_population.py", "per_network", 0.0163788),
    ("prune_quant.py", "per_layer", 0.0275753),  # was scored as 0.0391
    ("hce.py", "per_layer", 0.0516236),
  ],
)
def test_the_config_as_it_is_published(name, figure, expected):
  found = forecast(configfile.load(f"configs/{name}"))
  if isinstance(found, Score):
    assert getattr(found, figure).total == pytest.approx(expected, rel=1e-5)
  else:
    assert found.low[figure].total == pytest.approx(expected, rel=1e-5)
    assert found.high[figure].total == pytest.approx(expected, rel=1e-5)


ARGUMENTS = {
  "baseline": ("", "tiny"),
  "dense_narrow": ("", "tiny"),
  "depthwise": ("", "tiny"),
  "ensemble": ("", "tiny", "runs/a,runs/b"),
  "factorized_g2": ("", "tiny"),
  "factorized_g8": ("", "tiny"),
  "hce": ("", "tiny"),
  "kd_population": ("plain", "kd", "tiny"),
  "kd_prune": ("", "tiny"),
  "kd_quant": ("", "digits"),
  "low_rank": ("", "tiny"),
  "prune_quant": ("", "tiny"),
  "prune_structured": ("", "0.2", "0.3", "0.75", "1.0", "tiny"),
  "prune_unstructured": ("", "0.01", "0.1", "0.5", "1.0", "tiny"),
  "two_bits": ("", "tiny"),
  "quant": ("", "tiny", "1", "2", "4", "8", "ptq4"),
}
# What decides these is another run.
ELSEWHERE = {("ensemble", "runs/a,runs/b")} | {
  ("quant", argument) for argument in ("1", "2", "4", "8", "ptq4")
}


@pytest.mark.parametrize(
  "name, argument",
  [(name, argument) for name in ARGUMENTS for argument in ARGUMENTS[name]],
)
def test_each_config(name, argument):
  values = configfile.load(
    f"configs/{name}.py" + ":" * bool(argument) + argument
  )
  last = parse(values).phases[-1]
  outlooks = last.outlooks
  known = outlooks is not None and not any(one.unknown for one in outlooks)
  assert known != ((name, argument) in ELSEWHERE)
  if known:
    found = score_of(outlooks, bool(names(last.options.ensemble.members)))
    if not isinstance(found, Score):
      for figure in FIGURES:
        assert 0 < found.low[figure].total <= found.high[figure].total


def run(config, workdir):
  config.data.limit = 64
  return experiment.run(config, workdir)


def one(*phases, **changes):
  """Phases without training, each changed by 'phase__field'."""
  config = tiny_run.phases(*phases)
  for name in phases:
    config[name].epochs = 0
  for name, value in changes.items():
    fields.put(config, name.replace("__", "."), value)
  return config


BITS = (("stem|head", 8, 8), (".*", 4, 4))
PRUNED = {"a__prune__density": 0.4}
CHANNELS = {"a__prune__structured": True, "a__prune__criterion": "l2",
            "a__prune__density": 0.5}  # fmt: skip
PLANS = {
  "global": one("a", **PRUNED),
  "global, 1 bit": one("a", a__network__bits=((".*", 1, 2),), **PRUNED),
  "global, where some lose none": one("a", a__prune__density=0.9995,
                                      a__prune__floor=0.9995),
  "global, where none lose any": one("a", a__prune__density=0.9999999,
                                     a__prune__floor=0.9),
  "lamp": one("a", a__prune__distribution="lamp",
              a__prune__criterion="magnitude_l2", **PRUNED),
  "uniform": one("a", a__prune__distribution="uniform", **PRUNED),
  "erk": one("a", a__prune__distribution="erk", **PRUNED),
  "explicit": one("a", a__prune__distribution="explicit",
                  a__prune__rules=(("stage.*", 0.3),)),
  "pattern": one("a", a__prune__pattern="2:4", a__prune__layers="(?!stem).*"),
  "some layers": one("a", a__prune__layers="stage2.*", **PRUNED),
  "twice": one("a", "b", b__start__init="a", b__prune__density=0.2, **PRUNED),
  "then evenly": one("a", "b", b__start__init="a", b__prune__density=0.3,
                     b__prune__distribution="uniform", **PRUNED),
  "per output": one("a", a__prune__distribution="per_output", **PRUNED),
  "then per output": one("a", "b", b__start__init="a", b__prune__density=0.3,
                         b__prune__distribution="per_output", **PRUNED),
  "then evenly, where some have less": one(
    "a", "b", a__prune__density=0.2, a__prune__floor=0.0, b__start__init="a",
    b__prune__density=0.19, b__prune__distribution="uniform"),
  "then a pattern": one("a", "b", b__start__init="a", b__prune__pattern="2:4",
                        b__prune__layers="(?!stem).*", **PRUNED),
  "then bits": one("a", "b", b__start__init="a", b__network__bits=BITS,
                   **PRUNED),
  "channels": one("a", **CHANNELS),
  "shrunk evenly": one("a", "b", b__start__init="a", b__start__shrink=True,
                       b__network__bits=BITS,
                       a__prune__distribution="uniform", **CHANNELS),
  "shrunk twice": one("a", "b", "c", b__start__init="a", b__start__shrink=True,
                      b__prune__structured=True, b__prune__criterion="l2",
                      b__prune__density=0.7, c__start__init="b",
                      c__start__shrink=True,
                      **CHANNELS),
  "weights, then channels": one(
    "a", "b", "c", b__start__init="a", b__prune__structured=True,
    b__prune__criterion="l2", b__prune__density=0.7, c__start__init="b",
    c__start__shrink=True, **PRUNED),
  "channels, then weights": one(
    "a", "b", "c", b__start__init="a", b__prune__density=0.2,
    c__start__init="b",
    c__start__shrink=True, **CHANNELS),
  "blocks": one("a", "b", a__network__blocks=(2, 2), b__start__init="a",
                b__start__shrink=True, b__start__drop_blocks="stage1_block2",
                **PRUNED),
  "grouped": one("a", "b", a__network__groups=(2, 4), b__start__init="a",
                 b__start__shrink=True,
                 **CHANNELS | {"a__prune__density": 0.7}),
  "depthwise": one("a", "b", a__network__depthwise=(True, True),
                   b__start__init="a",
                   b__start__shrink=True, **CHANNELS),
  "low rank": one("a", "b", b__start__init="a", b__start__shrink=True,
                  **CHANNELS,
                  a__network__factorize=(("stage.*/conv.", "ranks=2,2"),)),
  "population": one("a", a__population__size=2, **PRUNED),
  "ensemble": one("a", "b", "c", b__start__init="a", b__network__bits=BITS,
                  c__ensemble__members="a,b", **PRUNED),
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_of_a_run(plan, tmp_path):
  config = PLANS[plan].copy_and_resolve_references()
  result = run(config, tmp_path)
  holds(forecast(config), result)


def test_of_a_run_that_starts_from_another(tmp_path):
  """What its result.json says of masks, in other bits, and shrunk."""
  first = one("a", "b", b__start__init="a", b__prune__density=0.2, **CHANNELS)
  result = run(first, tmp_path / "first")
  for i, changes in enumerate(
    (dict(c__network__bits=BITS), dict(c__start__shrink=True))
  ):
    config = one("c", c__start__init=str(tmp_path / "first"), **changes)
    there = Place(source=other_run.source)
    found = parse(config, there).phases[-1].outlooks
    holds(score_of(found, False), run(config, tmp_path / str(i)))
    there = Place(
      source=lambda _, name: Source(outlooks_of_result(result.to_json(), name))
    )
    assert found == parse(config, there).phases[-1].outlooks


@pytest.mark.parametrize(
  "plan", ["uniform", "erk", "explicit", "pattern", "shrunk evenly", "twice",
           "then bits"],
)  # fmt: skip
def test_per_layer_is_known(plan):
  config = PLANS[plan]
  found = forecast(config)
  if not isinstance(found, Score):
    ends = found.low["per_layer"], found.high["per_layer"]
    if plan in ("then bits",):  # the layers' bits differ, and their shares
      assert ends[0].total < ends[1].total
    else:
      assert ends[0] == ends[1]
  assert (plan == "shrunk evenly") == isinstance(found, Score)


def errors(config, **place) -> str:
  with pytest.raises(ConfigError) as e:
    parse(config, Place(**place))
  return str(e.value)


TWO = {"b__start__init": "a"}
FOUR = (("stem|head", 8, 8), (".*", 2, 2))


@pytest.mark.parametrize(
  "config, fields, told",
  [
    (one("a", a__prune__layers="stage9.*", **PRUNED), ["a.prune.layers"],
     "matches no layer"),
    (one("a", a__prune__distribution="explicit",
         a__prune__rules=(("stage9.*", 0.5),)), ["a.prune.rules"],
     "decides no layer"),
    (one("a", a__prune__distribution="explicit",
         a__prune__rules=((".*", 0.5), ("head", 0.5))), ["a.prune.rules"],
     "decides no layer"),
    (one("a", a__prune__pattern="2:4"), ["a.prune.pattern"], r"stem (3)"),
    (one("a", a__prune__pattern="2:4", a__network__depthwise=(True, True)),
     ["a.prune.pattern"], "depthwise (1)"),
    (one("a", a__prune__density=1e-5), ["a.prune.density"],
     "raise the density to"),
    (one("a", a__prune__density=1e-3, a__prune__floor=0.0,
         a__prune__distribution="uniform"), ["a.prune.density"],
     "would keep none"),
    (one("a", a__prune__structured=True, a__prune__criterion="l2",
         a__prune__density=0.01), ["a.prune.density"], "need 4 at least"),
    (one("a", a__epochs=1, a__prune__begin=0.9, **PRUNED),
     ["a.prune.begin"], "never comes"),
    (one("a", "b", **TWO, b__prune__density=0.5, **PRUNED),
     ["b.prune.density"], "init has at most"),
    (one("a", "b", b__network__factorize=(("stage.*/conv.", "depthwise"),),
         **TWO, **PRUNED), ["b.start.init"], "does not carry over"),
    (one("a", "b", b__start__shrink=True, b__start__drop_blocks="stage2.*",
         **TWO),
     ["b.start.drop_blocks"], "projection"),
    (one("a", "b", b__start__shrink=True, b__start__drop_blocks="stage1.*",
         **TWO),
     ["b.start.drop_blocks"], "lose all its blocks"),
    (one("a", "b", b__start__shrink=True, b__start__drop_blocks="stage7.*",
         **TWO),
     ["b.start.drop_blocks"], "matches no block"),
    (one("a", "b", a__network__blocks=(2, 1), b__network__blocks=(2, 1),
         b__start__shrink=True, b__start__drop_blocks="stage1_block2", **TWO,
         b__network__bits=(("stage1_block2.*", 4, 4), (".*", 8, 8))),
     ["b.network.bits"], "decides no layer"),
    (one("a", "b", "c", b__start__init="a", b__network__bits=BITS,
         c__start__init="b",
         c__start__rewind="a"), ["c.start.rewind"], "bits"),
    (one("a", "b", "c", b__start__init="a", b__start__shrink=True,
         c__start__init="b",
         **CHANNELS), ["c.start.init"], "shrink=True"),
    (one("a", "b", b__teacher__source="a", b__teacher__features="attention",
         a__network__strides=(1, 1)), [], ""),
    (one("a", "b", b__teacher__source="a", b__teacher__features="fitnets",
         a__network__widths=(
      4, 4, 8), a__network__blocks=(1, 1, 1), a__network__strides=(1, 2, 2),
      a__network__groups=(1, 1, 1), a__network__depthwise=(False,) * 3),
     ["b.teacher.features"], "equally many"),
    (one("a", "b", b__teacher__source="a", b__teacher__features="attention",
         a__population__size=2), ["b.teacher.source"], "is 2"),
    (one("a", "b", a__population__size=2, **TWO, **PRUNED), ["b.start.init"],
     "masks of its own"),
    (one("a", "b", "c", c__start__init="a,b", b__network__bits=BITS),
     ["c.start.init"],
     "they differ"),
    (one("a", a__network__bits=FOUR, a__network__two_bits="four_levels",
         **PRUNED), ["a.network.two_bits"], "masked in stage1_block1/conv1"),
    (one("a", a__network__bits=FOUR, a__network__two_bits="four_levels",
         **CHANNELS), ["a.network.two_bits"], "prune.layers names others"),
    (one("a", a__network__bits=FOUR, a__network__two_bits="four_levels",
         a__prune__layers="stem|head", **PRUNED), [], ""),
    (one("a", "b", **TWO, b__network__bits=FOUR,
         b__network__two_bits="four_levels", **PRUNED),
     ["b.network.two_bits"], "has no zero"),
    (one("a", "b", **TWO, b__network__bits=FOUR, b__start__shrink=True,
         b__network__two_bits="four_levels", **CHANNELS), [], ""),
    # All at once.
    (one("a", "b", a__prune__layers="x", b__prune__layers="y", **PRUNED,
         b__prune__density=0.5), ["a.prune.layers", "b.prune.layers"],
     "matches no layer"),
  ],
)  # fmt: skip
def test_a_plan_that_cannot_work(config, fields, told):
  if not fields:
    parse(config)
    return
  text = errors(config)
  lines = text.splitlines()
  assert len(lines) == len(fields), text
  for line, field in zip(lines, fields, strict=True):
    assert line.startswith(f"config.{field} ") and told in line, line


def test_the_floor_of_a_published_config():
  """Was refused by the run after ten epochs."""
  parse(configfile.load("configs/prune_structured.py:0.2"))
  parse(configfile.load("configs/prune_unstructured.py:0.01"))


def test_bits_of_a_shrunk_network_are_of_its_own_layers():
  bits = (("stage1_block3.*", 4, 4), (".*", 8, 8))
  config = one("a", "b", a__network__blocks=(3, 1), b__start__init="a",
               b__start__shrink=True, b__network__bits=bits,
               **CHANNELS)  # fmt: skip
  parse(config)


def test_a_table_of_logits_is_of_one_process():
  config = one("a", "b", b__teacher__source="a", b__teacher__cache="lazy")
  parse(config)
  text = errors(config, processes=2)
  assert text.startswith("config.b.teacher.cache ") and "2 processes" in text
