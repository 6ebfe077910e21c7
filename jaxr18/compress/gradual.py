"""Pruning in the course of training: what is due at which step.

A `Plan` is plain numbers; `update` is a pure function of the network, the step
and images, run on the host between two steps, so a resumed run prunes alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.compress import channels, criteria, prune
from jaxr18.compress.shrink import dead_channels
from jaxr18.nn.network import Network

REGROW = ("none", "rigl", "set")


def moves(schedule: str, regrow: str) -> bool:
  """Returns whether masks change more than once."""
  return schedule != "one_shot" or regrow != "none"


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a phase prunes.

  Attributes:
    density: share kept at the end, of weights or of channels.
    structured: whole channels.
    criterion: of `criteria.NAMES`, or of `channels.CRITERIA` if structured.
    distribution: of `density.NAMES`, or of `channels.DISTRIBUTIONS`.
    rules: (regex, density) of the explicit distribution.
    pattern: (n, m) of N:M sparsity, in place of density, or None.
    layers: regex on paths of the layers whose weights are pruned.
    floor: share that each layer or group keeps at least.
    multiple: of the channels that a group keeps.
    schedule: of `prune.SCHEDULES`.
    begin: step of the first update.
    end: step of the last.
    every: steps between two.
    regrow: of `REGROW`: after the first update, weights move.
    drop: share of a layer's kept weights that the first move takes.
    start_density: share kept before the first update.
  """

  density: float
  structured: bool = False
  criterion: str = "magnitude_l1"
  distribution: str = "global"
  rules: tuple[tuple[str, float], ...] = ()
  pattern: tuple[int, int] | None = None
  layers: str = ".*"
  floor: float = 0.0
  multiple: int = 1
  schedule: str = "one_shot"
  begin: int = 0
  end: int = 0
  every: int = 100
  regrow: str = "none"
  drop: float = 0.3
  start_density: float = 1.0

  @property
  def moves(self) -> bool:
    """Returns whether masks change more than once."""
    return moves(self.schedule, self.regrow)

  @property
  def last(self) -> int:
    """The step of the last update."""
    return max(self.begin, self.end) if self.moves else self.begin

  def due(self, step: int) -> bool:
    """Returns whether masks change before this step."""
    if step == self.last:
      return True
    return (
      self.begin <= step < self.last and (step - self.begin) % self.every == 0
    )

  def progress(self, step: int) -> float:
    """Returns the progress from 0 at the first update to 1 at the last."""
    span = self.last - self.begin
    return (step - self.begin) / span if span else 1.0


def prepare(net: Network, plan: Plan) -> Network:
  """Makes masks that will change full arrays: a step has fixed shapes."""
  if not plan.structured:
    return prune.full_masks(net, plan.layers)
  masks = jax.tree.map(
    lambda p, m: jnp.broadcast_to(m, p.shape), net.params, net.masks
  )
  return net.replace(masks=masks)


def start_density(net: Network, plan: Plan) -> float:
  """Returns the share of channels or weights kept so far."""
  if not plan.structured:
    return prune.total_density(net, plan.layers)
  dead = np.concatenate(list(dead_channels(net).values()))
  return 1 - float(dead.mean())


def update(
  net: Network,
  plan: Plan,
  step: int,
  *,
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  gradients: Callable[[], Any] | None = None,
  movement: Any = None,
) -> Network:
  """Updates the masks as the plan has them from this step on.

  Args:
    net: prepared.
    plan: due at this step.
    step: of the phase.
    key: for random criteria and growth.
    images: [n, size, size, channels], normalized, for criteria that look.
    labels: [n], ints.
    gradients: returns those of the step's own batch by layer path, as if
      nothing were masked; for rigl.
    movement: of `criteria.score`, a tree like `params`.

  Raises:
    ValueError: as `prune.prune` and `channels.kept_channels`.
  """
  progress = plan.progress(step)
  target = prune.density_at(
    plan.schedule if plan.regrow == "none" else "one_shot",
    plan.start_density,
    plan.density,
    progress,
  )
  if plan.criterion == "movement" and step == 0 and target < plan.start_density:
    raise ValueError(
      "criterion 'movement' sums what training does before weights are pruned,"
      " and at the first step it has seen nothing: raise begin"
    )
  if plan.structured:
    return _channels(net, plan, target, key, images, labels)
  if plan.regrow != "none" and step > plan.begin:
    if plan.regrow == "rigl":
      assert gradients is not None
      growth = {p: np.abs(np.asarray(g)) for p, g in gradients().items()}
    else:
      growth = criteria.score("random", net, key=key)
    share = prune.drop_share(plan.drop, progress)
    return prune.regrow(net, growth, share, plan.layers)
  scores = criteria.score(
    plan.criterion,
    net,
    key=key,
    images=images,
    labels=labels,
    movement=movement,
  )
  if plan.pattern:
    return prune.prune_pattern(net, scores, *plan.pattern, layers=plan.layers)
  return prune.prune(
    net,
    scores,
    target,
    distribution=plan.distribution,
    layers=plan.layers,
    floor=min(plan.floor, target),
    rules=plan.rules,
    # On the way a layer may have less left than its share of what all have.
    at_most=progress < 1,
  )


def check(net: Network, plan: Plan) -> None:
  """Refuses, before the phase trains, a density that its end cannot have.

  Raises:
    ValueError: as `prune.prune`, such as more weights than masks have left.
  """
  if not plan.structured and not plan.pattern:
    prune.prune(
      net,
      criteria.score("magnitude_l1", net),
      plan.density,
      distribution=plan.distribution,
      layers=plan.layers,
      floor=min(plan.floor, plan.density),
      rules=plan.rules,
    )


def _channels(net, plan, target, key, images, labels) -> Network:
  grads = None
  if plan.criterion == "taylor":
    grads = criteria.gradients(net, images, labels)
  scores = channels.importance(plan.criterion, net, key=key, grads=grads)
  # A channel that is gone stays so.
  for name, dead in dead_channels(net).items():
    scores[name] = np.where(dead, -1.0, scores[name])
  keep = channels.kept_channels(
    net.spec,
    scores,
    target,
    distribution=plan.distribution,
    floor=min(plan.floor, target),
    multiple=plan.multiple,
  )
  return channels.mask_channels(net, keep)
