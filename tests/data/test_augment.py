import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxr18.data import augment as aug

KEY = jax.random.key(0)


def pictures(n, size=8, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, size, size, 3), np.uint8)


class TestApplyViews:
  @pytest.mark.parametrize("pad", [0, 1, 3])
  def test_equals_numpys_pad_slice_and_flip_for_every_view(self, pad):
    image = pictures(1)[0]
    side = range(2 * pad + 1)
    every = [(y, x, f) for y in side for x in side for f in (False, True)]
    views = aug.Views(*map(jnp.array, zip(*every, strict=True)))
    got = aug.apply_views(np.stack([image] * len(every)), views, pad)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), "reflect")
    for (y, x, flip), one in zip(every, got, strict=True):
      expected = padded[y : y + 8, x : x + 8]
      np.testing.assert_array_equal(
        one, expected[:, ::-1] if flip else expected
      )

  def test_keeps_the_type(self):
    views = aug.sample_views(KEY, 4)
    assert aug.apply_views(pictures(4), views, 4).dtype == np.uint8

  @pytest.mark.parametrize("pad", [-1, 8])
  def test_refuses_a_pad_that_reflection_can_not_fill(self, pad):
    with pytest.raises(ValueError, match=rf"pad \(={pad}\).*8x8"):
      aug.apply_views(pictures(1), aug.sample_views(KEY, 1, pad=1), pad)


class TestSampleViews:
  def test_covers_every_offset_and_both_flips_evenly(self):
    views = aug.sample_views(KEY, 9000, pad=4)
    for offset in (views.dy, views.dx):
      counts = np.bincount(offset, minlength=9)
      assert counts.size == 9
      assert np.all(abs(counts - 1000) < 150)  # five standard deviations
    assert abs(int(views.flip.sum()) - 4500) < 240
    assert abs(np.corrcoef(views.dy, views.dx)[0, 1]) < 0.05
    assert abs(np.corrcoef(views.dy, views.flip)[0, 1]) < 0.05

  def test_no_flip(self):
    assert not aug.sample_views(KEY, 100, flip="none").flip.any()

  def test_refuses_unknown_flips(self):
    with pytest.raises(ValueError, match="flip .='both'.*alternating"):
      aug.sample_views(KEY, 1, flip="both")

  def test_alternating_needs_its_bits(self):
    with pytest.raises(ValueError, match="flip_bits"):
      aug.sample_views(KEY, 1, flip="alternating")


class TestAlternatingFlip:
  index = np.arange(1000)

  def flips(self, epoch, index=index, key=KEY):
    return np.asarray(aug.alternating_flip(key, index, epoch))

  def test_turns_every_image_every_epoch(self):
    for epoch in range(4):
      np.testing.assert_array_equal(self.flips(epoch), ~self.flips(epoch + 1))

  def test_half_of_the_images_start_mirrored(self):
    assert abs(self.flips(0).sum() - 500) < 80

  def test_depends_on_the_image_and_not_on_its_place_in_the_batch(self):
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(self.flips(3, order), self.flips(3)[order])

  def test_depends_on_the_key(self):
    assert np.any(self.flips(0) != self.flips(0, key=jax.random.key(1)))


class TestCutOut:
  @pytest.mark.parametrize("side", [1, 4, 5])
  def test_cuts_one_square_that_may_stand_out_over_the_edge(self, side):
    images = np.full((500, 16, 16, 3), 255, np.uint8)
    cut = aug.cut_out(KEY, images, side, (0.2, 0.4, 0.6))
    hole = np.all(np.asarray(cut) == (51, 102, 153), -1)
    np.testing.assert_array_equal(np.asarray(cut)[~hole], 255)
    rows, columns = hole.any(2), hole.any(1)
    np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
      assert np.abs(np.diff(line, axis=1)).sum(1).max() <= 2  # in one piece
      assert line.sum(1).max() == side
      assert line.sum(1).min() == (side + 1) // 2  # centred on the edge
      assert line.any(0).all()  # every row and column is cut somewhere

  def test_is_zero_after_normalize_up_to_rounding(self):
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    cut = aug.cut_out(KEY, pictures(1), 16, mean)  # side 16 may cover it all
    square = np.all(np.asarray(cut) != pictures(1), -1)
    x = aug.normalize(cut, mean, std, 8)
    assert square.sum() > 9
    assert np.abs(np.asarray(x)[square]).max() < 0.5 / 255 / 0.2435


class TestAugment:
  images, index = pictures(16), np.arange(16)

  def augment(self, step=5, epoch=0, key=KEY, **changes):
    how = dict(pad=2, flip="alternating", cutout=3, mean=(0.5, 0.5, 0.5))
    return np.asarray(
      aug.augment(
        key,
        self.images,
        step,
        aug.Augment(**(how | changes)),
        index=self.index,
        epoch=epoch,
      )
    )

  def test_is_a_function_of_its_arguments(self):
    np.testing.assert_array_equal(self.augment(), self.augment())

  @pytest.mark.parametrize("flip", aug.FLIPS)
  def test_is_the_same_jitted_and_traced_once_for_all_steps(self, flip):
    jitted = jax.jit(
      lambda key, images, step, index, epoch: aug.augment(
        key,
        images,
        step,
        aug.Augment(2, flip, 3, mean=(0.5, 0.5, 0.5)),
        index=index,
        epoch=epoch,
      )
    )
    for step in (0, 1, 1000):
      np.testing.assert_array_equal(
        jitted(KEY, self.images, step, self.index, step // 2),
        self.augment(step, step // 2, flip=flip),
      )
    assert jitted._cache_size() == 1

  @pytest.mark.parametrize(
    "knobs",
    [
      {"pad": 2, "flip": "none", "cutout": 0},
      {"pad": 0, "flip": "random", "cutout": 0},
      {"pad": 0, "flip": "none", "cutout": 3},
    ],
  )
  def test_every_knob_works_alone_and_differs_by_step_and_key(self, knobs):
    one = self.augment(**knobs)
    assert np.any(one != self.images)
    assert np.any(one != self.augment(step=6, **knobs))
    assert np.any(one != self.augment(key=jax.random.key(1), **knobs))

  def test_all_knobs_off_is_the_identity(self):
    off = self.augment(pad=0, flip="none", cutout=0)
    np.testing.assert_array_equal(off, self.images)

  def test_alternating_flip_ignores_the_step_and_turns_with_the_epoch(self):
    def flipped(step, epoch):
      return self.augment(step, epoch, pad=0, cutout=0)

    np.testing.assert_array_equal(flipped(0, 0), flipped(7, 0))
    np.testing.assert_array_equal(flipped(7, 0), flipped(9, 2))
    np.testing.assert_array_equal(flipped(7, 0), flipped(9, 1)[:, :, ::-1])

  def test_crops_differ_within_the_batch(self):
    same = np.stack([self.images[0]] * 16)
    out = aug.augment(KEY, same, 0, aug.Augment(3, "none"))
    assert len(np.unique(np.asarray(out), axis=0)) > 8

  def test_alternating_needs_index_and_epoch(self):
    with pytest.raises(ValueError, match="needs index and epoch"):
      aug.augment(KEY, self.images, 0, aug.Augment(flip="alternating"), epoch=0)

  def test_cutout_needs_what_to_fill_with(self):
    with pytest.raises(ValueError, match="needs mean"):
      aug.augment(KEY, self.images, 0, aug.Augment(cutout=2))


class TestNormalize:
  def test_values(self):
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    x = aug.normalize(images, (0.5, 0.1, 0.75), (0.25, 0.5, 0.125), 1)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x.ravel(), [-2, 0.2, 2], rtol=1e-6)

  @pytest.mark.parametrize("resolution", [5, 6, 12])
  def test_resizes_as_pillow_does(self, resolution):
    images = pictures(2)
    x = aug.normalize(images, (0,) * 3, (1,) * 3, resolution)
    assert x.shape == (2, resolution, resolution, 3)
    size = (resolution, resolution)
    for image, got in zip(images, x, strict=True):
      for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32) / 255)
        expected = plane.resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_allclose(got[..., channel], expected, atol=1e-5)


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxr18.data.augment import Augment, augment, normalize
assert jax.device_count() == 2
def f(key, images, step, index, epoch):
  how = Augment(flip='alternating', cutout=4, mean=(.5,) * 3)
  x = augment(key, images, step, how, index=index, epoch=epoch)
  return normalize(x, (.5,) * 3, (.25,) * 3, 24)
images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
args = [jax.random.key(0), images, 3, np.arange(8), 1]
mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
batch = NamedSharding(mesh, P('data'))
whole = NamedSharding(mesh, P())
sharded = jax.jit(f, in_shardings=(whole, batch, whole, batch, whole),
                  out_shardings=batch)
text = sharded.lower(*args).compile().as_text()
assert 'all-gather' not in text, text
np.testing.assert_allclose(sharded(*args), jax.jit(f)(*args), atol=1e-6)
"""


def test_a_sharded_batch_gets_the_same_images_without_being_gathered():
  flags = "--xla_force_host_platform_device_count=2"
  env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", SHARDED], env=env, check=True)


class TestCutmix:
  @pytest.mark.parametrize("size", [(32, 32), (16, 40)])
  def test_the_authors_rectangle(self, size):
    """Against rand_bbox of the authors' code, on 200 draws."""
    draw = jax.jit(lambda step: aug.draw_cutmix(KEY, step, 1.0, 6, size))
    sides = []
    for step in range(200):
      inside, share, partner = jax.device_get(draw(step))
      assert inside.shape == (*size, 1) and sorted(partner) == [*range(6)]
      assert share == pytest.approx(1 - inside.mean(), abs=1e-6)
      rows, columns = inside[..., 0].any(1), inside[..., 0].any(0)
      # A rectangle: what both its rows and its columns have.
      assert (inside[..., 0] == rows[:, None] & columns).all()
      for line in (rows, columns):
        assert (np.diff(line.astype(int)) == 1).sum() <= 1
      sides.append([rows.sum(), columns.sum()])
    # Alike in both directions, by the images' shape, where no edge cuts.
    share = np.max(sides, 0) / size
    assert (share > 0.8).all()
    # E[1 - lambda] is a half, before the edge takes its part.
    area = np.prod(np.asarray(sides) / size, 1).mean()
    assert 0.25 < area < 0.45

  def test_each_step_draws_anew(self):
    first, again, other = (
      aug.draw_cutmix(KEY, step, 1.0, 6, (16, 16)) for step in (0, 0, 1)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
