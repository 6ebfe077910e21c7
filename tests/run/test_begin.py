"""What a phase does to its network before its first step."""

import numpy as np
import pytest
import tiny_run

from jaxr18.nn import initial, network
from jaxr18.nn.network import Network
from jaxr18.run import experiment, sources


def begun(folder, **start) -> Network:
  """The network of a phase without epochs, in 4 bits."""
  config = tiny_run.phases("train")
  config.train.epochs, config.train.network.inner_bits = 0, 4
  for field, value in start.items():
    config.train.start[field] = value
  experiment.run(config, folder)
  return sources.load_network(folder)


@pytest.mark.slow
def test_new_kernels_begin_as_told(tmp_path):
  plain = begun(tmp_path / "he")
  told = begun(tmp_path / "dirac", kernels="dirac")
  expected, found = (
    network.kernels(net.params) for net in (initial.dirac(plain), told)
  )
  for path, kernel in expected.items():
    np.testing.assert_array_equal(found[path], kernel)
  # Bounds are calibrated on what the new kernels give.
  bound = lambda net: net.params["stage2_block1"]["conv2"]["input_bound"]
  assert bound(told) != bound(plain)
