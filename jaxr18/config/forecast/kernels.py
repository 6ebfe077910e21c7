"""A kernel's size as a product of numbers of channels, which may be ranges."""

import functools
import math
from collections.abc import Mapping

from jaxr18.compress.channels import channel_groups
from jaxr18.cost.bounds import Range
from jaxr18.nn.spec import Layer, NetSpec

Ends = tuple[str, str]


@functools.lru_cache(maxsize=64)
def ends(spec: NetSpec) -> dict[str, Ends]:
  """Names the groups of each layer's inputs and outputs; '' for none."""
  groups = {x.path: ["", ""] for x in spec.layers()}
  for group in channel_groups(spec):
    for path in group.readers:
      groups[path][0] = group.name
    for path in group.writers:
      groups[path][1] = group.name
    for path in group.through:  # channel by channel: in and out are the same
      groups[path][1] = group.name
  return {path: (inputs, outputs) for path, (inputs, outputs) in groups.items()}


def term(layer: Layer, ends: Ends) -> tuple[float, list[str]]:
  """Writes a kernel's size as a coefficient and the groups that multiply it."""
  inputs, outputs = ends
  size = layer.kernel**2 if layer.kind == "conv" else 1
  depthwise = not inputs and outputs and layer.groups == layer.in_features > 1
  if not depthwise:
    size *= (1 if inputs else layer.in_features) / layer.groups
  if not outputs:
    size *= layer.features
  return size, [end for end in ends if end]


def size(spec: NetSpec, layer: Layer, of: Mapping[str, Range]) -> Range:
  """Counts a kernel's weights between such channels: the least and the most.

  Args:
    spec: of the layer's network.
    layer: one of its layers.
    of: channels of each group, by its name.
  """
  c, groups = term(layer, ends(spec)[layer.path])
  low, high = (
    round(c * math.prod(of[g][end] for g in groups)) for end in (0, 1)
  )
  return low, high
