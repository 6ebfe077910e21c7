"""Exports are the network: ONNX, StableHLO, the command, and its refusals."""

import dataclasses
import functools
import re
import resource
import subprocess
import sys

import jax
import jax.export
import numpy as np
import odd_nets
import odd_programs
import pytest
import tiny_config
import tiny_run

from jaxr18.compress import ensemble
from jaxr18.data.augment import normalize
from jaxr18.deploy import packed, to_c
from jaxr18.deploy.pack import pack
from jaxr18.deploy.program import run as run_program
from jaxr18.host.errors import FileError
from jaxr18.host.files import write_atomically
from jaxr18.host.workdir import WorkdirError
from jaxr18.nn import network
from jaxr18.nn.spec import BITS, W_BITS, with_bits
from jaxr18.run import experiment, sources
from jaxr18.run import export as exporting
from jaxr18.run import result as result_lib
from jaxr18.train.checkpoint import CheckpointError
from jaxr18.train.evaluate import predict
from jaxr18.train.mesh import make_mesh

HOW = dict(mean=odd_nets.MEAN, std=odd_nets.STD, size=odd_nets.SIDE)


def close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
  np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))


class TestOnnx:
  @pytest.mark.parametrize("bits", odd_nets.BITS)
  def test_is_the_network(self, bits, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    density = 0.5
    data = to_onnx(odd_nets.net(bits, density), **HOW, provenance={"a": 1})
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    run = load_onnx(path, threads=1)
    expected = odd_nets.logits(bits, density)
    close(run(odd_nets.images()), expected)
    close(run(odd_nets.images()[:3]), expected[:3])

    small = to_onnx(
      odd_nets.net(bits, density), **HOW, provenance={}, int4=True
    )
    path.write_bytes(small)
    close(load_onnx(path, threads=1)(odd_nets.images()), expected)
    types = {
      t.data_type for t in onnx.load_from_string(small).graph.initializer
    }
    assert (onnx.TensorProto.INT4 in types) == (bits != "float")

    model = onnx.load_from_string(data)
    ops = [node.op_type for node in model.graph.node]
    layers = ops.count("Conv") + ops.count("MatMul")
    assert layers == len(odd_nets.spec(bits).layers())
    assert "BatchNormalization" not in ops
    assert model.metadata_props[0].key == "a"

  @pytest.mark.parametrize(
    "scales, turn",
    [("lsq", 0), ("lsq", 1), ("lsq", 2), ("dynamic", 0), ("dynamic", 1)],
  )
  def test_of_all_bits_is_the_network(self, scales, turn, tmp_path):
    """Each number of bits of kernels and inputs, beside several others.

    A kernel's codes and its inputs' are stored and computed apart.
    """
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    units = [unit for unit, _ in odd_nets.spec("float").units()]
    # Kernels of few bits put many values in the middle of two dynamic codes.
    kernels = W_BITS if scales == "lsq" else [w for w in W_BITS if w > 4]
    turns = {"lsq": 3, "dynamic": 2}[scales]
    for of, choices in ((4, kernels), (7, BITS)):
      places = {(i + of * t) % len(choices) for t in range(turns)
                for i in range(len(units))}  # fmt: skip
      assert len(places) == len(choices)  # all of them have their turn
    rules = [
      (unit, kernels[(i + 4 * turn) % len(kernels)],
       BITS[(i + 7 * turn) % len(BITS)])
      for i, unit in enumerate(units)
    ]  # fmt: skip
    net = odd_nets.numbers(with_bits(odd_nets.spec("float"), rules, scales))
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(net, **HOW, provenance={}))
    images = odd_nets.images()
    got, expected = load_onnx(path, 1)(images), odd_nets.forward(net, images)
    if scales != "dynamic":
      return close(got, expected)
    # Bounds that are computed differ in the last digit, which digit depends on
    # the processor, and now and then a value in the middle of two codes goes to
    # the other: in one or two images, by one code of one layer.
    apart = np.abs(got - expected).max(-1)
    assert (apart > 1e-5).sum() <= 2
    assert apart.max() < 0.1 * np.ptp(expected)

  @pytest.mark.parametrize("w_bits", [16, 32])
  def test_float_kernels_stay_floats(self, w_bits, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    units = [unit for unit, _ in odd_nets.spec("float").units()]
    rules = [(unit, w_bits, (2, 4, 8)[i % 3]) for i, unit in enumerate(units)]
    net = odd_nets.numbers(with_bits(odd_nets.spec("float"), rules))
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(net, **HOW, provenance={}))
    images = odd_nets.images()
    close(load_onnx(path, 1)(images), odd_nets.forward(net, images))

  def test_resizes(self, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    net = odd_nets.net("float")
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(net, **HOW | {"size": 20}, provenance={}))
    images = odd_nets.images(8, 20)
    close(load_onnx(path, 1)(images), odd_nets.forward(net, images))

  @pytest.mark.parametrize("w_bits", [8, 32])
  def test_a_pixel_in_the_middle_of_two_codes(self, w_bits, tmp_path):
    """A bound with which XLA and ONNX's division round one value apart.

    Such was that of three_bits_small's stem for the value 206 of blue.
    """
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    network = {"mean": HOW["mean"], "std": HOW["std"], "resolution": 1}
    pixels = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    pixels = np.repeat(pixels, 3, axis=-1)
    ours = packed.normalize(pixels, network)
    mean, std = np.float32(HOW["mean"]), np.float32(HOW["std"])
    theirs = (np.float32(pixels) / np.float32(255) - mean) / std

    def apart(bound):
      codes, step = packed.quantize(ours, bound, 8, True)
      others = np.rint(np.clip(theirs / step, -127, 127))
      return (codes != others).any()

    ties = np.float32(127 / (np.arange(127) + 0.5))
    bounds = (np.float32(x * t) for t in ties for x in ours[ours > 1])
    bound = next(filter(apart, bounds))
    net = odd_nets.numbers(
      with_bits(odd_nets.spec("float"), [(".*", w_bits, 8)])
    )
    net.params["stem"]["input_bound"] = jax.numpy.asarray(bound)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(net, **HOW, provenance={}))
    images = odd_nets.images(32)
    stored = tmp_path / "net.safetensors"  # which rounds as optimized XLA
    stored.write_bytes(
      pack(net, mean=HOW["mean"], std=HOW["std"], provenance={})
    )
    expected = packed.load(stored)[0](images)
    close(load_onnx(path, 1)(images), expected)


@functools.cache
def voters():
  """Three networks of two specs, and their logits of images."""
  nets = [
    odd_nets.net(*of) for of in (("4 bits",), ("float",), ("4 bits", 0.5))
  ]
  each = [odd_nets.forward(net, odd_nets.images()) for net in nets]
  return nets, np.stack(each)


class TestVote:
  @pytest.mark.parametrize("method", ensemble.VOTES)
  def test_onnx(self, method, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from jaxr18.deploy.onnx_vote import together
    from jaxr18.deploy.to_onnx import load_onnx, to_onnx

    nets, each = voters()
    path, weights = tmp_path / "net.onnx", (0.5, 0.2, 0.3)
    models = [to_onnx(net, **HOW, provenance={"a": 1}) for net in nets]
    path.write_bytes(together(models, method, weights))
    got = load_onnx(path, 1)(odd_nets.images())
    close(got, ensemble.voted_logits(each, method, weights))

  def test_stablehlo(self):
    pytest.importorskip("flatbuffers")
    from jaxr18.deploy.to_stablehlo import to_stablehlo

    nets, each = voters()
    how = dict(method="majority", xp=jax.numpy)
    vote = functools.partial(ensemble.voted_logits, **how)
    data = to_stablehlo(*nets[:2], **HOW, vote=vote)
    run = odd_nets.fast_jit(jax.export.deserialize(bytearray(data)).call)
    expected = ensemble.voted_logits(each[:2], "majority")
    close(np.asarray(run(odd_nets.images())), expected)


class TestStableHlo:
  def test_integers_alone(self):
    pytest.importorskip("flatbuffers")
    from jaxr18.deploy.to_stablehlo import program_to_stablehlo

    program, images = odd_programs.program("4 bits"), odd_nets.images()
    exported = jax.export.deserialize(bytearray(program_to_stablehlo(program)))
    lines = exported.mlir_module().splitlines()
    convolutions = [x for x in lines if "stablehlo.convolution" in x]
    assert len(convolutions) >= len(program.steps)  # for each platform
    assert all("xi8>" in x and "f32" not in x for x in convolutions)
    got = odd_nets.fast_jit(exported.call)(images)
    expected = np.float32(
      run_program(program, images) / 2.0**program.logit_bits
    )
    np.testing.assert_array_equal(got, expected)

  def test_is_the_network(self):
    pytest.importorskip("flatbuffers")
    from jaxr18.deploy.to_stablehlo import to_stablehlo

    data = to_stablehlo(odd_nets.net("mixed"), **HOW)
    program = jax.export.deserialize(bytearray(data))
    assert program.platforms == ("cpu", "cuda")
    assert program.in_avals[0].dtype == np.uint8
    assert str(program.in_avals[0].shape) == "(n, 8, 8, 3)"
    text = program.mlir_module()
    assert "stablehlo.convolution" in text and "xi8>" in text
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}
    run = odd_nets.fast_jit(program.call)
    close(np.asarray(run(odd_nets.images())), odd_nets.logits("mixed"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  config = tiny_config.get_config("0")
  config.progress = "none"
  config.train.network.bits = (("stem|head", 8, 8), (".*", 4, 4))
  config.train.calibrate.method = "absmax"  # the quickest to compile
  experiment.run(config, folder)
  return folder


class TestRun:
  @pytest.mark.parametrize(
    "name", ["packed", "stablehlo", "onnx", "onnx4", "qonnx"]
  )
  def test_exports_and_tests(self, name, workdir):
    for module in {"onnx": ("onnx", "onnxruntime"), "qonnx": ("qonnx",),
                   "onnx4": ("onnx", "onnxruntime"),
                   "stablehlo": ("flatbuffers",)}.get(name, ()):  # fmt: skip
      pytest.importorskip(module)
    before = result_lib.read(workdir)
    path, found = exporting.export_run(workdir, name)
    assert path.parent == workdir / "export"
    assert found.bytes == path.stat().st_size
    assert found.count == found.same_answers == 96
    assert found.correct == before.test.correct
    assert found.largest_difference < 1e-4
    after = result_lib.read(workdir)
    assert after.exports[name] == found
    assert dataclasses.replace(after, exports=before.exports) == before

  @pytest.mark.parametrize(
    "name", ["stablehlo_int", "onnx_int", "litert", "litert4"]
  )
  def test_integers_alone(self, name, workdir, monkeypatch):
    if "litert" in name:
      pytest.importorskip("ai_edge_litert")
    pytest.importorskip("onnxruntime" if "onnx" in name else "flatbuffers")
    path, found = exporting.export_run(workdir, name)
    assert path.name == f"network.{exporting.SUFFIXES[name]}"
    assert found.same_answers >= 80 and found.count == 96
    assert found.images_per_second > 0
    assert result_lib.read(workdir).exports[name] == found

    monkeypatch.setattr(
      exporting, "load", lambda *_: lambda x: np.eye(10)[x[:, 0, 0, 0] % 10]
    )
    with pytest.raises(exporting.ExportError, match="as integers alone"):
      exporting.export_run(workdir, name, workdir / "wrong")
    assert not (workdir / "wrong").exists()

  def test_c_is_a_program(self, workdir):
    if to_c.compiler() is None:
      pytest.skip("there is no C compiler")
    path, found = exporting.export_run(workdir, "c")
    assert path == workdir / "export" / "c"
    files = {file.name: file.stat().st_size for file in path.iterdir()}
    assert found.bytes == sum(files.values())
    assert result_lib.read(workdir).exports["c"] == found
    assert found.same_answers >= 90 and found.count == 96
    assert 0 < found.bytes_of_memory < 10_000
    answers = subprocess.run(
      [to_c.compiled(path), *path.glob("image.*")],
      capture_output=True,
      text=True,
    )
    images = tiny_run.dataset().test.images[:1]
    expected = to_c.logits_of(path / "classify", images).argmax(-1)
    assert answers.stdout == f"{expected[0]}\n", answers.stderr

  def test_what_differs_is_counted(self, workdir, monkeypatch):
    load = exporting.load

    def other(name, path):
      run = load(name, path)
      return lambda x: run(x) + np.eye(10)[3] * (np.arange(len(x)) < 2)[:, None]

    monkeypatch.setattr(exporting, "load", other)
    _, found = exporting.export_run(workdir, "packed", workdir / "other")
    assert found.images_apart == 10  # 2 in each of 5 batches
    assert found.largest_difference == pytest.approx(1, abs=1e-4)

  def test_another_network_is_not_written(self, workdir, monkeypatch):
    load = exporting.load

    def other(name, path):
      run = load(name, path)
      return lambda x: 1.01 * run(x)

    monkeypatch.setattr(exporting, "load", other)
    before = (workdir / "result.json").read_bytes()
    told = r"nothing is written: NumPy \d.* off by .* export it as --format=st"
    with pytest.raises(exporting.ExportError, match=told):
      exporting.export_run(workdir, "packed", workdir / "wrong")
    assert not (workdir / "wrong").exists()
    assert (workdir / "result.json").read_bytes() == before

  def test_what_onnx_runtime_gives_otherwise(self):
    """By another format, which is then written by the tests above."""
    pytest.importorskip("onnxruntime")
    told = r"ONNX Runtime \d.*processor.*--format=packed or --format=stablehlo"
    with pytest.raises(exporting.ExportError, match=told):
      exporting._check_same("onnx", np.zeros((3, 2)), np.ones((3, 2)))

  def test_two_at_once_lose_nothing(self, workdir, monkeypatch):
    pytest.importorskip("flatbuffers")
    load = exporting.load

    def meanwhile(name, path):
      if name == "packed":
        exporting.export_run(workdir, "stablehlo", workdir / "between")
      return load(name, path)

    monkeypatch.setattr(exporting, "load", meanwhile)
    exporting.export_run(workdir, "packed", workdir / "slow")
    kept = result_lib.read(workdir).exports
    assert kept["packed"].file == "slow"
    assert kept["stablehlo"].file == "between"

  def test_a_path_that_cannot_be_written(self, workdir):
    with pytest.raises(FileError, match="give another --out"):
      exporting.export_run(workdir, "packed", workdir / "no" / "file")

  def test_the_target_is_tried_before_the_work(self, workdir, monkeypatch):
    monkeypatch.setattr(exporting, "_export", None)  # never comes so far
    (workdir / "file").write_text("")
    for out in (workdir, workdir / "file" / "below", "/dev/null"):
      with pytest.raises(FileError, match="give another --out"):
        exporting.export_run(workdir, "packed", out)

  def test_integers(self, workdir):
    net, dataset = sources.load_network(workdir), tiny_run.dataset()
    found = exporting.by_integers(net, dataset, 20)
    assert found["arithmetic"] == "int8"
    assert found["count"] == found["same_answers"] == len(dataset.test)
    assert found["largest_difference"] < 2e-5

  def test_what_is_tested_is_what_is_stored(self, workdir):
    net, dataset = sources.load_network(workdir), tiny_run.dataset()
    images = dataset.test.images[:20]
    tested = predict(net, images, dataset, 20, make_mesh())
    path, _ = exporting.export_run(workdir, "packed")
    stored = exporting.load("packed", path)(images)
    np.testing.assert_allclose(tested, stored, rtol=0, atol=2e-5)
    # The simulation rounds otherwise, so it is near and not the same.
    x = normalize(images, dataset.mean, dataset.std, net.spec.resolution)
    simulated = np.asarray(network.forward(net, x))
    assert 0 < np.abs(simulated - tested).max() < 0.1 * np.abs(tested).max()

  def test_runs_that_cannot_be_exported(self, workdir, tmp_path):
    with pytest.raises(WorkdirError, match="holds no run"):
      exporting.export_run(tmp_path, "packed")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WorkdirError, match="is not finished"):
      exporting.export_run(tmp_path, "packed")
    (tmp_path / "result.json").write_text('{"accuracy": 1}')
    with pytest.raises(WorkdirError, match="not a result of jaxr18"):
      exporting.export_run(tmp_path, "packed")
    # A result without its checkpoint.
    for name in ("config.json", "result.json"):
      (tmp_path / name).write_bytes((workdir / name).read_bytes())
    with pytest.raises(CheckpointError, match="is not finished"):
      exporting.export_run(tmp_path, "packed")

  def test_a_full_disk(self, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
      with pytest.raises(FileError, match="cannot write .*make room"):
        write_atomically(path, bytes(100_000), "--out")
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


class TestCommand:
  @pytest.mark.parametrize(
    "flags, status, text",
    [
      ((), 2, "give --workdir=DIR"),
      (
        ("--workdir=x", "--format=tflite"),
        2,
        "packed, stablehlo, stablehlo_int, onnx, onnx_int, onnx4, qonnx, c,",
      ),
      (("--workdir=x", "--format=onnx"), 2, "pip install 'jaxr18[onnx]'"),
      (("--workdir=x", "--format=stablehlo"), 2, "'jaxr18[export]'"),
      (("--workdir=x", "--format=litert"), 2, "'jaxr18[litert]'"),
    ],
  )
  def test_errors(self, flags, status, text, tmp_path):
    for module in ("onnx", "flatbuffers"):  # as if they were not installed
      (tmp_path / f"{module}.py").write_text("raise ImportError('none here')")
    done = self._run(*flags, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert text in done.stderr and "Traceback" not in done.stderr

  def test_prints_what_it_found(self, workdir):
    done = self._run(f"--workdir={workdir}", "--out=named", cwd=workdir)
    assert done.returncode == 0, done.stderr
    for text in ("named: ", "charged by the on-disk score",
                 "in 96 of 96 images", "by more than 1e-4 in 0"):  # fmt: skip
      assert text in done.stdout
    network, _ = packed.read(workdir / "named")
    assert "jaxr18.export --workdir" in network["provenance"]["exported_by"]

  def _run(self, *flags, cwd):
    return subprocess.run(
      [sys.executable, "-m", "jaxr18.export", *flags],
      capture_output=True,
      text=True,
      timeout=300,
      cwd=cwd,
    )
