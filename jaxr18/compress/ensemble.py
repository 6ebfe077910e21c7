"""Several networks as one: stacked, voting, disagreeing, averaged.

Networks of one spec stack into a `Network` whose arrays have a leading member
axis, and one vmapped program runs them all; several specs form groups.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxr18.nn.network import Network, apply_masks, forward, members

VOTES = ("probability", "logit", "majority", "weighted")
LEAST = 1e-30  # is added to a probability before its logarithm
T = TypeVar("T")


def stack(nets: Sequence[Network]) -> Network:
  """Networks of one spec -> one with a leading member axis on every array.

  Raises:
    ValueError: no network, or several specs.
  """
  if not nets:
    raise ValueError("an ensemble needs at least one network, got none")
  specs = {net.spec for net in nets}
  if len(specs) > 1:
    raise ValueError(
      f"{len(nets)} networks of {len(specs)} specs do not stack; `groups` sorts"
      " them, or give all the same spec"
    )

  def full(net):  # one has scalar masks where another has arrays
    masks = jax.tree.map(
      lambda m, p: jnp.broadcast_to(m, p.shape), net.masks, net.params
    )
    return net.replace(masks=masks)

  if any(
    jax.tree.map(jnp.shape, n.masks) != jax.tree.map(jnp.shape, nets[0].masks)
    for n in nets
  ):
    nets = [full(net) for net in nets]
  return jax.tree.map(lambda *x: jnp.stack(x), *nets)


def unstack(net: Network) -> list[Network]:
  """Inverts `stack`; a single network gives itself alone."""
  if (count := members(net)) is None:
    return [net]
  return [jax.tree.map(lambda x, i=i: x[i], net) for i in range(count)]


def forward_members(
  net: Network, images: jax.Array, dtype=jnp.float32
) -> jax.Array:
  """Computes every member's logits on the same images, in one program.

  Args:
    net: of `stack`.
    images, dtype: as in `network.forward`.

  Returns:
    [members, batch, classes], float32.
  """
  return jax.vmap(lambda n: forward(n, images, dtype))(net)


def groups(nets: Sequence[Network]) -> list[tuple[tuple[int, ...], Network]]:
  """Networks of any specs as (their positions, stacked), one for each spec."""
  by_spec: dict = {}
  for i, net in enumerate(nets):
    by_spec.setdefault(net.spec, []).append(i)
  return [(tuple(p), stack([nets[i] for i in p])) for p in by_spec.values()]


def vote(logits, method: str = "probability", weights=None, xp: Any = np):
  """Computes an ensemble's answer.

  Args:
    logits: [members, n, classes].
    method: 'probability' (mean of the members' probabilities), 'logit' (softmax
      of the mean logit: the geometric mean), 'majority' (share of the votes;
      of equal shares the more probable class wins) or 'weighted' (mean of the
      probabilities by `weights`).
    weights: [members], sum 1; only for 'weighted'.
    xp: numpy, or jax.numpy, which keeps the logits' type.

  Returns:
    Probabilities [n, classes], float64.

  Raises:
    ValueError: another vote, or weights that are missing or do not fit.
  """
  if method not in VOTES:
    raise ValueError(f"vote (={method!r}) must be one of {VOTES}")
  if (weights is not None) != (method == "weighted"):
    raise ValueError("weights go with vote='weighted', and only with it")
  logits = np.asarray(logits, np.float64) if xp is np else logits
  if method == "logit":
    return _softmax(logits.mean(0), xp)
  p = _softmax(logits, xp)
  if method == "probability":
    return p.mean(0)
  if method == "weighted":
    weights = np.asarray(weights, np.float64)
    if weights.shape != p.shape[:1] or not np.isclose(weights.sum(), 1):
      raise ValueError(
        f"weights (={weights.tolist()}) must be {len(p)} numbers of sum 1"
      )
    return xp.tensordot(xp.asarray(weights, p.dtype), p, 1)
  shares = (p.argmax(-1)[..., None] == xp.arange(p.shape[-1])).mean(0)
  # Less than half a vote, so it decides among equals alone.
  mixed = shares + p.mean(0) * 0.5 / len(p)
  return mixed / mixed.sum(-1, keepdims=True)


def voted_logits(logits, method: str, weights=None, xp: Any = np):
  """Computes the logarithms of an ensemble's probabilities, [n, classes].

  Args:
    logits, method, weights, xp: as `vote` takes them; other votes than
      'weighted' need no weights, and ignore them.
  """
  weights = weights if method == "weighted" else None
  return xp.log(vote(logits, method, weights, xp) + LEAST)


def fit_weights(
  logits: np.ndarray, labels: np.ndarray, steps: int = 200
) -> np.ndarray:
  """Fits weights of the mean probability to the labels.

  Expectation maximization of the mixture's likelihood, which is concave in
  the weights and never falls from one step to the next.

  Args:
    logits: [members, n, classes], on validation images.
    labels: [n], ints.

  Returns:
    [members], sum 1.
  """
  p = _softmax(np.asarray(logits, np.float64))[
    :, np.arange(len(labels)), labels
  ]
  w = np.full(len(p), 1 / len(p))
  for _ in range(steps):
    w = (w[:, None] * p / (w @ p + 1e-300)).mean(1)
    w /= w.sum()
  return w


def disagreement(logits: np.ndarray) -> np.ndarray:
  """Computes the share of images on which two members answer differently.

  Args:
    logits: [members, n, classes].

  Returns:
    [members, members], symmetric, zeros on the diagonal.
  """
  answers = np.asarray(logits).argmax(-1)
  return (answers[:, None] != answers[None]).mean(-1)


def of_member(nets: Sequence[T], members: int, member: int) -> T | None:
  """Returns the source that a member takes; None for the soup of all."""
  if len(nets) == 1:
    return nets[0]
  return nets[member] if len(nets) == members else None


def soup(nets: Sequence[Network], weights=None) -> Network:
  """Averages the weights of several networks (Wortsman et al., 2022).

  Of networks along one run of a constant rate it is SWA (Izmailov et al.,
  2018). Batch norm's running statistics are averaged too, which is not what
  the averaged weights would measure: `network.recalibrate` renews them.

  Args:
    nets: of one spec and with the same masks.
    weights: [members], sum 1; default: all the same.

  Raises:
    ValueError: several specs or masks.
  """
  stacked = stack(nets)
  same = jax.tree.map(lambda m: bool(jnp.all(m == m[:1])), stacked.masks)
  if not all(jax.tree.leaves(same)):
    raise ValueError("a soup's networks must have the same masks")
  w = np.full(len(nets), 1 / len(nets)) if weights is None else weights
  mean = lambda x: jnp.tensordot(jnp.asarray(w, x.dtype), x, 1)
  params = jax.tree.map(mean, stacked.params)
  return nets[0].replace(
    params=apply_masks(params, nets[0].masks),
    batch_stats=jax.tree.map(mean, stacked.batch_stats),
  )


def _softmax(z, xp: Any = np):
  e = xp.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)
