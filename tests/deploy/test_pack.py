"""The packed file: its bytes, its answers with NumPy alone, its refusals."""

import ast
import hashlib
import json
import math
import os
import pathlib
import random
import struct
import subprocess
import sys

import jax
import numpy as np
import odd_nets
import pytest

from jaxr18.cost.score import score
from jaxr18.deploy import packed, saved
from jaxr18.deploy.fold import fold
from jaxr18.deploy.lower import lower
from jaxr18.deploy.pack import bytes_of_data, pack, pack_bits
from jaxr18.deploy.program import run
from jaxr18.nn.quantize import input_codes

DENSITIES = (1.0, 0.5, 0.04)
FIRST = (
  pathlib.Path(__file__).parents[1] / "support/golden/packed_0.safetensors"
)


def packed_bytes(bits, density, **more):
  how = dict(mean=odd_nets.MEAN, std=odd_nets.STD)
  how["provenance"] = {"accuracy": 0.5}
  return pack(odd_nets.net(bits, density), **how | more)


def sealed(header, body=b""):
  """A packed file of any header, with the SHA-256 that it must have."""
  header["__metadata__"]["sha256"] = packed.BLANK.decode()
  head = json.dumps(header).encode()
  digest = hashlib.sha256(head + body).hexdigest().encode()
  head = head.replace(packed.BLANK, digest)
  return struct.pack("<Q", len(head)) + head + body


def header_and_body(data):
  end = 8 + struct.unpack("<Q", data[:8])[0]
  return json.loads(data[8:end]), data[end:]


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

  def test_of_four_levels(self, tmp_path):
    path = tmp_path / "net"
    path.write_bytes(packed_bytes("four_levels", 1.0))
    network, arrays = packed.read(path)
    for layer in layers_of(network):
      found = {n.rpartition(".")[2] for n in arrays if layer["path"] in n}
      # A reader that knows no odd codes finds none, and nothing wrong.
      assert ("odd_codes" in found) == (layer["w_bits"] == 2)
      assert ("codes" in found) == (layer["w_bits"] == 3)
    stem = arrays["stem.odd_codes"]
    assert stem.nbytes == math.ceil(3 * 3 * 3 * 4 * 2 / 8)
    codes = fold(odd_nets.net("four_levels"))["stem"]["codes"].reshape(-1)
    first = [(stem[0] >> 2 * i) & 3 for i in range(4)]
    expected = {-3: 0b10, -1: 0b11, 1: 0b00, 3: 0b01}
    assert first == [expected[int(c)] for c in codes[:4]]

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

  def test_what_cannot_be_opened(self, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "", "a\0b"):
      with pytest.raises(packed.PackedError, match="cannot read"):
        packed.read(f"{tmp_path}/{name}")

  JUNK = (
    None, True, -1, 0, 3, 1e300, "", "x", [], [1, 2], {}, {"a": 1}, "\ud800",
    [[]], 2**70, "F32", float("nan"),
  )  # fmt: skip

  def test_any_header_with_a_right_seal(self, file):
    rng = random.Random(7)
    data = file.read_bytes()
    opened = refused = 0
    for _ in range(400):
      header, body = header_and_body(data)
      network = json.loads(header["__metadata__"]["network"])
      for _ in range(rng.choice((1, 1, 2))):
        self._alter(rng, rng.choice((header, network, network["units"])))
      if rng.random() < 0.7 and "__metadata__" in header:
        header["__metadata__"] |= {"network": json.dumps(network)}
      try:
        file.write_bytes(sealed(header, body[: rng.choice((None, 50))]))
      except (KeyError, TypeError):  # no metadata is left to seal
        file.write_bytes(json.dumps(header).encode())
      try:
        packed.load(file)
        opened += 1
      except packed.PackedError:
        refused += 1
    assert opened > 20 and refused > 100

  def _alter(self, rng, node):
    """Replaces or removes something at a random depth."""
    while True:
      keys = list(node) if isinstance(node, dict) else range(len(node))
      if not keys:
        return
      key = rng.choice(keys)
      if isinstance(node[key], dict | list) and rng.random() < 0.8:
        node = node[key]
        continue
      if isinstance(node, dict) and rng.random() < 0.3:
        del node[key]
      else:
        node[key] = rng.choice(self.JUNK)
      return

  @pytest.mark.parametrize(
    "head", [b"[" * 10**5, b'{"__metadata__":' * 10**4, b"1" * 5000, b"\xff"]
  )
  def test_a_header_that_is_no_json(self, head, file):
    file.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(packed.PackedError, match="no packed network"):
      packed.read(file)

  def test_an_empty_digest(self, file):
    header, body = header_and_body(file.read_bytes())
    header["__metadata__"]["sha256"] = ""
    head = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head + body)
    with pytest.raises(packed.PackedError, match="damaged"):
      packed.read(file)

  def test_one_of_the_first_version_opens(self):
    """Written by the first commit that exported; so are its logits."""
    expected = [
      [0.27276877, -1.3893458, -0.9083365, 0, 0.20288244,
       -1.7321348, 0, -1.163226, -0.6292881, 0],
      [0.27276877, -1.4116338, -0.9012039, 0, 0.20288244,
       -1.7321348, 0, -1.163226, -0.6292881, 0],
    ]  # fmt: skip
    images = odd_nets.images()
    logits = packed.load(FIRST)[0](images)
    np.testing.assert_allclose(logits[:2], expected, rtol=0, atol=1e-6)
    trained_on = odd_nets.forward(saved.unpack(FIRST), images)
    np.testing.assert_allclose(trained_on, logits, rtol=0, atol=1e-5)
    program = lower(*packed.read(FIRST), 24)
    whole = run(program, images) / 2.0**program.logit_bits
    assert np.median(np.abs(whole - logits).max(-1)) < 1e-3

  def test_an_older_one_still_opens(self, file):
    network, _ = packed.read(file)
    assert "data" not in network  # as files were before images were named
    run, _ = packed.load(file)
    assert run(odd_nets.images()).shape == (8, 10)


class TestImages:
  """What would give a number, and a wrong one, is refused."""

  @pytest.fixture
  def given(self, tmp_path):
    labels = odd_nets.logits("4 bits", 0.5).argmax(-1)
    promised = packed.identity("odd", odd_nets.images(), labels)
    path = tmp_path / "new.safetensors"
    path.write_bytes(packed_bytes("4 bits", 0.5, data=promised))
    return packed.read(path)[0], odd_nets.images(), labels, tmp_path / "t.npz"

  def read(self, given, images=None, labels=None):
    network, right_images, right_labels, path = given
    np.savez(
      path,
      test_images=right_images if images is None else images,
      test_labels=right_labels if labels is None else labels,
    )
    return packed.read_test(path, network)

  def test_right_ones(self, given):
    for dtype in (np.uint8, np.int32, np.int64):
      images, labels = self.read(given, labels=given[2].astype(dtype))
      assert packed.other_images(given[0], images, labels) == ""

  @pytest.mark.parametrize(
    "change, told",
    [
      (lambda x: x / np.float32(255), "float32.*expected uint8.*0 to 255"),
      (lambda x: x.astype(np.float64), "expected uint8"),
      (lambda x: x.astype(np.int32), "images are int32"),
      (lambda x: x // 128, "no value of the images is above 1"),
      (lambda x: x // 16, "no value of the images is above 15"),
      (lambda x: x.transpose(0, 3, 1, 2), r"transpose\(0, 2, 3, 1\)"),
      (lambda x: x[..., :1], r"\[8, 8, 8, 1\], expected uint8 \[n, 8, 8, 3\]"),
      (lambda x: x[0], "expected uint8"),
      (lambda x: x.repeat(2, 1), "at the size"),
      (lambda x: x.repeat(2, 1).repeat(2, 2), r"\[8, 16, 16, 3\].*the size"),
      (lambda x: x[:0], "there must be one"),
      (lambda x: x.astype(object), "is not an .npz"),
    ],
  )
  def test_wrong_images(self, given, change, told):
    with pytest.raises(packed.ImagesError, match=told):
      self.read(given, images=change(given[1]))

  @pytest.mark.parametrize(
    "change, told",
    [
      (lambda y: y[:, None], r"\[8, 1\], expected.*\[8\].*reshape\(-1\)"),
      (lambda y: np.eye(10)[y], r"argmax\(-1\)"),
      (lambda y: y.astype(np.float32), "labels are float32"),
      (lambda y: y[:7], r"labels are int64 \[7\], expected integers \[8\]"),
      (lambda y: y * 0 + 10, "from 10 to 10, expected integers.*0 to 9"),
      (lambda y: y * 0 - 1, "from -1 to -1"),
      (lambda y: y.astype(str), "labels are <U"),
      (lambda y: y > 3, "labels are bool"),
    ],
  )
  def test_wrong_labels(self, given, change, told):
    with pytest.raises(packed.ImagesError, match=told):
      self.read(given, labels=change(given[2]))

  def test_logits_that_are_no_numbers(self, given):
    """Each would be an answer, the first class."""
    run = lambda images: np.full((len(images), 10), np.nan)
    with pytest.raises(
      packed.ImagesError, match="image 0 gets the logits .nan"
    ):
      packed.right_answers(run, *given[1:3])

  def test_a_function_refuses_them_too(self, file):
    run, _ = packed.load(file)
    with pytest.raises(packed.ImagesError, match="expected uint8"):
      run(odd_nets.images() / np.float32(255))

  def test_other_ones_are_told(self, given):
    network, images, labels, _ = given
    order = np.arange(8)[::-1]
    assert packed.other_images(network, images[order], labels[order]) == ""
    other = (labels + 1) % 10
    told = packed.other_images(network, images, other)
    for name in ("8 images of odd", network["data"]["fingerprint"],
                 packed.fingerprint(images, other)):  # fmt: skip
      assert name in told

  @pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"none"]
  )
  def test_a_damaged_npz(self, given, content):
    given[3].write_bytes(content)
    with pytest.raises(packed.ImagesError, match="is not an .npz"):
      packed.read_test(given[3], given[0])

  def test_an_array_in_place_of_an_npz(self, given, tmp_path):
    np.save(tmp_path / "a.npy", given[1])
    with pytest.raises(packed.ImagesError, match="is not an .npz"):
      packed.read_test(tmp_path / "a.npy", given[0])

  def test_a_pipe(self, given, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(packed.ImagesError, match="no regular file"):
      packed.read_test(tmp_path / "pipe", given[0])


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
    assert "found: accuracy 75.00% (6 of 8)" in done.stdout
    assert '"accuracy": 0.5' in done.stdout
    assert "Warning: the file is of an older version" in done.stderr

  def test_prints_what_was_promised(self, file, tmp_path):
    labels = odd_nets.logits("4 bits", 0.5).argmax(-1)
    data = packed.identity("odd", odd_nets.images(), labels)
    provenance = {"test_correct": 7, "test_count": 8}
    file.write_bytes(
      packed_bytes("4 bits", 0.5, provenance=provenance, data=data)
    )
    for given, warned in ((labels, False), ((labels + 1) % 10, True)):
      np.savez(tmp_path / "test.npz", **self._test(given))
      done = self._run(file, f"--images={tmp_path}/test.npz")
      assert done.returncode == 0, done.stderr
      *_, promised, found = done.stdout.splitlines()
      assert promised == "promised: accuracy 87.50% (7 of 8)"
      right = "0.00% (0 of 8)" if warned else "100.00% (8 of 8)"
      assert found == f"found: accuracy {right}"
      assert ("8 images of odd" in done.stderr) == warned

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
