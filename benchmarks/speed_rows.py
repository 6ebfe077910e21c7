"""What benchmarks.train_step measures, by name."""

from typing import Any

from jaxr18.nn import spec

STRIDES = (1, 2, 2, 2)
_PLAIN = dict(
  blocks=2, groups=1, depthwise=False, bits=32, density=1.0, dtype="float32"
)


def _wide(width: int) -> tuple[int, ...]:
  """A ResNet-18's widths."""
  return tuple(width * 2**i for i in range(4))


_FLOATS = {
  f"{name} width {width}": _PLAIN | form | {"widths": _wide(width)}
  for width in (16, 64)
  for name, form in {
    "dense": {},
    "G=2": {"groups": 2},
    "G=8": {"groups": 8},
    "depthwise": {"depthwise": True},
  }.items()
} | {"masked width 16": _PLAIN | {"widths": _wide(16), "density": 0.2}}
_QUANTIZED = {
  "4-bit width 16": _PLAIN | {"widths": _wide(16), "bits": 4},
  "3-bit 12-24-48, 3 blocks": _PLAIN
  | {"widths": (12, 24, 48), "blocks": 3, "bits": 3},
  "4-bit depthwise 32-64-128": _PLAIN
  | {"widths": (32, 64, 128), "depthwise": True, "bits": 4},
}
ROWS: dict[str, dict[str, Any]] = _FLOATS | _QUANTIZED
ROWS |= {
  f"{name}, bfloat16": row | {"dtype": "bfloat16"}
  for name, row in ROWS.items()
  if row["density"] == 1
}


def make_spec(row: dict[str, Any]) -> spec.NetSpec:
  """The network of a row."""
  stages = len(row["widths"])
  net = spec.resnet(
    row["widths"],
    [row["blocks"]] * stages,
    STRIDES[:stages],
    [row["groups"]] * stages,
    [row["depthwise"]] * stages,
  )
  bits = row["bits"]
  return (
    net
    if bits == spec.FLOAT_BITS
    else spec.with_bits(net, [(".*", bits, bits)])
  )
