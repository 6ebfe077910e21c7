"""What of a phase's quantization does not fit together."""

from collections.abc import Sequence

from jaxr18.config.schema import PHASE
from jaxr18.nn.spec import BITS, HALF_BITS, Layer, has_bound, has_kernel_bound

_PLAIN = PHASE["network"]["bits"].default


def check_quantize(problems, name: str) -> None:
  """Notes bits given twice, and calibration of what is not quantized."""
  prefix = f"{name}.network."
  fields = (f"{prefix}bits", f"{prefix}inner_bits", f"{prefix}scales")
  if not problems.good(*fields):
    return
  network = problems.config[name].network
  inner = network.inner_bits
  if inner and inner not in BITS:
    problems.add(
      f"{prefix}inner_bits",
      f"must be one of {BITS}, or 0",
      "choose one; other bits of weights and activations go into"
      f" config.{prefix}bits",
    )
  elif inner and network.bits != _PLAIN:
    problems.add(
      f"{prefix}inner_bits",
      f"must be 0 beside config.{prefix}bits (={network.bits!r}), which says"
      " all bits by itself",
      "leave one of the two out",
    )


def check_two_bits(problems, name: str, layers: Sequence[Layer]) -> None:
  """Notes levels of 2 bits where no kernel has so few."""
  fields = [f"{name}.network.{f}" for f in PHASE["network"]]
  if not layers or not problems.good(*fields):
    return
  asked = problems.config[name].network.two_bits
  if asked != PHASE["network"]["two_bits"].default and not any(
    x.w_bits == 2 for x in layers
  ):
    problems.add(
      f"{name}.network.two_bits",
      "needs a kernel of 2 bits, and no layer of the phase has one",
      f"give some layers a w_bits of 2 in config.{name}.network.bits, or set"
      " network.inner_bits=2",
    )


def check_dampening(problems, name: str, layers: Sequence[Layer]) -> None:
  """Notes weights that are drawn to a grid where no kernel has one."""
  field = f"{name}.dampening"
  if not layers or not problems.good(field):
    return
  if problems.get(field) and not any(x.w_bits < HALF_BITS for x in layers):
    problems.add(
      field,
      "must be 0 where no layer of the phase has weights of 8 bits or fewer",
      "leave it out, or quantize some layers",
    )


def check_learned(problems, name: str, layers: Sequence[Layer]) -> None:
  """Notes learned ends of grids where no kernel or no input has one."""
  w_scales = f"{name}.network.w_scales"
  fields = [f"{name}.network.{f}" for f in PHASE["network"]]
  fields += [f"{name}.bounds.{f}" for f in PHASE["bounds"]]
  if not layers or not problems.good(*fields):
    return
  c = problems.config[name]
  learned = c.network.w_scales != PHASE["network"]["w_scales"].default
  kernels = any(map(has_kernel_bound, layers))
  if learned and not kernels:
    problems.add(
      w_scales,
      "needs a kernel of 2 to 7 bits, and no layer of the phase has one",
      f"give some layers such a w_bits in config.{name}.network.bits, or set"
      " network.inner_bits",
    )
  if kernels or any(map(has_bound, layers)):
    return
  for field, knob in PHASE["bounds"].items():
    if c.bounds[field] != knob.default:
      problems.add(
        f"{name}.bounds.{field}",
        "is of learned ends of grids, and no layer of the phase has one",
        "leave it out, or quantize some layers",
      )


def check_calibration(problems, name: str, layers: Sequence[Layer]) -> None:
  """Notes what is asked of quantized inputs where a phase has none."""
  scales, method = f"{name}.network.scales", f"{name}.calibrate.method"
  fields = [f"{name}.network.{f}" for f in PHASE["network"]]
  fields += [f"{name}.calibrate.{f}" for f in PHASE["calibrate"]]
  if not layers or not problems.good(*fields):
    return
  c = problems.config[name]
  many = f"config.{name}.network.bits (={c.network.bits!r})"
  if not any(x.a_bits < HALF_BITS for x in layers):
    asked = [(scales, c.network.scales, PHASE["network"]["scales"])]
    asked += [
      (f"{name}.calibrate.{f}", c.calibrate[f], knob)
      for f, knob in PHASE["calibrate"].items()
    ]
    for field, value, knob in asked:
      if value != knob.default:
        problems.add(
          field,
          "needs a quantized input, and no layer of the phase has one",
          f"give some layers an a_bits of 8 or fewer in {many}, or set"
          " network.inner_bits",
        )
  elif c.calibrate.method != "mse" and not any(map(has_bound, layers)):
    problems.add(
      method,
      f"has nothing to calibrate with config.{scales} (='dynamic')",
      "leave it out, or choose other scales",
    )
