"""The packed file: its bytes, its answers with NumPy alone, its refusals."""

import ast
import json
import math
import struct
import subprocess
import sys

import jax
import numpy as np
import odd_nets
import pytest

from jaxr18 import packed
from jaxr18.compress.fold import fold
from jaxr18.compress.pack import bytes_of_data, pack, pack_bits
from jaxr18.cost.score import score
from jaxr18.nn.quantize import input_codes

DENSITIES = (1.0, 0.5, 0.04)


def packed_bytes(bits, density):
  return pack(
    odd_nets.net(bits, density),
    mean=odd_nets.MEAN,
    std=odd_nets.STD,
    provenance={"accuracy": 0.5},
  )


def layers_of(network):
  return [layer for unit in network["units"].values() for layer in unit]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "net.safetensors"
  path.write_bytes(packed_bytes("4 bits", 0.5))
  return path


class TestBytes:
  @pytest.mark.parametrize("density", DENSITIES)
  @pytest.mark.parametrize("bits", odd_nets.BITS)
  def test_are_those_that_the_score_charges(self, bits, density):
    net, data = odd_nets.net(bits, density), packed_bytes(bits, density)
    rows = score(net.spec, masks=net.masks).rows
    charged = sum(row.stored_bits for row in rows) / 8
    # Each of a kernel's two tensors may end within a byte.
    assert charged <= bytes_of_data(data) < charged + 2 * len(rows)
    forms = {1.0: "dense", 0.5: "bitmask", 0.04: "indices"}
    assert forms[density] in {row.encoding for row in rows}

  @pytest.mark.parametrize("density", DENSITIES)
  @pytest.mark.parametrize("bits", ["4 bits", "binary", "mixed"])
  def test_layer_by_layer(self, bits, density, tmp_path):
    net = odd_nets.net(bits, density)
    path = tmp_path / "net"
    path.write_bytes(packed_bytes(bits, density))
    network, arrays = packed.read(path)
    rows = score(net.spec, masks=net.masks).rows
    for layer, row in zip(layers_of(network), rows, strict=True):
      assert layer["path"] == row.path and layer["encoding"] == row.encoding
      kept = row.weights if row.encoding == "dense" else row.kept
      where = {"dense": 0, "bitmask": row.weights}.get(
        row.encoding, row.kept * math.ceil(math.log2(row.weights))
      )
      sizes = {
        name.removeprefix(f"{row.path}."): a.nbytes
        for name, a in arrays.items()
        if name.rpartition(".")[0] == row.path
      }
      values = sizes.pop("codes" if row.w_bits < 16 else "kernel")
      assert values == math.ceil(kept * row.w_bits / 8)
      at = sizes.pop("mask", 0) + sizes.pop("indices", 0)
      assert at == math.ceil(where / 8)
      rest = row.stored_bits - kept * row.w_bits - where
      assert sum(sizes.values()) == rest / 8

  @pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 13])
  def test_of_bits(self, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, 1001)
    data = pack_bits(values, bits)
    assert data.nbytes == math.ceil(1001 * bits / 8)
    np.testing.assert_array_equal(packed.unpack_bits(data, 1001, bits), values)
    as_one = sum(int(v) << bits * i for i, v in enumerate(values))
    assert int.from_bytes(data.tobytes(), "little") == as_one


class TestAnswers:
  @pytest.mark.parametrize("density", DENSITIES[:2])
  @pytest.mark.parametrize("bits", odd_nets.BITS)
  def test_are_the_networks(self, bits, density, tmp_path):
    path = tmp_path / "net"
    path.write_bytes(packed_bytes(bits, density))
    run, network = packed.load(path)
    got, expected = run(odd_nets.images()), odd_nets.logits(bits, density)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
    assert got.dtype == np.float32
    assert network["provenance"] == {"accuracy": 0.5}

  @pytest.mark.parametrize("bits", odd_nets.BITS)
  def test_kernels_come_back(self, bits, tmp_path):
    net = odd_nets.net(bits, 0.04)
    path = tmp_path / "net"
    path.write_bytes(packed_bytes(bits, 0.04))
    network, arrays = packed.read(path)
    folded = fold(net)
    for layer in layers_of(network):
      numbers = folded[layer["path"]]
      expected = numbers.get("codes", numbers.get("kernel"))
      np.testing.assert_array_equal(packed.kernel(layer, arrays), expected)

  def test_a_kept_weight_of_zero_at_one_bit(self, tmp_path):
    net = odd_nets.net("binary")
    kernel = net.params["stem"]["kernel"].at[1, 1, 0, 2].set(0)
    params = net.params | {"stem": net.params["stem"] | {"kernel": kernel}}
    path = tmp_path / "net"
    how = dict(mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
    path.write_bytes(pack(net.replace(params=params), **how))
    network, arrays = packed.read(path)
    got = packed.kernel(layers_of(network)[0], arrays)
    assert got[1, 1, 0, 2] == 0 and np.sum(got == 0) == 1

  def test_every_pixel_gets_the_networks_code(self):
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    pixels = np.concatenate([pixels] * 2)
    network = dict(
      mean=odd_nets.MEAN, std=odd_nets.STD, resolution=odd_nets.SIDE
    )
    ours = packed.normalize(pixels, network)
    for bound in (1.7, 2.0, 2.123):
      got, _ = packed.quantize(ours, np.float32(bound), 8, True)
      codes = jax.jit(
        lambda x, b: input_codes(odd_nets.normalized(x), b, 8, True)
      )
      np.testing.assert_array_equal(got, codes(pixels, np.float32(bound)))

  @pytest.mark.parametrize("size", [5, 16, 32])
  def test_other_sizes_are_resized(self, size):
    images = odd_nets.images(2, size)
    network = dict(
      mean=odd_nets.MEAN, std=odd_nets.STD, resolution=odd_nets.SIDE
    )
    expected = odd_nets.normalized(images)
    got = packed.normalize(images, network)
    np.testing.assert_allclose(got, expected, atol=1e-5)

  def test_large_sums_are_exact_too(self):
    rng = np.random.default_rng(0)
    n = 2000  # 2000 * 127 * 255 is above 2**24
    k = rng.integers(100, 128, (1, 1, n, 2))
    x = rng.integers(200, 256, (3, n))
    layer = dict(
      path="head", kernel_shape=k.shape, stride=1, groups=1,
      w_bits=8, a_bits=8, signed_input=False,
    )  # fmt: skip
    arrays = {
      "head.input_bound": np.float32(255),
      "head.scale": np.float32([2.0**-10, 2.0**-10]),
    }
    got = packed.layer_output(layer, k, arrays, x[:, None, None].astype("f4"))
    exact = (x @ k[0, 0]) / 2**10
    np.testing.assert_array_equal(got[:, 0, 0], exact.astype(np.float32))

  def test_are_the_integer_paths(self, file):
    net = odd_nets.net("4 bits", 0.5)
    expected = odd_nets.folded_forward(fold(net), net.spec, "int8")
    got = packed.load(file)[0](odd_nets.images())
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * 10)


class TestFile:
  def test_the_library_reads_it(self, file):
    safetensors = pytest.importorskip("safetensors.numpy")
    _, arrays = packed.read(file)
    theirs = safetensors.load_file(file)
    assert theirs.keys() == arrays.keys()
    for name, a in arrays.items():
      np.testing.assert_array_equal(theirs[name], a)
      assert theirs[name].dtype == a.dtype and theirs[name].shape == a.shape

  def test_says_what_it_is(self, file):
    network, _ = packed.read(file)
    spec = odd_nets.spec("4 bits")
    assert type(spec).from_json(json.dumps(network["spec"])) == spec
    assert "weight with" in " ".join(network["tensors"].split())

  @pytest.mark.parametrize("at", [0.2, 0.6, 0.9999])
  def test_altered(self, file, at):
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(packed.PackedError, match="damaged|truncated"):
      packed.read(file)

  @pytest.mark.parametrize("left", [0, 5, 100, -1])
  def test_truncated(self, file, left):
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(packed.PackedError, match="truncated|damaged"):
      packed.read(file)

  def test_another_safetensors_file(self, file):
    head = b'{"__metadata__":{"format":"pt"}}'
    file.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(packed.PackedError, match="no packed network"):
      packed.read(file)

  def test_another_version(self, file):
    data = file.read_bytes().replace(b"jaxr18 packed 1", b"jaxr18 packed 9")
    file.write_bytes(data)
    with pytest.raises(packed.PackedError, match="'jaxr18 packed 9', expected"):
      packed.read(file)


class TestScript:
  def test_needs_numpy_alone(self):
    tree = ast.parse(open(packed.__file__).read())
    names = set()
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        names |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names == {"numpy"}

  def test_prints_the_accuracy(self, file, tmp_path):
    labels = odd_nets.logits("4 bits", 0.5).argmax(-1)
    labels[:2] = (labels[:2] + 1) % 10
    np.savez(tmp_path / "test.npz", **self._test(labels))
    done = self._run(file, f"--images={tmp_path}/test.npz")
    assert done.returncode == 0, done.stderr
    assert "accuracy 75.00% (6 of 8)" in done.stdout
    assert '"accuracy": 0.5' in done.stdout

  @pytest.mark.parametrize("what", ["file", "images", "content"])
  def test_errors(self, what, file, tmp_path):
    np.savez(tmp_path / "test.npz", images=np.zeros(3))
    images = tmp_path / ("test.npz" if what == "images" else "none.npz")
    if what == "file":
      file.unlink()
    if what == "content":
      file.write_bytes(b"x")
    done = self._run(file, f"--images={images}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr

  def _test(self, labels):
    return {"test_images": odd_nets.images(), "test_labels": labels}

  def _run(self, *args):
    command = [sys.executable, packed.__file__, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
