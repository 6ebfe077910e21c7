"""A phase's network section -> its `NetSpec`, or all that is wrong with it."""

import dataclasses
import math
from collections.abc import Iterator

from jaxr18.config.fields import walk
from jaxr18.config.schema import Network
from jaxr18.data.facts import CIFAR10, Facts
from jaxr18.nn.forms import dense, with_forms
from jaxr18.nn.spec import (
  NetSpec,
  compound_scale,
  resnet,
  with_bits,
  with_input,
)

Found = Iterator[tuple[str, str, str]]


def network_spec(network: Network, images: Facts = CIFAR10) -> NetSpec:
  """Makes the `NetSpec` that a phase's network section describes.

  Args:
    network: of a phase.
    images: whose classes and channels it has.

  Raises:
    ValueError: sections that do not fit each other, rules that do not fit the
      layers.
  """
  spec = with_forms(_by_stage(network, images), network.factorize)
  return quantized(spec, network)


def quantized(spec: NetSpec, network: Network) -> NetSpec:
  """Gives a spec the bits of a phase's network section.

  Raises:
    ValueError: rules that do not fit the layers.
  """
  rules = network.bits
  if inner := network.inner_bits:
    # The first layer and the last cost little and lose most.
    rules = (("stem|head", 8, 8), (".*", inner, inner))
  how = network.scales, network.w_scales, network.two_bits
  spec = with_bits(spec, rules, *how)
  return dataclasses.replace(spec, sum_bits=network.sum_bits)


def _by_stage(network, images: Facts) -> NetSpec:
  widths, blocks, resolution = _scaled(network)
  spec = resnet(
    widths,
    blocks,
    network.strides,
    network.groups,
    network.depthwise,
    stem_features=network.stem_features or None,
    classes=images.classes,
    resolution=resolution,
  )
  return with_input(spec, images.channels, network.stem_stride)


def _scaled(network) -> tuple[tuple[int, ...], tuple[int, ...], int]:
  if not network.scale:
    return network.widths, network.blocks, network.resolution
  return compound_scale(
    network.scale,
    network.widths,
    network.blocks,
    network.resolution,
    multiple=network.scale_multiple,
  )


def network_faults(
  network: Network, with_bits: bool, images: Facts = CIFAR10
) -> Found:
  """Yields the faults that keep a section from describing a network.

  Args:
    network: right field by field.
    with_bits: whether its bits are of these layers, and not of a source's.
    images: as in `network_spec`.

  Yields:
    The field within the section ('' for the whole), what it must be, the mend.
  """
  found = list(_lengths_fit(network))
  yield from found
  if found:
    return
  for check in (_scale_fits, _groups_fit):
    found = list(check(network))
    yield from found
    if found:
      return
  try:
    spec = _by_stage(network, images)
  except ValueError as e:
    yield "", f"must be a network: {e}", "change what it names"
    return
  try:
    spec = with_forms(spec, network.factorize)
  except ValueError as e:
    yield ("factorize", f"must fit the network's layers: {e}",
           "mend or remove that rule")  # fmt: skip
    return
  if not with_bits:
    return
  try:
    quantized(spec, network)
  except ValueError as e:
    yield ("bits", f"must fit the network's layers: {e}",
           "mend or remove that rule")  # fmt: skip


def _lengths_fit(network: Network) -> Found:
  stages = len(network.widths)
  for field in walk(Network):
    value = getattr(network, field.name)
    if field.by_stage and len(value) != stages:
      yield (
        field.name,
        f"must have {stages} entries, one a stage, as `widths` has",
        f"write {(value * stages)[:stages]!r}",
      )


def _scale_fits(network: Network) -> Found:
  """Bounds hold after scaling too, and each stride has pixels to skip."""
  scaled = _scaled(network)
  known = {field.name: field for field in walk(Network)}
  for name, value in zip(("widths", "blocks", "resolution"), scaled,
                         strict=True):  # fmt: skip
    f = known[name]
    for entry in value if isinstance(value, tuple) else (value,):
      if not (f.low or 0) <= entry <= (f.high or math.inf):
        yield (
          "scale",
          f"makes {name} {value!r}, of which {entry!r} must be {f.allowed()}",
          "choose a scale nearer to 0",
        )
  strides = network.stem_stride, *network.strides
  least, resolution = math.prod(strides), scaled[2]
  if resolution < least:
    yield (
      "resolution",
      f"must be at least {least}, the product of stem_stride"
      f" (={network.stem_stride}) and strides (={network.strides!r}), also"
      f" after scaling (now {resolution})",
      "raise it or lower a stride",
    )


def _groups_fit(network: Network) -> Found:
  widths, _, _ = _scaled(network)
  inputs = (network.stem_features or widths[0], *widths[:-1])
  for i, groups in enumerate(network.groups):
    if network.depthwise[i] and groups != 1:
      yield (
        "groups",
        f"has {groups} at index {i}, which must be 1 where depthwise"
        f" (={network.depthwise!r}) is True",
        "write 1 there, or False in depthwise",
      )
    elif inputs[i] % groups or widths[i] % groups:
      yield (
        "groups",
        f"has {groups} at index {i}, which must divide that stage's"
        f" {inputs[i]} input channels and its width {widths[i]}",
        f"write {math.gcd(inputs[i], widths[i], groups)} there, or change"
        " widths, stem_features or scale_multiple",
      )


def misfit(spec: NetSpec, source: NetSpec) -> str:
  """Finds the first difference between two networks' kernels; '' for none.

  Forms may differ, since one converts into the other.
  """
  here, there = (
    {layer.path: layer.kernel_shape for layer in dense(s).layers()}
    for s in (spec, source)
  )
  for path in here | there:
    if here.get(path) != there.get(path):
      return (
        f"{path} is {there.get(path, 'missing')} there and"
        f" {here.get(path, 'missing')} here"
      )
  return ""
