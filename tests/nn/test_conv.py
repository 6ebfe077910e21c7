"""The convolution: every path equals XLA's own, under every transformation."""

import functools
import re
import threading

import jax
import numpy as np
import pytest
from command import run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax import numpy as jnp
from jax.test_util import check_grads

from jaxr18.nn import conv_forms, onednn
from jaxr18.nn.conv import PATHS, conv, conv_p, training_type

# in_features, features, groups, kernel, stride, padding, size
CASES = [
  (3, 16, 1, 3, 1, 1, 8),
  (16, 8, 1, 3, 2, 1, 8),
  (16, 32, 1, 1, 2, 0, 7),
  (5, 7, 1, 5, 1, 2, 6),
  (8, 16, 2, 3, 1, 1, 6),
  (16, 16, 8, 3, 2, 1, 7),
  (16, 16, 1, 5, 1, 1, 7),
  (128, 128, 8, 3, 1, 1, 4),
  (256, 256, 1, 3, 1, 1, 4),
  (6, 6, 6, 3, 1, 1, 6),
  (16, 16, 16, 3, 2, 1, 8),
  (4, 8, 4, 3, 1, 1, 5),
]

VERSIONS = pytest.mark.versions  # tested with others of the libraries too


def reference(x, kernel, *, stride, padding, groups):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def operands(case, batch=3, dtype=np.float32, seed=0):
  in_features, features, groups, kernel, stride, padding, size = case
  out = (size + 2 * padding - kernel) // stride + 1
  shapes = (
    (batch, size, size, in_features),
    (kernel, kernel, in_features // groups, features),
    (batch, out, out, features),
  )
  rng = np.random.default_rng(seed)
  arrays = [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]
  return arrays, dict(stride=stride, padding=padding, groups=groups)


def with_gradients(function):
  """Returns (x, kernel, dy) -> the output and its gradients, compiled."""

  @jax.jit
  def run(x, kernel, dy):
    y, grad = jax.vjp(function, x, kernel)
    return y, *grad(dy)

  return run


@functools.cache
def by_xla(case):
  """The output and the gradients of `operands(case)`."""
  arrays, how = operands(case)
  return with_gradients(functools.partial(reference, **how))(*arrays)


def assert_close(got, expected, tolerance=1e-5):
  for a, b in zip(got, expected, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def skip_unless_possible(path):
  if path == "onednn" and not onednn.ready():
    pytest.skip(f"oneDNN: {onednn.reason()}")


@pytest.mark.parametrize(
  ("path", "case"),
  [
    pytest.param(path, case, marks=VERSIONS if case is CASES[4] else ())
    for path in PATHS
    for case in CASES
    if path != "shifted" or case[0] == case[1] == case[2]  # depthwise
  ],
  ids=str,
)
def test_equals_xla(path, case):
  skip_unless_possible(path)
  arrays, how = operands(case)
  got = with_gradients(functools.partial(conv, path=path, **how))(*arrays)
  assert_close(got, by_xla(case))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
  groups=st.sampled_from([1, 1, 2, 3, 8]),
  inputs=st.integers(1, 9),
  outputs=st.integers(1, 9),
  kernel=st.sampled_from([1, 3, 5]),
  stride=st.integers(1, 3),
  padding=st.integers(0, 2),
  size=st.integers(5, 9),
  batch=st.integers(0, 3),
  dtype=st.sampled_from(["float32", "float32", "bfloat16", "float64"]),
)
def test_any_shape(
  groups, inputs, outputs, kernel, stride, padding, size, batch, dtype
):
  case = (groups * inputs, groups * outputs, groups) + (
    kernel,
    stride,
    padding,
    size,
  )
  with jax.enable_x64(dtype == "float64"):
    arrays, how = operands(case, batch, dtype)
    got = with_gradients(functools.partial(conv, **how))(*arrays)
    want = with_gradients(functools.partial(reference, **how))(*arrays)
    if batch:
      # Sums are rounded to bfloat16's 8 bits, by either path.
      assert_close(got, want, 2**-7 if dtype == "bfloat16" else 1e-5)
    else:
      jax.tree.map(np.testing.assert_array_equal, got, want)


@VERSIONS
@pytest.mark.parametrize("path", PATHS)
def test_gradients_numerically(path):
  case = (4, 4, 4, 3, 2, 1, 5)
  skip_unless_possible(path)
  (x, kernel, _), how = operands(case, batch=2)
  function = functools.partial(conv, path=path, **how)
  check_grads(function, (x, kernel), order=2, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("members", [2, 17])
@pytest.mark.parametrize("axes", [(0, 0), (1, None), (None, 2)], ids=str)
def test_vmap_equals_loop(axes, members):
  case = CASES[5]
  (x, kernel, dy), how = operands(case)
  scale = jnp.arange(1.0, members + 1)

  def stack(v, axis):
    if axis is None:
      return v
    return jnp.stack([v * s for s in scale], axis)

  x, kernel = stack(x, axes[0]), stack(kernel, axes[1])
  run = with_gradients(functools.partial(conv, **how))
  got = jax.vmap(run, (*axes, None))(x, kernel, dy)

  def member(v, axis, i):
    return v if axis is None else jnp.take(v, i, axis)

  expected = [
    run(member(x, axes[0], i), member(kernel, axes[1], i), dy)
    for i in range(members)
  ]
  assert_close(
    got, [jnp.stack(leaves) for leaves in zip(*expected, strict=True)]
  )


@VERSIONS
def test_jit_remat_and_scan_equal_eager():
  (x, kernel, _), how = operands((4, 4, 2, 3, 1, 1, 6))

  def layer(x, kernel):
    return jnp.tanh(conv(x, kernel, **how))

  def unrolled(kernel):
    return (layer(layer(x, kernel), kernel) ** 2).sum()

  def scanned(kernel):
    body = lambda x, _: (layer(x, kernel), None)
    return (lax.scan(body, x, None, length=2)[0] ** 2).sum()

  def remat(kernel):
    step = jax.checkpoint(layer)
    return (step(step(x, kernel), kernel) ** 2).sum()

  expected = jax.grad(unrolled)(kernel)
  for function in (unrolled, scanned, remat):
    assert_close([jax.jit(jax.grad(function))(kernel)], [expected])


@pytest.mark.parametrize("chosen", ["auto", "xla", "blocks"])
def test_sharded_batch_over_two_devices(chosen):
  out = run_python(
    """
    import jax, numpy as np
    from jax import numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jaxr18.nn import conv_forms, onednn
    from jaxr18.nn.conv import conv
    mesh = jax.make_mesh((2,), ('batch',), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 6, 6, 4)), jnp.float32)
    k = jnp.asarray(rng.standard_normal((3, 3, 2, 6)), jnp.float32)
    def loss(x, k, path=None):
      return (conv(x, k, stride=2, groups=2, path=path) ** 2).mean()
    def mapped(x, k):
      return jax.lax.pmean(loss(x, k), 'batch')
    expected = jax.grad(loss, (0, 1))(x, k, 'xla')
    x = jax.device_put(x, NamedSharding(mesh, P('batch')))
    k = jax.device_put(k, NamedSharding(mesh, P()))
    shard = jax.shard_map(
      mapped, mesh=mesh, in_specs=(P('batch'), P()), out_specs=P())
    functions = [loss, shard]
    if onednn.ready():
      functions.append(lambda x, k: loss(x, k, 'onednn'))
    for f in functions:
      got = jax.jit(jax.grad(f, (0, 1)))(x, k)
      for a, b in zip(got, expected):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
    text = jax.jit(jax.grad(loss)).lower(x, k).as_text()
    print('custom_call @jaxr18' in text)
    """,
    XLA_FLAGS="--xla_force_host_platform_device_count=2",
    JAXR18_CONV=chosen,
  )
  assert out.split()[-1] == "False"  # what XLA partitions has no custom call


@pytest.mark.slow
def test_same_bits_in_every_process_and_run():
  code = """
    import hashlib, jax, numpy as np
    from jax import numpy as jnp
    from jaxr18.nn.conv import conv
    rng = np.random.default_rng(0)
    def normal(*shape):
      return jnp.asarray(rng.standard_normal(shape), jnp.float32)
    x = normal(64, 16, 16, 16)
    kernels = [normal(3, 3, 16, 16), normal(3, 3, 4, 16), normal(3, 3, 1, 16)]
    @jax.jit
    def step(kernels):
      def loss(kernels):
        y = x
        for k in kernels:  # dense, four groups, depthwise
          y = jnp.tanh(conv(y, k, groups=16 // k.shape[2]))
        return (y ** 2).mean()
      grads = jax.grad(loss)(kernels)
      return [k - 10 * g for k, g in zip(kernels, grads)]
    digests = set()
    for _ in range(3):
      ks = kernels
      for _ in range(5):
        ks = step(ks)
      data = b''.join(np.asarray(k).tobytes() for k in ks)
      digests.add(hashlib.sha256(data).hexdigest())
    print(*digests)
    """
  first, second = run_python(code), run_python(code)
  assert first == second and len(first.split()) == 1


@pytest.mark.skipif(not onednn.ready(), reason=f"{onednn.reason()}")
def test_no_convolution_of_the_networks_takes_the_reference():
  # Hundreds of times slower than any other of oneDNN's kernels.
  done = run_python(
    """
    import jax
    from jax import numpy as jnp
    from jaxr18.nn.conv import conv
    x = jnp.ones((2, 8, 8, 32))
    for kernel, features, stride, groups in (
      (3, 32, 1, 1), (3, 64, 2, 1), (1, 64, 2, 1), (3, 32, 1, 2), (3, 64, 2, 2),
      (3, 32, 1, 8), (3, 64, 2, 8), (3, 32, 1, 32), (3, 32, 2, 32),
    ):
      k = jnp.ones((kernel, kernel, 32 // groups, features))
      how = dict(stride=stride, padding=kernel // 2, groups=groups)
      loss = lambda x, k: (conv(x, k, **how) ** 2).sum()
      jax.jit(jax.grad(loss, (0, 1)))(x, k)
    """,
    ONEDNN_VERBOSE="1",
  )
  ran = re.findall(
    r"exec,cpu,convolution,([^,]+),(forward|backward)\w*,.*g?\w*mb2_ic(?:32|64)",
    done,
  )
  assert {direction for _, direction in ran} == {"forward", "backward"}
  assert len(ran) >= 27
  slow = {name for name, _ in ran if name.startswith("ref")}
  assert not slow, slow


@pytest.mark.skipif(not onednn.ready(), reason=f"{onednn.reason()}")
@pytest.mark.parametrize(
  "avx512, groups, name",
  [
    (False, 1, "conv"),
    (False, 2, "conv_grad_input"),
    (False, 8, "conv_grad_input"),  # as 2 groups
    (True, 1, "conv_grad_input"),
    (True, 2, "conv"),
    (True, 8, "conv_grad_input"),  # as 1 group
  ],
)
def test_the_forward_of_either_instruction_set(
  monkeypatch, avx512, groups, name
):
  monkeypatch.setattr(onednn, "_avx512", lambda: avx512)
  (x, kernel, dy), how = operands((16, 16, groups, 3, 1, 1, 6))
  names = []
  call = onednn.call
  monkeypatch.setattr(
    onednn,
    "call",
    lambda name, *a, **b: names.append(name) or call(name, *a, **b),
  )
  forward = lambda x, kernel: onednn.run("conv", dy, x, kernel, **how)
  expected = reference(x, kernel, **how)
  assert_close([jax.jit(forward)(x, kernel)], [expected])
  assert names == [name]

  members = jnp.stack([kernel, 2 * kernel])
  result = jax.ShapeDtypeStruct((2, *dy.shape), dy.dtype)
  forward = lambda x, kernel: onednn.run("conv", result, x, kernel, **how)
  got = jax.jit(forward)(jnp.stack([x, x]), members)
  assert_close(got, [expected, 2 * expected])


def test_narrow_strided_projections_are_right_every_time():
  # oneDNN's own kernel gradient is wrong in 1 of 3 calls with AVX2.
  (x, kernel, dy), how = operands((4, 12, 1, 1, 2, 0, 8), batch=16)
  gradient = lambda f: jax.vjp(lambda k: f(x, k, **how), kernel)[1](dy)[0]
  ours = jax.jit(lambda: gradient(conv))
  expected = jax.device_get(gradient(reference))
  for _ in range(50):
    np.testing.assert_allclose(ours(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "groups, by, inputs, features", [(8, 4, 4, 4), (8, 8, 2, 4), (3, 3, 5, 1)]
)
def test_unmerge_is_the_transpose_of_merge(groups, by, inputs, features):
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((3, 3, inputs, groups * features))
  merged = conv_forms.merge(kernel.astype(np.float32), groups, by)
  other = rng.standard_normal(merged.shape).astype(np.float32)
  np.testing.assert_array_equal(
    conv_forms.unmerge(merged, groups, by), kernel.astype(np.float32)
  )
  # <merge k, m> = <k, unmerge m>
  np.testing.assert_allclose(
    np.vdot(merged, other),
    np.vdot(kernel, conv_forms.unmerge(other, groups, by)),
    rtol=1e-4,
  )


def test_calls_from_many_threads():
  arrays, how = operands((16, 16, 1, 3, 1, 1, 16), batch=8)
  function = functools.partial(conv, **how)

  @jax.jit
  def run(x, kernel):  # eight independent convolutions and their gradients
    grad = jax.grad(lambda x, k: (function(x, k) ** 2).sum(), (0, 1))
    return [grad(x, kernel * i) for i in range(1, 9)]

  expected = jax.device_get(run(*arrays[:2]))
  results = []
  threads = [
    threading.Thread(
      target=lambda: results.append(jax.device_get(run(*arrays[:2])))
    )
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 4
  for result in results:
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_without_a_compiler_xla_serves(tmp_path):
  out = run_python(
    """
    import os, pathlib
    from absl import logging
    logging.set_verbosity('info')
    logging.set_stderrthreshold('fatal')
    import jaxr18, jax
    from jax import numpy as jnp
    from jaxr18.nn import conv, onednn
    cache = pathlib.Path(os.environ['XDG_CACHE_HOME'])
    assert not list(cache.iterdir())  # an import builds nothing
    y = conv.conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)))
    print(float(y[0, 1, 1, 0]), onednn.ready(), onednn.reason())
    """,
    XDG_CACHE_HOME=str(tmp_path),
    CXX="/bin/false",
    JAXR18_CONV="",
  )
  assert out.startswith("18.0 False ")


def test_the_environment_forces_a_path(monkeypatch):
  (x, kernel, _), how = operands(CASES[4])

  def path_of():
    jaxpr = jax.make_jaxpr(lambda x: conv(x, kernel, **how))(x)
    return next(
      eqn.params["path"] for eqn in jaxpr.eqns if eqn.primitive is conv_p
    )

  monkeypatch.delenv("JAXR18_CONV", raising=False)
  assert path_of() == "auto"
  monkeypatch.setenv("JAXR18_CONV", "blocks")
  assert path_of() == "blocks"
  monkeypatch.setenv("JAXR18_CONV", "fast")
  with pytest.raises(ValueError, match="'fast'.*must be one of"):
    path_of()


def test_wrong_operands_are_named():
  x, kernel = jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 2, 6))
  with pytest.raises(ValueError, match=r"in_features \(=6\).*groups \(=2\)"):
    conv(x, kernel, groups=2)
  with pytest.raises(ValueError, match="takes images"):
    conv(x[0], kernel, groups=3)
  with pytest.raises(ValueError, match="does not fit"):
    conv(x[:, :2, :2], kernel, groups=3, padding=0)
  with pytest.raises(TypeError, match="got float32 and bfloat16"):
    conv(x, kernel.astype(jnp.bfloat16), groups=3)
  with pytest.raises(ValueError, match="'shifted' is for depthwise"):
    conv(x, kernel, groups=3, path="shifted")
  half = x.astype(jnp.float16), kernel.astype(jnp.float16)
  with pytest.raises(ValueError, match="'onednn' cannot be had: it computes"):
    conv(*half, groups=3, path="onednn")


# In bfloat16 with a kernel in float32. Sums of exact products are rounded once.


def bfloat16_gradients(case, batch, path):
  arrays, how = operands(case, batch, jnp.bfloat16)
  x, kernel, dy = arrays[0], arrays[1].astype(np.float32), arrays[2]
  got = with_gradients(functools.partial(conv, path=path, **how))(x, kernel, dy)
  exact = [x.astype(np.float32) for x in arrays]
  want = with_gradients(functools.partial(reference, **how))(*exact)
  return got, want


@pytest.mark.skipif(
  bool(onednn.bfloat16_reason()), reason=f"{onednn.bfloat16_reason()}"
)
@pytest.mark.parametrize("batch", [3, 32])  # 32: images side by side
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16_with_a_kernel_in_float32(case, batch):
  got, want = bfloat16_gradients(case, batch, "onednn")
  assert [x.dtype for x in got] == ["bfloat16", "bfloat16", "float32"]
  rounded = [x.astype(np.float32) for x in got]
  assert_close(rounded[:2], want[:2], 2**-8)
  assert_close(rounded[2:], want[2:], 1e-5)


def test_bfloat16_by_xla_has_a_gradient_in_float32():
  got, want = bfloat16_gradients(CASES[1], 3, "xla")
  assert [x.dtype for x in got] == ["bfloat16", "bfloat16", "float32"]
  assert_close([x.astype(np.float32) for x in got], want, 2**-7)


@pytest.mark.skipif(
  bool(onednn.bfloat16_reason()), reason=f"{onednn.bfloat16_reason()}"
)
@pytest.mark.parametrize("members", [2, 3])
def test_bfloat16_members_and_second_gradients(members):
  (x, kernel, dy), how = operands(CASES[1], 16, jnp.bfloat16)
  kernel = kernel.astype(np.float32)
  kernels = jnp.stack([kernel * i for i in range(1, members + 1)])

  def loss(x, kernel):
    gradient = jax.vjp(lambda k: conv(x, k, **how), kernel)[1](dy)[0]
    return (gradient**2).sum()

  of_both = jax.jit(jax.grad(loss, (0, 1)))
  dx, dk = jax.vmap(of_both, (None, 0))(x, kernels)
  assert (dx.dtype, dk.dtype) == ("bfloat16", "float32")
  for i in range(members):
    assert_close([dx[i], dk[i]], of_both(x, kernels[i]), 2**-7)


def test_without_the_instructions_bfloat16_says_so():
  out = run_python(
    """
    import jax
    from jax import numpy as jnp
    from jaxr18.nn import conv, onednn
    half = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    y = conv.conv(half, jnp.ones((3, 3, 2, 2)))  # by XLA
    print(y.dtype, float(y[0, 1, 1, 0]), onednn.reason())
    print(onednn.bfloat16_reason())
    """,
    ONEDNN_MAX_CPU_ISA="AVX2",
  )
  first, reason = out.splitlines()
  assert first.startswith("bfloat16 18.0")
  if not onednn.reason():
    assert first.endswith("None")
    assert reason == "the processor has neither AMX nor AVX512_BF16"


def test_training_in_bfloat16_where_it_is_fast():
  half, whole = jnp.dtype("bfloat16"), jnp.dtype("float32")
  reason = onednn.bfloat16_reason()
  assert training_type("bfloat16", 1) == (
    (half, None) if reason is None else (whole, reason)
  )
  assert training_type("bfloat16", 2) == (
    whole,
    "a batch is split over 2 devices, where it was not tried",
  )
  assert training_type("float32", 2) == (whole, None)


@pytest.mark.skipif(not onednn.ready(), reason=f"{onednn.reason()}")
def test_what_is_kept_is_checked_and_built_again(tmp_path, monkeypatch, capfd):
  # A compiler that gives the binding in use, since the true one takes a minute.
  compiler = tmp_path / "c++"
  compiler.write_text(
    f'#!/bin/sh\nfor made; do :; done\ncp "{onednn._build()}" "$made"\n'
  )
  compiler.chmod(0o755)
  monkeypatch.setenv("CXX", str(compiler))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = tmp_path / "jaxr18"
  target = onednn._build()
  assert target.parent == folder and "Built" in capfd.readouterr().err
  whole = target.read_bytes()

  def built_again():
    assert onednn._build() == target
    return "Built" in capfd.readouterr().err

  assert not built_again()
  target.write_bytes(whole[:-4096])  # loading it ends the process
  assert built_again() and len(target.read_bytes()) == len(whole)
  target.write_bytes(whole[:-1] + b"\x01")
  assert built_again()
  target.chmod(0o666)
  assert built_again() and target.stat().st_mode & 0o022 == 0
  target.with_suffix(".sha256").unlink()
  assert built_again()
  target.rename(tmp_path / "elsewhere")
  target.symlink_to(tmp_path / "elsewhere")
  assert built_again() and not target.is_symlink()
  folder.chmod(0o777)
  assert not built_again() and folder.stat().st_mode & 0o777 == 0o755


def test_a_cache_of_another_user_is_not_trusted(tmp_path, monkeypatch):
  monkeypatch.setattr(onednn.os, "getuid", lambda: tmp_path.stat().st_uid + 1)
  with pytest.raises(onednn.Unavailable, match="set XDG_CACHE_HOME"):
    onednn._own_folder(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
  bool(onednn.bfloat16_reason()), reason=f"{onednn.bfloat16_reason()}"
)
def test_bfloat16_sums_do_not_depend_on_threads():
  code = """
    import hashlib, jax, numpy as np
    from jax import numpy as jnp
    from jaxr18.nn.conv import conv
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for size, features in ((16, 12), (8, 24), (4, 64)):
      shape = (32, size, size, features)
      x = jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
      k = jnp.asarray(rng.standard_normal((3, 3, features, features)))
      loss = lambda x, k: (conv(x, k).astype(jnp.float32) ** 2).sum()
      for g in jax.jit(jax.grad(loss, (0, 1)))(x, k.astype(jnp.float32)):
        digest.update(np.asarray(g).tobytes())
    print(digest.hexdigest())
    """
  one, two = (run_python(code, OMP_NUM_THREADS=n) for n in "12")
  assert one == two


@pytest.mark.skipif(
  bool(onednn.bfloat16_reason()), reason=f"{onednn.bfloat16_reason()}"
)
def test_no_bfloat16_convolution_of_the_networks_is_slow():
  # What was 5 to 40 times slower: groups of 8, depthwise with a stride.
  done = run_python(
    """
    import jax
    from jax import numpy as jnp
    from jaxr18.nn.conv import conv
    x = jnp.ones((2, 8, 8, 32), jnp.bfloat16)
    for kernel, features, stride, groups in (
      (3, 32, 1, 1), (3, 64, 2, 1), (1, 64, 2, 1), (3, 32, 1, 4), (3, 64, 2, 4),
      (3, 32, 1, 32), (3, 32, 2, 32),
    ):
      k = jnp.ones((kernel, kernel, 32 // groups, features))
      how = dict(stride=stride, padding=kernel // 2, groups=groups)
      loss = lambda x, k: (conv(x, k, **how).astype(jnp.float32) ** 2).sum()
      jax.jit(jax.grad(loss, (0, 1)))(x, k)
    """,
    ONEDNN_VERBOSE="1",
  )
  ran = re.findall(r"exec,cpu,convolution,([^,]+),(\w+),(.*_ic32.*),", done)
  assert len(ran) >= 21
  amx = any("amx" in name for name, _, _ in ran)
  slow = ("ref", "jit_bf16:") if amx else "ref"
  for name, direction, what in ran:
    assert not name.startswith(slow), (name, direction, what)
    if re.search(r"\bg32.*sh2", what) and direction == "backward_data":
      assert name.startswith("jit_dw"), (name, what)
