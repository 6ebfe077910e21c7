"""Networks that begin with another's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import odd_nets
import pytest
import tiny_run

from jaxr18.deploy.pack import pack
from jaxr18.nn import network
from jaxr18.nn.quantize import root_mean_square
from jaxr18.run.sources import initial_network, load_networks


def test_bounds_of_sums_stay_in_the_same_bits_alone():
  plain = tiny_run.tiny_network().spec
  five, six = (dataclasses.replace(plain, sum_bits=b) for b in (5, 6))
  source = network.init(jax.random.key(1), five)  # its bounds are 1
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)
  for spec, kept in ((five, True), (six, False)):
    net = initial_network(
      jax.random.key(2), spec, images, source, "start.init", "absmax"
    )
    bounds = [float(net.params[name]["sum_bound"]) for name, _ in spec.blocks()]
    assert [b == 1 for b in bounds] == [kept] * len(bounds)
    kernel = net.params["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, source.params["stem"]["kernel"])


@pytest.mark.parametrize("bits", ["float", "learned"])
def test_a_packed_network_trains_on_from_where_it_was(bits, tmp_path):
  path = tmp_path / "net.safetensors"
  path.write_bytes(
    pack(
      odd_nets.net(bits), mean=odd_nets.MEAN, std=odd_nets.STD, provenance={}
    )
  )
  packed = load_networks(tmp_path, str(path))[0]
  images = odd_nets.normalized(odd_nets.images(16))
  key, where = jax.random.key(0), "start.init"
  net = initial_network(key, packed.spec, images, packed, where)
  before = network.forward(packed, images)
  np.testing.assert_allclose(network.forward(net, images), before, atol=2e-3)
  # In training a batch has the statistics that evaluation now has.
  trained, _ = network.forward_train(net, images)
  np.testing.assert_allclose(trained, before, atol=2e-3)
  undone, _ = network.forward_train(packed, images)
  assert np.abs(undone - before).max() > 0.1


def test_zeros_of_a_packed_grid_do_not_move_its_end(tmp_path):
  path = tmp_path / "net.safetensors"
  path.write_bytes(
    pack(
      odd_nets.net("learned", 0.4),
      mean=odd_nets.MEAN,
      std=odd_nets.STD,
      provenance={},
    )
  )
  net = load_networks(tmp_path, str(path))[0]
  for layer in net.spec.layers():
    node = network.at(net.params, layer.path)
    if "kernel_bound" not in node:
      continue
    mask = np.broadcast_to(
      network.at(net.masks, layer.path)["kernel"], node["kernel"].shape
    )
    step = np.random.default_rng(0).normal(size=mask.shape) * 1e-6
    moved = node["kernel"] + jnp.asarray(np.where(mask, step, 0), jnp.float32)
    np.testing.assert_allclose(
      root_mean_square(moved), root_mean_square(node["kernel"]), rtol=1e-3
    )
