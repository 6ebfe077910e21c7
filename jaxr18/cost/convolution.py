"""MACs of one of XLA's convolutions: forward, transposed, or a gradient.

All are `conv_general_dilated`, which multiplies an output with a tap. That is
what a convolution is charged for, taps on the padding too. A transposed one
writes with each input through each tap, and what falls on the cropped margin
of its output is as much work as a tap on the padding is. The gradient in the
input turns one into the other, the gradient in the kernel costs what its
convolution costs, and so all three passes of a layer cost the same.

Which of them an equation is, its padding does not tell: a gradient without
stride is a convolution with more of it. JAX's own traces do: a name stack with
'transpose', a kernel that was reversed there, batch and features in each
other's place in a kernel's gradient, and the frame of `lax.conv_transpose`.
"""

from __future__ import annotations

import functools

import numpy as np


def conv_macs(eqn, gradient: bool, flipped: bool) -> tuple[int, int]:
  """MACs and groups of a `conv_general_dilated`.

  Args:
    eqn: of a jaxpr.
    gradient: whether it was made by transposing another one.
    flipped: whether its kernel was reversed by that.
  """
  p = eqn.params
  numbers = p["dimension_numbers"]
  lhs, rhs = (v.aval.shape for v in eqn.invars)
  out = eqn.outvars[0].aval.shape
  groups = p["feature_group_count"] * p["batch_group_count"]
  if 0 in (*lhs, *rhs, *out):
    return 0, groups
  of_kernel = gradient and numbers.lhs_spec[0] > numbers.lhs_spec[1]
  transposed = _is_transposed(eqn, flipped and not of_kernel)
  macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
  macs *= rhs[numbers.rhs_spec[1]]
  axes = zip(
    (lhs[i] for i in numbers.lhs_spec[2:]),
    (rhs[i] for i in numbers.rhs_spec[2:]),
    (out[i] for i in numbers.out_spec[2:]),
    p["window_strides"],
    p["rhs_dilation"],
    p["lhs_dilation"],
    (low for low, _ in p["padding"]),
    strict=True,
  )
  for n, k, o, stride, dilation, holes, low in axes:
    if not transposed:  # (output, tap), or (tap, output) of a kernel's
      macs *= _pairs(o, k, stride, dilation, -low, holes)
    elif of_kernel:  # (input, tap): the output is the kernel
      macs *= _pairs(n, o, holes, -stride, low, dilation)
    else:  # (input, tap)
      macs *= _pairs(n, k, holes, -dilation, low, stride)
  return macs, groups


def _is_transposed(eqn, flipped: bool) -> bool:
  """Whether each input meets each tap, and not each output.

  The gradient in the input of one that is not transposed is transposed, and
  has its strides as holes.
  """
  p = eqn.params
  if flipped:
    return not (any(s > 1 for s in p["window_strides"]) or _spelt_so(eqn))
  return any(h > 1 for h in p["lhs_dilation"]) or _spelt_so(eqn)


def _spelt_so(eqn) -> bool:
  """Whether it comes from `lax.conv_transpose`."""
  trace = eqn.source_info.traceback
  return trace is not None and any(
    frame.function_name == "conv_transpose" and "jax" in frame.file_name
    for frame in trace.frames
  )


def _pairs(a, b, step_a, step_b, offset, grid) -> int:
  """Pairs (i < a, j < b) with i * step_a + j * step_b + offset on the grid."""
  if grid == 1:
    return a * b  # which may be symbolic
  return _pairs_on_grid(a, b, step_a, step_b, offset, grid)


@functools.lru_cache(maxsize=4096)
def _pairs_on_grid(a, b, step_a, step_b, offset, grid) -> int:
  at = np.arange(a)[:, None] * step_a + np.arange(b) * step_b
  return int(((at + offset) % grid == 0).sum())
