"""LiteRT files, run by LiteRT: the definition with rounded biases."""

import collections
import json
import pathlib

import numpy as np
import odd_nets
import odd_programs
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
pytest.importorskip("flatbuffers")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from ai_edge_litert.interpreter import OpResolverType  # noqa: E402

from benchmarks.results import run as run_of  # noqa: E402
from jaxr18.compress import ensemble  # noqa: E402
from jaxr18.data import cifar10  # noqa: E402
from jaxr18.data import dataset as data  # noqa: E402
from jaxr18.deploy import packed  # noqa: E402
from jaxr18.deploy.program import run  # noqa: E402
from jaxr18.deploy.program_xla import lower_with_sums, runner  # noqa: E402
from jaxr18.deploy.to_litert import (  # noqa: E402
  LitertError,
  held,
  load_litert,
  to_litert,
)

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = odd_nets.images(64)


def logits(program, images=IMAGES):
  return run(program, images) / 2.0**program.logit_bits


def by_litert(program, folder, int4=False, images=IMAGES, **how):
  path = folder / "net.tflite"
  path.write_bytes(to_litert(program, int4=int4))
  return load_litert(path, 1, **how)(images)


def near(got, expected, by=3e-4):
  """How many images have all logits within a step or two of theirs."""
  return (np.abs(got - expected).max(-1) < by).sum()


# Dense, grouped, depthwise, low-rank and 1x1 layers, all of them.
@pytest.mark.parametrize("bits", ["4 bits", "binary", "eights", "trained sums"])
def test_is_the_definition_with_rounded_biases(bits, tmp_path):
  program = odd_programs.program(bits, None if bits == "trained sums" else 8)
  got = by_litert(program, tmp_path)
  # A value in the middle of two integers, within float32, may go to either.
  assert near(got, logits(held(program))) >= 60
  assert (got.argmax(-1) == logits(program).argmax(-1)).mean() >= 0.9


def test_other_biases_are_seen(tmp_path):
  program = odd_programs.program("4 bits", 8)
  assert near(by_litert(program, tmp_path), logits(program)) < 60


@pytest.mark.parametrize("int4", [True, False])
def test_its_own_kernels_answer_alike(int4, tmp_path):
  program = odd_programs.program("4 bits", 8)
  plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
  how = {"experimental_op_resolver_type": plain}
  got, expected = by_litert(program, tmp_path, int4, **how), logits(program)
  assert (got.argmax(-1) == expected.argmax(-1)).mean() >= 0.9
  assert np.abs(got - expected).max() < 0.2 * np.ptp(expected)


def test_any_number_of_images(tmp_path):
  path = tmp_path / "net.tflite"
  path.write_bytes(to_litert(odd_programs.program("4 bits", 8)))
  net = load_litert(path, 1)
  few, one = net(IMAGES[:3]), net(IMAGES[2:3])
  np.testing.assert_array_equal(few, net(IMAGES)[:3])
  np.testing.assert_array_equal(few[2:], one)


def test_all_is_integers_but_the_logits():
  for int4 in (False, True):
    data = to_litert(odd_programs.program("4 bits", 8), int4=int4)
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    types = collections.Counter(t.type for t in graph.tensors)
    assert types[schema.TensorType.FLOAT32] == 1
    kernels = [t for t in graph.tensors if t.name.endswith(b"/kernel")]
    fours = [t for t in kernels if t.type == schema.TensorType.INT4]
    assert len(fours) == int4 * (len(kernels) - 1)  # but the head's
    (about,) = model.metadata
    assert json.loads(bytes(model.buffers[about.buffer].data)) == {}


@pytest.mark.parametrize("size", [20, 6])
def test_resizes(size, tmp_path):
  program = odd_programs.program("4 bits", 8, size=size)
  images = odd_nets.images(32, size)
  got = by_litert(program, tmp_path, images=images)
  assert near(got, logits(held(program), images)) >= 28


def test_wide_sums_are_refused():
  with pytest.raises(LitertError, match="have 16 bits, expected at most 8"):
    to_litert(odd_programs.program("4 bits", 16))


@pytest.mark.slow
def test_the_shipped_network(tmp_path):
  """On all test images, wherever CIFAR-10 is."""
  if cifar10.open_folder(cifar10.resolve_data_dir()) is None:
    pytest.skip("CIFAR-10 is not prepared here; TFDS_DATA_DIR names its folder")
  result = run_of("three_bits_small").test
  file = ROOT / "docs/results/three_bits_small/network.safetensors"
  images = data.load("cifar10")
  numbers, test = packed.read(file), images.test
  program = lower_with_sums(*numbers, 8, images.train.images[:100])
  got = by_litert(program, tmp_path, images=test.images)
  right = (got.argmax(-1) == test.labels).sum()
  assert abs(right - result.correct) < 0.01 * result.count
  some = test.images[:50]
  assert near(got[:50], runner(held(program))(some), 0.01) >= 45


@pytest.mark.parametrize("method", ensemble.VOTES)
def test_votes(method, tmp_path):
  kinds = ("4 bits",), ("eights",), ("binary",)
  programs, weights = (
    [odd_programs.program(*k, 8) for k in kinds],
    (0.5, 0.3, 0.2),
  )
  each = np.stack([by_litert(program, tmp_path) for program in programs])
  path = tmp_path / "all.tflite"
  path.write_bytes(to_litert(*programs, vote=method, weights=weights))
  expected = ensemble.voted_logits(each, method, weights)
  got = load_litert(path, 1)(IMAGES)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


class TestSums:
  def test_reach_as_far_as_the_images_do(self):
    network, arrays = odd_programs.description("4 bits")[0]
    fitted = lower_with_sums(network, arrays, 8, IMAGES)
    assert fitted.sum_bits == 8
    seen = {}

    def watch(step, operand):
      largest = np.abs(operand).max()
      block = step.path.split("/")[0]
      seen[block] = max(seen.get(block, 0), largest)

    run(fitted, IMAGES, watch=watch)
    assert all(120 <= x <= 255 for x in seen.values()), seen
    fine = logits(odd_programs.program("4 bits", 24))
    by_weights = logits(odd_programs.program("4 bits", 8))
    apart = lambda x: np.abs(x - fine).mean()
    assert apart(logits(fitted)) < apart(by_weights)

  def test_those_that_were_trained_stay(self):
    numbers = odd_programs.description("trained sums")[0]
    assert lower_with_sums(*numbers, 8, IMAGES).sum_bits == 5
