"""What benchmarks.train_step measures, by name."""

from jaxr18.nn import spec

_PLAIN = dict(width=16, groups=1, depthwise=False, bits=32, density=1.0)
ROWS = {
  f"{name} width {width}": _PLAIN | form | {"width": width}
  for width in (16, 64)
  for name, form in {
    "dense": {},
    "G=2": {"groups": 2},
    "G=8": {"groups": 8},
    "depthwise": {"depthwise": True},
  }.items()
} | {
  "masked width 16": _PLAIN | {"density": 0.2},
  "4-bit width 16": _PLAIN | {"bits": 4},
}


def make_spec(row: dict) -> spec.NetSpec:
  """The network of a row."""
  widths = [row["width"] * 2**i for i in range(4)]
  groups, depthwise = [row["groups"]] * 4, [row["depthwise"]] * 4
  net = spec.resnet(widths, groups=groups, depthwise=depthwise)
  bits = row["bits"]
  return (
    net
    if bits == spec.FLOAT_BITS
    else spec.with_bits(net, [(".*", bits, bits)])
  )
