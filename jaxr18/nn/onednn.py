"""Binds oneDNN's convolutions to XLA on the CPU, if this machine can.

The library comes from PyPI (`pip install jaxr18[cpu]`), the binding is three
C++ files, compiled once with the system's compiler into the user's cache. The
second, passes.cc, has loops of our own (nn/passes.py), the third, int8.cc,
convolutions of integer codes (nn/int8.py).
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading

import jax
import numpy as np
from absl import logging
from jax import lax

from jaxr18.host import cache
from jaxr18.nn import conv_forms

LIBRARY = "onednn-cpu-gomp"
_HEADERS = "onednn-devel-cpu-gomp"
_SOURCES = [
  pathlib.Path(__file__).with_name(name)
  for name in ("onednn.cc", "passes.cc", "int8.cc")
]
_SHARED = pathlib.Path(__file__).with_name("common.h")  # of the last two
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-w")

# The operation's name here -> the symbol in the sources.
_SYMBOLS = {
  "conv": "Conv",
  "conv_grad_input": "ConvGradInput",
  "conv_grad_kernel": "ConvGradKernel",
}
_PASSES = {
  "add_gradients": "AddGradients",
  "batch_norm": "BatchNorm",
  "batch_norm_add": "BatchNormAdd",
  "batch_norm_grad": "BatchNormGrad",
  "batch_norm_add_grad": "BatchNormAddGrad",
  "batch_norm_moments": "BatchNormMoments",
  "batch_norm_apply": "BatchNormApply",
  "batch_norm_apply_add": "BatchNormApplyAdd",
  "batch_norm_sums": "BatchNormSums",
  "batch_norm_sums_add": "BatchNormSumsAdd",
  "batch_norm_input": "BatchNormInput",
  "quantize": "Quantize",
  "quantize_grad": "QuantizeGrad",
}
_INT8 = {
  "int8_conv": "Int8Conv",
  "int8_layer": "Int8Layer",
  "int8_float": "Int8Float",
}


class Unavailable(Exception):
  """The reason why oneDNN cannot be used here."""


def call(
  name: str,
  result: jax.ShapeDtypeStruct,
  a: jax.Array,
  b: jax.Array,
  *,
  stride: int,
  padding: int,
  groups: int,
) -> jax.Array:
  """Runs one operation of oneDNN; call it only where `ready()` is true.

  Args:
    name: 'conv' of images and kernel, 'conv_grad_input' of the output's
      gradient and the kernel, or 'conv_grad_kernel' of images and the output's
      gradient; images as NHWC, kernels as HWIO. Images are float32, or bfloat16
      where `bfloat16_reason()` is None; a kernel is of their type or float32.
      An operand may have a leading axis of members, and then the result has it.
    result: the result's shape and type.
    a: the first operand.
    b: the second operand.
    stride: pixels between two outputs.
    padding: zeros added on each of the four sides.
    groups: how many blocks the channels are split into.

  Returns:
    The result.
  """
  result = jax.ShapeDtypeStruct(result.shape, result.dtype)
  run = jax.ffi.ffi_call(f"jaxr18_{name}", result, vmap_method="sequential")
  return run(
    a,
    b,
    stride=np.int64(stride),
    padding=np.int64(padding),
    groups=np.int64(groups),
  )


def run(
  name: str,
  result: jax.ShapeDtypeStruct,
  a: jax.Array,
  b: jax.Array,
  *,
  stride: int,
  padding: int,
  groups: int,
) -> jax.Array:
  """Computes a convolution or gradient by oneDNN's fastest operation for it.

  Milliseconds with AVX-512 on a core at batch 64 and 32x32, 16 to 16 channels:
  in 8 groups 5.9 forward and backward, and 4.5 as one group; forward 1.8, and
  1.4 as the input gradient of the convolution with the flipped kernel. With
  AVX2 on two cores at batch 128: in 8 groups 16.9, as two groups 9.0, as one
  11.7; forward 4.1 as two groups, and 3.1 as the input gradient. 64 to 64
  channels in 8 groups: forward 38.4, and 28.9 as the input gradient.

  Args:
    name: 'conv', 'conv_grad_input' or 'conv_grad_kernel'.
    result: shape and type of what is computed.
    a, b: the operation's inputs, as `call` takes them.
    stride, padding: of the forward convolution, in pixels.
    groups: of channels.
  """
  shape = result.shape
  if name == "conv_grad_kernel" and shape[-4:-2] == (1, 1) and padding == 0:
    # Pixels between the strides do not matter, and oneDNN 3.2 with AVX2 gives
    # wrong sums now and then: 4 to 12 channels, stride 2, off by a third.
    a, stride = a[..., ::stride, ::stride, :], 1
  kernel_shape = shape if name == "conv_grad_kernel" else b.shape
  wide = a.dtype == np.float32
  by = _groups_in_one(kernel_shape[-4:], groups, wide)
  options = dict(stride=stride, padding=padding, groups=groups // by)
  if by > 1:
    merge = functools.partial(conv_forms.merge, groups=groups, by=by)
    unmerge = functools.partial(conv_forms.unmerge, groups=groups, by=by)
    if len(kernel_shape) == 5:
      merge, unmerge = jax.vmap(merge), jax.vmap(unmerge)
    if name == "conv_grad_kernel":
      return unmerge(call(name, jax.eval_shape(merge, result), a, b, **options))
    b = merge(b)
  if name == "conv" and wide and _as_grad_input(b.shape[-4:], options):
    name, options["padding"] = "conv_grad_input", b.shape[-4] - 1 - padding
    b = _flip(b, options["groups"])
  depthwise = b.shape[-2] == 1 < options["groups"] == b.shape[-1]
  if name == "conv_grad_input" and not wide and depthwise:
    # 32 channels at 32x32 in bfloat16 take 2.9 ms so, and 1.9 as a forward.
    if options["stride"] == 1 and padding < b.shape[-4] == b.shape[-3]:
      name, options["padding"] = "conv", b.shape[-4] - 1 - padding
      b = _flip(b, options["groups"])
  return call(name, result, a, b, **options)


def _as_grad_input(kernel_shape, options) -> bool:
  """Whether a forward is faster as the input gradient of the flipped kernel.

  With AVX2 in groups of 8 channels it takes 0.75 to 0.95 of the time, in groups
  of 16 from 0.88 to 1.03, in groups of 32 and ungrouped the same.
  """
  height, width, inputs, features = kernel_shape
  features //= options["groups"]
  if not (options["padding"] < height == width > 1 and options["stride"] == 1):
    return False
  if _avx512():
    return options["groups"] == 1 and inputs > 4 and features <= 16
  return options["groups"] > 1 and {inputs, features} <= set(range(8, 17))


def _flip(kernel, groups):
  """Turned by 180 degrees, input and output channels of a group swapped."""
  *lead, inputs, features = kernel.shape
  kernel = lax.rev(kernel, (kernel.ndim - 4, kernel.ndim - 3))
  kernel = kernel.reshape(*lead, inputs, groups, features // groups)
  return kernel.swapaxes(-3, -1).reshape(*lead, -1, groups * inputs)


def _groups_in_one(kernel_shape, groups, wide: bool) -> int:
  """How many groups to merge where they have 2 to 4 channels.

  Up to 16 channels with AVX-512; with AVX2 up to 8 of the fewer ones, since
  below that there is no kernel with registers full. In bfloat16 (not `wide`)
  groups of 8 too: with AMX 16 channels at 32x32 in 2 groups take 5.8 ms, and
  0.9 as one.
  """
  by, inputs, features = 1, kernel_shape[2], kernel_shape[3] // groups
  if not 1 < inputs <= (4 if wide else 8):
    return 1
  size = max(inputs, features) if _avx512() else min(inputs, features)
  limit = 16 if _avx512() else 8
  while groups % (2 * by) == 0 and 2 * by * size <= limit:
    by *= 2
  return by


@functools.cache
def _avx512() -> bool:
  """Whether oneDNN computes with AVX-512 here; call it where `ready()`."""
  return bool(_library().Avx512())


# What dnnl_get_effective_cpu_isa says, as oneDNN's dnnl_types.h names it.
_ISA = {
  0x7: "avx2",
  0xF: "avx2_vnni",
  0x1F: "avx2_vnni_2",
  0x27: "avx512_core",
  0x67: "avx512_core_vnni",
  0xE7: "avx512_core_bf16",
  0x1EF: "avx512_core_fp16",
  0xFEF: "avx512_core_amx",
  0x1FEF: "avx512_core_amx_fp16",
}


def isa() -> str:
  """Names the instruction set that oneDNN uses here, where `ready()`."""
  isa = _library().dnnl_get_effective_cpu_isa()
  return _ISA.get(isa, hex(isa))


def threads() -> int:
  """Counts the threads that oneDNN uses here, where `ready()`."""
  return _library().omp_get_max_threads()


def ready() -> bool:
  """Returns whether oneDNN serves here; the first call builds and checks it."""
  return reason() is None


def reason() -> str | None:
  """Says why oneDNN does not serve here; None where it does."""
  with _LOCK:
    return _reasons()[0]


def bfloat16_reason() -> str | None:
  """Says why oneDNN does not serve for bfloat16 here; None where it does."""
  with _LOCK:
    return _reasons()[1]


def int8_exact(signed: bool, inputs: int, weights: int) -> bool:
  """Returns whether int8 convolutions are exact here, where `ready()`.

  Without the dot product of 8 bits (VNNI) two products are added in 16 bits,
  and oneDNN halves the weights where inputs have a sign.

  Args:
    signed: whether inputs are int8; otherwise they are uint8.
    inputs, weights: the largest size of a code of each.
  """
  pairs = not signed and 2 * inputs * weights < 2**15
  with _LOCK:
    if _library().dnnl_get_effective_cpu_isa() & _VNNI:
      return _int8_reason(True) is None
    return pairs and _int8_reason(False) is None


_VNNI = 0x8 | 0x40  # with AVX2 and with AVX-512, in `_ISA`
_LOCK = threading.Lock()


@functools.cache
def _reasons() -> tuple[str | None, str | None]:
  """Why oneDNN does not serve for float32, and for bfloat16."""
  try:
    library = _library()
    for name, symbol in (_SYMBOLS | _PASSES | _INT8).items():
      jax.ffi.register_ffi_target(
        f"jaxr18_{name}",
        jax.ffi.pycapsule(getattr(library, symbol)),
        platform="cpu",
      )
    slow = None
    if not library.Bfloat16():
      slow = "the processor has neither AMX nor AVX512_BF16"
    _check(_compare_passes)
    _check(_compare, np.float32)
  except (Unavailable, OSError) as error:
    logging.info("Convolutions run on XLA and not on oneDNN: %s", error)
    return str(error), str(error)
  try:
    slow or _check(_compare, jax.numpy.bfloat16)
  except Unavailable as error:
    slow = str(error)
  return None, slow


@functools.cache
def _int8_reason(whole: bool) -> str | None:
  """Says why int8 convolutions do not serve; None where they do.

  Args:
    whole: of all codes; otherwise of inputs up to 255 and weights up to 64.
  """
  try:
    _check(_compare_int8, whole)
  except Unavailable as error:
    logging.info("oneDNN's int8 convolutions are not used: %s", error)
    return str(error)
  return None


@functools.cache
def _library() -> ctypes.CDLL:
  # GNU OpenMP reads it when it is loaded. Its threads spin for milliseconds
  # after a convolution, on a core that XLA's elementwise work waits for: at
  # width 64 on two cores evaluation 364 -> 395 images/s, training 113 -> 117.
  os.environ.setdefault("GOMP_SPINCOUNT", "1000")
  return ctypes.cdll.LoadLibrary(str(_build()))


def _file(package: str, name: str) -> pathlib.Path:
  """The path of an installed package's file."""
  try:
    files = importlib.metadata.files(package) or ()
  except importlib.metadata.PackageNotFoundError:
    raise Unavailable(
      f'{package} is not installed; pip install "jaxr18[cpu]"'
    ) from None
  for file in files:
    if file.match(name):
      path = pathlib.Path(file.locate()).resolve()
      if path.exists():
        return path
  raise Unavailable(f"{package} has no {name}")


def _build() -> pathlib.Path:
  """Compiles the binding, unless the user's cache has it; returns its path."""
  machine = (platform.system(), platform.machine())
  if machine != ("Linux", "x86_64"):
    raise Unavailable(f"it needs Linux on x86_64, and this is {machine}")
  library = _file(LIBRARY, "libdnnl.so.3")
  header = _file(_HEADERS, "oneapi/dnnl/dnnl.hpp")
  versions = [
    f"{package} {importlib.metadata.version(package)}"
    for package in ("jaxlib", LIBRARY, _HEADERS)
  ]
  sources = [source.read_text() for source in (*_SOURCES, _SHARED)]
  text = "\n".join([*sources, str(library), *_FLAGS, *versions, instructions()])
  digest = hashlib.sha256(text.encode()).hexdigest()[:16]
  target = _own_folder(cache.folder()) / f"onednn-{digest}.so"
  if not _intact(target):
    _compile(target, library, header.parents[2])
  return target


def instructions() -> str:
  """Lists the processor's instruction sets, which -march=native uses."""
  try:
    with open("/proc/cpuinfo") as f:
      return next((line for line in f if line.startswith("flags")), "")
  except OSError:
    return ""


def _own_folder(folder: pathlib.Path) -> pathlib.Path:
  """A folder that only this user may write; code is loaded from it."""
  folder.mkdir(parents=True, exist_ok=True)
  status = folder.stat()
  if status.st_uid != os.getuid():
    raise Unavailable(
      f"{folder} belongs to the user {status.st_uid}, who could change the code"
      " that is kept there; set XDG_CACHE_HOME to a folder of your own"
    )
  if status.st_mode & 0o022:
    folder.chmod(status.st_mode & 0o7755)
  return folder


def _intact(target: pathlib.Path) -> bool:
  """Whether the kept binding is what was built, and nobody else may change it.

  A file that was cut off would end the process as soon as it is used.
  """
  seal = target.with_suffix(".sha256")
  for file in (target, seal):
    try:
      status = file.lstat()
    except OSError:
      return False
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
      return False
    if status.st_mode & 0o022:
      return False
  return seal.read_text() == hashlib.sha256(target.read_bytes()).hexdigest()


def _compile(target: pathlib.Path, library: pathlib.Path, include):
  compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
  if not compiler:
    raise Unavailable("there is no C++ compiler; install g++ or set CXX")
  print("Building the fast convolutions for this processor, once: some 20 s",
        file=sys.stderr, flush=True)  # fmt: skip
  with tempfile.TemporaryDirectory(dir=target.parent) as name:
    folder = pathlib.Path(name)
    objects = [folder / f"{source.stem}.o" for source in _SOURCES]
    common = [*_FLAGS, f"-I{jax.ffi.include_dir()}", f"-I{include}"]
    _run(
      [
        [compiler, *common, "-c", str(source), "-o", str(made)]
        for source, made in zip(_SOURCES, objects, strict=True)
      ]
    )
    built, seal = folder / target.name, folder / "seal"
    link = [*map(str, objects), str(library), f"-Wl,-rpath,{library.parent}"]
    _run([[compiler, "-shared", *_FLAGS, *link, "-o", str(built)]])
    seal.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
    for file in (built, seal):
      file.chmod(0o644)
    # Each whole or not at all, whoever else builds it; the binding last, since
    # a process may have the earlier one open.
    os.replace(seal, target.with_suffix(".sha256"))
    os.replace(built, target)
  print(f"Built {target} (oneDNN for convolutions on the CPU)", file=sys.stderr)


def _run(commands: list[list[str]]):
  """Runs commands of the compiler side by side."""
  running = [
    subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for command in commands
  ]
  errors = [process.communicate()[1] for process in running]
  for command, process, error in zip(commands, running, errors, strict=True):
    if process.returncode:
      lines = error.strip().splitlines() or ["no message"]
      raise Unavailable(f"{command[0]} could not build the binding: {lines[0]}")


def _check(compare, *args):
  """Raises Unavailable if a comparison does, or if it fails otherwise."""
  # In a thread of its own: the caller may be in the middle of a trace.
  failed = []

  def target():
    try:
      compare(*args)
    except Exception as error:  # whatever is wrong, XLA serves
      failed.append(error)

  thread = threading.Thread(target=target)
  thread.start()
  thread.join()
  if failed:
    raise Unavailable(f"its self-check failed: {failed[0]}")


# in_features, features, groups, kernel, stride, padding
_CASES = (
  (3, 16, 1, 3, 1, 1),
  (16, 32, 1, 3, 2, 1),
  (16, 32, 1, 1, 2, 0),
  (32, 32, 2, 3, 1, 1),
  (16, 16, 8, 3, 2, 1),
  (16, 16, 16, 3, 1, 1),
)


def _compare_passes():
  """Compares batch norm and the quantizer with NumPy's on a small shape."""
  x = np.random.default_rng(0).standard_normal((1, 70, 12)).astype(np.float32)
  step = np.full(1, 0.3, np.float32)

  @jax.jit
  def run(x):
    of = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    normalized = jax.ffi.ffi_call(
      "jaxr18_batch_norm", [of(*x.shape), of(1, 12), of(1, 12)]
    )(
      x,
      np.ones((1, 12), np.float32),
      np.zeros((1, 12), np.float32),
      relu=np.bool_(False),
      epsilon=np.float32(1e-5),
    )
    (grid,) = jax.ffi.ffi_call("jaxr18_quantize", [of(1, x.size)])(
      x.reshape(1, -1), step, low=np.float32(-3), high=np.float32(3)
    )
    return normalized[0], grid.reshape(x.shape)

  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    results = jax.device_get(run(x))
  expected = (
    (x - x.mean(1)) / np.sqrt(x.var(1) + 1e-5),
    np.clip(np.round(x * (1 / step)), -3, 3) * step,
  )
  for name, got, want in zip(
    ("batch_norm", "quantize"), results, expected, strict=True
  ):
    if not np.allclose(got, want, rtol=0, atol=1e-5):
      raise Unavailable(f"{name} is off by {np.abs(got - want).max():.1e}")


def _compare_int8(whole: bool):
  """Compares convolutions of the largest codes with sums in 64 bits."""
  rng = np.random.default_rng(0)
  cases, arrays, expected = [], [], []
  for case in _CASES:
    in_features, features, groups, kernel, stride, padding = case
    k_shape = (kernel, kernel, in_features // groups, features)
    k = rng.choice([-128, 127] if whole else [-64, 64], k_shape)
    for ends in [(0, 255), (-128 * whole, 127)]:
      x = rng.choice(ends, (2, 8, 8, in_features))
      dtype = np.int8 if ends[0] else np.uint8
      cases.append(np.array([stride, padding, groups]))
      arrays.append((x.astype(dtype), k.astype(np.int8)))
      expected.append(_int_sums(x, k, groups, stride, padding))

  @jax.jit
  def run(arrays):
    results = [jax.ShapeDtypeStruct(y.shape, np.int32) for y in expected]
    return [
      jax.ffi.ffi_call("jaxr18_int8_conv", y)(x, k, how=how)
      for how, (x, k), y in zip(cases, arrays, results, strict=True)
    ]

  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    results = jax.device_get(run(arrays))
    for i, (got, want) in enumerate(zip(results, expected, strict=True)):
      if not np.array_equal(got, want):
        raise Unavailable(f"int8_conv of {_CASES[i // 2]} is not exact")
    _compare_layer(arrays[0], expected[0])


def _compare_layer(arrays, sums):
  """Compares a rescaled convolution with the same of sums in 64 bits."""
  n = sums.shape[-1]
  multiplier = (np.arange(n) - n // 2) * (2**31 // n)
  offset, other = np.arange(n) << 54, np.full(sums.shape, 99, np.uint8)

  @jax.jit
  def run(*arrays):
    result = jax.ShapeDtypeStruct(sums.shape, np.int16)
    return jax.ffi.ffi_call("jaxr18_int8_layer", result)(
      *arrays,
      how=np.ones(3, np.int64),
      looks_up=False,
      adds=True,
      rules=np.array([0, 0, 0, 0, n, 40, -900, 900, 0, 0, 0, 0]),
    )

  with jax.enable_x64(True):
    got = run(*arrays, other, other[:0], multiplier.astype(np.int32), offset)
  want = np.clip((sums * multiplier + offset) >> 40, -900, 900)
  if not np.array_equal(got, np.maximum(want + 99, 0)):
    raise Unavailable("int8_layer is not exact")


def _int_sums(x, kernel, groups, stride, padding):
  """A convolution in int64, tap by tap."""
  pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  x, (height, width, inputs, features) = np.pad(x, pads), kernel.shape
  taps = []
  for i, j in np.ndindex(height, width):
    seen = x[:, i : x.shape[1] - height + i + 1 : stride]
    seen = seen[:, :, j : x.shape[2] - width + j + 1 : stride]
    seen = seen.reshape(*seen.shape[:3], groups, inputs)
    tap = kernel[i, j].reshape(inputs, groups, features // groups)
    taps.append(np.einsum("nhwgi,igo->nhwgo", seen, tap))
  return sum(taps[1:], taps[0]).reshape(*taps[0].shape[:3], features)


def _compare(dtype):
  """Compares each convolution with XLA's on small shapes."""
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.default_device(cpu):
    arrays, expected = _expected()

    @jax.jit
    def run(arrays):
      results = []
      for case, (x, kernel, dy) in zip(_CASES, arrays, strict=True):
        _, _, groups, _, stride, padding = case
        options = dict(stride=stride, padding=padding, groups=groups)
        x, dy = x.astype(dtype), dy.astype(dtype)
        got = (
          call("conv", dy, x, kernel, **options),
          call("conv_grad_input", x, dy, kernel, **options),
          call("conv_grad_kernel", kernel, x, dy, **options),
        )
        results.append([y.astype(np.float32) for y in got])
      return results

    results = jax.device_get(run(arrays))
  for case, *pair in zip(_CASES, results, expected, strict=True):
    for name, got, want in zip(_SYMBOLS, *pair, strict=True):
      error = np.abs(got - want).max() / np.abs(want).max()
      # bfloat16 keeps 8 bits of a result, and the products are exact.
      if not error < (1e-5 if dtype == np.float32 else 2**-8):
        raise Unavailable(
          f"{name} of {case} in {np.dtype(dtype)} is off by {error:.1e}"
        )


@functools.cache
def _expected():
  """Arrays that bfloat16 holds, and XLA's results in float32."""
  rng = np.random.default_rng(0)
  arrays = []
  for in_features, features, groups, kernel, stride, padding in _CASES:
    size = (8 + 2 * padding - kernel) // stride + 1
    shapes = (
      (2, 8, 8, in_features),
      (kernel, kernel, in_features // groups, features),
      (2, size, size, features),
    )
    half = [rng.standard_normal(s).astype(jax.numpy.bfloat16) for s in shapes]
    arrays.append([x.astype(np.float32) for x in half])

  @jax.jit
  def run(arrays):
    results = []
    for case, (x, kernel, dy) in zip(_CASES, arrays, strict=True):
      _, _, groups, _, stride, padding = case

      def conv(x, kernel, geometry=(groups, stride, padding)):
        groups, stride, padding = geometry
        return lax.conv_general_dilated(
          x,
          kernel,
          (stride,) * 2,
          [(padding,) * 2] * 2,
          dimension_numbers=("NHWC", "HWIO", "NHWC"),
          feature_group_count=groups,
        )

      y, grad = jax.vjp(conv, x, kernel)
      results.append((y, *grad(dy)))
    return results

  return arrays, jax.device_get(run(arrays))
