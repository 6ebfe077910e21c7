"""One's own images from the file to the artifact, in all sizes that differ."""

import json

import numpy as np
import pytest

import jaxr18
from jaxr18.config import base
from jaxr18.deploy import packed
from jaxr18.host.workdir import WorkdirError
from jaxr18.run import experiment
from jaxr18.run.export import export_run
from jaxr18.run.finished import reopen


def made(path, size, channels, classes, each):
  """Classes told apart by the place of a bright square."""
  rng, side = np.random.default_rng(0), int(np.ceil(classes**0.5))
  cell, out = size // side, {}
  for split, n in (("train", each * classes), ("test", 2 * classes)):
    labels = np.arange(n) % classes
    shape = (n, size, size, channels) if channels > 1 else (n, size, size)
    images = rng.integers(0, 60, shape, np.uint8)
    for image, label in zip(images, labels, strict=True):
      y, x = cell * (label // side), cell * (label % side)
      image[y : y + cell, x : x + cell] += 150
    out |= {f"{split}_images": images, f"{split}_labels": labels}
  np.savez(path, **out)
  return str(path)


def config_for(path, size, stem_stride):
  config = base(phases=("quant",))
  config.data.name, config.data.validation = path, 20
  config.progress, config.eval_batch_size = "none", 20
  quant = config.quant
  quant.network.widths, quant.network.blocks = (4, 8), (1,)
  quant.network.resolution, quant.network.stem_stride = size, stem_stride
  quant.network.inner_bits, quant.augment.flip = 4, "none"
  quant.epochs, quant.batch_size, quant.augment.pad = 1, 20, 1
  quant.optimizer.warmup_epochs = 0.0
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  "size, channels, classes, each, resolution, stem_stride",
  [
    (28, 1, 10, 8, 28, 1),  # as Fashion-MNIST
    (64, 3, 5, 16, 64, 2),
    (16, 3, 100, 2, 8, 1),  # as many classes as CIFAR-100, and resized
  ],
)
def test_from_file_to_artifact(
  tmp_path, size, channels, classes, each, resolution, stem_stride
):
  path = made(tmp_path / "own.npz", size, channels, classes, each)
  config = config_for(path, resolution, stem_stride)
  result = experiment.run(config, tmp_path / "run")
  assert result.spec.head.classes == classes and result.images == 2 * classes
  seen = json.loads((tmp_path / "run" / "result.json").read_text())["images"]
  data = jaxr18.dataset(path, validation=20)
  assert seen["fingerprint"] == data.fingerprint and seen["name"] == "own.npz"
  assert seen["mean"] == list(data.mean) and seen["classes"] == classes
  file, export = export_run(str(tmp_path / "run"), "packed")
  assert export.same_answers >= export.count - 1
  run, network = packed.load(file)
  images, labels = packed.read_test(path, network)
  assert packed.other_images(network, images, labels) == ""
  assert packed.right_answers(run, images, labels) == export.correct
  net = jaxr18.load(tmp_path / "run")
  assert jaxr18.evaluate(net, data).correct == result.test.correct


@pytest.mark.slow
def test_a_finished_run_needs_its_images_only_to_be_tested(tmp_path):
  path = made(tmp_path / "own.npz", 12, 1, 3, 40)
  config = config_for(path, 12, 1)
  experiment.run(config, tmp_path / "run")
  (tmp_path / "own.npz").unlink()
  again = experiment.run(config, tmp_path / "run")
  assert again.seen.classes == 3
  made(tmp_path / "own.npz", 12, 1, 3, 41)
  with pytest.raises(WorkdirError, match="seen images of own.npz with the fin"):
    reopen(str(tmp_path / "run"))
