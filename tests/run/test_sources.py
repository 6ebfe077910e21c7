"""Networks that begin with another's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

from jaxr18.nn import network
from jaxr18.run.sources import initial_network


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
