"""A network in one file, and a packed one that trains on."""

import jax
import numpy as np
import odd_nets
import pytest

from jaxr18.deploy import packed, saved, torch_weights
from jaxr18.deploy.pack import pack


@pytest.mark.parametrize("bits, density", [("mixed", 1.0), ("learned", 1.0),
                                           ("4 bits", 0.4)])  # fmt: skip
def test_comes_back_whole(bits, density, tmp_path):
  net, path = odd_nets.net(bits, density), tmp_path / "net.npz"
  path.write_bytes(saved.to_bytes(net))
  back = saved.load(path)
  assert back.spec == net.spec
  assert jax.tree.structure(back) == jax.tree.structure(net)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(net), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_damaged(cut, tmp_path):
  path = tmp_path / "net.npz"
  data = saved.to_bytes(odd_nets.net("float"))
  path.write_bytes(data[:cut])
  with pytest.raises(saved.SavedError, match="damaged or no saved network"):
    saved.load(path)


def test_a_flipped_bit(tmp_path):
  path = tmp_path / "net.npz"
  data = bytearray(saved.to_bytes(odd_nets.net("float")))
  at = data.index(b"params/head/kernel") + 300
  data[at] ^= 4
  path.write_bytes(data)
  with pytest.raises(saved.SavedError, match="damaged or no saved network"):
    saved.load(path)


def test_no_file_and_another_npz(tmp_path):
  with pytest.raises(saved.SavedError, match="cannot read"):
    saved.load(tmp_path / "none.npz")
  np.savez(tmp_path / "other.npz", x=np.zeros(3))
  with pytest.raises(saved.SavedError, match="no saved network"):
    saved.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
  "bits, density", [("float", 0.3), ("4 bits", 1.0), ("4 bits", 0.1),
                    ("binary", 1.0), ("learned", 1.0), ("learned", 0.4)]
)  # fmt: skip
def test_unpacked_computes_the_same(bits, density, tmp_path):
  net, path = odd_nets.net(bits, density), tmp_path / "net.safetensors"
  path.write_bytes(
    pack(net, mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
  )
  run, _ = packed.load(path)
  x = odd_nets.images(16)
  back = saved.unpack(path)
  np.testing.assert_allclose(
    odd_nets.forward(back, x), run(x), atol=2e-4, rtol=2e-4
  )
  # What is packed again is the same file, to the numbers' last bits.
  path.write_bytes(
    pack(back, mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
  )
  again, _ = packed.load(path)
  np.testing.assert_allclose(again(x), run(x), atol=2e-4, rtol=2e-4)


def test_both_are_sources(tmp_path):
  net = odd_nets.net("float")
  (tmp_path / "a.npz").write_bytes(saved.to_bytes(net))
  (tmp_path / "b.safetensors").write_bytes(
    pack(net, mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
  )
  x = odd_nets.images(4)
  for name in ("a.npz", "b.safetensors"):
    assert torch_weights.is_name(tmp_path / name)
    back = torch_weights.load(tmp_path / name)
    np.testing.assert_allclose(
      odd_nets.forward(back, x), odd_nets.forward(net, x), atol=1e-4
    )
  (tmp_path / "a.npz").write_bytes(b"PK")
  with pytest.raises(torch_weights.WeightsError, match="no saved network"):
    torch_weights.load(tmp_path / "a.npz")


def test_unpacked_keeps_its_masks(tmp_path):
  net, path = odd_nets.net("4 bits", 0.1), tmp_path / "net.safetensors"
  path.write_bytes(
    pack(net, mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
  )
  back = saved.unpack(path)
  stored = sum(
    x["kept"] for xs in packed.read(path)[0]["units"].values() for x in xs
  )
  kept = sum(
    int(m.sum())
    for m in jax.tree.leaves(back.masks)
    if getattr(m, "ndim", 0) > 1
  )
  assert kept == stored
