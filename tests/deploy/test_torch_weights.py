"""PyTorch's weights: the same logits, and errors that name the tensor."""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import random_weights

from jaxr18.config import base
from jaxr18.config.experiment import Place
from jaxr18.config.faults import ConfigError
from jaxr18.config.reading import parse
from jaxr18.data.augment import normalize
from jaxr18.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from jaxr18.deploy import torch_weights
from jaxr18.deploy.torch_weights import (
  WeightsError,
  derive_spec,
  from_state_dict,
)
from jaxr18.nn import network
from jaxr18.nn.spec import resnet, resnet18, with_bits
from jaxr18.run import other_run, sources

GOLDEN = np.load(
  pathlib.Path(random_weights.__file__).with_name("resnet18_logits.npz")
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


class TestWrappers:
  """What training scripts put around and beside the weights."""

  @pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "backbone.", "encoder.net.", "module.model.",
     "model._orig_mod.", "_orig_mod.backbone.module."],
  )  # fmt: skip
  def test_a_prefix_that_all_share(self, grouped, prefix):
    d = {f"{prefix}{k}": v for k, v in weights().items()}
    assert derive_spec(d) == grouped.spec
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_a_wrapper_within(self, grouped):
    d = {
      k.replace("layer2.", "layer2._orig_mod.").replace("v1.", "v1.module."): v
      for k, v in weights().items()
    }
    assert "layer2._orig_mod.0.conv1.module.weight" in d
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_a_prefix_of_some_is_not_taken_away(self, grouped):
    d = {f"model.{k}": v for k, v in weights().items()}
    d["criterion.weight"] = np.ones(10, np.float32)
    with pytest.raises(WeightsError, match="there are model.conv1.weight"):
      derive_spec(d)

  @pytest.mark.parametrize(
    "names",
    [["weights"], ["params"], ["model_state"], ["state_dict_ema"], ["model"],
     ["model", "state_dict"], ["checkpoint", "net"], ["whatever"]],
  )  # fmt: skip
  def test_dicts_around(self, grouped, names):
    d = weights()
    momentum = {"state": {0: {"momentum_buffer": d["conv1.weight"]}}}
    for name in reversed(names):
      d = {name: d, "optimizer": momentum, "epoch": 3, "rng": np.ones(9, "u1")}
    assert same(from_state_dict(d, derive_spec(d)), grouped)

  def test_of_several_the_usual_one_is_read(self, grouped, caplog):
    other = {k: v * 2 for k, v in weights().items()}
    d = {"state_dict_ema": other, "state_dict": weights()}
    assert same(from_state_dict(d, grouped.spec), grouped)
    assert "state_dict_ema are not read" in caplog.records[0].getMessage()

  def test_of_several_none_is_guessed(self, grouped):
    with pytest.raises(WeightsError, match="several networks, a, b"):
      derive_spec({"a": weights(), "b": weights()})

  def test_what_is_counted_beside_is_ignored(self, grouped):
    d = weights() | {
      "n_averaged": np.array(7), "total_ops": np.ones(1),
      "layer1.0.conv1.total_ops": np.ones(1), "total_params": np.ones(1),
      "layer1.0.bn1.num_batches_tracked": np.array(9), "epoch": 3, "name": "x",
    }  # fmt: skip
    assert same(from_state_dict(d, grouped.spec), grouped)

  def test_pruned_weights_have_masks(self, grouped):
    d = weights()
    kernel = d.pop("layer1.0.conv2.weight")
    mask = (np.random.default_rng(0).random(kernel.shape) < 0.3).astype("f4")
    d |= {"layer1.0.conv2.weight_orig": kernel,
          "layer1.0.conv2.weight_mask": mask}  # fmt: skip
    net = from_state_dict(d, derive_spec(d))
    ours = net.masks["stage1_block1"]["conv2"]["kernel"]
    assert ours.dtype == bool and jax.tree.structure(net.masks) == (
      jax.tree.structure(net.params)
    )
    np.testing.assert_array_equal(ours, mask.transpose(2, 3, 1, 0))
    assert same(net.replace(masks=grouped.masks), grouped)
    whole = weights() | {"layer1.0.conv2.weight": kernel * mask}
    images = random_weights.uniform(SEED, GOLDEN["images_shape"], -2, 2)
    np.testing.assert_array_equal(
      network.forward(net, images),
      network.forward(from_state_dict(whole, grouped.spec), images),
    )

  @pytest.mark.parametrize(
    "new, told",
    [
      ({"conv1.weight_mask": np.ones(3)}, "without conv1.weight_orig"),
      ({"conv1.weight_orig": np.ones((8, 3, 3, 3), "f4"),
        "conv1.weight_mask": np.ones(3, "f4")}, r"weight_mask is \[3\]"),
      ({"conv1.weight_g": np.ones((8, 1, 1, 1))}, "remove_weight_norm"),
      ({"conv1.parametrizations.weight.original0": np.ones((8, 1, 1, 1))},
       "remove_parametrizations"),
      ({"conv1.weight": np.ones((8, 3, 3, 3), np.int8)}, "holds no floats"),
      ({"conv1.weight": np.full((8, 3, 3, 3), np.nan, "f4")}, "NaN"),
    ],
  )  # fmt: skip
  def test_what_cannot_be_read_is_said(self, grouped, new, told):
    with pytest.raises(WeightsError, match=told):
      from_state_dict(weights() | new, grouped.spec)

  def test_names_that_are_there_are_listed(self):
    d = {f"features.{i}.kernel": np.ones((3, 3)) for i in range(9)}
    with pytest.raises(WeightsError, match="conv1.weight is missing; there are"
                       " features.0.kernel, .* and 3 more"):  # fmt: skip
      derive_spec(d)


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


class _Settings:
  """A class of the training script's own, beside the weights."""

  made = 0

  def __setstate__(self, state):
    _Settings.made += 1

  def __getstate__(self):
    return {"lr": 0.1}


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
    code = (
      "import sys, jaxr18.deploy.torch_weights;"
      " sys.exit('torch' in sys.modules)"
    )
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

  @pytest.mark.parametrize(
    "name", ["a.th", "a.pth.tar", "a.ckpt", "a.bin", "a.pt"]
  )
  @pytest.mark.parametrize("legacy", [True, False])
  def test_endings_and_what_stands_beside(
    self, tmp_path, grouped, name, legacy
  ):
    torch = pytest.importorskip("torch")
    d = {k: torch.from_numpy(v) for k, v in weights().items()}
    beside = {
      "best": np.float64(93.5), "count": np.int64(3), "args": _Settings(),
      "options": argparse.Namespace(lr=0.1, sizes={1, 2}),
      "path": tmp_path, "kind": complex(1, 2), "slice": slice(3),
    }  # fmt: skip
    path = tmp_path / name
    torch.save(
      {"state_dict": d} | beside,
      path,
      _use_new_zipfile_serialization=not legacy,
    )
    _Settings.made = 0
    assert torch_weights.is_name(path)
    assert same(torch_weights.load(path), grouped)
    assert _Settings.made == 0  # no code of the file's classes has run

  def test_numpy_arrays(self, tmp_path, grouped):
    torch = pytest.importorskip("torch")
    torch.save(weights(), tmp_path / "a.pt")
    assert same(torch_weights.load(tmp_path / "a.pt"), grouped)

  def test_sparse_and_quantized_and_meta(self, tmp_path, grouped):
    torch = pytest.importorskip("torch")
    d = {k: torch.from_numpy(v) for k, v in weights().items()}
    name = "layer1.0.conv1.weight"
    sparse = d | {name: d[name].to_sparse()}
    assert same(from_state_dict(sparse, grouped.spec), grouped)
    codes = torch.quantize_per_tensor(d[name], 0.01, 0, torch.qint8)
    got = from_state_dict(d | {name: codes}, grouped.spec)
    expected = weights() | {name: codes.dequantize().numpy()}
    assert same(got, from_state_dict(expected, grouped.spec))
    with pytest.raises(WeightsError, match=f"{name} is a meta tensor"):
      from_state_dict(d | {name: d[name].to("meta")}, grouped.spec)

  @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
  def test_safetensors(self, tmp_path, grouped, dtype):
    library = pytest.importorskip("safetensors.numpy")
    import ml_dtypes

    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    d = {k: v.astype(kind) for k, v in weights().items()}
    path = tmp_path / "a.safetensors"
    library.save_file(d, path, {"format": "pt"})
    net = torch_weights.load(path)
    wide = {k: v.astype(np.float32) for k, v in d.items()}
    assert same(net, from_state_dict(wide, grouped.spec))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="a.safetensors is truncated"):
      torch_weights.load(path)

  def test_a_packed_network_is_told_apart(self, tmp_path):
    path = tmp_path / "a.safetensors"
    head = b'{"__metadata__":{"format":"jaxr18 packed 1"}}'
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(WeightsError, match="truncated or no packed network"):
      torch_weights.load(path)

  def test_a_pipe(self, tmp_path):
    for name in ("a.pt", "a.safetensors"):
      os.mkfifo(tmp_path / name)
      with pytest.raises(WeightsError, match="expected a file"):
        torch_weights.load(tmp_path / name)

  def test_a_folder_of_such_a_name_is_a_workdir(self, tmp_path):
    (tmp_path / "run.ckpt").mkdir()
    assert not torch_weights.is_name(tmp_path / "run.ckpt")
    assert not torch_weights.is_name("runs/a.tar")

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
  parse(config, Place(source=other_run.source))
  loaded = sources.load_network(tmp_path, str(path))
  assert same(loaded, from_state_dict(state_dict, golden_spec("grouped")))
  other = dict(state_dict)
  for name in ("linear.weight", "linear.bias"):
    other[name] = other[name][:7]
  torch.save({k: torch.from_numpy(v) for k, v in other.items()}, path)
  with pytest.raises(ConfigError, match="10 classes apart, it has 7"):
    parse(config, Place(source=other_run.source))
  torch.save({k: torch.from_numpy(v) for k, v in state_dict.items()}, path)
  if field == "init":
    config.student.network.widths = tuple(
      2 * w for w in config.student.network.widths
    )
    with pytest.raises(ConfigError, match="same widths"):
      parse(config, Place(source=other_run.source))


class TestCheck:
  """What shapes do not tell, the accuracy does."""

  @pytest.fixture
  def files(self, tmp_path, grouped):
    library = pytest.importorskip("safetensors.numpy")
    library.save_file(weights(), tmp_path / "net.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), "u1")
    x = normalize(images, CIFAR10_MEAN, CIFAR10_STD, 32)
    labels = np.array(jax.jit(network.forward)(grouped, x).argmax(-1))
    labels[:5] = (labels[:5] + 1) % 10
    np.savez(tmp_path / "t.npz", test_images=images, test_labels=labels)
    return [f"{tmp_path}/net.safetensors", f"--images={tmp_path}/t.npz"]

  def test_the_right_accuracy(self, files, capsys):
    assert torch_weights.main([*files, "--accuracy=0.75"]) == 0
    out = capsys.readouterr().out
    assert "accuracy 75.00% (15 of 20)" in out
    assert "widths [8, 16, 24], blocks [2, 1, 1]" in out

  def test_another_accuracy(self, files, capsys):
    assert torch_weights.main([*files, "--accuracy=0.93"]) == 1
    err = capsys.readouterr().err
    assert "expected 93.00%" in err and "a pooling behind the stem" in err

  @pytest.mark.parametrize("std", ["0,0,0", "1,nan,1", "1,-1,1"])
  def test_a_deviation_that_is_none(self, files, capsys, std):
    assert torch_weights.main([*files, f"--std={std}"]) == 1
    told = capsys.readouterr()
    assert "above 0; take" in told.err and not told.out

  def test_errors(self, files, capsys):
    assert torch_weights.main([files[0], "--images=none.npz"]) == 1
    assert torch_weights.main(["none.safetensors", files[1]]) == 1
    assert "cannot read none.safetensors" in capsys.readouterr().err
