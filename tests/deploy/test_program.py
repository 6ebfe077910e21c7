"""Networks as integers alone: one definition, by NumPy, by XLA and in C."""

import copy
import dataclasses
import functools
import platform
import re
import shutil
import subprocess

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import odd_nets
import odd_programs
import pytest
from odd_programs import description, program, with_sums

from jaxr18.deploy import saved, to_c
from jaxr18.deploy.fold import fold
from jaxr18.deploy.lower import ProgramError, lower
from jaxr18.deploy.pack import pack
from jaxr18.deploy.program import Rescale, accumulators, run
from jaxr18.deploy.program_xla import forward, runner
from jaxr18.nn import onednn

# Networks have dense, grouped, depthwise, low-rank and 1x1 layers.
COMPILERS = [c for c in ("gcc", "clang") if shutil.which(c)]
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-O1",
          "-fsanitize=undefined,address",
          "-fno-sanitize-recover=all")  # fmt: skip
ARM = "arm-linux-gnueabihf-gcc", "qemu-arm"


class TestRescale:
  def test_rounds_to_the_nearest_and_halves_up(self):
    quarter = Rescale(np.array([1]), np.array([2]), 2, -3, 3)
    x = np.array([[-2], [-1], [1], [2], [3], [6], [-6], [-7], [99], [-99]])
    expected = [0, 0, 0, 1, 1, 2, -1, -2, 3, -3]
    assert quarter(x)[:, 0].tolist() == expected

  def test_by_channel(self):
    by = Rescale(np.array([2, -3]), np.array([1, 9]), 1, -100, 100)
    assert by(np.array([[4, 4]])).tolist() == [[4, -2]]


class TestDefinition:
  @pytest.mark.parametrize("bits", ["4 bits", "eights"])
  def test_fine_sums_are_the_network(self, bits):
    """The finer the sums, the nearer; in the end nothing else differs."""
    images, expected = (
      odd_nets.images(),
      description(bits)[1](odd_nets.images()),
    )
    largest = np.abs(expected).max()
    apart = [
      np.abs(run(p, images) / 2.0**p.logit_bits - expected).max()
      for p in (program(bits, n) for n in (3, 24))
    ]
    assert apart[1] < 2e-3 * largest < apart[0]

  def test_sums_and_operands_keep_to_their_bits(self):
    p, seen = program("4 bits", 8), {}
    kept = dataclasses.replace(p, steps=tuple(_watched(p, seen)))
    run(kept, odd_nets.images())
    assert len(seen) == 4  # the stem, two sums, one projection
    for low, high in seen.values():
      assert -127 <= low <= high <= 255
    assert max(high for _, high in seen.values()) > 60  # and use them

  @pytest.mark.parametrize("size", [20, 6])
  def test_resizes(self, size):
    p, images = program("eights", 24, size=size), odd_nets.images(8, size)
    expected = description("eights")[1](images)
    got = run(p, images) / 2.0**p.logit_bits
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    step = p.steps[0]
    assert set(step.resize.sum(0)) == {2**12}

  @pytest.mark.parametrize("bits", ["4 bits", "eights"])
  def test_accumulators_are_reached_and_not_passed(self, bits):
    p, sums = program(bits), {}

    def convolve(x, step):
      found = _worst(step)
      sums[step.path] = int(np.abs(found).max())
      return found

    run(p, odd_nets.images(1), convolve)
    for path, width, of_bits in accumulators(p):
      assert 2 ** (width - 2) <= max(1, sums[path]) < 2 ** (width - 1)
      assert width <= of_bits

  @pytest.mark.parametrize(
    "path, changed, reason",
    [
      ("stage1_block1/conv1", {"w_bits": 32}, "its weights are float32"),
      ("stage2_block1/proj", {"a_bits": 16}, "its inputs are float16"),
      ("stem", None, "each image has its own scale"),
    ],
  )
  def test_what_integers_cannot_hold(self, path, changed, reason):
    network, arrays = copy.deepcopy(description("4 bits")[0])
    if changed is None:
      del arrays[f"{path}.input_bound"]
    else:
      network["units"][path][0] |= changed
    with pytest.raises(ProgramError, match=f"{path}.*: {reason}.*onnx"):
      lower(network, arrays)

  def test_bits_of_sums(self):
    with pytest.raises(ProgramError, match="of 25 bits, expected 2 to 24"):
      lower(*description("4 bits")[0], 25)


def _watched(p, seen):
  """The steps, which keep the ends of what goes into sums."""
  for step in p.steps:
    if not step.to_sums:
      yield step
      continue

    def write(x, xp, step=step):
      found = step.write(x, xp)
      seen[step.path] = found.min(), found.max()
      return found

    yield dataclasses.replace(step, write=write)


def _worst(step):
  """The sums where each channel's input is as bad as it can be, by brute force:
  each weight meets the end of the input's grid that drives its sum further."""
  k = step.kernel.astype(np.int64)
  up = np.where(k > 0, step.high * k, step.low * k).sum((0, 1, 2))
  down = np.where(k > 0, step.low * k, step.high * k).sum((0, 1, 2))
  sums = np.where(up > -down, up, down)
  return np.broadcast_to(sums, (1, step.out_size, step.out_size, len(sums)))


class TestTrainedSums:
  def test_each_form_is_the_network(self, tmp_path):
    """Simulated, folded, packed, as ONNX, and as integers alone."""
    net, images = with_sums(), odd_nets.images()
    expected = odd_nets.forward(net, images)
    folded = odd_nets.folded_forward(fold(net), net.spec)
    p = program("trained sums", None)
    assert p.sum_bits == 5
    forms = {
      "folded": folded,
      "packed": description("trained sums")[1](images),
      "program": run(p, images) / 2.0**p.logit_bits,
    }
    # A value in the middle of two codes may go to either.
    apart = {k: np.abs(v - expected).max(-1) for k, v in forms.items()}
    assert all((x < 1e-4).mean() >= 0.7 for x in apart.values()), apart
    plain = odd_nets.logits("4 bits")
    assert np.median(np.abs(plain - expected).max(-1)) > 0.01

  def test_onnx_is_the_network(self, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    how = dict(mean=odd_nets.MEAN, std=odd_nets.STD, size=odd_nets.SIDE)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(with_sums(), **how, provenance={}))
    got = load_onnx(path, 1)(odd_nets.images())
    expected = odd_nets.forward(with_sums(), odd_nets.images())
    assert (np.abs(got - expected).max(-1) < 1e-4).mean() >= 0.7

  def test_a_packed_file_trains_on(self, tmp_path):
    path = tmp_path / "net"
    how = dict(mean=odd_nets.MEAN, std=odd_nets.STD, provenance={})
    path.write_bytes(pack(with_sums(), **how))
    net = saved.unpack(path)
    assert net.spec.sum_bits == 5
    assert float(net.params["stage2_block1"]["sum_bound"]) == 3

  def test_other_bits_are_refused(self):
    network, arrays = description("trained sums")[0]
    with pytest.raises(ProgramError, match="in 5 bits, not in 16"):
      lower(network, arrays, 16)


class TestXla:
  def test_the_same_integers(self):
    for key in (("4 bits",), ("eights", 16, 1.0, 20)):
      p = program(*key)
      images = odd_nets.images(8, p.size)
      expected = run(p, images) / 2.0**p.logit_bits
      np.testing.assert_array_equal(runner(p)(images), np.float32(expected))

  @pytest.mark.parametrize("path", ["auto", "xla"])
  @pytest.mark.parametrize("seed", range(1, 9))
  def test_any_numbers(self, seed, path):
    """Multipliers, offsets, shifts and ends as large as they may be."""
    p = odd_programs.anything(seed)
    images = odd_nets.images(1 + 6 * (seed % 2))
    if path == "auto":  # parts of the batch, and one that is smaller
      images = np.concatenate([images] * 45)
    sums = []
    want = run(p, images, watch=lambda step, x: sums.append(x))
    with jax.enable_x64(True):
      got = jax.jit(functools.partial(forward, p, path=path))(images)
    np.testing.assert_array_equal(got, want)
    assert max(len(np.unique(x)) for x in sums) > 50  # not all saturates

  def test_is_our_own_code_alone(self, monkeypatch):
    if not onednn.ready() or not onednn.int8_exact(True, 127, 127):
      pytest.skip("int8 convolutions are not exact here")
    p, images = program("4 bits"), odd_nets.images(2)
    lowered = lambda: jax.jit(lambda x: forward(p, x)).lower(images).as_text()
    with jax.enable_x64(True):
      text = lowered()
      assert text.count("@jaxr18_int8_layer") == len(p.steps)
      assert "stablehlo.convolution" not in text
      monkeypatch.setenv("JAXR18_CONV", "xla")
      assert "jaxr18_" not in lowered()

  def test_no_float_from_the_image_to_the_logits(self):
    with jax.enable_x64(True):
      images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
      traced = jax.make_jaxpr(lambda x: forward(program("4 bits"), x))(images)
    types = {str(t) for t in _types(traced.jaxpr)}
    assert {"uint8", "int8", "int32", "int64"} <= types
    assert not {t for t in types if not re.match(r"u?int|bool", t)}


def _types(jaxpr):
  for eqn in jaxpr.eqns:
    yield from (v.aval.dtype for v in (*eqn.invars, *eqn.outvars))
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from _types(inner)


@pytest.fixture(scope="module")
def c_folder(tmp_path_factory):
  """A function that writes a program's C files and compiles them."""

  @functools.cache
  def made(p_key, *flags, by=None):
    p = program(*p_key)
    folder = tmp_path_factory.mktemp("c")
    to_c.write(to_c.to_c(p), folder)
    return to_c.compiled(folder, *flags, by=by)

  return made


class TestC:
  @pytest.mark.parametrize("by", COMPILERS or [None])
  @pytest.mark.parametrize(
    "key",
    [("4 bits", 16), ("binary", 8, 0.5), ("binary", 8),
     ("four_levels", 8), ("eights", 24, 1.0, 20)],
  )  # fmt: skip
  def test_the_same_integers(self, key, by, c_folder):
    if by is None:
      pytest.skip("there is no C compiler")
    p = program(*key)
    images = odd_nets.images(8, p.size)
    got = to_c.logits_of(c_folder(key, *STRICT, by=by), images)
    np.testing.assert_array_equal(got, run(p, images))

  @pytest.mark.skipif(not all(map(shutil.which, ARM)), reason=f"needs {ARM}")
  def test_the_same_integers_on_arm(self, c_folder):
    key, images = ("4 bits", 16), odd_nets.images()
    made = c_folder(key, "-O2", "-static", by=ARM[0])
    got = to_c.logits_of(made, images, ARM[1])
    np.testing.assert_array_equal(got, run(program(*key), images))

  @pytest.mark.skipif(
    "gcc" not in COMPILERS or platform.machine() not in ("x86_64", "aarch64"),
    reason="needs gcc's -mgeneral-regs-only",
  )
  def test_needs_no_floats_and_no_library(self, tmp_path):
    to_c.write(to_c.to_c(program("4 bits")), tmp_path)
    _do("gcc", "-std=c99", "-O2", "-ffreestanding",
        "-mgeneral-regs-only", "-c", "network.c", cwd=tmp_path)  # fmt: skip
    needed = _do("nm", "-u", "network.o", cwd=tmp_path).split()
    assert set(needed) - {"U"} <= {"memcpy", "memset"}

  @pytest.mark.skipif("gcc" not in COMPILERS, reason="needs gcc")
  def test_states_its_memory(self, tmp_path):
    source = to_c.to_c(program("4 bits"))
    to_c.write(source, tmp_path)
    _do("gcc", "-std=c99", "-c", "network.c", cwd=tmp_path)
    sizes = _do("nm", "-S", "-t", "d", "network.o", cwd=tmp_path)
    written = [int(x) for x in re.findall(r"\d+ (\d+) b ", sizes)]
    assert sum(written) == source.memory
    assert f"NETWORK_MEMORY {source.memory} " in source.files["network.h"]
    assert re.search(r"\bstem: \d+\n", source.files["network.c"])

  @pytest.mark.skipif(not COMPILERS, reason="there is no C compiler")
  def test_classifies_files(self, c_folder, tmp_path):
    made = c_folder(("4 bits", 16), "-O1")
    image = odd_nets.images(1)
    (tmp_path / "a.ppm").write_bytes(b"P6 #c\n8 8\n255\n" + image.tobytes())
    (tmp_path / "raw").write_bytes(odd_nets.images(3).tobytes())
    (tmp_path / "cut").write_bytes(image.tobytes()[:-1])
    (tmp_path / "b.ppm").write_bytes(b"P6\n9 8\n255\n" + image.tobytes())
    answers = run(program("4 bits"), odd_nets.images(3)).argmax(-1)
    out = _do(made, "a.ppm", "raw", cwd=tmp_path).split()
    assert [int(x) for x in out] == [answers[0], *answers]
    for name, text in (("cut", "191 bytes of 192"), ("b.ppm", "expected 8x8"),
                       ("none", "No such file")):  # fmt: skip
      done = subprocess.run([made, name], capture_output=True, text=True,
                            cwd=tmp_path)  # fmt: skip
      assert done.returncode == 1 and text in done.stderr


def _do(*command, cwd):
  return subprocess.run(
    [str(c) for c in command], check=True, capture_output=True, text=True,
    cwd=cwd,
  ).stdout  # fmt: skip
