"""PyTorch's weights: the same logits, and errors that name the tensor."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_weights

from jaxr18 import network, sources, torch_weights
from jaxr18.config import base
from jaxr18.spec import resnet, resnet18, with_bits
from jaxr18.torch_weights import WeightsError, derive_spec, from_state_dict
from jaxr18.validate import ConfigError, validate

GOLDEN = np.load(
  pathlib.Path(__file__).parent / "golden" / "resnet18_logits.npz"
)
SEED = int(GOLDEN["seed"])
NETWORKS = ("resnet18", "grouped", "depthwise")


def golden_spec(name):
  return resnet(**json.loads(str(GOLDEN[f"{name}_arguments"])))


def weights(name="grouped"):
  shapes = json.loads(str(GOLDEN[f"{name}_shapes"]))
  return random_weights.state_dict(shapes, SEED)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b)) and a.spec == b.spec


@pytest.fixture(scope="module")
def grouped():
  return from_state_dict(weights(), golden_spec("grouped"))


class TestLogits:
  @pytest.mark.parametrize("name", NETWORKS)
  def test_equal_pytorch(self, name):
    spec = golden_spec(name)
    net = from_state_dict(weights(name), spec)
    images = random_weights.uniform(SEED, GOLDEN["images_shape"], -2, 2)
    logits = jax.jit(network.forward)(net, images)
    expected = GOLDEN[f"{name}_logits"]
    assert np.std(expected) > 0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert count(net.params) == GOLDEN[f"{name}_parameters"]

  def test_resnet18_is_resnet18(self):
    assert golden_spec("resnet18") == resnet18()
    assert GOLDEN["resnet18_parameters"] == 11_173_962

  def test_nothing_is_pruned(self, grouped):
    assert jax.tree.structure(grouped.masks) == jax.tree.structure(
      grouped.params
    )
    assert all(m.dtype == bool and m for m in jax.tree.leaves(grouped.masks))


class TestNames:
  def test_module_prefix(self, grouped):
    d = {f"module.{k}": v for k, v in weights().items()}
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_torch_compile_prefix(self, grouped):
    d = {f"_orig_mod.module.{k}": v for k, v in weights().items()}
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_torchvision(self, grouped):
    d = {
      k.replace("shortcut", "downsample").replace("linear", "fc"): v
      for k, v in weights().items()
    }
    assert "layer2.0.downsample.0.weight" in d and "fc.bias" in d
    assert same(from_state_dict(d, grouped.spec), grouped)
    assert derive_spec(d) == grouped.spec

  @pytest.mark.parametrize("key", ["net", "state_dict"])
  def test_nested(self, grouped, key):
    d = {key: weights(), "acc": 95.2, "epoch": 199}
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_num_batches_tracked_is_ignored(self, grouped):
    d = weights() | {"bn1.num_batches_tracked": np.array(7)}
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_bounds_of_quantized_inputs_start_at_one(self, grouped):
    spec = with_bits(grouped.spec, [(".*", 4, 4)])
    net = from_state_dict(weights(), spec)
    assert net.params["stage1_block1"]["conv1"]["input_bound"] == 1
    new = jax.eval_shape(lambda: network.init(jax.random.key(0), spec))
    assert jax.tree.structure(net) == jax.tree.structure(new)

  def test_low_rank_convolution_is_a_sequential(self):
    spec = golden_spec("grouped")
    block = spec.stages[0][0]
    conv1 = dataclasses.replace(block.conv1, groups=1, ranks=(2, 4))
    block = dataclasses.replace(block, conv1=conv1)
    stage = (block, *spec.stages[0][1:])
    spec = dataclasses.replace(spec, stages=(stage, *spec.stages[1:]))
    d = weights()
    del d["layer1.0.conv1.weight"]
    for i, shape in enumerate([(2, 8, 1, 1), (4, 2, 3, 3), (8, 4, 1, 1)]):
      d[f"layer1.0.conv1.{i}.weight"] = np.full(shape, i, np.float32)
    conv = from_state_dict(d, spec).params["stage1_block1"]["conv1"]
    assert [
      float(conv[n]["kernel"].max()) for n in ("reduce", "core", "expand")
    ] == [0, 1, 2]


class TestDerivedSpec:
  @pytest.mark.parametrize("name", NETWORKS)
  def test_equals_the_given_one(self, name):
    shapes = json.loads(str(GOLDEN[f"{name}_shapes"]))
    d = {k: np.empty(v, np.float32) for k, v in shapes.items()}
    assert derive_spec(d) == golden_spec(name)

  def test_shortcut_without_weights(self):
    d = {k: v for k, v in weights().items() if "layer2.0.shortcut" not in k}
    with pytest.raises(
      WeightsError, match=r"layer2\.0\.shortcut\.0\.weight is missing.*8 to 16"
    ):
      derive_spec(d)

  def test_imagenet_stem(self):
    d = weights() | {"conv1.weight": np.zeros((8, 3, 7, 7))}
    with pytest.raises(WeightsError, match="conv1.weight is 7x7"):
      derive_spec(d)

  def test_bottleneck_is_not_expected(self):
    d = weights() | {"layer1.0.conv3.weight": np.zeros((32, 8, 1, 1))}
    with pytest.raises(
      WeightsError, match="layer1.0.conv3.weight is not expected"
    ):
      from_state_dict(d, derive_spec(d))

  @pytest.mark.parametrize(
    "d, message",
    [
      ({}, "conv1.weight is missing"),
      ({"conv1.weight": np.zeros((8, 3, 3, 3))}, "layer1.0.bn1 is missing"),
      (
        {"conv1.weight": np.zeros(8)},
        r"conv1.weight is \[8\], expected 4 axes",
      ),
      (
        weights() | {"layer1.0.conv2.weight": np.zeros((9, 4, 3, 3))},
        "layer1.0.shortcut.0.weight is missing",
      ),
      (
        weights() | {"conv1.weight": np.zeros((8, 3, 4, 4))},
        r"stem: kernel \(=4\) must be odd",
      ),
      (
        weights() | {"layer1.0.conv1.weight": np.zeros((8, 3, 3, 3))},
        "layer1.0.conv1.weight.*8.*3",
      ),
    ],
  )
  def test_errors(self, d, message):
    with pytest.raises(WeightsError, match=message):
      from_state_dict(d, derive_spec(d))


class TestErrors:
  def test_missing_wrong_and_unexpected_are_all_named(self, grouped):
    d = {f"module.{k}": v for k, v in weights().items()}
    del d["module.layer1.1.bn2.running_var"]
    d["module.conv1.weight"] = d["module.conv1.weight"][:4]
    d["module.linear.weight"] = d["module.linear.weight"].T
    d["module.extra"] = np.zeros(3)
    with pytest.raises(WeightsError) as e:
      from_state_dict(d, grouped.spec)
    message = str(e.value)
    assert "in 4 places" in message
    assert "layer1.1.bn2.running_var is missing" in message
    assert (
      "module.conv1.weight is [4, 3, 3, 3], expected [8, 3, 3, 3]" in message
    )
    assert "module.linear.weight is [24, 10], expected [10, 24]" in message
    assert "module.extra is not expected" in message

  def test_a_kernel_of_the_same_size_in_another_layout(self, grouped):
    d = weights()
    d["layer1.0.conv1.weight"] = d["layer1.0.conv1.weight"].transpose(
      2, 3, 1, 0
    )
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight is \[3,"):
      from_state_dict(d, grouped.spec)

  def test_many_are_shortened(self):
    with pytest.raises(WeightsError, match=r"in 57 places.*and 51 more") as e:
      from_state_dict({}, golden_spec("grouped"))
    assert len(str(e.value)) < 500

  def test_the_same_tensor_twice(self, grouped):
    d = weights()
    d["fc.bias"] = d["linear.bias"]
    with pytest.raises(WeightsError, match="linear.bias and fc.bias"):
      from_state_dict(d, grouped.spec)

  def test_not_a_mapping(self, grouped):
    with pytest.raises(WeightsError, match="got a list.*state_dict"):
      from_state_dict([1], grouped.spec)


class TestLoad:
  def test_without_torch(self, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
      WeightsError, match=re.escape("x.pt needs PyTorch; pip install 'jaxr18[t")
    ):
      torch_weights.load("x.pt")

  def test_importing_does_not_import_torch(self):
    code = "import sys, jaxr18.torch_weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

  @pytest.mark.parametrize("given", [True, False])
  def test_file(self, tmp_path, grouped, given):
    torch = pytest.importorskip("torch")
    d = {k: torch.from_numpy(v) for k, v in weights().items()}
    d["linear.bias"] = torch.nn.Parameter(d["linear.bias"])  # wants gradients
    path = tmp_path / "ckpt.pth"
    torch.save({"net": d, "acc": 95.0, "epoch": 3}, path)
    net = torch_weights.load(path, grouped.spec if given else None)
    assert same(net, grouped)

  def test_bfloat16(self, tmp_path, grouped):
    torch = pytest.importorskip("torch")
    d = {k: torch.from_numpy(v).bfloat16() for k, v in weights().items()}
    torch.save(d, tmp_path / "ckpt.pt")
    net = torch_weights.load(tmp_path / "ckpt.pt")
    kernel = net.params["stem"]["kernel"]
    assert kernel.dtype == jnp.float32
    expected = grouped.params["stem"]["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(kernel, expected.astype(jnp.float32))

  def test_a_pickled_model_is_not_run(self, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(WeightsError, match=r"model.pt does not hold.*state_di"):
      torch_weights.load(path)

  def test_no_file(self, tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(WeightsError, match="cannot read .*none.pt: No such"):
      torch_weights.load(tmp_path / "none.pt")

  def test_error_names_the_file(self, tmp_path, grouped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "ckpt.pt"
    d = {k: torch.from_numpy(v) for k, v in weights().items()}
    del d["linear.bias"]
    torch.save(d, path)
    with pytest.raises(WeightsError, match="ckpt.pt.*linear.bias is missing"):
      torch_weights.load(path, grouped.spec)


@pytest.mark.parametrize("field", ["init", "teacher"])
def test_a_phase_takes_a_file(tmp_path, field):
  torch = pytest.importorskip("torch")
  state_dict = weights()
  path = tmp_path / "net.pth"
  torch.save({k: torch.from_numpy(v) for k, v in state_dict.items()}, path)
  config = base(("student",))
  arguments = json.loads(str(GOLDEN["grouped_arguments"]))
  for name, value in arguments.items():
    config.student.network[name] = tuple(value)
  config.student[field] = str(path)
  validate(config)
  loaded = sources.load_network(tmp_path, str(path))
  assert same(loaded, from_state_dict(state_dict, golden_spec("grouped")))
  other = dict(state_dict)
  for name in ("linear.weight", "linear.bias"):
    other[name] = other[name][:7]
  torch.save({k: torch.from_numpy(v) for k, v in other.items()}, path)
  with pytest.raises(ConfigError, match="10 classes apart, it has 7"):
    validate(config)
  torch.save({k: torch.from_numpy(v) for k, v in state_dict.items()}, path)
  if field == "init":
    config.student.network.widths = tuple(
      2 * w for w in config.student.network.widths
    )
    with pytest.raises(ConfigError, match="same widths"):
      validate(config)
