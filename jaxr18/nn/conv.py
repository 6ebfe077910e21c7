"""One two-dimensional convolution, by whatever path is fastest here.

The convolution and its two gradients are primitives of their own, each the
transpose of the others. A jaxpr therefore shows the mathematical operation, and
only its lowering decides how it is computed on the platform.
"""

import contextlib
import functools
import os
from collections.abc import Callable

import jax
from jax import lax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, PartitionSpec

from jaxr18.nn import conv_forms, onednn

PATHS = ("auto", "xla", "blocks", "shifted", "onednn")
BATCH_AXIS = "data"  # of a mesh over which batches are split

# More members become groups of XLA's convolution where oneDNN does not serve.
_MAX_UNROLLED = 16


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  padding: int = 1,
  groups: int = 1,
  path: str | None = None,
) -> jax.Array:
  """Convolves images with a kernel.

  Args:
    x: images, [batch, height, width, in_features].
    kernel: [kernel, kernel, in_features / groups, features], of the images'
      type, or float32 beside bfloat16: it is rounded as it is used, and its
      gradient is a sum in float32.
    stride: pixels between two outputs, the same along height and width.
    padding: zeros added on each of the four sides, in pixels.
    groups: how many blocks the channels are split into; `in_features` of them
      with one input channel each is a depthwise convolution.
    path: how to compute it and its gradients: 'xla' (XLA's own convolution),
      'blocks' (XLA's, dense, with a block-diagonal kernel), 'shifted' (a sum of
      shifted products; depthwise only), 'onednn' (on CPUs; bfloat16
      where the processor has AMX or AVX512_BF16) or 'auto', the fastest that
      can be had. By default the environment
      variable JAXR18_CONV, otherwise 'auto'.

  Returns:
    [batch, out_height, out_width, features], with
    `out = (size + 2 * padding - kernel) // stride + 1`.

  Raises:
    ValueError: if the shapes or the path do not fit.
    TypeError: if the two types do not go together.
  """
  path = path or os.environ.get("JAXR18_CONV") or "auto"
  if path not in PATHS:
    raise ValueError(f"`path` (={path!r}) must be one of {PATHS}.")
  if x.ndim != 4 or kernel.ndim != 4:
    raise ValueError(
      "conv takes images [batch, height, width, in_features] and a kernel "
      "[kernel, kernel, in_features / groups, features]; got the shapes "
      f"{x.shape} and {kernel.shape}."
    )
  params = dict(stride=stride, padding=padding, groups=groups, path=path)
  run = lambda *operands: conv_p.bind(*varying_alike(*operands), **params)
  if is_split(x.shape[0]):
    run = by_device(run, "bw", "b")
  return run(x, kernel)


def is_split(batch: int) -> bool:
  """Returns whether devices of `split_over`'s mesh can share such a batch."""
  mesh = jax.sharding.get_abstract_mesh()
  ours = mesh.axis_names == (BATCH_AXIS,) and mesh.are_all_axes_auto
  return ours and batch % mesh.size == 0


def by_device(run: Callable, operands: str, results: str) -> Callable:
  """Lets each device of `split_over`'s mesh run on its own part of a batch.

  XLA partitions no custom call, so without this it would compute itself.

  Args:
    run: a function of arrays, where `is_split` holds.
    operands: a letter each, 'b' where the first axis is the batch's, 'w' for
      what is whole on each device.
    results: the same of the results; one letter is a single array.
  """
  specs = {"b": PartitionSpec(BATCH_AXIS), "w": PartitionSpec()}
  out = [specs[letter] for letter in results]
  return jax.shard_map(
    run,
    in_specs=tuple(specs[letter] for letter in operands),
    out_specs=tuple(out) if len(out) > 1 else out[0],
  )


def split_over(mesh: Mesh) -> contextlib.AbstractContextManager:
  """Tells what is traced inside that batches are split over a mesh's devices.

  Args:
    mesh: of one axis, `BATCH_AXIS`. One device changes nothing, and neither do
      those that are no CPUs, since XLA's own operations serve there.
  """
  if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
    return contextlib.nullcontext()
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def varying_alike(*arrays: jax.Array) -> list[jax.Array]:
  """Makes all vary over the same axes of the mesh, inside shard_map."""
  axes = frozenset().union(*map(_varying, arrays))
  return [
    lax.pcast(x, tuple(axes - _varying(x)), to="varying")
    if axes != _varying(x)
    else x
    for x in arrays
  ]


def _varying(x) -> frozenset:
  """The axes of the mesh along which `x` differs, inside shard_map."""
  aval = jax.typeof(x)
  kind = getattr(aval, "manual_axis_type", aval)  # before jax 0.10: aval.vma
  return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


# The operations in JAX, each by a way to write the convolution. A kernel may be
# of a wider type than the images.

_FORMS = {
  "xla": conv_forms.xla,
  "blocks": conv_forms.blocks,
  "shifted": conv_forms.shifted,
}


def _conv(form, x, kernel, **options):
  return form(x, kernel.astype(x.dtype), **options)


def _conv_grad_input(form, dy, kernel, *, size, **options):
  shape = _conv_grad_input_shape(dy, kernel, size=size, **options)
  x = _like(dy, shape)
  kernel = kernel.astype(dy.dtype)
  return jax.linear_transpose(lambda x: form(x, kernel, **options), x)(dy)[0]


def _conv_grad_kernel(form, x, dy, *, size, dtype, **options):
  kernel = _like(x, _conv_grad_kernel_shape(x, dy, size=size, **options))
  transposed = jax.linear_transpose(lambda k: form(x, k, **options), kernel)
  return transposed(dy)[0].astype(dtype)


def _like(x, shape):
  """An operand of a shape, to transpose in; inside shard_map it varies as x.

  One that did not would be summed over the devices by its transpose.
  """
  return varying_alike(jnp.zeros(shape, x.dtype), x)[0]


# Abstract evaluation: the result's shape. `size` is its height and width, and
# `dtype` its type, where the operands do not tell them.


def _conv_shape(x, kernel, *, stride, padding, groups):
  if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
    raise ValueError(
      f"in_features (={x.shape[3]}) must be groups (={groups}) times the "
      f"kernel's third axis (={kernel.shape[2]}), and features "
      f"(={kernel.shape[3]}) must be divisible by groups."
    )
  shape = conv_forms.out_shape(
    x, kernel, stride=stride, padding=padding, groups=groups
  )
  if min(shape[1:3]) < 1:
    raise ValueError(
      f"A kernel of {kernel.shape[:2]} does not fit images of {x.shape[1:3]} "
      f"with padding (={padding})."
    )
  return shape


def _conv_grad_input_shape(dy, kernel, *, size, groups, **_):
  return (dy.shape[0], *size, kernel.shape[2] * groups)


def _conv_grad_kernel_shape(x, dy, *, size, groups, **_):
  return (*size, x.shape[3] // groups, dy.shape[3])


# Lowering: the path that computes it.


def _choose(name, cpu, devices, path, a, b, out, groups) -> str:
  """The path of an operation from `a` and `b` to `out`, all abstract.

  The rules for the CPU are measured with jax 0.10.2 on two cores, batch 64.
  """
  if path == "onednn":
    reason = _why_not_onednn(a.dtype) if cpu else "it runs on CPUs only"
    if reason:
      raise ValueError(f"The path 'onednn' cannot be had: {reason}.")
  kernel = out if name == "conv_grad_kernel" else b
  inputs, features = kernel.shape[2:]
  depthwise = inputs == 1 and features == groups
  if path == "shifted" and not depthwise:
    raise ValueError(
      "The path 'shifted' is for depthwise convolutions, and this has "
      f"{features} features in groups (={groups}) of {inputs} inputs."
    )
  if path != "auto":
    return path
  if not cpu or 0 in (a.size, b.size, out.size):
    return "xla"
  if devices == 1 and _why_not_onednn(a.dtype) is None:
    return "onednn"  # XLA cannot partition a custom call
  if groups == 1 or a.dtype != jnp.float32:
    return "xla"
  if depthwise:  # 16 channels, 32x32: forward 0.4 ms, XLA's 38
    return "xla" if name == "conv_grad_kernel" else "shifted"
  if name != "conv_grad_kernel" and groups >= 8 and inputs >= 16:
    return "xla"  # 512 channels in 32 groups, 4x4: 3 ms, in blocks 13
  return "blocks"  # 16 channels in 8 groups, 32x32: 3 ms, XLA's 36 and 858


def _why_not_onednn(dtype) -> str | None:
  """Why oneDNN does not serve for images of a type, or None where it does."""
  if dtype == jnp.float32:
    return onednn.reason()
  if dtype == jnp.bfloat16:
    return onednn.bfloat16_reason()
  return f"it computes float32 and bfloat16, and this is {dtype}"


def training_type(dtype, devices: int) -> tuple[jnp.dtype, str | None]:
  """Returns the type in which training computes where `dtype` is wanted.

  XLA widens bfloat16 on a CPU, which takes several times as long as float32. So
  bfloat16 is computed as float32 on a CPU where oneDNN does not serve for it.

  Args:
    dtype: float32 or bfloat16.
    devices: over how many a batch is split.

  Returns:
    The type, and why it is not `dtype`, or None.
  """
  dtype, why = jnp.dtype(dtype), None
  if dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
    why = onednn.bfloat16_reason()
    if devices > 1:
      why = f"a batch is split over {devices} devices, where it was not tried"
  return (dtype, None) if why is None else (jnp.dtype(jnp.float32), why)


def partitions(context) -> int:
  """Counts the devices over which XLA partitions what is being lowered."""
  manual = getattr(context, "manual_axes", None)
  if manual is not None:  # inside shard_map each device computes its own
    return 1 if set(manual) == set(context.mesh.axis_names) else 2
  return getattr(context, "num_devices", None) or 1


def _lower(name, cpu, run, ctx, a, b, *, path, **params):
  devices = partitions(ctx.module_context.axis_context)
  (out,) = ctx.avals_out
  groups = params["groups"]
  left, right = map(_of_one, ctx.avals_in)
  path = _choose(name, cpu, devices, path, left, right, _of_one(out), groups)
  if path == "onednn":
    options = {k: params[k] for k in ("stride", "padding", "groups")}
    rule = functools.partial(onednn.run, name, out, **options)
  else:
    rule = functools.partial(run, _FORMS[path], **params)
    if out.ndim == 5:
      many = functools.partial(run, conv_forms.xla, **params)
      rule = functools.partial(_each, rule, many, out.shape[0])
  return mlir.lower_fun(rule, multiple_results=False)(ctx, a, b)


def _each(run, run_many, members, a, b):
  """Unrolled: as groups of one convolution they are slower on a CPU."""
  if members > _MAX_UNROLLED:
    axes = [0 if x.ndim == 5 else None for x in (a, b)]
    return jax.vmap(run_many, in_axes=axes)(a, b)
  member = lambda x, i: x[i] if x.ndim == 5 else x
  return jnp.stack([run(member(a, i), member(b, i)) for i in range(members)])


# Batching: images alone join the batch; otherwise the primitive itself takes a
# leading axis of members, and its lowering decides what becomes of it.


def _of_one(x) -> jax.ShapeDtypeStruct:
  """An operand or result of one member."""
  return jax.ShapeDtypeStruct(x.shape[-4:], x.dtype)


def _batch(primitive, fold, args, axes, **params):
  a, b = (
    x if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(args, axes, strict=True)
  )
  batched = [axis is not None for axis in axes]
  size = (a if batched[0] else b).shape[0]
  if [x.ndim for x in (a, b)] != [4 + many for many in batched]:
    # Members of members, one after the other.
    member = lambda x, many, i: x[i] if many else x
    ys = [
      primitive.bind(
        member(a, batched[0], i), member(b, batched[1], i), **params
      )
      for i in range(size)
    ]
    return jnp.stack(ys), 0
  if fold and not batched[1]:
    y = primitive.bind(a.reshape(-1, *a.shape[2:]), b, **params)
    return y.reshape(size, -1, *y.shape[1:]), 0
  return primitive.bind(a, b, **params), 0


def _define(name, shape, run, fold) -> Primitive:
  primitive = Primitive(name)

  @primitive.def_abstract_eval
  def _(a, b, *, path, dtype=None, **params):
    master = a.dtype == jnp.bfloat16 and b.dtype == jnp.float32
    if a.dtype != b.dtype and (dtype or not master):
      raise TypeError(
        f"{name} needs operands of one type, or a kernel in float32 beside "
        f"bfloat16; got {a.dtype} and {b.dtype}."
      )
    out = shape(_of_one(a), _of_one(b), **params)
    many = a if a.ndim == 5 else b
    if many.ndim == 5:
      out = (many.shape[0], *out)
    return many.update(shape=out, dtype=dtype or a.dtype, weak_type=False)

  @primitive.def_impl
  def _(a, b, **params):
    return _compiled(primitive, tuple(params.items()))(a, b)

  rule = functools.partial
  for platform in ("cpu", None):
    mlir.register_lowering(
      primitive,
      rule(_lower, name, platform == "cpu", run),
      platform=platform,
    )
  batching.primitive_batchers[primitive] = rule(_batch, primitive, fold)
  return primitive


@functools.cache
def _compiled(primitive, params):
  return jax.jit(functools.partial(primitive.bind, **dict(params)))


conv_p = _define("conv", _conv_shape, _conv, True)
conv_grad_input_p = _define(
  "conv_grad_input", _conv_grad_input_shape, _conv_grad_input, True
)
conv_grad_kernel_p = _define(
  "conv_grad_kernel", _conv_grad_kernel_shape, _conv_grad_kernel, False
)


# Differentiation: each operation is linear in both operands, and to transpose
# it in one of them is one of the other two operations.


def _bind_conv(x, kernel, like, *, size=None, dtype=None, **params):
  return _summed(conv_p.bind(x, kernel, **params), like)


def _bind_grad_input(dy, kernel, x, *, size=None, dtype=None, **params):
  size = x.aval.shape[-3:-1]
  return _summed(conv_grad_input_p.bind(dy, kernel, size=size, **params), x)


def _bind_grad_kernel(x, dy, kernel, *, size=None, dtype=None, **params):
  params |= dict(size=kernel.aval.shape[-4:-2], dtype=kernel.aval.dtype)
  return _summed(conv_grad_kernel_p.bind(x, dy, **params), kernel)


def _summed(gradient, operand):
  """The gradient of an operand that all members share is their sum."""
  return gradient.sum(0) if gradient.ndim > operand.aval.ndim else gradient


ad.defbilinear(
  conv_p,
  lambda ct, x, kernel, **params: _bind_grad_input(ct, kernel, x, **params),
  lambda ct, x, kernel, **params: _bind_grad_kernel(x, ct, kernel, **params),
)
ad.defbilinear(
  conv_grad_input_p,
  lambda ct, dy, kernel, **params: _bind_conv(ct, kernel, dy, **params),
  lambda ct, dy, kernel, **params: _bind_grad_kernel(ct, dy, kernel, **params),
)
ad.defbilinear(
  conv_grad_kernel_p,
  lambda ct, x, dy, **params: _bind_grad_input(dy, ct, x, **params),
  lambda ct, x, dy, **params: _bind_conv(x, ct, dy, **params),
)
