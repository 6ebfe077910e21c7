"""What is known of a network before it is trained.

The spec, how many channels each group keeps, how many weights each layer
keeps. What the scores of training decide stands as a range.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxr18.compress.channels import channel_groups
from jaxr18.compress.shrink import dead_channels
from jaxr18.config.forecast import kernels
from jaxr18.cost.bounds import Range
from jaxr18.cost.kept import layer_weights
from jaxr18.nn.network import Network
from jaxr18.nn.spec import Layer, NetSpec

# How a fault is told: the field within the phase, what it must be, the mend.
Tell = Callable[[str, str, str], None]


@dataclasses.dataclass(frozen=True)
class Kept:
  """A layer's weights that no mask removes, where single ones are masked.

  Attributes:
    least, most: how many they are.
    whole: of those removed, how many lie in wholly masked channels.
  """

  least: int
  most: int
  whole: Range


@dataclasses.dataclass(frozen=True)
class Outlook:
  """What is known of a network before it is trained.

  Attributes:
    spec: the network; of widths that are not known, the largest.
    widths: channels of each group, by its name.
    width_sum: of all groups, where `widths` are not known.
    alive: channels of each group that are not masked.
    alive_sum: of all groups.
    singles: of the layers in which single weights are masked, by path.
    totals: (paths, weights kept in all of them), no path twice.
    masks: what made its masks; networks of equal ones have equal masks.
    why: what is not known, a sentence each.
    unknown: the source that decides it, where that cannot be read.
  """

  spec: NetSpec
  widths: dict[str, Range]
  alive: dict[str, Range]
  width_sum: Range | None = None
  alive_sum: Range | None = None
  singles: dict[str, Kept] = dataclasses.field(default_factory=dict)
  totals: tuple[tuple[tuple[str, ...], int], ...] = ()
  masks: tuple[Any, ...] = ()
  why: tuple[str, ...] = ()
  unknown: str = ""

  @property
  def fixed(self) -> bool:
    """Whether its widths are known."""
    return all(low == high for low, high in self.widths.values())

  def size(self, layer: Layer) -> Range:
    """Counts a kernel's weights, masked or not."""
    return kernels.size(self.spec, layer, self.widths)

  def in_alive(self, layer: Layer) -> Range:
    """Counts a kernel's weights between channels that are not masked."""
    return kernels.size(self.spec, layer, self.alive)

  def kept(self, layer: Layer) -> Range:
    """Counts a kernel's weights that no mask removes."""
    if layer.path in self.singles:
      k = self.singles[layer.path]
      return k.least, k.most
    return self.in_alive(layer)

  def whole(self, layer: Layer) -> Range:
    """Counts a kernel's weights in wholly masked channels."""
    size, kept = self.size(layer), self.kept(layer)
    gone = max(0, size[0] - kept[1]), max(0, size[1] - kept[0])
    if layer.path in self.singles:
      whole = self.singles[layer.path].whole
      return max(0, min(whole[0], gone[0])), max(0, min(whole[1], gone[1]))
    return (0, 0) if self.alive == self.widths else gone


def outlook_of(spec: NetSpec, unknown: str = "") -> Outlook:
  """Makes the outlook of a network without masks, or of an unknown one."""
  sizes: dict[str, Range] = {
    g.name: (g.size, g.size) for g in channel_groups(spec)
  }
  out = Outlook(spec, sizes, sizes, unknown=unknown)
  if not unknown:
    return out
  layers = {
    x.path: Kept(0, math.prod(x.kernel_shape), (0, math.inf))
    for x in spec.layers()
  }
  alive = {name: (0, high) for name, (_, high) in sizes.items()}
  return dataclasses.replace(out, alive=alive, singles=layers)


def outlooks_of_networks(nets: Sequence[Network], name: str) -> list[Outlook]:
  """Makes the outlooks of all networks that a name stands for."""
  return [_outlook_of_network(net, (name, i)) for i, net in enumerate(nets)]


def _outlook_of_network(net: Network, masks: tuple[Any, ...]) -> Outlook:
  out = outlook_of(net.spec)
  dead = {name: int(gone.sum()) for name, gone in dead_channels(net).items()}
  alive = {n: (w - dead[n], w - dead[n]) for n, (w, _) in out.widths.items()}
  out = dataclasses.replace(out, alive=alive)
  singles = {}
  for layer in net.spec.layers():
    counts = layer_weights(layer, net.masks)
    if counts.kept != out.in_alive(layer)[1]:
      structured = counts.structured
      singles[layer.path] = Kept(
        counts.kept, counts.kept, (structured, structured)
      )
  pruned = singles or any(dead.values())
  return dataclasses.replace(
    out, singles=singles, masks=masks if pruned else ()
  )


def outlooks_of_result(result: Mapping[str, Any], name: str) -> list[Outlook]:
  """Makes the outlooks of a finished run's networks from its result.json.

  Raises:
    ValueError, KeyError, TypeError: it does not hold them.
  """
  specs = result.get("specs") or [result["spec"]]
  specs = [NetSpec.from_json(json.dumps(spec)) for spec in specs]
  tables = _by_member(result.get("score", {}).get("rows", ()))
  out = []
  for i, spec in enumerate(specs):
    rows = tables.get(f"member{i}", {})
    unpruned = all(row["kept"] == row["weights"] for row in rows.values())
    if rows and unpruned:
      outlook = outlook_of(spec)
    elif rows:
      outlook = _counted(spec, rows, (name, i))
    else:
      outlook = outlook_of(spec, unknown=name)
    out.append(outlook)
  if "specs" not in result:  # a population's others have masks of their own
    more = len(result.get("members", ())) - 1
    out += [outlook_of(specs[0], name if out[0].masks else "")] * more
  return out


def _by_member(rows) -> dict[str, dict[str, Any]]:
  """A score's rows by layer path, those of each member apart."""
  tables: dict[str, dict[str, Any]] = {}
  for row in rows:
    member, _, path = row["path"].partition("/")
    if not re.fullmatch(r"member\d+", member):
      member, path = "member0", row["path"]
    tables.setdefault(member, {})[path] = row
  return tables


def _counted(spec: NetSpec, rows, masks: tuple[Any, ...]) -> Outlook:
  """Of a network whose weights a score has counted, by layer path."""
  out, alive = outlook_of(spec), {}
  for group in channel_groups(spec):
    n = max(rows[path]["biases_kept"] for path in group.writers)
    alive[group.name] = n, n
  out = dataclasses.replace(out, alive=alive, masks=masks)
  singles = {}
  for layer in spec.layers():
    kept = rows[layer.path]["kept"]
    if kept != out.in_alive(layer)[1]:
      singles[layer.path] = Kept(kept, kept, (0, math.inf))
  return dataclasses.replace(out, singles=singles)
