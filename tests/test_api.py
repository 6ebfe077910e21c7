"""What `import jaxr18` gives, used as a stranger would."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import jaxr18
from jaxr18.data.dataset import Dataset

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = ROOT / "docs" / "results" / "three_bits" / "network.safetensors"


@pytest.fixture(scope="module")
def digits() -> Dataset:
  return jaxr18.dataset("digits", validation=200)


@pytest.fixture(scope="module")
def small():
  return jaxr18.init(0, jaxr18.resnet((4, 8), blocks=1, resolution=16))


def test_importing_takes_no_library():
  code = (
    "import sys, jaxr18; assert jaxr18.__version__; dir(jaxr18);"
    " sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name():
  with pytest.raises(AttributeError, match="has no attribute 'prunes'"):
    jaxr18.prunes  # noqa: B018


def test_every_name_is_there():
  assert all(callable(getattr(jaxr18, n)) for n in jaxr18.__all__[1:])


def test_repr_is_one_line(small):
  text = repr(small)
  assert "\n" not in text and len(text) < 120
  assert "4-8 channels" in text
  html = small._repr_html_()
  assert html.count("<tr>") == len(small.spec.layers()) + 1
  assert re.search(r"<td>stem</td><td>3x3x3x4</td><td>1</td><td>32</td>", html)


def test_repr_of_a_score_is_one_line(small):
  text = repr(jaxr18.score(small))
  assert re.fullmatch(
    r"Score\(per_network=\S+, per_layer=\S+, on_disk=\S+, macs=[\d,]+\)", text
  )


def test_defaults_broadcast():
  spec = jaxr18.resnet((8, 16, 32), blocks=(1,), groups=2)
  assert [len(stage) for stage in spec.stages] == [1, 1, 1]
  assert [stage[0].conv1.stride for stage in spec.stages] == [1, 2, 2]
  assert {stage[0].conv1.groups for stage in spec.stages} == {2}
  with pytest.raises(ValueError, match="'blocks': 2"):
    jaxr18.resnet((8, 16, 32), blocks=(1, 1))


def test_pruning_chains(small):
  half = jaxr18.prune(small, 0.5)
  tenth = jaxr18.prune(half, 0.1)
  pattern = jaxr18.prune(tenth, pattern=(2, 4), layers="stage.*")
  kept = [
    sum(r.kept for r in jaxr18.score(n).rows) for n in (half, tenth, pattern)
  ]
  total = sum(r.weights for r in jaxr18.score(small).rows)
  assert kept[0] == round(total / 2) and kept[1] == round(total / 10)
  assert kept[2] <= kept[1]


def test_channels_shrink(small, digits):
  masked = jaxr18.prune(small, 0.5, structured=True)
  shrunk = jaxr18.shrink(masked)
  assert jaxr18.score(shrunk).macs < jaxr18.score(small).macs
  one, two = (jaxr18.evaluate(net, digits) for net in (shrunk, masked))
  assert one[:2] == two[:2]
  # Kernels of other sizes may add up in another order.
  assert one.loss == pytest.approx(two.loss, rel=1e-6)


def test_quantized_networks_get_their_bounds(small, digits):
  net = jaxr18.quantize(small, 4, digits, w_scales="learned")
  bits = {r.path: (r.w_bits, r.a_bits) for r in jaxr18.score(net).rows}
  assert bits["stem"] == bits["head"] == (8, 8)
  assert bits["stage1_block1/conv1"] == (4, 4)
  assert jaxr18.evaluate(net, digits).count == len(digits.test)


def test_saves_and_loads(small, tmp_path):
  path = jaxr18.save(jaxr18.prune(small, 0.3), f"{tmp_path}/net.npz")
  back = jaxr18.load(str(path))
  expected = jaxr18.score(jaxr18.prune(small, 0.3))
  assert jaxr18.score(back).per_layer == expected.per_layer
  with pytest.raises(ValueError, match=r"must end in \.npz"):
    jaxr18.save(small, tmp_path / "net.bin")


def test_votes(small, digits):
  other = jaxr18.init(1, small.spec)
  x = digits.test.images[:20]
  both = jaxr18.vote([small, other], x, digits)
  assert both.shape == (20, 10)
  np.testing.assert_allclose(both.sum(1), 1, rtol=1e-5)


def test_another_suffix(small, digits, tmp_path):
  with pytest.raises(ValueError, match=r"\.safetensors, \.onnx, \.stablehlo"):
    jaxr18.export(small, tmp_path / "net.bin", digits)


def test_a_shipped_network():
  net = jaxr18.load(SHIPPED)
  assert jaxr18.score(net).per_layer.total == pytest.approx(0.011163, abs=1e-6)
