"""What training carries from one step to the next, and its optimizer."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxr18.nn.network import Network, apply_masks, over
from jaxr18.nn.spec import BOUNDS
from jaxr18.train.muon import Muon, with_muon


class TrainState(struct.PyTreeNode):
  """Everything a checkpoint holds; randomness follows from seed and step.

  Attributes:
    step: of the phase, int32; the number of updates made.
    net: the network that is trained.
    opt_state: the optimizer's.
    average: `net`'s moving average, or None.
    totals: sums over the epoch so far: loss, correct, count; and of each term
      of the loss, weighted, in 'terms' where there are several.
    projections: of the student's stage outputs to the teacher's, or None.
    statistics: batch norm's, estimated for the network that is evaluated at
      the last epoch's end; None where the running ones serve.

  A population's has a leading member axis on every array.
  """

  step: jax.Array
  net: Network
  opt_state: Any
  average: Network | None
  totals: dict[str, Any]
  projections: Any = None
  statistics: Any = None

  @property
  def evaluated(self) -> Network:
    """The network that is validated and kept: the average if there is one."""
    net = self.net if self.average is None else self.average
    if self.statistics is None:
      return net
    return net.replace(batch_stats=self.statistics)


def zero_totals(terms: Sequence[str] = ()) -> dict[str, Any]:
  totals = {
    "loss": jnp.zeros((), jnp.float32),
    "correct": jnp.zeros((), jnp.int32),
    "count": jnp.zeros((), jnp.int32),
  }
  if len(terms) < 2:  # one term is the loss
    return totals
  return totals | {"terms": {k: jnp.zeros((), jnp.float32) for k in terms}}


def create(
  net: Network,
  optimizer: optax.GradientTransformation,
  average: bool,
  projections: Any = None,
  estimated: bool = False,
  terms: Sequence[str] = (),
) -> TrainState:
  """Makes the state before the first step; what `net` masks is 0 in it.

  Args:
    net: of a population, stacked.
    average: whether there is a moving average.
    projections: of `distill.init_projections`, trained with the network.
    estimated: whether batch norm's statistics are estimated for evaluation.
    terms: names of the loss's terms, each of which is summed; () sums none.
  """
  if net.params["head"]["bias"].ndim == 2:
    single = lambda n, p: create(n, optimizer, average, p, estimated, terms)
    return jax.vmap(single)(net, projections)
  net = net.replace(params=apply_masks(net.params, net.masks))
  # A copy, since the step donates its input and no buffer twice.
  copied = jax.tree.map(jnp.copy, net) if average else None
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    net=net,
    opt_state=optimizer.init(
      net.params
      if projections is None
      else net.params | {"projections": projections}
    ),
    average=copied,
    totals=zero_totals(terms),
    projections=projections,
    statistics=jax.tree.map(jnp.copy, net.batch_stats) if estimated else None,
  )


def kernels(params: Any) -> Any:
  """Marks the kernels, to which weight decay applies, by True."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )


def bounds(params: Any) -> Any:
  """Marks the learned ends of grids by True."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in BOUNDS, params
  )


def norm_biases(params: Any) -> Any:
  """Marks batch norm's biases by True; the head's is none."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "bias" and path[-2].key != "head", params
  )


@dataclasses.dataclass(frozen=True)
class Rate:
  """A learning rate that warms up linearly and then falls as a cosine.

  Attributes:
    peak: at the end of the warm-up.
    steps: after which it is 0.
    warmup_steps: of the warm-up.
    hold_from: the step at which the cosine ends instead, on `hold * peak`,
      where the rate then stays; None is the last step.
    hold: factor of the peak.
    cycle: steps in which the rate falls by a line from `hold * peak` to
      `low * peak`, again and again from `hold_from` on (Izmailov et al., 2018,
      section 3.1); 0 lets it stay.
    low: factor of the peak.
  """

  peak: float
  steps: int
  warmup_steps: int = 0
  hold_from: int | None = None
  hold: float = 0.0
  cycle: int = 0
  low: float = 0.0

  def schedule(self) -> optax.Schedule:
    """Returns the function from a step to its rate."""
    fall = optax.warmup_cosine_decay_schedule(
      init_value=self.peak / max(1, self.warmup_steps),
      peak_value=self.peak,
      warmup_steps=self.warmup_steps,
      decay_steps=max(self.hold_from or self.steps, self.warmup_steps + 1),
      end_value=self.peak * self.hold,
    )
    if not self.cycle or self.hold_from is None:
      return fall
    return optax.join_schedules([fall, self._cycles], [self.hold_from])

  def _cycles(self, step):
    share = (step % self.cycle + 1) / self.cycle  # of the cycle that is over
    return self.peak * ((1 - share) * self.hold + share * self.low)


def kernels_of(layers: str) -> Callable[[Any], Any]:
  """Returns what marks the kernels of layers whose path a regex matches."""

  def marked(name: str) -> bool:
    layer, _, last = name.rpartition("/")
    return last == "kernel" and re.fullmatch(layers, layer) is not None

  return lambda params: unflatten_dict(
    {name: marked(name) for name in flatten_dict(params, sep="/")}, sep="/"
  )


class Group(NamedTuple):
  """Parameters that are updated in another way than the rest.

  Attributes:
    marks: params -> a tree of bools, True at those of the group.
    rate: factor of the learning rate.
    decay: weight decay.
  """

  marks: Callable[[Any], Any]
  rate: float = 1.0
  decay: float = 0.0


def make_optimizer(
  name: str,
  rate: Rate,
  *,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  groups: Sequence[Group] = (),
  muon: Muon | None = None,
  movement: bool = False,
) -> optax.GradientTransformation:
  """Makes SGD with Nesterov momentum, or AdamW.

  Weight decay is on kernels only; SGD's is the L2 kind, coupled to the
  momentum, AdamW's decoupled.

  Args:
    name: 'sgd' or 'adamw'.
    rate: of learning.
    momentum: of sgd.
    weight_decay: of kernels.
    clip_norm: largest norm of the whole gradient; 0 is off.
    groups: of parameters with a rate or a decay of their own.
    muon: updates the kernels of convolutions; None leaves them to `name`.
    movement: the state also holds what `sum_movement` sums.
  """
  schedule = rate.schedule()
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  decays = [optax.add_decayed_weights(weight_decay, mask=kernels)]
  decays += [
    optax.add_decayed_weights(g.decay, mask=g.marks) for g in groups if g.decay
  ]
  rates = [
    optax.masked(optax.scale(g.rate), g.marks) for g in groups if g.rate != 1
  ]
  if name == "sgd":
    parts = *decays, optax.sgd(schedule, momentum, nesterov=True)
  elif name == "adamw":
    descend = optax.scale_by_learning_rate(schedule)
    parts = (optax.chain(optax.scale_by_adam(), *decays, descend),)
  else:
    raise ValueError(f"optimizer (={name!r}) must be 'sgd' or 'adamw'")
  if muon is not None:
    parts = (with_muon(muon, optax.chain(*parts)),)
  optimizer = optax.chain(clip, *parts, *rates)
  if movement:
    return optax.chain(sum_movement(schedule), optimizer)
  return optimizer


class MovementState(NamedTuple):
  """The steps made, and a sum for each parameter, a tree like them."""

  count: jax.Array
  movement: Any


def sum_movement(rate: optax.Schedule) -> optax.GradientTransformation:
  """Sums -rate g w over the steps, and leaves the gradients as they are.

  It is movement pruning's score (Sanh et al., 2020, arXiv:2005.07683, section
  4): high for what moves away from 0. It stands first in a chain, so that g is
  the loss's gradient alone, whatever momentum, decay and clipping make of it.
  """

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return MovementState(jnp.zeros((), jnp.int32), zeros)

  def update(updates, state, params=None):
    summed = jax.tree.map(
      lambda s, g, w: s - rate(state.count) * g * w,
      state.movement,
      updates,
      params,
    )
    return updates, MovementState(state.count + 1, summed)

  return optax.GradientTransformation(init, update)


def movement_of(opt_state: Any) -> Any:
  """Returns the sums of `sum_movement`, a tree like `params`; None without."""
  return optax.tree_utils.tree_get(opt_state, "movement")


@jax.jit
def forget(opt_state: Any, grown: Any) -> Any:
  """Sets the optimizer's state, such as momentum, to 0 for new weights.

  Args:
    opt_state: of any optimizer; its trees like `params` are changed, also
      those that lack some leaves or have them flattened.
    grown: bool, a tree like `params`.
  """
  like_params = lambda x: isinstance(x, dict) and grown.keys() <= x.keys()

  def zero(node):
    if not like_params(node):
      return node
    new = {k: node[k] for k in grown}
    return node | jax.tree.map(_zeroed, grown, new)

  return jax.tree.map(zero, opt_state, is_leaf=like_params)


def _zeroed(grown: jax.Array, x: Any) -> Any:
  if isinstance(x, optax.MaskedNode):  # another optimizer's
    return x
  same = grown.size == x.size
  return jnp.where(grown.reshape(x.shape) if same else over(grown, x), 0, x)
