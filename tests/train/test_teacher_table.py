"""A teacher's logits from a table are those that it would give anew."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxr18.data import dataset as data
from jaxr18.data.augment import Augment, augment, normalize
from jaxr18.nn.network import forward
from jaxr18.train import checkpoint, state, teacher_table
from jaxr18.train.table import Table, TableError
from jaxr18.train.teacher_table import CachedTeacher

DIGITS = tiny_run.dataset()
TEACHERS = tiny_run.tiny_network(seed=1), tiny_run.tiny_network(seed=2)
KEY = jax.random.key(3)
SIZE = tiny_run.BATCH_SIZE


def open_teacher(folder, nets=TEACHERS[:1], pad=1, flip="alternating"):
  return CachedTeacher(nets, DIGITS, folder, pad=pad, flip=flip)


def part(i):
  return DIGITS.train.take(slice(i * SIZE, (i + 1) * SIZE))


def direct(nets, key, step, epoch, some):
  """Log of the mean probability, of the images that a step would see."""
  images = augment(
    key, some.images, step, Augment(1, "alternating"), index=some.index,
    epoch=epoch,
  )  # fmt: skip
  x = normalize(images, DIGITS.mean, DIGITS.std, 8)
  return np.log(np.mean([jax.nn.softmax(forward(n, x)) for n in nets], 0))


class TestCachedTeacher:
  @pytest.mark.parametrize("n", [1, 2])
  def test_equals_a_forward_of_the_same_view(self, tmp_path, n):
    nets = TEACHERS[:n]
    cached = open_teacher(tmp_path, nets)
    for step, epoch in ((0, 0), (9, 1)):
      got = cached(KEY, step, epoch, part(1))
      expected = direct(nets, KEY, step, epoch, part(1))
      np.testing.assert_allclose(
        jax.nn.log_softmax(got), expected, rtol=1e-4, atol=1e-5
      )
    # The test can fail: another step sees other views.
    other = direct(nets, KEY, 1, 0, part(1))
    assert np.abs(jax.nn.log_softmax(got) - other).max() > 1e-2

  def test_of_several_for_mse_is_the_mean_of_logits(self, tmp_path):
    kept = dict(pad=1, flip="alternating", loss="mse")
    cached = CachedTeacher(TEACHERS, DIGITS, tmp_path, **kept)
    images = augment(
      KEY, part(1).images, 0, Augment(1, "alternating"), index=part(1).index,
      epoch=0,
    )  # fmt: skip
    x = normalize(images, DIGITS.mean, DIGITS.std, 8)
    expected = np.mean([forward(n, x) for n in TEACHERS], 0)
    got = cached(KEY, 0, 0, part(1))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    # Another mean is another table; one teacher's is the same.
    open_teacher(tmp_path, TEACHERS)
    assert len(list(tmp_path.iterdir())) == 2
    take = teacher_table.fingerprint
    one = take(TEACHERS[:1], DIGITS, 1)
    assert one == take(TEACHERS[:1], DIGITS, 1, loss="mse")

  def test_computes_in_the_steps_type(self, tmp_path):
    def cached(dtype):
      found = CachedTeacher(
        TEACHERS[:1], DIGITS, tmp_path, pad=1, flip="alternating", dtype=dtype
      )
      return np.asarray(found(KEY, 0, 0, part(1)))

    images = augment(
      KEY, part(1).images, 0, Augment(1, "alternating"), index=part(1).index,
      epoch=0,
    )  # fmt: skip
    x = normalize(images, DIGITS.mean, DIGITS.std, 8)
    half, single = (
      np.asarray(forward(TEACHERS[0], x, d))
      for d in (jnp.bfloat16, jnp.float32)
    )
    np.testing.assert_allclose(
      cached(jnp.float32), single, rtol=1e-5, atol=1e-5
    )
    # Two programs may round a bfloat16 in another place, in few images.
    apart = lambda a, b: np.abs(a - b).mean()
    assert apart(cached(jnp.bfloat16), half) < 0.3 * apart(half, single)
    assert apart(half, single) > 3e-4

  def test_a_row_is_computed_once_and_then_read(self, tmp_path):
    cached = open_teacher(tmp_path)
    first = cached(KEY, 0, 0, part(0))
    assert cached.computed == SIZE
    np.testing.assert_array_equal(cached(KEY, 0, 0, part(0)), first)
    assert cached.computed == SIZE
    cached.flush()
    again = open_teacher(tmp_path)
    np.testing.assert_array_equal(again(KEY, 0, 0, part(0)), first)
    assert again.computed == 0

  def test_members_of_a_population_share_rows(self, tmp_path):
    keys = jnp.stack([KEY, jax.random.key(4), KEY])
    some = DIGITS.train.take(np.stack([np.arange(SIZE)] * 3))
    cached = open_teacher(tmp_path)
    got = cached(keys, 2, 0, some)
    one = open_teacher(tmp_path / "alone")
    for i in range(3):
      alone = one(keys[i], 2, 0, part(0))
      np.testing.assert_allclose(got[i], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[0], got[2])
    assert SIZE < cached.computed == one.computed <= 2 * SIZE

  def test_filled_at_once_nothing_is_left(self, tmp_path):
    cached = open_teacher(tmp_path)
    said = []
    cached.fill(20, said.append)
    # 3 x 3 crops, each in two flips.
    assert cached.computed == len(DIGITS.train) * 18
    assert len(said) == 18 and said[-1].endswith("view 18 of 18")
    got = cached(KEY, 5, 1, part(2))
    assert cached.computed == len(DIGITS.train) * 18
    expected = direct(TEACHERS[:1], KEY, 5, 1, part(2))
    np.testing.assert_allclose(
      jax.nn.log_softmax(got), expected, rtol=1e-4, atol=1e-5
    )

  def test_a_killed_filling_goes_on(self, tmp_path):
    class Killed(Exception):
      pass

    def kill(text):
      if "view 7 of" in text:
        raise Killed

    with pytest.raises(Killed):
      open_teacher(tmp_path).fill(20, kill)
    again = open_teacher(tmp_path)
    again.fill(20)
    assert again.computed == len(DIGITS.train) * 11

  def test_without_flips_half_the_views(self, tmp_path):
    cached = open_teacher(tmp_path, flip="none")
    cached.fill(len(DIGITS.train))
    assert cached.computed == len(DIGITS.train) * 9


class TestFingerprint:
  def test_of_teacher_data_and_crops(self):
    take = teacher_table.fingerprint
    one = take(TEACHERS[:1], DIGITS, 1)
    changed = TEACHERS[0].replace(
      batch_stats=jax.tree.map(lambda x: x + 1e-6, TEACHERS[0].batch_stats)
    )
    others = [
      take(TEACHERS, DIGITS, 1),
      take(TEACHERS[1:], DIGITS, 1),
      take((changed,), DIGITS, 1),
      take((tiny_run.half_pruned(TEACHERS[0]),), DIGITS, 1),
      take(TEACHERS[:1], DIGITS, 2),
      take(TEACHERS[:1], data.load("digits", validation=49, limit=96), 1),
    ]
    # The validation split decides nothing: images are known by their index.
    assert others.pop() == one
    assert len({one, *others}) == 6
    assert one == take(TEACHERS[:1], DIGITS, 1)

  def test_another_teacher_gets_a_table_of_its_own(self, tmp_path):
    open_teacher(tmp_path), open_teacher(tmp_path, TEACHERS)
    assert len(list(tmp_path.iterdir())) == 2


class TestDamage:
  @pytest.fixture
  def filled(self, tmp_path):
    cached = open_teacher(tmp_path)
    rows = cached(KEY, 0, 0, part(0))
    cached.flush()
    return tmp_path, cached.table.folder, rows

  def test_a_flipped_bit_costs_one_row(self, filled, capsys):
    root, folder, rows = filled
    raw = bytearray((folder / "logits.f32").read_bytes())
    at = next(i for i, byte in enumerate(raw) if byte)
    raw[at] ^= 1
    (folder / "logits.f32").write_bytes(raw)
    again = open_teacher(root)
    assert "1 rows are damaged (first: image" in capsys.readouterr().err
    np.testing.assert_array_equal(again(KEY, 0, 0, part(0)), rows)
    assert again.computed == 1

  def test_a_row_in_another_place_is_not_taken(self, filled, capsys):
    root, folder, _ = filled
    _, views, classes = json.loads((folder / "table.json").read_text())["shape"]
    checks = np.memmap(folder / "checks.u32", np.uint32).reshape(-1, views)
    rows = np.memmap(folder / "logits.f32", np.float32)
    rows = rows.reshape(-1, views, classes)
    image, view = (a[0] for a in np.nonzero(checks))
    rows[image, view - 1] = rows[image, view]
    checks[image, view - 1] = checks[image, view]
    open_teacher(root)
    assert f"image {image}, view {view - 1}" in capsys.readouterr().err

  @pytest.mark.parametrize(
    "name, content, told",
    [
      ("logits.f32", b"short", "logits.f32 has not"),
      ("checks.u32", b"", "checks.u32 has not"),
      ("table.json", b"{", "is not JSON"),
      ("table.json", b'{"format": "x"}', "expected {'format'"),
    ],
  )
  def test_a_file_that_is_not_whole(self, filled, capsys, name, content, told):
    root, folder, rows = filled
    (folder / name).write_bytes(content)
    again = open_teacher(root)
    assert told in capsys.readouterr().err
    np.testing.assert_array_equal(again(KEY, 0, 0, part(0)), rows)
    assert again.computed == SIZE

  @pytest.mark.parametrize("name", ["logits.f32", "checks.u32"])
  def test_a_file_cut_while_it_is_in_use(self, filled, name):
    """A mapped file would end the process by SIGBUS."""
    root, folder, rows = filled
    cached = open_teacher(root)
    os.truncate(folder / name, 4)
    if name == "logits.f32":
      with pytest.raises(TableError, match="ends after 4 bytes.*same command"):
        cached(KEY, 0, 0, part(0))
    else:  # checksums are in memory; what goes on is written behind a hole
      np.testing.assert_array_equal(cached(KEY, 0, 0, part(0)), rows)
    again = open_teacher(root)
    np.testing.assert_array_equal(again(KEY, 0, 0, part(0)), rows)

  def test_a_row_changed_while_it_is_in_use(self, filled):
    root, folder, rows = filled
    cached = open_teacher(root)
    with (folder / "logits.f32").open("r+b") as f:
      f.write(bytes(folder.joinpath("logits.f32").stat().st_size))
    with pytest.raises(TableError, match=f"{SIZE} rows are no longer"):
      cached(KEY, 0, 0, part(0))
    again = open_teacher(root)  # as the error says
    np.testing.assert_array_equal(again(KEY, 0, 0, part(0)), rows)

  def test_a_full_disk(self, tmp_path, no_file_above):
    """Zeros of a new table take no room; its rows do."""
    table = Table(tmp_path / "table", (4, 2, 3))
    put = lambda: table.put(np.arange(4), np.ones(4, int), np.ones((4, 3)))
    with (
      no_file_above(50),
      pytest.raises(TableError, match="cannot keep.*make room.*goes on"),
    ):
      put()
    assert not table.filled(np.arange(4), 1).any()
    put()  # the mend
    table.flush()
    again = Table(tmp_path / "table", (4, 2, 3))
    assert (again.get(np.arange(4), np.ones(4, int)) == 1).all()

  def test_what_cannot_be_kept(self, tmp_path):
    table = Table(tmp_path / "table", (4, 2, 3))
    with pytest.raises(TableError, match="must be finite"):
      table.put(np.array([1]), np.array([0]), np.full((1, 3), np.nan))
    assert not table.filled(np.arange(4)[:, None], np.arange(2)).any()
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match="cannot keep.*make room"):
      Table(tmp_path / "file" / "table", (4, 2, 3))


TX = tiny_run.optimizer(clip_norm=0.0)
STEP = tiny_run.train_step(TX, flip="alternating", taught=True)


def distil(directory, cached=None, nets=(), every_seconds=1e9):
  return tiny_run.train(
    state.create(tiny_run.tiny_network(), TX, average=True),
    STEP,
    directory,
    nets=nets,
    key=KEY,
    table=cached,
    every_seconds=every_seconds,
  )


def arrays(directory, step=12):
  path = directory / "checkpoints" / str(step)
  return checkpoint.read(path)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run with a table that nothing interrupted."""
  folder = tmp_path_factory.mktemp("whole")
  distil(folder, open_teacher(folder / "table"))
  return arrays(folder)


@pytest.mark.slow
def test_training_from_the_table_is_training_from_the_teacher(tmp_path, whole):
  distil(tmp_path, nets=TEACHERS[:1])
  computed = arrays(tmp_path)
  assert computed.keys() == whole.keys()
  for name, array in computed.items():
    np.testing.assert_allclose(
      whole[name], array, rtol=2e-3, atol=2e-4, err_msg=name
    )


@pytest.mark.slow
def test_a_kill_between_the_table_and_the_checkpoint(tmp_path, whole):
  """The table has what the last steps were taught, the checkpoint has not."""
  distil(tmp_path, open_teacher(tmp_path / "table"), every_seconds=0)
  kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  assert kept[-2:] == [11, 12]
  (tmp_path / "checkpoints" / "12").rename(tmp_path / "gone")
  cached = open_teacher(tmp_path / "table")
  distil(tmp_path, cached)
  assert cached.computed == 0
  for name, array in arrays(tmp_path).items():
    np.testing.assert_array_equal(array, whole[name], err_msg=name)


@pytest.mark.slow
def test_a_kill_that_lost_the_table(tmp_path, whole):
  """Rows that never came to the disk are computed in the same batches."""
  distil(tmp_path, open_teacher(tmp_path / "table"), every_seconds=0)
  (tmp_path / "checkpoints" / "12").rename(tmp_path / "gone")
  distil(tmp_path, open_teacher(tmp_path / "new"))
  for name, array in arrays(tmp_path).items():
    np.testing.assert_array_equal(array, whole[name], err_msg=name)
