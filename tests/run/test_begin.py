"""What a phase does to its network before its first step."""

import numpy as np
import pytest
import tiny_run

from jaxr18.data import dataset as data
from jaxr18.data.augment import normalize
from jaxr18.nn import initial, network
from jaxr18.nn.network import Network
from jaxr18.run import experiment, sources


def begun(folder, stem=4, epochs=0, held="", **start) -> Network:
  """The network of a phase, by default without epochs, in 4 bits."""
  config = tiny_run.phases("train")
  c = config.train
  c.epochs, c.optimizer.held = epochs, held
  c.network.inner_bits, c.network.stem_features = 4, stem
  for field, value in start.items():
    c.start[field] = value
  experiment.run(config, folder)
  return sources.load_network(folder)


def kernels(net: Network):
  return network.kernels(net.params)


@pytest.mark.slow
def test_new_kernels_begin_as_told(tmp_path):
  plain = begun(tmp_path / "he")
  told = begun(tmp_path / "dirac", kernels="dirac")
  for path, kernel in kernels(initial.dirac(plain)).items():
    np.testing.assert_array_equal(kernels(told)[path], kernel)
  # Bounds are calibrated on what the new kernels give.
  bound = lambda net: net.params["stage2_block1"]["conv2"]["input_bound"]
  assert bound(told) != bound(plain)


@pytest.mark.slow
def test_a_whitened_stem_is_trained_or_held(tmp_path):
  how = dict(stem=54, whiten=True, kernels="dirac")
  first = begun(tmp_path / "first", **how)
  images = data.load("digits", validation=32, limit=64)
  seen = normalize(images.train.images, images.mean, images.std, 8)
  expected = kernels(initial.whiten(first, [seen]))
  np.testing.assert_array_equal(kernels(first)["stem"], expected["stem"])
  assert kernels(first)["stage1_block1/conv1"][1, 1, 3, 3] == 1
  free = begun(tmp_path / "free", epochs=1, **how)
  held = begun(tmp_path / "held", epochs=1, held="stem", **how)
  for path, kernel in kernels(first).items():
    assert np.all(kernels(free)[path] != kernel)
    stays = path == "stem"
    assert np.array_equal(kernels(held)[path], kernel) == stays
