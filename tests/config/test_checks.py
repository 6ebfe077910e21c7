"""Every wrong value is refused before anything runs, in one clear line."""

import pathlib
import re

import ml_collections
import pytest
from fields import put

from jaxr18.config import base, schema
from jaxr18.config import file as configfile
from jaxr18.config.experiment import Place
from jaxr18.config.faults import MISSING, ConfigError
from jaxr18.config.network import network_spec
from jaxr18.config.reading import parse
from jaxr18.data import facts

PHASES = ("teacher", "student")
NAN, INF = float("nan"), float("inf")
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def _set(changes):
  values = schema.defaults(PHASES)
  for name, value in changes.items():
    configfile.set_field(values, name, value)
  return values


# One field and the value that is wrong, and words of the line; where a problem
# is of several fields, the others are in the last place.
BAD = [
  # Types.
  ("seed", None, "such as 0"),
  ("seed", True, "an int from 0"),
  ("data.name", b"digits", "must be a string"),
  ("data.dir", None, "a string"),
  ("student.epochs", 10.0, "such as 30"),
  ("student.optimizer.learning_rate", "0.1", "a number"),
  ("student.augment.flip", True, "'none', 'random', 'alternating'"),
  # Ranges.
  ("seed", -1, "raise it to 0"),
  ("seed", 2**31, "lower it to 2147483647"),
  ("data.order", "ids", "choose one"),
  ("student.optimizer.learning_rate", NAN, "such as 0.1"),
  ("student.optimizer.learning_rate", INF, "such as 0.1"),
  ("student.optimizer.momentum", 1.0, "lower it to 0.9999"),
  ("student.optimizer.clip_norm", 10**400, "such as 0.0"),
  ("student.network.resolution", 2, "raise it to 4"),
  ("student.network.scale", 9.0, "lower it to 8"),
  ("student.network.scale_multiple", 0, "raise it to 1"),
  ("student.loss.likeness", "logdet", "write 'log_det'"),
  ("student.population.learning_rates", 0.5, "write (0.5,)"),
  ("student.population.temperatures", (1.0, "2"), "has '2' at index 1"),
  # Names.
  ("student.teacher.loss", "DKD", "write 'dkd'|choose one"),
  ("student.teacher.features", "fitnet", "write 'fitnets'"),
  ("student.teacher.cache", "eager", "choose one"),
  ("student.ensemble.vote", "mean", "choose one"),
  ("data.name", "cifra10", "did you mean cifar10"),
  ("data.name", "mnist", "docs/data.md"),
  ("progress", "", "choose one"),
  ("writers", "tensorbord", "write 'tensorboard'"),
  ("student.optimizer.name", "adam", "write 'adamw'"),
  ("student.dtype", "float16", "write 'bfloat16'|write 'float32'"),
  ("student.augment.flip", "always", "choose one|alternating"),
  # Tuples by stage.
  ("student.network.widths", 64, "write (64,)"),
  ("student.network.widths", (), "such as (64, 128, 256, 512)"),
  ("student.network.widths", (8, 8, "8", 8), "has '8' at index 2"),
  ("student.network.widths", (8, 8, 8.0, 8), "has 8.0 at index 2"),
  ("student.network.widths", (8, True, 8, 8), "has True at index 1"),
  ("student.network.widths", (8, "8", 8, 8), "at index 1"),
  ("student.network.widths", (8, 8, 8, 0), "raise it to 1"),
  ("student.network.widths", (8, (8, 8), 8, 8), "has (8, 8) at index 1"),
  ("student.network.blocks", (2, 2, 2), "write (2, 2, 2, 2)"),
  ("student.network.blocks", (2, 2, 2, 2, 2), "must have 4 entries"),
  ("student.network.blocks", (2, 2, 0, 2), "raise it to 1"),
  ("student.network.strides", (1, 2), "write (1, 2, 1, 2)"),
  ("student.network.strides", (1, 2, 2, 5), "lower it to 4"),
  ("student.network.groups", (1, 1, 1), "must have 4 entries"),
  ("student.network.depthwise", (True, 1, True, True), "has 1 at index 1"),
  # Bits.
  ("student.network.bits", (), "a tuple of rules"),
  ("student.network.bits", None, "a tuple of rules"),
  ("student.network.bits", (".*", 4, 4), "write (('.*', 4, 4),)"),
  ("student.network.bits", ((".*", 4),), "must be a tuple (regex,"),
  ("student.network.bits", ((None, 4, 4),), "has None"),
  ("student.network.bits", (("stem(", 4, 4), (".*", 8, 8)), "mend it"),
  ("student.network.bits", (("*", 4, 4),), "mend it"),
  ("student.network.bits", (("a{9999999999}", 4, 4),), "mend it"),
  ("student.network.bits", ((".*", 9, 4),), "has w_bits=9"),
  ("student.network.bits", ((".*", 4, 1),), "has a_bits=1"),
  ("student.network.bits", ((".*", 4, 12),), "32 is unquantized"),
  ("student.network.inner_bits", 9, "must be one of (0, 2, 3,"),
  ("student.network.inner_bits", 1, "go into `bits`"),
  ("student.network.inner_bits", False, "must be an int"),
  ("student.network.inner_bits", 4.0, "must be an int"),
  ("student.network.sum_bits", 3, "must be one of (4, 5,"),
  ("student.network.sum_bits", 17, "choose one"),
  ("student.network.scales", "LSQ", "choose one|lsq_paper"),
  ("student.calibrate.method", "mean", "choose one|percentile"),
  ("student.network.bits", ((".*", 4, 0),), "has a_bits=0"),
  ("student.network.bits", ((".*", 4.0, 4),), "has w_bits=4.0"),
  ("student.network.bits", ((".*", "4", 4),), "has w_bits="),
  ("student.network.bits", ((".*", True, 4),), "has w_bits=True"),
  ("student.network.bits", (("stem", 4, 4),), "no bits rule matches"),
  ("student.network.bits", ((".*", 4, 4), ("stem", 8, 8)), "remove that rule"),
  ("student.network.bits", (("conv9", 4, 4), (".*", 8, 8)), "remove that rule"),
  # Forms.
  ("student.network.factorize", None, "or () for none"),
  ("student.network.factorize", ("stage.*", "dense"),
   "write (('stage.*', 'dense'),)"),
  ("student.network.factorize", (("stem", 8),), "must be (regex, form)"),
  ("student.network.factorize", (("stem(", "dense"),), "mend it"),
  ("student.network.factorize", (("stem", "groups=0"),), "'groups=8'"),
  ("student.network.factorize", (("stem", "ranks=4"),), "'ranks=1/4,1/4'"),
  # Phases.
  ("phases", None, "base(phases="),
  ("phases", (), "base(phases="),
  ("phases", "teacher", "base(phases="),
  ("phases", ("teacher", "student", "teacher"), "rename one"),
  ("phases", ("teacher", "student", "last"), "a section config.last"),
  ("phases", ("teacher", "seed"), "rename the phase"),
  ("phases", ("teacher", "data"), "rename the phase"),
  ("phases", ("teacher", "items"), "rename the phase"),
  ("phases", ("teacher", "Student"), "small letters"),
  ("phases", ("teacher", "../up"), "small letters"),
  ("phases", ("teacher", 3), "small letters"),
  ("phases", ("teacher", "s" * 65), "at most 64"),
  # Pruning.
  ("student.prune.criterion", "magnitude", "write 'magnitude_l2'"),
  ("student.prune.distribution", "locally", "choose one|write"),
  ("student.prune.rules", (("(", 0.5),), "mend it"),
  ("student.prune.layers", "(", "must be a regex"),
  ("student.prune.schedule", "cubed", "write 'cubic'"),
  ("student.prune.regrow", "rig", "write 'rigl'"),
  ("student.prune", 0.5, "must be a section"),
  ("student.start.shrink", "yes", "True or False"),
  ("student.start.shrink", True, "name a phase or a workdir in start.init"),
  ("student.start.rewind", "teacher",
   "name a phase or a workdir in start.init"),
  ("student.start.drop_blocks", "stage3_block2", "shrink=True"),
  ("student.start.drop_blocks", "(", "must be a regex"),
  # Structure.
  ("student.epoch", 3, "did you mean config.student.epochs?"),
  ("student.lr", 0.1, "--help lists the fields"),
  ("epochs", 3, "config.teacher.epochs or config.student.epochs"),
  ("studnt", 3, "did you mean config.student?"),
  ("last", {"epochs": 3}, "name it in config.phases"),
  ("student.network", 3, "must be a section"),
  ("student", None, "must be a section"),
  ("data", "digits", "set config.data.FIELD"),
  # Sources.
  ("teacher.teacher.source", "student", "an earlier phase (none here)"),
  ("teacher.start.init", "teacher", "an earlier phase (none here)"),
  ("student.teacher.source", "student", "an earlier phase (teacher)"),
]  # fmt: skip

# Fields that are right by themselves and wrong together; the first is named.
BAD_TOGETHER = [
  ({"student.prune.criterion": "l2", "student.prune.density": 0.5},
   "for single weights"),
  ({"student.prune.criterion": "wanda", "student.prune.density": 0.5,
    "student.prune.structured": True}, "for channels"),
  ({"student.prune.criterion": "wanda", "student.prune.density": 0.5,
    "student.prune.distribution": "lamp"}, "which ranks by w"),
  ({"student.prune.distribution": "global_raw", "student.prune.density": 0.5},
   "for single weights"),
  ({"student.prune.distribution": "per_output", "student.prune.density": 0.5,
    "student.prune.structured": True, "student.prune.criterion": "l2"},
   "for channels"),
  ({"student.prune.begin": 0.0, "student.prune.criterion": "movement",
    "student.prune.density": 0.5},
   "must be above 0, in a phase with epochs"),
  ({"student.prune.distribution": "erk", "student.prune.density": 0.5,
    "student.prune.structured": True, "student.prune.criterion": "l2"},
   "for channels"),
  ({"student.prune.pattern": "2:4", "student.prune.structured": True,
    "student.prune.criterion": "l2"}, "structured=False"),
  ({"student.prune.rules": (("stem", 0.5),), "student.prune.density": 0.5},
   "distribution='explicit'"),
  ({"student.prune.rules": (), "student.prune.distribution": "explicit"},
   "such as"),
  ({"student.prune.pattern": "4:2"}, "N at most M"),
  ({"student.prune.pattern": "2:4", "student.prune.density": 0.5},
   "leave one of the two out"),
  ({"student.prune.pattern": "2:4", "student.prune.schedule": "cubic"},
   "schedule='one_shot'"),
  ({"student.prune.regrow": "rigl", "student.prune.density": 0.1,
    "student.prune.schedule": "cubic"}, "schedule='one_shot'"),
  ({"student.prune.end": 0.0, "student.prune.density": 0.1,
    "student.prune.schedule": "cubic"}, "above begin"),
  ({"student.prune.schedule": "cubic", "student.prune.density": 0.1,
    "student.epochs": 0}, "or train"),
  ({"student.prune.end": 1.0, "student.prune.density": 0.1,
    "student.prune.schedule": "linear"}, "must be below 1"),
  ({"student.prune.begin": 1.0, "student.prune.density": 0.1},
   "must be below 1"),
  ({"student.network.inner_bits": 4,
    "student.network.bits": ((".*", 8, 8),)}, "leave one of the two out"),
  ({"student.network.scales": "pact"}, "no layer of the phase has one"),
  ({"student.network.scales": "pact",
    "student.network.bits": ((".*", 4, 16),)}, "set network.inner_bits"),
  ({"student.calibrate.method": "lsq"}, "no layer of the phase has one"),
  ({"student.network.w_scales": "learned",
    "student.network.bits": ((".*", 1, 4),)}, "needs a kernel of 2 to 7 bits"),
  ({"student.network.two_bits": "four_levels",
    "student.network.inner_bits": 3}, "needs a kernel of 2 bits"),
  ({"student.loss.dampening": 0.01,
    "student.network.bits": ((".*", 16, 4),)}, "weights of 8 bits or fewer"),
  ({"student.bounds.learning_rate": 0.5}, "no layer of the phase has one"),
  ({"student.optimizer.muon_momentum": 0.6}, "set muon_rate"),
  ({"student.optimizer.muon_rate": 0.02,
    "student.network.groups": (1, 2, 1, 1)}, "stage2_block1/conv1"),
  ({"student.calibrate.images": 100}, "no layer of the phase has one"),
  ({"student.calibrate.method": "lsq", "student.network.scales": "dynamic",
    "student.network.inner_bits": 8}, "nothing to calibrate"),
  ({"student.optimizer.warmup_epochs": 31.0}, "train longer"),
  ({"student.optimizer.warmup_epochs": 2.5, "student.epochs": 2}, "at most"),
  ({"student.average.swa_cycle": 2}, "must be 0 where SWA is off"),
  ({"student.average.swa_cycle": 2, "student.average.swa_from": 0.5,
    "student.average.swa_rate": 0.0}, "the rate falls to zero"),
  ({"student.average.swa_cycle": 4, "student.average.swa_from": 0.5},
   "must divide the 15 epochs that are left"),
  ({"student.average.swa_low": 0.6, "student.average.swa_from": 0.5,
    "student.average.swa_cycle": 5}, "must be at most swa_rate (=0.5)"),
  ({"student.teacher.weight": 0.0, "student.teacher.source": "teacher"},
   "raise it"),
  ({"student.teacher.self_teach": True, "student.teacher.source": "teacher",
    "student.average.ema_decay": 0.9}, "leave one of the two out"),
  ({"student.teacher.self_teach": True}, "such as average.ema_decay=0.998"),
  ({"student.teacher.features": "fitnets"}, "name it in teacher"),
  ({"student.teacher.features": "attention",
    "student.teacher.source": "teacher,teacher"},
   "needs one teacher"),
  ({"student.teacher.cache": "lazy"}, "name a teacher"),
  ({"student.teacher.cache": "full", "student.teacher.source": "teacher",
    "student.augment.mixup": 0.2}, "a mixture is no view"),
  ({"student.teacher.cache": "lazy", "student.teacher.source": "teacher",
    "student.augment.cutmix": 1.0}, "a mixture is no view"),
  ({"student.augment.cutmix": 1.0, "student.augment.mixup": 0.2},
   "leave one of the two out"),
  ({"student.teacher.cache": "full", "student.teacher.source": "teacher",
    "student.augment.cutout": 8}, "augment.cutout=0"),
  ({"student.teacher.cache": "lazy", "student.teacher.source": "teacher",
    "student.teacher.features": "fitnets"}, "stage outputs are not kept"),
  ({"student.loss.diversity": 0.1}, "and only then"),
  ({"student.loss.diversity": 0.0, "student.loss.others": "teacher"},
   "such as 0.1"),
  ({"student.augment.mixup": 0.2, "student.teacher.source": "teacher",
    "student.teacher.loss": "dkd"}, "one right class"),
  ({"student.augment.cutmix": 1.0, "student.loss.others": "teacher",
    "student.loss.diversity": 0.1}, "one right class"),
  ({"student.population.learning_rates": (1.0, 0.5),
    "student.population.size": 3}, "must have 1 or"),
  ({"student.population.temperatures": (2.0,)},
   "config.student.teacher.temperature"),
  ({"student.start.shrink": True, "student.start.init": "teacher",
    "student.population.size": 2}, "in a phase of its own"),
  ({"student.start.kernels": "dirac", "student.start.init": "teacher"},
   "leave one of the two out"),
  ({"student.start.whiten": True, "student.start.init": "teacher"},
   "leave one of the two out"),
  ({"student.start.whiten": True, "student.network.stem_features": 53},
   "at least 54 channels"),
  ({"student.start.whiten": True,
    "student.network.factorize": (("stem", "ranks=1/2,1/2"),)},
   "begins with stem/"),
  ({"student.optimizer.held": "stage9.*"}, "there are stem, stage1_block1/"),
  ({"student.start.init": "teacher", "student.ensemble.members": "teacher"},
   "trains nothing"),
  ({"student.start.kernels": "dirac", "student.ensemble.members": "teacher"},
   "trains nothing"),
  ({"student.population.size": 2, "student.ensemble.members": "teacher"},
   "trains nothing"),
  ({"student.ensemble.vote": "weighted", "student.ensemble.members": "teacher",
    "data.validation": 0}, "hold some out"),
  ({"data.validation": 1437, "data.name": "digits"}, "such as to 143"),
  ({"data.validation": 5000, "data.name": "digits"}, "less than the 1437"),
  ({"student.batch_size": 45_001}, "at most 45000"),
  ({"student.batch_size": 65, "data.limit": 64,
    "teacher.batch_size": 64}, "at most 64"),
  ({"student.epochs": 100_000, "student.batch_size": 1}, "int32"),
  ({"student.network.groups": (1, 3, 1, 1)}, "write 1 there"),
  ({"student.network.groups": (1, 1, 256, 1)}, "write 128 there"),
  ({"student.network.groups": (8, 1, 1, 1),
    "student.network.stem_features": 20}, "20 input channels"),
  ({"student.network.groups": (1, 2, 1, 1),
    "student.network.depthwise": (False, True, False, False)}, "depthwise"),
  ({"student.network.groups": (1, 1, 16, 1), "student.network.scale": 1.0},
   "scale_multiple"),
  ({"student.network.scale": 8.0,
    "student.network.widths": (64, 128, 256, 8000)}, "nearer to 0"),
  ({"student.network.scale": 8.0, "student.network.resolution": 512},
   "makes resolution 1566"),
  ({"student.network.resolution": 7}, "raise it"),
  ({"student.network.resolution": 32,
    "student.network.strides": (4, 4, 2, 2)}, "at least 64"),
  ({"student.network.resolution": 12, "student.network.scale": -4.0},
   "now 7"),
  ({"student.start.init": "teacher",
    "student.network.widths": (32, 64, 128, 256)}, "(3, 3, 3, 64) there"),
  ({"student.start.init": "teacher", "student.network.blocks": (2, 2, 3, 2)},
   "missing there"),
  ({"student.network.factorize": (("stage1.*", "groups=3"),)},
   "stage1_block1/conv1: in_features (=64)"),
  ({"student.network.factorize": (("stage9.*", "depthwise"),)},
   "decides no layer"),
  ({"student.network.factorize": (("stage1.*conv1", "ranks=65,8"),)},
   "more than the 64 channels"),
]  # fmt: skip


def _faults(config, **place):
  with pytest.raises(ConfigError) as error:
    parse(config, Place(**place))
  faults = error.value.faults
  assert error.value.fields == {fault.field for fault in faults}
  assert str(error.value).splitlines() == [str(fault) for fault in faults]
  return faults


def _assert_named(faults, field, value, told):
  [fault] = [fault for fault in faults if fault.field == field]
  assert repr(fault.value) == repr(value)
  assert fault.must and fault.mend
  assert any(t in f"{fault.must}; {fault.mend}" for t in told.split("|")), fault


@pytest.mark.parametrize(
  "field, value, told", BAD, ids=lambda x: re.sub(r"\W+", "-", repr(x))[:40]
)
def test_a_bad_value_is_named_with_what_is_allowed(field, value, told):
  faults = _faults(_set({field: value}))
  _assert_named(faults, field, value, told)
  # phases decide which sections there are; all else is one problem alone.
  assert len(faults) == 1 or field == "phases"


@pytest.mark.parametrize(
  "changes, told", BAD_TOGETHER, ids=lambda x: re.sub(r"\W+", "-", str(x))[:50]
)
def test_fields_that_do_not_fit_each_other(changes, told):
  field, value = next(iter(changes.items()))
  faults = _faults(_set(changes))
  if field == "data.name":
    faults = faults[:1]
  _assert_named(faults, field, value, told)
  assert len(faults) == 1


def test_a_fault_says_where_what_and_how_to_mend_it():
  [fault] = _faults(_set({"student.epochs": -1}))
  assert str(fault) == (
    "config.student.epochs (=-1) must be an int from 0 to 100000 (passes over"
    " the training images; 0 only transforms the network); raise it to 0 or"
    " more"
  )


def test_all_problems_come_at_once():
  changes = {
    "seed": -1,
    "teacher.epochs": -1,
    "teacher.network.groups": (7, 1, 1, 1),
    "student.network.bits": (("stem", 4, 4),),
    "student.augment.crop": 3,
    "student.teacher.source": "student",
    "student.optimizer.warmup_epochs": 31.0,
  }
  assert {fault.field for fault in _faults(_set(changes))} == set(changes)


@pytest.mark.parametrize("field", ["seed", "student.epochs", "student.augment"])
def test_a_missing_field_has_its_default(field):
  values = _set({})
  *sections, last = field.split(".")
  del (values[sections[0]] if sections else values)[last]
  assert parse(values).values == parse(_set({})).values


def test_a_required_placeholder_is_missing():
  config = base(PHASES)
  with config.ignore_type():
    config.student.epochs = ml_collections.config_dict.required_placeholder(int)
  [fault] = _faults(config)
  assert fault.field == "student.epochs" and fault.value is None


@pytest.mark.parametrize("config", [None, 3])
def test_what_is_no_config(config):
  with pytest.raises(ConfigError, match=r"jaxr18\.config\.base\(\)"):
    parse(config)


def test_no_phases():
  [fault] = _faults({})
  assert fault.field == "phases" and fault.value is MISSING
  assert str(fault).startswith("config.phases is missing and must be a tuple")


def test_lists_are_tuples_as_in_json():
  changes = {
    "student.network.widths": [8, 8, 8, 8],
    "student.network.bits": [[".*", 4, 4]],
  }
  network = parse(_set(changes)).phases[-1].options.network
  assert network.widths == (8, 8, 8, 8) and network.bits == ((".*", 4, 4),)


def test_an_experiment_is_typed_and_frozen():
  config = base(PHASES)
  put(config, "student.optimizer.learning_rate", 1)
  experiment = parse(config)
  assert [phase.name for phase in experiment.phases] == list(PHASES)
  assert [phase.index for phase in experiment.phases] == [0, 1]
  rate = experiment.phases[-1].options.optimizer.learning_rate
  assert type(rate) is float and rate == 1
  for frozen, field in (
    (experiment, "seed"),
    (experiment.phases[0], "name"),
    (experiment.phases[0].options, "epochs"),
  ):
    with pytest.raises(Exception, match="frozen|cannot assign"):
      setattr(frozen, field, 3)
  assert parse(experiment.saved()).values == experiment.values


def test_devices_share_a_batch():
  config = _set({"student.batch_size": 100, "teacher.batch_size": 96})
  parse(config)
  faults = _faults(config, devices=8)
  _assert_named(faults, "student.batch_size", 100, "write 96")
  parse(config, Place(devices=8, ended=lambda name: name == "student"))


@pytest.mark.parametrize("phases", [("train",), PHASES, ("a", "b2", "c_d")])
def test_the_defaults_are_valid(phases):
  values = parse(base(phases)).values
  assert values["phases"] == phases
  for name in phases:
    assert values[name]["network"]["blocks"] == (2, 2, 2, 2)
    assert values[name]["network"]["strides"] == (1, 2, 2, 2)


def _arguments(path):
  """Each argument that a config compares its own with."""
  found = re.findall(r"arg(?:ument)? == ['\"](\w+)['\"]", path.read_text())
  return ["", *found]


@pytest.mark.parametrize(
  "name",
  [
    f"{path}:{argument}".rstrip(":")
    for path in sorted(CONFIGS.glob("*.py"))
    for argument in _arguments(path)
  ],
  ids=lambda name: pathlib.Path(name).name,
)
def test_every_config_is_valid(name):
  parse(configfile.load(name))


@pytest.mark.parametrize(
  "changes",
  [
    {"student.teacher.source": "teacher", "student.start.init": "teacher"},
    {"student.start.init": "teacher", "student.network.bits": ((".*", 4, 4),)},
    {"student.start.init": "teacher", "student.network.resolution": 16},
    {"student.optimizer.warmup_epochs": 30.0},
    {"student.optimizer.learning_rate": 1},
    {"data.validation": 0},
    {"data.limit": 128, "data.validation": 0},
    {"student.network.resolution": 8},
    {"student.network.scale": -2.0},
    {"student.network.scale": 1.0, "student.network.groups": (1, 8, 8, 8)},
    {"student.network.stem_features": 16},
    {"student.network.bits": (("stem|head", 8, 8), (".*", 2, 32))},
    {"student.network.bits": (("stem|head", 16, 16), (".*", 1, 2))},
    {"student.network.inner_bits": 4, "student.network.scales": "pact",
     "student.calibrate.method": "percentile"},
    {"student.network.inner_bits": 4, "student.network.scales": "dynamic"},
    {"student.network.groups": (1, 2, 4, 8),
     "student.network.depthwise": (True, False, False, False)},
    {"student.augment.cutout": 32, "student.augment.pad": 0},
    {"student.teacher.weight": 0.0},
    {"student.epochs": 0},
    {"student.epochs": 0, "student.prune.density": 0.5},
    {"student.start.init": "teacher", "student.start.shrink": True,
     "student.network.widths": (8, 8, 8, 8),
     "student.start.drop_blocks": "stage1_block2"},
    {"student.start.init": "teacher", "student.start.rewind": "teacher"},
    {"student.prune.density": 0.1, "student.prune.regrow": "set"},
    {"student.teacher.weight": 1.0, "student.teacher.source": "teacher"},
    {
      "student.network.widths": (8, 16),
      "student.network.blocks": (1, 3),
      "student.network.strides": (1, 4),
      "student.network.groups": (1, 1),
      "student.network.depthwise": (False, True),
    },
  ],
  ids=lambda x: re.sub(r"\W+", "-", str(x))[:50],
)  # fmt: skip
def test_good_values(changes):
  student = parse(_set(changes)).phases[-1]
  assert (student.spec is None) == student.options.start.shrink


def test_inner_bits_leave_stem_and_head_in_8():
  def spec_of(changes):
    return parse(_set(changes)).phases[-1].spec

  rules = (("stem|head", 8, 8), (".*", 3, 3))
  short = spec_of({"student.network.inner_bits": 3})
  assert short == spec_of({"student.network.bits": rules})
  assert (short.stem.w_bits, short.head.a_bits) == (8, 8)
  scaled = spec_of(
    {"student.network.inner_bits": 3, "student.network.scales": "pact"}
  )
  assert {layer.scales for layer in scaled.layers()} == {"pact"}


def test_a_phase_has_the_spec_of_its_network():
  student = parse(_set({"student.network.widths": (8, 8, 8, 8)})).phases[-1]
  assert student.spec == network_spec(student.options.network)
  assert student.outlooks[0].spec == student.spec


def test_the_data_are_as_large_as_is_said():
  from jaxr18.data import dataset as data

  digits = data.load("digits", validation=0)
  known = facts.KNOWN["digits"]
  assert (len(digits.train), digits.classes) == (known.train, known.classes)
  size = known.size, known.size, known.channels
  assert digits.train.images.shape[1:] == size
