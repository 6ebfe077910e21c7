"""Convolutions of integer codes are exact, whatever computes them."""

import functools
import os
import re
import sys

import jax
import numpy as np
import pytest
from command import run_python
from jax import numpy as jnp

from jaxr18.cost.macs import count_macs
from jaxr18.deploy import packed
from jaxr18.nn import int8, onednn

needs_onednn = pytest.mark.skipif(
  not onednn.ready(), reason=f"oneDNN: {onednn.reason()}"
)
PATHS = ["xla", pytest.param("auto", marks=needs_onednn)]

# batch, size, in_features, features, groups, kernel, stride
CASES = [
  (7, 9, 3, 16, 1, 3, 1),
  (1, 8, 5, 12, 1, 3, 2),
  (7, 8, 12, 56, 1, 3, 1),
  (2, 7, 56, 56, 1, 3, 2),
  (7, 7, 16, 32, 1, 1, 2),
  (3, 1, 56, 10, 1, 1, 1),
  (2, 5, 7, 5, 1, 5, 1),
  (3, 8, 16, 16, 8, 3, 1),
  (2, 8, 24, 48, 2, 3, 2),
  (3, 6, 6, 12, 3, 3, 1),
  (1, 8, 12, 12, 12, 3, 1),
  (3, 8, 16, 16, 16, 3, 2),
  (130, 32, 16, 16, 1, 3, 1),  # parts, and a smaller one at the end
]
ENDS = [(0, 255), (-128, 127), (0, 15), (-7, 7)]


def operands(case, ends, weights=(-128, 127)):
  """Codes of which half are at the ends."""
  batch, size, in_features, features, groups, kernel, stride = case
  rng = np.random.default_rng(0)

  def draw(ends, shape):
    anywhere = rng.integers(ends[0], ends[1] + 1, shape)
    return np.where(rng.random(shape) < 0.5, rng.choice(ends, shape), anywhere)

  x = draw(ends, (batch, size, size, in_features))
  k = draw(weights, (kernel, kernel, in_features // groups, features))
  x = x.astype(np.int8 if ends[0] else np.uint8)
  codes = int8.Codes(ends[0] < 0, max(map(abs, ends)), max(map(abs, weights)))
  return x, k.astype(np.int8), dict(stride=stride, groups=groups, codes=codes)


def exact(x, k, *, stride, groups, **_):
  return packed.convolve(x.astype(float), k.astype(float), stride, groups)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_are_exact(case, ends, path):
  if path == "xla" and case[0] == 130:
    pytest.skip("of our own code alone")
  x, k, how = operands(case, ends)
  conv = jax.jit(functools.partial(int8.conv, path=path, **how))
  got = conv(x, k)
  assert got.dtype == jnp.int32
  np.testing.assert_array_equal(got, exact(x, k, **how))


WITHOUT_VNNI = """
  import numpy as np, jax
  from test_int8 import CASES, exact, int8, onednn, operands
  import functools
  assert not onednn.int8_exact(False, 255, 65)
  assert not onednn.int8_exact(True, 1, 1)
  print(onednn.int8_exact(False, 255, 64), onednn.int8_exact(False, 128, 127))
  for case in CASES[:-1]:
    for ends, weights in (((0, 255), (-128, 127)), ((0, 255), (-64, 64)),
                          ((-128, 127), (-8, 7))):
      x, k, how = operands(case, ends, weights)
      conv = jax.jit(functools.partial(int8.conv, **how))
      np.testing.assert_array_equal(conv(x, k), exact(x, k, **how))
      own = 'jaxr18_int8' in conv.lower(x, k).as_text()
      assert own == (weights[1] == 64), (case, ends, weights)
  """


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_without_the_dot_product_of_8_bits(isa):
  path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
  out = run_python(WITHOUT_VNNI, ONEDNN_MAX_CPU_ISA=isa, PYTHONPATH=path)
  assert out.split()[-2:] == ["True", "True"]


@needs_onednn
def test_one_that_is_not_exact_is_not_used(monkeypatch):
  monkeypatch.setattr(onednn, "_int8_reason", lambda whole: "it is wrong")
  x, k, how = operands(CASES[0], ENDS[0])
  conv = jax.jit(functools.partial(int8.conv, **how))
  assert "jaxr18_int8" not in conv.lower(x, k).as_text()
  np.testing.assert_array_equal(conv(x, k), exact(x, k, **how))


@needs_onednn
def test_the_self_check_finds_a_wrong_sum(monkeypatch):
  right = onednn._int_sums
  wrong = lambda *args: right(*args) + (args[2] == 8)  # of groups of one
  monkeypatch.setattr(onednn, "_int_sums", wrong)
  reason = onednn._int8_reason.__wrapped__(False)
  assert "int8_conv of (16, 16, 8, 3, 2, 1) is not exact" in reason


def test_the_environment_and_other_devices(monkeypatch):
  x, k, how = operands(CASES[0], ENDS[0])
  traced = lambda: jax.jit(functools.partial(int8.conv, **how)).trace(x, k)
  monkeypatch.setenv("JAXR18_CONV", "auto")
  assert ("jaxr18_int8" in traced().lower().as_text()) == onednn.ready()
  text = traced().lower(lowering_platforms=("cuda",)).as_text()
  assert "jaxr18_" not in text and re.search("convolution.*xi8>", text)
  monkeypatch.setenv("JAXR18_CONV", "xla")
  assert "jaxr18_" not in traced().lower().as_text()


def test_vmap_equals_a_loop():
  x, k, how = operands(CASES[1], ENDS[0])
  conv = functools.partial(int8.conv, **how)
  got = jax.vmap(conv)(np.stack([x, x // 2]), np.stack([k, k // 2]))
  np.testing.assert_array_equal(got[0], exact(x, k, **how))
  np.testing.assert_array_equal(got[1], exact(x // 2, k // 2, **how))


def test_the_counter_sees_the_convolution():
  x, k, how = operands(CASES[2], ENDS[0])
  macs = count_macs(functools.partial(int8.conv, path="auto", **how), x, k)
  assert macs.total == 7 * 8 * 8 * k.size


@needs_onednn
def test_over_a_mesh_xla_serves():
  out = run_python(
    """
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jaxr18.nn import int8
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(AxisType.Auto,))
    x = np.full((4, 5, 5, 3), 255, np.uint8)
    k = np.full((1, 1, 3, 4), -128, np.int8)
    x = jax.device_put(x, NamedSharding(mesh, P('batch')))
    conv = jax.jit(lambda x: int8.conv(
      x, k, stride=1, groups=1, codes=int8.Codes(False, 255, 128)))
    assert (np.asarray(conv(x)) == -3 * 255 * 128).all()
    print('jaxr18_int8' in conv.lower(x).as_text())
    """,
    XLA_FLAGS="--xla_force_host_platform_device_count=2",
  )
  assert out.split()[-1] == "False"
