"""Programs of integers of the odd networks, and what `packed` makes of them."""

import dataclasses
import functools
import pathlib
import tempfile

import jax.numpy as jnp
import odd_nets

from jaxr18.deploy import packed
from jaxr18.deploy.lower import lower
from jaxr18.deploy.pack import pack
from jaxr18.nn.spec import with_bits


@functools.cache
def with_sums():
  """The network of 4 bits with residual sums of 5 bits."""
  net = odd_nets.net("4 bits")
  spec = dataclasses.replace(net.spec, sum_bits=5)
  new = {name: {"sum_bound": jnp.float32(3)} for name, _ in spec.blocks()}
  params, masks = dict(net.params), dict(net.masks)
  for name, bound in new.items():
    params[name] = params[name] | bound
    masks[name] = masks[name] | {"sum_bound": jnp.asarray(True)}
  return net.replace(params=params, masks=masks, spec=spec)


@functools.cache
def description(bits, density=1.0):
  """What `packed.read` gives of a network, and what runs it."""
  how = dict(mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "net")
    if bits == "eights":
      eights = with_bits(odd_nets.spec("float"), [(".*", 8, 8)])
      net = odd_nets.numbers(eights)
    elif bits == "trained sums":
      net = with_sums()
    else:
      net = odd_nets.net(bits, density)
    path.write_bytes(pack(net, **how))
    return packed.read(path), packed.load(path)[0]


@functools.cache
def program(bits, sum_bits=16, density=1.0, size=8):
  network, arrays = description(bits, density)[0]
  return lower(network | {"data": {"size": size}}, arrays, sum_bits)
