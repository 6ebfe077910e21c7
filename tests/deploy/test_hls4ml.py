"""QONNX files in hls4ml: its C simulation gives the network's answers."""

import shutil

import jax
import numpy as np
import odd_nets
import pytest

pytest.importorskip("hls4ml", reason="needs hls4ml")
pytest.importorskip("qonnx")

from benchmarks import hls  # noqa: E402
from jaxr18.data.augment import normalize  # noqa: E402
from jaxr18.deploy.to_qonnx import load_qonnx, to_qonnx  # noqa: E402
from jaxr18.nn import network  # noqa: E402
from jaxr18.nn.spec import resnet, with_bits  # noqa: E402

MEAN, STD, SIDE = odd_nets.MEAN, odd_nets.STD, 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_gives_the_same_answers(tmp_path):
  # A block without a shortcut of its own, and one with, whose input two layers
  # read.
  spec = resnet((4, 8), (1, 1), (1, 2), (1, 1), (False,) * 2, resolution=SIDE)
  spec = with_bits(spec, [("stem|head", 8, 8), (".*", 3, 3)])
  tint = np.random.default_rng(0).integers(0, 256, (100, 1, 1, 3))
  images = ((3 * tint + odd_nets.images(100, SIDE)) // 4).astype(np.uint8)
  net = network.init(jax.random.key(0), spec)
  net = network.calibrate(net, normalize(images, MEAN, STD, SIDE))
  path = tmp_path / "net.onnx"
  how = dict(mean=MEAN, std=STD, size=SIDE, provenance={})
  path.write_bytes(to_qonnx(net, **how))
  answers = load_qonnx(path)(images).argmax(-1)
  assert len(np.unique(answers)) > 4
  simulated = hls.converted(path, str(tmp_path / "hls"))
  found = hls.compare(path, images, simulated)
  assert found["other answers"] == 0
  assert found["largest difference"] < 1e-4 * found["largest logit"]
