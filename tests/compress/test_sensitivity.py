"""Accuracy by layer and sparsity, in one compiled evaluation."""

import json

import forked
import jax
import numpy as np
import pytest
import tiny_config

from jaxr18.compress import channels, prune, sensitivity
from jaxr18.nn import network, spec
from jaxr18.run import experiment

SPEC = spec.resnet((8, 16), (1, 1), (2, 2), (2, 1), (False, False))
DENSITIES = (1.0, 0.5, 0.1)


@pytest.fixture(scope="module")
def case():
  net = network.init(jax.random.key(0), SPEC)
  keys = jax.random.split(jax.random.key(1))
  images = jax.random.normal(keys[0], (40, 32, 32, 3))
  # Labels that the network itself gives, so that pruning can only lose.
  labels = network.forward(net, images).argmax(-1)
  batches = lambda: iter(
    [(images[:20], labels[:20]), (images[20:], labels[20:])]
  )
  return net, images, labels, batches


def _accuracy(net, images, labels):
  return float(np.mean(network.forward(net, images).argmax(-1) == labels))


def test_weights_are_those_of_pruning(case):
  net, images, labels, batches = case
  size = {p: np.abs(k) for p, k in network.kernels(net.params).items()}
  before = sensitivity.correct_with_weights._cache_size()
  found = sensitivity.sensitivity(
    net, sensitivity.weight_ranks(size), DENSITIES, batches, structured=False
  )
  assert sensitivity.correct_with_weights._cache_size() == before + 1
  assert all(row[0] == 1 for row in found.values())
  for path, row in found.items():
    pruned = prune.prune(net, size, 0.1, distribution="uniform", layers=path)
    assert row[2] == pytest.approx(_accuracy(pruned, images, labels)), path
  assert min(row[2] for row in found.values()) < 0.9


def test_channels_are_those_of_masking(case):
  net, images, labels, batches = case
  scores = channels.importance("l2", net)
  before = sensitivity.correct_with_channels._cache_size()
  found = sensitivity.sensitivity(
    net,
    sensitivity.channel_ranks(net, scores),
    DENSITIES,
    batches,
    structured=True,
  )
  assert sensitivity.correct_with_channels._cache_size() == before + 1
  keep = channels.kept_channels(SPEC, scores, 0.5)
  for name, row in found.items():
    masked = channels.mask_channels(net, {name: keep[name]})
    assert row[1] == pytest.approx(_accuracy(masked, images, labels)), name


def test_a_network_without_numbers_has_no_accuracy(case):
  net, _, _, batches = case
  # Not in an earlier layer: compiled for a CPU, ReLU makes zeros of NaNs.
  head = net.params["head"] | {"bias": np.full(10, np.nan, np.float32)}
  broken = net.replace(params=net.params | {"head": head})
  ranks = sensitivity.weight_ranks({"head": np.ones((16, 10))})
  found = sensitivity.sensitivity(
    broken, ranks, DENSITIES, batches, structured=False
  )
  assert np.isnan(found["head"]).all()


def test_errors(case):
  net, _, _, batches = case
  ranks = sensitivity.weight_ranks({"stem": np.ones((3, 3, 3, 8))})
  with pytest.raises(ValueError, match=r"density \(=0.0\) must be above 0"):
    sensitivity.sensitivity(net, ranks, (0.0,), batches, structured=False)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["", "--structured"])
def test_the_command(flag, tmp_path):
  config = tiny_config.get_config("1")
  config.progress = "none"
  experiment.run(config, tmp_path)
  command = ["jaxr18.sensitivity", "--sparsities=0.5,0.9"]
  command += [f"--workdir={tmp_path}", *([flag] if flag else [])]
  done = forked.run(*command, cwd=".")
  assert done.returncode == 0, done.stderr
  name = "channels" if flag else "weights"
  result = json.loads((tmp_path / "sensitivity" / f"{name}.json").read_text())
  assert result["split"] == "validation" and result["images"] == 40
  assert all(len(row) == 2 for row in result["accuracies"].values())
  pytest.importorskip("vl_convert")
  path = tmp_path / "sensitivity" / f"{name}.svg"
  assert path.read_text().rstrip().endswith("</svg>")
  if flag:
    return
  path.unlink()
  path.mkdir()
  done = forked.run(*command, cwd=".")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert f"cannot write {path}: it is a folder" in done.stderr
  assert "accuracy on" not in done.stdout  # known before the work


@pytest.mark.parametrize(
  "flags, told",
  [
    ([], "give --workdir=DIR"),
    (["--workdir=x", "--sparsities=1.0"], "below 1"),
    (["--workdir=x", "--sparsities=a"], "write 0.5,0.9"),
    (["--workdir=x", "--criterion=size"], "must be one of"),
  ],
)
def test_a_wrong_command_line(flags, told):
  done = forked.run("jaxr18.sensitivity", *flags, cwd=".")
  assert done.returncode == 2 and told in done.stderr
