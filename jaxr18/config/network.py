"""A phase's network section -> its `NetSpec`, or all that is wrong with it."""

import math

import ml_collections

from jaxr18.config.schema import PHASE
from jaxr18.nn.forms import dense, with_forms
from jaxr18.nn.spec import NetSpec, compound_scale, resnet, with_bits

CLASSES, CHANNELS = 10, 3  # of both data sets


def network_spec(
  network: ml_collections.ConfigDict, classes: int = CLASSES
) -> NetSpec:
  """The `NetSpec` that a phase's network section describes.

  Raises:
    ValueError: sections that do not fit each other, rules that do not fit the
      layers.
  """
  spec = with_forms(_by_stage(network, classes), network.factorize)
  return quantized(spec, network)


def quantized(spec: NetSpec, network: ml_collections.ConfigDict) -> NetSpec:
  """The spec in the bits that a phase's network section gives.

  Raises:
    ValueError: rules that do not fit the layers.
  """
  rules = network.bits
  if inner := network.inner_bits:
    # The first layer and the last cost little and lose most.
    rules = (("stem|head", 8, 8), (".*", inner, inner))
  how = network.scales, network.w_scales, network.two_bits
  return with_bits(spec, rules, *how)


def _by_stage(network, classes: int = CLASSES) -> NetSpec:
  widths, blocks, resolution = _scaled(network)
  return resnet(
    widths,
    blocks,
    network.strides,
    network.groups,
    network.depthwise,
    stem_features=network.stem_features or None,
    classes=classes,
    resolution=resolution,
  )


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


def check_network(problems, phase: str) -> NetSpec | None:
  """The phase's network without its bits, or None if it is none."""
  prefix = f"{phase}.network."
  for field, knob in PHASE["network"].items():
    if knob.by_stage and problems.good(prefix + field, f"{prefix}widths"):
      value = problems.get(prefix + field)
      stages = len(problems.get(f"{prefix}widths"))
      if len(value) != stages:
        problems.add(
          prefix + field,
          f"must have {stages} entries, one a stage, as"
          f" config.{prefix}widths has",
          f"write {(value * stages)[:stages]!r}",
        )
  bits = ("bits", "inner_bits", "scales", "w_scales", "two_bits")
  fields = [prefix + f for f in PHASE["network"] if f not in bits]
  if not problems.good(*fields):
    return None
  _check_scale(problems, prefix)
  _check_groups(problems, prefix)
  if not problems.good(*fields):
    return None
  network = problems.config[phase].network
  try:
    spec = _by_stage(network)
  except ValueError as e:
    problems.add(prefix[:-1], f"must be a network: {e}", "change what it names")
    return None
  try:
    spec = with_forms(spec, network.factorize)
  except ValueError as e:
    problems.add(
      f"{prefix}factorize",
      f"must fit the network's layers: {e}",
      "mend or remove that rule",
    )
    return None
  # Those of a shrunk network are of the layers that its source has.
  shrinks = problems.get(f"{phase}.shrink") is True
  if problems.good(*(prefix + f for f in bits)) and not shrinks:
    try:
      network_spec(network)
    except ValueError as e:
      problems.add(
        f"{prefix}bits",
        f"must fit the network's layers: {e}",
        "mend or remove that rule",
      )
  return spec


def _check_scale(problems, prefix: str) -> None:
  """Bounds hold after scaling too, and each stride has pixels to skip."""
  network = problems.get(prefix[:-1])
  scaled = dict(
    zip(("widths", "blocks", "resolution"), _scaled(network), strict=True)
  )
  for field, value in scaled.items():
    for must, _ in PHASE["network"][field].faults(value):
      problems.add(
        f"{prefix}scale",
        f"makes {field} {value!r}: it {must}",
        "choose a scale nearer to 0",
      )
  least = math.prod(network.strides)
  if scaled["resolution"] < least:
    problems.add(
      f"{prefix}resolution",
      f"must be at least {least}, the product of config.{prefix}strides"
      f" (={network.strides!r}), also after scaling"
      f" (now {scaled['resolution']})",
      "raise it or lower a stride",
    )


def _check_groups(problems, prefix: str) -> None:
  network = problems.get(prefix[:-1])
  widths, _, _ = _scaled(network)
  inputs = (network.stem_features or widths[0], *widths[:-1])
  for i, groups in enumerate(network.groups):
    if network.depthwise[i] and groups != 1:
      problems.add(
        f"{prefix}groups",
        f"has {groups} at index {i}, which must be 1 where"
        f" config.{prefix}depthwise (={network.depthwise!r}) is True",
        "write 1 there, or False in depthwise",
      )
    elif inputs[i] % groups or widths[i] % groups:
      problems.add(
        f"{prefix}groups",
        f"has {groups} at index {i}, which must divide that stage's"
        f" {inputs[i]} input channels and its width {widths[i]}",
        f"write {math.gcd(inputs[i], widths[i], groups)} there, or change"
        " widths, stem_features or scale_multiple",
      )


def misfit(spec: NetSpec, source: NetSpec) -> str:
  """The first difference between two networks' kernels; '' for none.

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
