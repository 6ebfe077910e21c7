"""One step, the optimizer, evaluation and progress."""

import os
import pty
import re
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from flax.traverse_util import flatten_dict

from jaxr18.compress import criteria, prune
from jaxr18.data import dataset as data
from jaxr18.host.files import NotFiniteError
from jaxr18.nn import network, spec
from jaxr18.train import evaluate, hooks, progress, state
from jaxr18.train.clock import Clock
from jaxr18.train.mesh import make_mesh, replicate, shard
from jaxr18.train.step import Batch, Teachers

DIGITS = tiny_run.dataset()
KEY = jax.random.key(0)


def batch(i=0, size=tiny_run.BATCH_SIZE):
  part = DIGITS.train.take(slice(i * size, (i + 1) * size))
  return shard(Batch(part.images, part.labels, part.index), make_mesh())


def steps(train_step, now, n):
  """The states after each of n steps, on the host."""
  states = []
  for i in range(n):
    now, loss = train_step(now, Teachers(), batch(i), KEY, np.int32(0))
    assert np.isfinite(loss)
    states.append(jax.device_get(now))
  return states


@pytest.fixture(scope="module")
def trained():
  """The step, its start, and three states of a dense and three of a pruned net.

  It is pruned in the middle, where momentum points at what is masked.
  """
  tx = tiny_run.optimizer(clip_norm=0.0)
  train_step = tiny_run.train_step(tx)
  pruned = tiny_run.half_pruned(tiny_run.tiny_network())
  dense = pruned.replace(masks=jax.tree.map(jnp.ones_like, pruned.masks))
  start = state.create(dense, tx, average=True)
  states = steps(train_step, replicate(start, make_mesh()), 3)
  middle = states[-1].replace(net=states[-1].net.replace(masks=pruned.masks))
  states += steps(train_step, replicate(middle, make_mesh()), 3)
  return train_step, start, states


def test_the_step_is_compiled_once_and_donates_its_state(trained):
  train_step, start, _ = trained
  now = replicate(start, make_mesh())
  after, _ = train_step(now, Teachers(), batch(), KEY, np.int32(1))
  assert train_step._cache_size() == 1
  used = (now.net, now.opt_state, now.average.params, now.totals)
  assert all(x.is_deleted() for x in jax.tree.leaves(used))
  assert not any(x.is_deleted() for x in jax.tree.leaves(start))
  # The compiled program writes over its input: memory for one state, not two.
  memory = (
    train_step.lower(after, Teachers(), batch(), KEY, np.int32(1))
    .compile()
    .memory_analysis()
  )
  size = sum(x.nbytes for x in jax.tree.leaves(used))
  assert memory.alias_size_in_bytes >= size


class TestOnlyGradients:
  def test_are_those_that_the_step_would_take(self):
    """Of what is masked too: those of the same network with nothing masked."""
    rate = 0.25
    tx = optax.sgd(rate)
    teacher = Teachers((tiny_run.tiny_network(seed=1),))
    how = dict(flip="random", cutout=2, taught=True)
    pruned = state.create(
      tiny_run.half_pruned(tiny_run.tiny_network()), tx, False
    )
    every = jax.tree.map(jnp.ones_like, pruned.net.masks)
    dense = pruned.replace(net=pruned.net.replace(masks=every))
    of = tiny_run.gradients(**how)
    found = jax.device_get(of(pruned, teacher, batch(3), KEY, np.int32(0)))
    step = tiny_run.train_step(tx, **how)
    now = replicate(dense, make_mesh())
    now, _ = step(now, teacher, batch(3), KEY, np.int32(0))
    before, after = (network.kernels(s.net.params) for s in (pruned, now))
    assert found.keys() == before.keys()
    would_help = 0
    for path, g in found.items():
      np.testing.assert_allclose(
        rate * g, before[path] - after[path], rtol=1e-4, atol=1e-6
      )
      mask = np.asarray(network.kernels(pruned.net.masks)[path])
      assert not np.any(np.asarray(before[path])[~mask])
      would_help += np.count_nonzero(g[~mask])
    assert would_help > 0

  def test_leave_the_state(self):
    tx = tiny_run.optimizer()
    now = state.create(tiny_run.tiny_network(), tx, True)
    of = tiny_run.gradients()
    of(now, Teachers(), batch(), KEY, np.int32(0))
    assert not any(x.is_deleted() for x in jax.tree.leaves(now))


class TestMovement:
  @pytest.mark.parametrize("name", ["sgd", "adamw"])
  def test_is_the_sum_under_momentum_decay_and_clipping(self, name):
    how = dict(clip_norm=0.1, warmup_steps=2)
    tx = tiny_run.optimizer(name, movement=True, **how)
    gradients = tiny_run.gradients()
    step = tiny_run.train_step(tx)
    rate = optax.warmup_cosine_decay_schedule(0.05 / 2, 0.05, 2, tiny_run.STEPS)
    pruned = tiny_run.half_pruned(tiny_run.tiny_network())
    now = replicate(state.create(pruned, tx, True), make_mesh())
    sums = {p: 0.0 for p in network.kernels(pruned.params)}
    for i in range(6):
      args = batch(i), KEY, np.int32(0)
      g = jax.device_get(gradients(now, Teachers(), *args))
      w = jax.device_get(network.kernels(now.net.params))
      for path in sums:
        sums[path] = sums[path] - float(rate(i)) * g[path] * w[path]
      now, _ = step(now, Teachers(), *args)
    movement = jax.device_get(state.movement_of(now.opt_state))
    found = criteria.score("movement", now.net, movement=movement)
    for path, s in sums.items():
      np.testing.assert_allclose(found[path], s, rtol=1e-3, atol=1e-7)

  def test_changes_no_step(self):
    """But for the rounding of another program."""
    ends = []
    for movement in (False, True):
      tx = tiny_run.optimizer(movement=movement)
      now = state.create(tiny_run.tiny_network(), tx, False)
      step = tiny_run.train_step(tx)
      ends.append(steps(step, replicate(now, make_mesh()), 3)[-1].net)
    chex.assert_trees_all_close(*ends, rtol=1e-5, atol=1e-6)


class TestForget:
  @pytest.mark.parametrize("name", ["sgd", "adamw"])
  def test_what_grew_and_nothing_else(self, name):
    tx = tiny_run.optimizer(name, movement=True)
    net = tiny_run.tiny_network()
    now = state.create(net, tx, False)
    now = steps(tiny_run.train_step(tx), replicate(now, make_mesh()), 2)[-1]
    grown = jax.tree.map(lambda m: ~m, tiny_run.half_pruned(net).masks)
    after = state.forget(now.opt_state, grown)
    assert jax.tree.structure(after) == jax.tree.structure(now.opt_state)
    # Momentum, or both moments of Adam, and the movement.
    memories = {"sgd": ("trace",), "adamw": ("mu", "nu")}[name]
    for memory in (*memories, "movement"):
      old = optax.tree_utils.tree_get(now.opt_state, memory)
      new = optax.tree_utils.tree_get(after, memory)
      expected = jax.tree.map(lambda g, x: np.where(g, 0, x), grown, old)
      chex.assert_trees_all_equal(new, expected)
      assert np.any(old["stem"]["kernel"] != new["stem"]["kernel"])

  def test_in_training_what_grows_has_no_momentum(self, tmp_path):
    """Between the last two updates is the first step of what grew."""
    tx = tiny_run.optimizer(clip_norm=0.0, warmup_steps=0)
    pruned = tiny_run.half_pruned(tiny_run.tiny_network())
    every = jax.tree.map(jnp.ones_like, pruned.masks)
    dense = prune.full_masks(pruned.replace(masks=every))
    seen = {}

    def update(now, step, gradients):
      seen[step] = jax.device_get(now)
      if step in (3, 6):  # masks half, and some steps later all is back
        masks = prune.full_masks(pruned).masks if step == 3 else dense.masks
        seen["gradients"] = jax.device_get(gradients())
        params = network.apply_masks(now.net.params, masks)
        return now.net.replace(params=params, masks=masks)
      return now.net

    hook = lambda t: [
      hooks.pruning(
        t.feed, t.teachers, lambda step: step in (3, 6, 7), update,
        tiny_run.gradients(),
      )
    ]  # fmt: skip
    start = state.create(dense, tx, average=True)
    tiny_run.train(start, tiny_run.train_step(tx), tmp_path, hooks=hook)
    mask = np.asarray(network.kernels(pruned.masks)["stem"])
    trace = optax.tree_utils.tree_get(seen[6].opt_state, "trace")
    assert np.any(trace["stem"]["kernel"][~mask])  # 0.9^3 of it is left
    trace = optax.tree_utils.tree_get(seen[7].opt_state, "trace")
    # Only the gradient of the one step: decay of 0 is 0, momentum is forgotten.
    np.testing.assert_allclose(
      trace["stem"]["kernel"][~mask], seen["gradients"]["stem"][~mask],
      rtol=1e-3, atol=1e-6,
    )  # fmt: skip


def test_the_average_is_numpys(trained):
  _, start, states = trained
  average = jax.device_get(start.net)
  for i, now in enumerate(states):
    decay = np.float32(min(0.9, (1 + i) / (10 + i)))
    moved = {
      part: jax.tree.map(
        lambda a, b, d=decay: d * a + (1 - d) * b,
        getattr(average, part),
        getattr(now.net, part),
      )
      for part in ("params", "batch_stats")
    }
    moved["params"] = jax.tree.map(np.multiply, moved["params"], now.net.masks)
    average = now.net.replace(**moved)
    chex.assert_trees_all_close(now.average, average, rtol=1e-5, atol=1e-7)


def alive(tree):
  return sum(np.count_nonzero(x) for x in jax.tree.leaves(tree))


def test_pruned_weights_stay_zero_with_momentum_and_decay(trained):
  dense, pruned = trained[2][2], trained[2][3:]
  for now in pruned:
    for net in (now.net, now.average):
      kept = jax.tree.map(np.broadcast_to, net.masks, shapes(net.params))
      assert alive(net.params) <= alive(kept) < alive(dense.net.params)
      revived = jax.tree.map(lambda p, m: p * ~m, net.params, kept)
      assert alive(revived) == 0
  # Which momentum alone would have revived.
  trace = jax.tree.leaves(pruned[0].opt_state)
  assert alive(trace) > 1.5 * alive(pruned[0].net.params)


def shapes(tree):
  return jax.tree.map(np.shape, tree)


def test_totals_are_sums_over_the_steps(trained):
  train_step, start, states = trained
  now, losses = replicate(start, make_mesh()), []
  for i in range(2):
    now, loss = train_step(now, Teachers(), batch(i), KEY, np.int32(0))
    losses.append(float(loss))
  totals = jax.device_get(now.totals)
  assert totals["count"] == 32 and 0 <= totals["correct"] <= 32
  np.testing.assert_allclose(totals["loss"], 16 * sum(losses), rtol=1e-6)
  assert states[-1].totals["count"] == 96 and states[-1].step == 6


def test_totals_of_terms_sum_to_that_of_the_loss():
  tx = tiny_run.optimizer()
  net, teacher = tiny_run.tiny_network(), tiny_run.tiny_network(seed=1)
  names = ("cross_entropy", "distillation")
  now = replicate(state.create(net, tx, False, terms=names), make_mesh())
  step = tiny_run.train_step(tx, taught=True, kd_weight=0.25)
  for i in range(2):
    args = Teachers((teacher,)), batch(i), KEY, np.int32(0)
    now, _ = step(now, *args)
  totals = jax.device_get(now.totals)
  assert totals["terms"].keys() == set(names)
  assert all(v > 1 for v in totals["terms"].values())
  assert sum(totals["terms"].values()) == pytest.approx(
    totals["loss"], rel=1e-5
  )
  # One term is the loss itself, and is not summed twice.
  assert "terms" not in state.create(net, tx, False, terms=names[:1]).totals


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_kernels_decay(name):
  tx = tiny_run.optimizer(name, warmup_steps=0, weight_decay=0.1, clip_norm=0.0)
  params = tiny_run.tiny_network().params
  params["stem"]["input_bound"] = jnp.ones(())
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  moved = {
    path[-1].key: np.abs(u).max()
    for path, u in jax.tree_util.tree_leaves_with_path(updates)
  }
  assert set(moved) == {"kernel", "bias", "scale", "input_bound"}
  assert moved.pop("kernel") > 0
  assert set(moved.values()) == {0}


def test_sgd_is_nesterovs_with_coupled_decay():
  tx = tiny_run.optimizer(warmup_steps=0, steps=10**9, clip_norm=0.0)
  p = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
  expected, trace = dict(jax.device_get(p)), {"kernel": 0, "bias": 0}
  opt_state = tx.init(p)
  for i in range(4):
    g = jax.tree.map(lambda x, i=i: jnp.cos(x + i), p)
    updates, opt_state = tx.update(g, opt_state, p)
    p = optax.apply_updates(p, updates)
    for k, x in expected.items():
      g = np.cos(x + i) + (1e-2 * x if k == "kernel" else 0)
      trace[k] = 0.9 * trace[k] + g
      expected[k] = x - 0.05 * (0.9 * trace[k] + g)
  chex.assert_trees_all_close(p, expected, rtol=1e-5)


def rates(steps, warmup, n):
  """The learning rate at each of n steps, seen from outside."""
  tx = state.make_optimizer("sgd", state.Rate(0.2, steps, warmup), momentum=0.0)
  one = {"kernel": jnp.ones(())}
  opt_state, out = tx.init(one), []
  for _ in range(n):
    updates, opt_state = tx.update(one, opt_state, one)
    out.append(-float(updates["kernel"]))
  return out


def test_the_rate_warms_up_and_falls_as_a_cosine():
  found = rates(steps=12, warmup=4, n=12)
  first = 0.2 / 4
  up = [first + (0.2 - first) * i / 4 for i in range(4)]
  down = [0.2 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]
  np.testing.assert_allclose(found, up + down, rtol=1e-5)
  assert rates(steps=5, warmup=0, n=1) == [pytest.approx(0.2)]
  assert all(np.isfinite(rates(steps=3, warmup=3, n=3)))


def test_gradients_are_clipped_by_their_global_norm():
  p = {"kernel": jnp.zeros(3), "bias": jnp.zeros(1)}
  g = {"kernel": jnp.array([3.0, 0, 0]), "bias": jnp.array([4.0])}
  how = dict(warmup_steps=0, weight_decay=0.0, momentum=0.0)
  moved = {}
  for clip in (0.0, 1.0, 10.0):
    tx = tiny_run.optimizer(**how, clip_norm=clip)
    moved[clip] = -tx.update(g, tx.init(p), p)[0]["bias"][0] / 0.05
  assert moved == {0.0: 4.0, 1.0: pytest.approx(0.8), 10.0: 4.0}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_learned_ends_of_grids_have_a_rate_and_a_decay_of_their_own(name):
  p = {"kernel": jnp.ones(3), "input_bound": jnp.float32(2)}
  p["kernel_bound"] = jnp.full(4, 3.0)
  g = jax.tree.map(jnp.zeros_like, p)
  how = dict(warmup_steps=0, momentum=0.0, weight_decay=0.0, clip_norm=0.0)

  def moved(g, **changes):
    tx = tiny_run.optimizer(name, **how, **changes)
    return tx.update(g, tx.init(p), p)[0]

  fell = moved(g, groups=[state.Group(state.bounds, 0.5, 0.1)])
  assert not np.any(fell["kernel"])
  for bound, size in (("input_bound", 2), ("kernel_bound", 3)):
    np.testing.assert_allclose(fell[bound], -0.05 * 0.5 * 0.1 * size, rtol=1e-5)
  ones = jax.tree.map(jnp.ones_like, p)
  plain = moved(ones)
  slow = moved(ones, groups=[state.Group(state.bounds, 0.25)])
  np.testing.assert_array_equal(slow["kernel"], plain["kernel"])
  for bound in ("input_bound", "kernel_bound"):
    np.testing.assert_allclose(slow[bound], plain[bound] / 4, rtol=1e-6)


def test_biases_of_batch_norm_have_a_rate_of_their_own():
  """As airbench94's parameter group: their rate is 64 times the others'."""
  p = tiny_run.tiny_network().params
  slow, fast = (
    tiny_run.optimizer(
      warmup_steps=0, clip_norm=0.0, groups=[state.Group(state.norm_biases, x)]
    )
    for x in (1.0, 64.0)
  )
  moved = []
  for tx in (slow, fast):
    opt_state = tx.init(p)
    for i in range(3):  # momentum is that of the gradients, as in PyTorch
      g = jax.tree.map(lambda x, i=i: jnp.cos(x + i), p)
      updates, opt_state = tx.update(g, opt_state, p)
    moved.append(flatten_dict(updates, sep="/"))
  factors = {
    name: float(np.unique(np.float32(moved[1][name] / u)).item())
    for name, u in moved[0].items()
    if name.endswith("bias")
  }
  assert factors.pop("head/bias") == 1
  assert len(factors) == 6 and set(factors.values()) == {64}
  for name, u in moved[0].items():
    if not name.endswith("bias"):
      np.testing.assert_array_equal(moved[1][name], u)


def test_an_unknown_optimizer():
  with pytest.raises(ValueError, match="'adam'.*must be 'sgd' or 'adamw'"):
    tiny_run.optimizer("adam")


def test_all_images_count_whatever_the_batch_size():
  full = data.load("digits", validation=50)
  net, split = tiny_run.tiny_network(), full.test
  logits = {
    size: evaluate.predict(net, split.images, full, size, make_mesh())
    for size in (7, 50, 360, 1000)
  }
  for found in logits.values():
    assert found.shape == (360, 10)
    np.testing.assert_allclose(found, logits[360], rtol=1e-5, atol=1e-5)
  found = evaluate.evaluate(net, split, full, 50, make_mesh())
  assert found.count == 360
  assert found.correct == (logits[50].argmax(-1) == split.labels).sum()
  assert found.accuracy == found.correct / 360
  p = np.exp(logits[50].astype(np.float64))
  p = p[np.arange(360), split.labels] / p.sum(-1)
  np.testing.assert_allclose(found.loss, -np.log(p).mean(), rtol=1e-6)


@pytest.mark.parametrize("w_bits", [32, 8])  # as floats and as integers
def test_what_fills_the_last_batch_moves_no_bound(w_bits):
  # Grey images, beside which a black one is the largest, 4 times theirs.
  shape = (7, 32, 32, 3)
  images = np.random.default_rng(0).integers(90, 110, shape, np.uint8)
  images[3] += 100  # nor does another image
  net = tiny_run.tiny_network()
  rules = [("stem", w_bits, 4), (".*", 32, 32)]
  net = net.replace(spec=spec.with_bits(net.spec, rules, "dynamic"))
  whole, *others = (
    evaluate.predict(net, images, DIGITS, size, make_mesh())
    for size in (7, 4, 1)
  )
  for found in others:
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_network_of_no_numbers_is_not_evaluated(number):
  """Its logits may be finite: some ReLUs make 0 of a NaN."""
  net = tiny_run.tiny_network()
  stem = net.params["stem"]
  stem = stem | {"kernel": stem["kernel"].at[0, 0, 0, 0].set(number)}
  net = net.replace(params=net.params | {"stem": stem})
  digits = tiny_run.dataset()
  with pytest.raises(NotFiniteError, match="params/stem/kernel is not finite"):
    evaluate.predict(net, digits.test.images, digits, 20, make_mesh())


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_not_counted(number):
  net = tiny_run.tiny_network()
  net.params["head"]["bias"] = net.params["head"]["bias"].at[3].set(number)
  split = DIGITS.validation
  with pytest.raises(NotFiniteError, match="params/head/bias is not finite"):
    evaluate.evaluate(net, split, DIGITS, 50, make_mesh())
  good = np.zeros((50, 10))
  bad = good.copy()
  bad[7, 2] = number
  for pair in ((good, bad), (bad, good)):
    with pytest.raises(NotFiniteError, match="1 of 50 .* number 7"):
      evaluate.compare(*pair, split.labels)


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")],
)
def test_duration(seconds, text):
  assert progress.duration(seconds) == text


def report(mode, start=0):
  """Two epochs of ten steps: 0.2 s of compiling, then 0.02 s a step."""
  hook = progress.Reporter("tiny", 3, 10, 100, mode).hook()
  time.sleep(0.2)
  hook.begin([], start)
  clock = Clock()
  for step in range(start + 1, 21):
    time.sleep(0.02)
    clock.add(100)
    hook.after_step(step, np.float32(1.5))
    if step % 10 == 0:
      hook.validating(step)
      clock.pause()
      time.sleep(0.2)
      clock.go_on()
      row = {"step": step, "epoch": step // 10, "loss": 1.25}
      row |= {"train_accuracy": 0.5, "validation_accuracy": 0.75}
      row |= {"images_per_second": clock.rate(), "seconds": clock.seconds()}
      hook.after_epoch(row)
      clock.restart()
  hook.close()
  hook.close()


def test_plain_lines(capsys):
  report("auto")  # there is no terminal
  lines = capsys.readouterr().err.splitlines()
  line = (
    r"tiny: epoch (\d)/3 (\d+) images/s loss 1.250 val 75.00% train 50.00% "
  )
  found = [re.fullmatch(line + r"(\d:\d\d) left", text) for text in lines]
  assert [m[1] for m in found] == ["1", "2"]
  # 0.02 s a step, neither compiling nor validating counted (5000 if idle).
  assert all(1000 < int(m[2]) < 5000 for m in found)


def test_rates_after_a_resume(capsys):
  report("plain", start=15)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "tiny: goes on at step 15 of 30"
  assert 1000 < int(re.search(r"(\d+) images/s", lines[1])[1]) < 5000
  assert lines[1].endswith(("0:00 left", "0:01 left"))  # 15 steps left, not 10


def test_a_bar_on_a_terminal(monkeypatch):
  reader, writer = pty.openpty()
  with os.fdopen(writer, "w") as terminal:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    report("auto")
    shown = b""
    while b"\x1b[?25h" not in shown:  # until the cursor is back
      shown += os.read(reader, 10_000)
  text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
  assert "compiling" in text and "validating" in text
  live = r"tiny ━.* epoch 2/3 \d+ images/s loss 1.500 val 75.00% \d:\d\d left"
  assert re.search(live, text)
