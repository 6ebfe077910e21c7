"""A person's own images: what is taken, and what is told of all else."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxr18.config import ConfigError, base
from jaxr18.config.network import network_spec
from jaxr18.config.reading import parse
from jaxr18.data import __main__ as command
from jaxr18.data import dataset, facts, folder, named, npz
from jaxr18.data.facts import ImagesError


def faults_of(config):
  with pytest.raises(ConfigError) as e:
    parse(config)
  return e.value.fields


def arrays(size=12, channels=0, classes=3, train=30, test=9):
  """Noise on a brightness that is the class's."""
  rng = np.random.default_rng(0)
  out = {}
  for split, n in (("train", train), ("test", test)):
    labels = np.arange(n) % classes
    shape = (n, size, size, channels)[: 4 if channels else 3]
    noise = rng.integers(0, 56, shape)
    base = (labels * 200 // classes).reshape(-1, *[1] * (len(shape) - 1))
    out[f"{split}_images"] = (noise + base).astype(np.uint8)
    out[f"{split}_labels"] = labels
  return out


def written(path, **changes):
  """A file of `arrays`, or without those that are None."""
  content = arrays() | changes
  np.savez(path, **{k: v for k, v in content.items() if v is not None})
  return path


class TestNpz:
  @pytest.mark.parametrize("channels", [0, 1, 3])
  def test_facts_are_those_of_what_is_read(self, tmp_path, channels):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(channels=channels))
    data = dataset.load(str(path), validation=6)
    expected = facts.Facts(30, 3, 12, channels or 1)
    assert named.facts_of(str(path)) == expected
    assert data.classes == 3 and data.name == "own.npz"
    assert data.train.images.shape == (24, 12, 12, channels or 1)
    assert data.train.labels.dtype == np.int32
    assert len(data.mean) == len(data.std) == (channels or 1)
    rest = np.concatenate([data.train.images, data.validation.images])
    assert data.mean[0] == pytest.approx(rest[..., 0].mean() / 255, abs=6e-5)
    assert data.std[0] == pytest.approx(rest[..., 0].std() / 255, abs=6e-5)

  def test_the_order_in_the_file_does_not_matter(self, tmp_path):
    one, content = written(tmp_path / "a.npz"), arrays()
    rows = np.random.default_rng(1).permutation(30)
    for name in ("train_images", "train_labels"):
      content[name] = content[name][rows]
    other = written(tmp_path / "b.npz", **content)
    a, b = (dataset.load(str(p), validation=6) for p in (one, other))
    assert a.fingerprint == b.fingerprint
    np.testing.assert_array_equal(a.train.images, b.train.images)
    content["test_labels"] = content["test_labels"][::-1].copy()
    other = written(tmp_path / "c.npz", **content)
    assert dataset.load(str(other), validation=6).fingerprint != a.fingerprint

  @pytest.mark.parametrize(
    "changes, fact, mend",
    [
      ({"test_labels": None}, "lacks test_labels", "np.savez"),
      (
        {"train_images": np.zeros((30, 12, 12), np.float32)},
        "train_images of float32 [30, 12, 12]",
        "(255 * x).round()",
      ),
      (
        {"train_images": np.zeros((30, 3, 12, 12), np.uint8)},
        "[30, 3, 12, 12]",
        "transpose(0, 2, 3, 1)",
      ),
      (
        {"train_images": np.zeros((30, 12, 9), np.uint8)},
        "[30, 12, 9]",
        "--size=64",
      ),
      (
        {"test_images": np.zeros((9, 16, 16), np.uint8)},
        "train_images of [12, 12] and test_images of [16, 16]",
        "same size",
      ),
      ({"train_labels": np.arange(29) % 3}, "[29]", "one for each image"),
      ({"train_labels": np.eye(3)[np.arange(30) % 3].astype(int)},
       "[30, 3]", "argmax"),
      ({"train_labels": np.arange(30) % 3 - 1}, "from -1 to 1", "from 0"),
      ({"train_labels": np.arange(30) % 3 * 2}, "no training image of class 1",
       "return_inverse"),
      ({"test_labels": np.arange(9)}, "test_labels up to 8",
       "training images of every class"),
      ({"train_labels": np.zeros(30)}, "float64 [30]", "return_inverse"),
      ({"train_labels": np.zeros(30, int)}, "one class", "add another"),
    ],
  )  # fmt: skip
  def test_what_is_wrong_is_told_before_anything_runs(
    self, tmp_path, changes, fact, mend
  ):
    path = written(tmp_path / "own.npz", **changes)
    with pytest.raises(ImagesError) as e:
      dataset.load(str(path))
    assert fact in e.value.fact and str(path) in e.value.fact
    assert mend in e.value.mend
    config = base()
    config.data.name = str(path)
    assert "data.name" in faults_of(config)

  def test_a_file_of_another_kind(self, tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(ImagesError, match="cannot be read as an .npz"):
      named.facts_of(str(path))

  def test_a_damaged_array(self, tmp_path):
    path = written(tmp_path / "own.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ImagesError, match="cannot be read as an .npz"):
      dataset.load(str(path))

  def test_images_without_a_picture(self, tmp_path):
    empty = np.zeros((30, 12, 12), np.uint8)
    path = written(tmp_path / "own.npz", train_images=empty)
    with pytest.raises(ImagesError, match="value 0 in nearly every pixel"):
      dataset.load(str(path), validation=0)

  def test_a_file_that_was_moved_is_found_by_data_dir(self, tmp_path):
    path = written(tmp_path / "own.npz")
    there = tmp_path / "elsewhere"
    there.mkdir()
    path.rename(there / "own.npz")
    with pytest.raises(ImagesError, match="there is no .npz"):
      named.facts_of(str(path))
    assert named.facts_of(str(path), str(there)).train == 30
    with pytest.raises(ImagesError, match="did you mean .*own.npz"):
      named.facts_of(str(there / "owm.npz"))


def pictures(root, sizes=((20, 20),), mode="RGB", each=5, names=("a", "b")):
  """A folder of classes, whose brightness tells them."""
  for c, name in enumerate(names):
    (root / name).mkdir(parents=True)
    for i in range(each):
      w, h = sizes[i % len(sizes)]
      rng = np.random.default_rng([c, i])
      noise = rng.integers(0, 100, (h, w, 3), np.uint8) + np.uint8(100 * c)
      Image.fromarray(noise).convert(mode).save(root / name / f"{i}.png")
  return root


class TestFolder:
  def test_two_splits(self, tmp_path):
    pictures(tmp_path / "train", mode="L")
    pictures(tmp_path / "test", mode="L", each=2)
    (tmp_path / "train" / ".DS_Store").write_bytes(b"")
    data = dataset.load(str(tmp_path), validation=2)
    assert named.facts_of(str(tmp_path)) == facts.Facts(10, 2, 20, 1)
    assert data.class_names == ("a", "b") and len(data.test) == 4
    bright = data.test.images.mean((1, 2, 3)) > 100
    np.testing.assert_array_equal(bright, data.test.labels)

  def test_a_fifth_is_the_test_set(self, tmp_path):
    pictures(tmp_path, each=10)
    data = dataset.load(str(tmp_path), validation=0)
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    assert np.bincount(data.train.labels).tolist() == [8, 8]

  def test_what_cannot_be_written_is_told_before_the_work(
    self, tmp_path, capsys, no_file_above
  ):
    """There are no images to read, and of them nothing is said."""
    how = [f"--images={tmp_path}/none", f"--npz={tmp_path}/out.npz"]
    with no_file_above(1000):
      assert command.main(how) == 1
    told = capsys.readouterr().err
    assert f"cannot write {tmp_path}/out.npz: File too large" in told
    assert "give another --npz" in told and not list(tmp_path.iterdir())

  def test_the_command_makes_squares_of_all_sizes(self, tmp_path, capsys):
    pictures(tmp_path / "in", sizes=((20, 30), (48, 16)))
    out = tmp_path / "out.npz"
    how = [f"--images={tmp_path}/in", f"--npz={out}"]
    assert command.main(how) == 1
    assert "expected squares of one size" in capsys.readouterr().err
    assert command.main([*how, "--size=16"]) == 0
    told = capsys.readouterr().out
    assert "8 training and 2 test images of 16x16 pixels" in told
    assert named.facts_of(str(out)) == facts.Facts(8, 2, 16, 3)
    assert dataset.load(str(out), validation=0).class_names == ("a", "b")
    first = out.read_bytes()
    command.main([*how, "--size=16"])
    assert out.read_bytes() == first

  @pytest.mark.parametrize(
    "wrong, match, mend",
    [
      (lambda r: [p.unlink() for p in (r / "b").iterdir()],
       "b has no image", "take that class away"),
      (lambda r: (r / "b" / "more").mkdir(), "b/more is no file", "move its"),
      (lambda r: os.mkfifo(r / "a" / "p.png"), "p.png is no file", "take it"),
      (lambda r: (r / "a" / "notes.txt").write_text("x"),
       "notes.txt is no image", "take it away"),
      (lambda r: (r / "a" / "0.png").write_bytes(
        (r / "a" / "0.png").read_bytes()[:300]), "0.png is no image", "mend"),
      (lambda r: Image.new("I;16", (20, 20)).save(r / "a" / "0.png"),
       "more than 8 bits", "8 bits"),
      (lambda r: (r / "b").rename(r / "train"), "no folder test", "make one"),
    ],
  )  # fmt: skip
  def test_what_is_wrong(self, tmp_path, wrong, match, mend):
    wrong(pictures(tmp_path / "own"))
    with pytest.raises(ImagesError, match=match) as e:
      folder.read(tmp_path / "own")
    assert mend in e.value.mend


def test_the_network_follows_the_images(tmp_path):
  path = written(tmp_path / "own.npz", **arrays(64, 1, 5))
  config = base()
  config.data.name, config.data.validation = str(path), 5
  config.train.batch_size, config.train.network.stem_stride = 8, 2
  config.train.network.resolution = 64
  (phase,) = parse(config).phases
  spec = phase.spec
  assert (spec.head.classes, spec.channels, spec.stem.stride) == (5, 1, 2)
  assert spec.layers()[0].out_size == 32
  assert spec == network_spec(phase.options.network, named.facts_of(str(path)))
  (outlook,) = phase.outlooks
  assert outlook.spec == spec


def test_what_augmentation_asks_of_small_images(tmp_path):
  path = written(tmp_path / "own.npz")
  config = base()
  config.data.name, config.data.validation = str(path), 5
  config.train.batch_size = 8
  config.train.augment.pad, config.train.augment.cutout = 12, 13
  found = faults_of(config)
  assert found == {"train.augment.pad", "train.augment.cutout"}


def test_more_classes_than_a_byte_has(tmp_path):
  content = arrays(classes=300, train=600, test=300)
  written(tmp_path / "own.npz", **content)
  data = dataset.load(str(tmp_path / "own.npz"), validation=0)
  assert data.classes == 300 and len(np.unique(data.train.labels)) == 300


def test_a_config_is_read_without_tensorflow_datasets(tmp_path):
  path = written(tmp_path / "own.npz")
  code = (
    "import sys; from jaxr18.data import named; import json;"
    f" print(json.dumps([named.facts_of({str(path)!r}).classes,"
    " 'tensorflow_datasets' in sys.modules]))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert json.loads(done.stdout) == [3, False]


def test_sizes_are_a_networks():
  config = base()
  config.train.network.resolution = npz.SIZES[1]
  parse(config)
  config.train.network.resolution = npz.SIZES[1] + 1
  assert faults_of(config) == {"train.network.resolution"}


@pytest.mark.parametrize(
  "name, labels", [("svhn_cropped", ("label",)),
                   ("cifar100", ("label", "coarse_label"))]
)  # fmt: skip
def test_other_sets_of_tfds(tmp_path, name, labels):
  with pytest.raises(dataset.DataError, match=f"builder.'{name}'"):
    dataset.load(name, str(tmp_path))
  images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)

  def example(i):
    png = io.BytesIO()
    Image.fromarray(images[i]).save(png, "png")
    png.seek(0)
    return {"image": png, "id": f"train_{i}", **{k: i % 10 for k in labels}}

  of = tfds.builder_cls(name)
  with tfds.core.registered.skip_registration():
    made = type(
      of.__name__,
      (of,),
      {
        "__module__": of.__module__,
        "pkg_dir_path": of.pkg_dir_path,
        "url_infos": {},
        "_split_generators": lambda self, manager: {
          "train": ((i, example(i)) for i in range(10)),
          "test": ((i, example(i)) for i in range(10, 12)),
        },
      },
    )
    builder = made(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
  data = dataset.load(name, str(tmp_path), validation=0, order="folder",
                      cache_dir=str(tmp_path / "cache"))  # fmt: skip
  assert data.classes == facts.KNOWN[name].classes
  assert sorted(data.train.labels.tolist()) == list(range(10))
  for image, label in zip(data.train.images, data.train.labels, strict=True):
    np.testing.assert_array_equal(image, images[label])


def test_a_function_of_ones_own(tmp_path, monkeypatch):
  source = """
import numpy as np

def noise():
  images = np.random.default_rng(0).integers(0, 256, (40, 9, 9), np.uint8)
  labels = np.arange(40) % 4
  return {"train_images": images[:30], "train_labels": labels[:30],
          "test_images": images[30:], "test_labels": labels[30:]}

def floats():
  return {k: v / 2 for k, v in noise().items()}

def fails():
  raise OSError("no such host")
"""
  (tmp_path / "my_images.py").write_text(source)
  monkeypatch.syspath_prepend(tmp_path)
  assert named.facts_of("my_images:noise") == facts.Facts(30, 4, 9, 1)
  data = dataset.load("my_images:noise", validation=5)
  assert data.name == "my_images:noise" and data.classes == 4
  assert data.train.images.shape == (25, 9, 9, 1)
  for name, told in (("floats", "float64"), ("fails", "no such host"),
                     ("nothing", "cannot be imported")):  # fmt: skip
    with pytest.raises(ImagesError, match=told) as e:
      named.facts_of(f"my_images:{name}")
    assert e.value.mend
