"""Muon against its authors' code, and beside everything that training does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from flax.traverse_util import flatten_dict

from jaxr18.compress import ensemble
from jaxr18.host.stop import Stopped
from jaxr18.train import checkpoint, muon, state
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.step import Batch, Member, Teachers

DIGITS = tiny_run.dataset()
MUON = muon.Muon(lambda step: 0.1 / (1 + step), momentum=0.6, decay=0.25)
TX = tiny_run.optimizer(muon=MUON, clip_norm=0.0)


def orthogonalized(gradient: np.ndarray) -> np.ndarray:
  """airbench94_muon.py's `zeropower_via_newtonschulz5`, with 5 steps.

  Args:
    gradient: HWIO; the code has OIHW, and flattens it to [O, I * H * W].
  """
  a, b, c = 3.4445, -4.7750, 2.0315
  oihw = gradient.transpose(3, 2, 0, 1)
  x = oihw.reshape(len(oihw), -1).astype(np.float64)
  x /= np.linalg.norm(x) + 1e-7
  for _ in range(5):
    squared = x @ x.T
    x = a * x + (b * squared + c * squared @ squared) @ x
  # `max(1, rows / columns) ** 0.5` is of KellerJordan/Muon.
  x *= max(1, x.shape[0] / x.shape[1]) ** 0.5
  return x.reshape(oihw.shape).transpose(2, 3, 1, 0)


@pytest.mark.versions
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_is_its_authors_of_convolutions_and_leaves_the_rest(name):
  params = tiny_run.tiny_network().params
  params["depthwise"] = {"kernel": jnp.ones((3, 3, 1, 4))}
  how = dict(warmup_steps=0, clip_norm=0.0)
  ours, plain = (tiny_run.optimizer(name, **how, muon=m) for m in (MUON, None))
  update = jax.jit(ours.update)
  kept, alone = ours.init(params), plain.init(params)
  means = {}
  for i in range(3):
    g = jax.tree.map(lambda x, i=i: jnp.cos(7 * x + i), params)
    moved, kept = update(g, kept, params)
    same, alone = jax.jit(plain.update)(g, alone, params)
    got, gradients, weights, others = (
      flatten_dict(tree, sep="/") for tree in (moved, g, params, same)
    )
    matrices = set()
    for path, u in got.items():
      if u.ndim != 4 or path.startswith("depthwise"):
        np.testing.assert_array_equal(u, others[path], err_msg=path)
        continue
      matrices.add(path)
      grad, m = np.float64(gradients[path]), 0.6
      means[path] = m * means.get(path, 0) + (1 - m) * grad
      # The mean and the gradient are those of a run without a start.
      x = m * means[path] / (1 - m ** (i + 2))
      x += (1 - m) * grad / (1 - m ** (i + 1))
      step = orthogonalized(x) + 0.25 * np.float64(weights[path])
      np.testing.assert_allclose(u, -0.1 / (1 + i) * step, rtol=0, atol=3e-5)
    assert len(matrices) == 6  # the stem, four of the blocks and a projection
    params = optax.apply_updates(params, moved)


def test_what_grew_has_no_momentum():
  net = tiny_run.tiny_network()
  kept = TX.init(net.params)
  kept = TX.update(net.params, kept, net.params)[1]
  grown = jax.tree.map(lambda m: ~m, tiny_run.half_pruned(net).masks)
  after = state.forget(kept, grown)
  assert jax.tree.structure(after) == jax.tree.structure(kept)
  old, new = (
    [x for k, x in checkpoint.flatten({"": s}).items() if "mu.stem" in k]
    for s in (kept, after)
  )
  ((mean,), (left,)) = old, new
  mask = np.asarray(grown["stem"]["kernel"]).reshape(mean.shape)
  np.testing.assert_array_equal(left, np.where(mask, 0, mean))
  assert mask.any() and np.all(mean != 0)


def batch(*rows):
  part = DIGITS.train.take(np.array(rows if len(rows) > 1 else rows[0]))
  whole = Batch(part.images, part.labels, part.index)
  return shard(whole, make_mesh(), len(rows) > 1)


def test_members_are_networks_alone_and_masks_stay():
  nets = [tiny_run.tiny_network(i) for i in range(2)]
  nets[1] = tiny_run.half_pruned(nets[1])
  rows = [np.arange(16), np.arange(16, 32)]
  keys = jnp.stack([jax.random.key(i) for i in range(2)])
  members = Member(1.0), Member(0.5)
  many = state.create(ensemble.stack(nets), TX, average=True)
  many = replicate(many, make_mesh())
  together = tiny_run.train_step(TX, members=members)
  for _ in range(2):
    many, _ = together(many, Teachers(), batch(*rows), keys, np.int32(0))
  half = optax.chain(TX, optax.scale(0.5))
  one = replicate(state.create(nets[1], half, average=True), make_mesh())
  alone = tiny_run.train_step(half)
  for _ in range(2):
    one, _ = alone(one, Teachers(), batch(rows[1]), keys[1], np.int32(0))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[1], b, rtol=2e-4, atol=2e-5),
    many.net.params,
    one.net.params,
  )
  kernel = np.ravel(one.net.params["stem"]["kernel"])
  assert not kernel[1::2].any() and kernel[::2].all()


@pytest.mark.slow
def test_resumed_it_has_the_same_bits(tmp_path):
  step = tiny_run.train_step(TX)

  def run(folder, stop=None):
    start = state.create(tiny_run.tiny_network(), TX, average=True)
    return tiny_run.train(start, step, folder, stop=stop)

  whole, cut = tmp_path / "whole", tmp_path / "cut"
  run(whole)
  with pytest.raises(Stopped):
    run(cut, tiny_run.StopAfter(8))
  run(cut)
  want, got = (
    checkpoint.read(d / "checkpoints" / "12")[0] for d in (whole, cut)
  )
  assert any("mu.stem" in name for name in want)
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
