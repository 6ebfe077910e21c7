import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent import futures

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxr18.data import __main__ as prepare
from jaxr18.data import cifar10, digits
from jaxr18.data import dataset as data
from jaxr18.data.augment import normalize

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
FOLDER = pathlib.Path("cifar10", str(tfds.builder_cls("cifar10").VERSION))


def pictures(n, seed):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
  return images, (np.arange(n) * 7 % 10).astype(np.uint8)


TRAIN, TEST = pictures(50, 0), pictures(20, 1)


def records(images, labels):
  """CIFAR-10's binary version: label, then the planes R, G, B by rows."""
  return b"".join(
    bytes([label])
    + image[..., 0].tobytes()
    + image[..., 1].tobytes()
    + image[..., 2].tobytes()
    for image, label in zip(images, labels, strict=True)
  )


def archive_files():
  files = {"batches.meta.txt": "\n".join(NAMES + [""]).encode()}
  for i in range(5):
    rows = slice(10 * i, 10 * i + 10)
    part = records(TRAIN[0][rows], TRAIN[1][rows])
    files[f"data_batch_{i + 1}.bin"] = part
  return files | {"test_batch.bin": records(*TEST)}


def write_archive(path, files=None):
  """Writes the archive and returns the Source that would be its."""
  with tarfile.open(path, "w:gz") as tar:
    for name, content in (files or archive_files()).items():
      info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return source_of(path)


def source_of(path, url="http://127.0.0.1:9/cifar.tar.gz"):
  return cifar10.Source(url, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A TFDS folder of 50 + 20 images; not to be changed."""
  root = tmp_path_factory.mktemp("prepared")
  source = write_archive(root / "archive.tar.gz")
  cifar10.prepare(root / "tfds", root / "archive.tar.gz", source)
  return root / "tfds"


@pytest.fixture
def folder(prepared, tmp_path):
  """A copy of it that may be changed."""
  return shutil.copytree(prepared, tmp_path / "tfds")


def load(folder, tmp_path, **kwargs):
  kwargs = {"validation": 10, "cache_dir": str(tmp_path / "cache")} | kwargs
  return data.load("cifar10", str(folder), **kwargs)


def by_hash(images, labels):
  """Sorted by what tells images apart and nothing else does."""
  hashes = [
    hashlib.blake2b(i.tobytes(), digest_size=16, key=bytes([label])).digest()
    for i, label in zip(images, labels, strict=True)
  ]
  rows = sorted(range(len(labels)), key=hashes.__getitem__)
  return images[rows], labels[rows]


def check_arrays(dataset, order=by_hash):
  for split, (images, labels) in (
    (dataset.train, order(*TRAIN)),
    (dataset.validation, order(*TRAIN)),
    (dataset.test, order(*TEST)),
  ):
    np.testing.assert_array_equal(split.images, images[split.index])
    np.testing.assert_array_equal(split.labels, labels[split.index])
    assert len(split) == len(split.images) == len(split.labels) > 0
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == split.index.dtype == np.int32


class TestStratified:
  LABELS = np.repeat(np.arange(4), [10, 20, 33, 37])

  @pytest.mark.parametrize("count", [0, 1, 9, 10, 50, 99, 100])
  def test_is_exact_and_in_proportion(self, count):
    rows = data.stratified(self.LABELS, count, 0)
    assert len(np.unique(rows)) == len(rows) == count
    got = np.bincount(self.LABELS[rows], minlength=4)
    wanted = np.bincount(self.LABELS) * count / 100
    assert np.all(np.abs(got - wanted) < 1), (got, wanted)

  def test_the_largest_remainders_get_the_rest(self):
    rows = data.stratified(self.LABELS, 11, 0)  # 1.1, 2.2, 3.63 and 4.07
    np.testing.assert_array_equal(np.bincount(self.LABELS[rows]), [1, 2, 4, 4])

  def test_the_seed_decides(self):
    first, again, other = (
      data.stratified(self.LABELS, 50, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)

  def test_stays_the_same_for_ever(self):
    # Else a resumed run would train on what it validated with.
    np.testing.assert_array_equal(
      data.stratified(np.arange(30) % 3, 6, 0), [0, 7, 8, 9, 19, 26]
    )


class TestBatches:
  def test_an_epoch_is_a_permutation_without_its_remainder(self):
    rows = data.batches(103, 10, seed=0, epoch=0)
    assert rows.shape == (10, 10)
    assert len(np.unique(rows)) == 100
    assert rows.min() >= 0 and rows.max() <= 102

  def test_is_a_function_of_seed_and_epoch(self):
    def order(seed, epoch):
      return data.batches(1000, 100, seed, epoch)

    np.testing.assert_array_equal(order(3, 4), order(3, 4))
    for other in (order(3, 5), order(4, 4), order(4, 3)):
      assert np.mean(order(3, 4) == other) < 0.02

  def test_every_image_is_left_out_at_some_time(self):
    seen = [data.batches(11, 10, 0, epoch).ravel() for epoch in range(60)]
    left_out = [(set(range(11)) - set(rows)).pop() for rows in seen]
    assert set(left_out) == set(range(11))

  def test_stays_the_same_for_ever(self):
    # Else a run resumed under another NumPy would see other batches.
    np.testing.assert_array_equal(
      data.batches(7, 3, 1, 2), [[1, 3, 0], [4, 2, 6]]
    )

  @pytest.mark.parametrize("size", [0, -1, 8])
  def test_refuses_sizes_that_make_no_batch(self, size):
    with pytest.raises(ValueError, match=rf"batch_size \(={size}\).*to the 7"):
      data.batches(7, size, 0, 0)


class TestDigits:
  def test_are_those_of_scikit_learn(self):
    """By the hashes of `load_digits`' images and target as bytes."""
    images, labels = digits.read()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8
    assert [
      hashlib.sha256(a.tobytes()).hexdigest() for a in (images, labels)
    ] == [
      "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
      "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
    ]

  def test_splits_have_each_digit_once_in_other_units(self):
    dataset = data.load("digits", validation=200)
    splits = dataset.train, dataset.validation, dataset.test
    assert [len(split) for split in splits] == [1237, 200, 360]
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    assert images.shape == (1797, 32, 32, 3) and images.dtype == np.uint8
    small = images[:, ::4, ::4, 0]
    np.testing.assert_array_equal(
      images, np.kron(small[..., None], np.ones((1, 4, 4, 3), np.uint8))
    )
    all_images, all_labels = digits.read()
    got = np.c_[small.reshape(-1, 64) * (16 / 255), labels]
    expected = np.c_[all_images.reshape(-1, 64), all_labels].astype(float)
    for rows in (got, expected):
      rows[:] = np.rint(rows)[np.lexsort(np.rint(rows).T)]
    np.testing.assert_array_equal(got, expected)

  def test_statistics_normalize_the_training_images(self):
    dataset = data.load("digits", validation=0)
    x = normalize(dataset.train.images, dataset.mean, dataset.std, 32)
    np.testing.assert_allclose(np.mean(x, (0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(x, (0, 1, 2)), 1, atol=1e-3)


class TestLoad:
  @pytest.mark.versions
  def test_gives_the_archives_arrays_back(self, prepared, tmp_path):
    dataset = load(prepared, tmp_path)
    check_arrays(dataset)
    assert dataset.name == "cifar10" and dataset.classes == 10
    np.testing.assert_array_equal(dataset.test.index, np.arange(20))

  def test_the_folders_order_is_that_of_its_ids(self, prepared, tmp_path):
    dataset = load(prepared, tmp_path, order="folder")
    check_arrays(dataset, lambda images, labels: (images, labels))

  def test_every_copy_gives_the_same(self, prepared, tmp_path):
    def written(seed):
      rng = np.random.default_rng(seed)
      root = tmp_path / str(seed)
      splits = {}
      for split, arrays in (("train", TRAIN), ("test", TEST)):
        rows = rng.permutation(len(arrays[1]))
        splits[split] = tuple(a[rows] for a in arrays)
      cifar10.write_folder(root, splits, NAMES)
      return root

    def compare(order, roots, same):
      first, *others = (load(r, tmp_path, order=order) for r in roots)
      for other in others:
        assert (first.fingerprint == other.fingerprint) == same
        for split in ("train", "validation", "test"):
          one, two = getattr(first, split), getattr(other, split)
          assert np.array_equal(one.images, two.images) == same
          assert np.array_equal(one.labels, two.labels) == same

    roots = [prepared, *map(written, range(2))]
    compare("content", roots, True)
    compare("folder", roots, False)

  def test_the_order_stays_the_same_for_ever(self):
    images = np.zeros((6, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = [0, 1, 2, 255, 0, 1]
    labels = np.array([0, 0, 0, 0, 9, 9], np.int32)
    arrays = {f"{s}_images": images for s in ("train", "test")}
    arrays |= {f"{s}_labels": labels for s in ("train", "test")}
    found, fingerprint = data.by_content(arrays)
    got = found["train_images"][:, 0, 0, 0].tolist(), found["train_labels"]
    assert got[0] == [1, 0, 255, 1, 2, 0]
    assert got[1].tolist() == [9, 9, 0, 0, 0, 0]
    assert fingerprint == "7ce5c48a6453da01264b035015a75173"

  def test_validation_is_stratified_and_apart_from_training(
    self, prepared, tmp_path
  ):
    dataset = load(prepared, tmp_path, validation=20)
    np.testing.assert_array_equal(np.bincount(dataset.validation.labels), 2)
    both = np.r_[dataset.train.index, dataset.validation.index]
    np.testing.assert_array_equal(np.sort(both), np.arange(50))

  def test_the_split_seed_decides_which(self, prepared, tmp_path):
    one, other = (
      load(prepared, tmp_path, split_seed=seed).validation.index
      for seed in (0, 1)
    )
    assert np.any(one != other)

  def test_without_validation_everything_is_for_training(
    self, prepared, tmp_path
  ):
    dataset = load(prepared, tmp_path, validation=0)
    assert len(dataset.train) == 50
    assert dataset.validation.images.shape == (0, 32, 32, 3)

  def test_limit_keeps_the_first_of_each(self, prepared, tmp_path):
    whole = load(prepared, tmp_path)
    limited = load(prepared, tmp_path, limit=7)
    for split in ("train", "validation", "test"):
      np.testing.assert_array_equal(
        getattr(limited, split).index, getattr(whole, split).index[:7]
      )
      assert len(getattr(limited, split).images) == 7

  @pytest.mark.parametrize(
    "kwargs, message",
    [
      ({"validation": 50}, r"validation \(=50\) .* the 50 training"),
      ({"validation": -1}, r"validation \(=-1\)"),
      ({"limit": -1}, r"limit \(=-1\)"),
      ({"order": "ids"}, r"order \(='ids'\) .*'content', 'folder'"),
    ],
  )
  def test_refuses(self, prepared, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
      load(prepared, tmp_path, **kwargs)

  def test_refuses_unknown_names(self):
    with pytest.raises(data.DataError, match="'mnist'.*cifar10.*no folder"):
      data.load("mnist")
    with pytest.raises(data.DataError, match="did you mean cifar10?"):
      data.load("cifra10")

  def test_takes_tfdss_variable(self, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    check_arrays(load("", tmp_path))

  def test_names_both_ways_out_where_there_is_no_data(self, tmp_path):
    (tmp_path / "file").touch()  # no folder can be made in it: no download
    root = tmp_path / "file" / "tfds"
    with pytest.raises(data.DataError) as e:
      load(root, tmp_path)
    for words in (
      str(root),
      "TFDS_DATA_DIR",
      "--config.data.dir",
      "--archive",
      ":digits",
      "config.data.name = 'digits'",
    ):
      assert words in str(e.value)

  def test_refuses_a_folder_that_needs_tensorflow(
    self, folder, tmp_path, monkeypatch
  ):
    info = folder / FOLDER / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    _prepared_beside_it(
      folder, tmp_path, monkeypatch, "as tfrecord, expected array_r"
    )

  @pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
  def test_damaged_records_are_an_error(
    self, folder, tmp_path, monkeypatch, damage
  ):
    (path,) = (folder / FOLDER).glob("*-test.*")
    content = bytearray(path.read_bytes())
    if damage == "flip":
      content[content.index(b"PNG") + 1000] ^= 1  # in an image, not padding
      path.write_bytes(content)
    elif damage == "truncate":
      path.write_bytes(content[: len(content) // 2])
    else:
      path.unlink()
    _prepared_beside_it(folder, tmp_path, monkeypatch, "can not be read")

  def test_a_damaged_description_is_an_error(
    self, folder, tmp_path, monkeypatch
  ):
    info = folder / FOLDER / "dataset_info.json"
    info.write_text(info.read_text()[:100])
    _prepared_beside_it(folder, tmp_path, monkeypatch, "can not be read")


def _prepared_beside_it(folder, tmp_path, monkeypatch, told):
  """Does what the error says; the folder may be another's and stays."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  before = sorted(folder.rglob("*"))
  with pytest.raises(data.DataError, match=told) as e:
    load(folder, tmp_path)
  (command,) = re.findall("`python -m jaxr18.data (.*)`", str(e.value))
  new, archive = tmp_path / "new", tmp_path / "archive.tar.gz"
  source = write_archive(archive)
  argv = [*command.replace("NEW", str(new)).split(), f"--archive={archive}"]
  assert prepare.main(argv, source) == 0
  assert len(load(new, tmp_path).train) == 40
  assert sorted(folder.rglob("*")) == before


class TestCache:
  def cached(self, tmp_path):
    (path,) = (tmp_path / "cache").iterdir()  # and no temporary file beside it
    return path

  def test_is_read_the_second_time(self, prepared, tmp_path):
    load(prepared, tmp_path)
    path = self.cached(tmp_path)
    with np.load(path) as arrays:
      marked = dict(arrays) | {"test_labels": np.full(20, 3)}
    with open(path, "wb") as f:
      np.savez(f, **marked)
    np.testing.assert_array_equal(load(prepared, tmp_path).test.labels, 3)

  def test_does_not_outlive_its_source(self, prepared, folder, tmp_path):
    load(folder, tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in (folder / FOLDER).iterdir()}
    shutil.rmtree(folder)
    other = archive_files()
    other["test_batch.bin"] = records(*pictures(20, 2))
    source = write_archive(tmp_path / "other.tar.gz", other)
    cifar10.prepare(folder, tmp_path / "other.tar.gz", source)
    for name, time in times.items():  # same names, sizes and times
      os.utime(folder / FOLDER / name, ns=(time, time))
    changed = load(folder, tmp_path, order="folder")
    np.testing.assert_array_equal(changed.test.images, pictures(20, 2)[0])
    for order in data.ORDERS:
      one, other = (load(f, tmp_path, order=order) for f in (folder, prepared))
      assert one.fingerprint != other.fingerprint

  @pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
  def test_damage_is_seen_and_mended(self, prepared, tmp_path, damage):
    load(prepared, tmp_path)
    path = self.cached(tmp_path)
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    size = {"flip": len(good), "truncate": len(good) // 2, "empty": 0}[damage]
    path.write_bytes(bad[:size])
    check_arrays(load(prepared, tmp_path))
    check_arrays(load(prepared, tmp_path))
    assert path.stat().st_size == len(good)

  def test_a_folder_that_can_not_be_written_costs_only_time(
    self, prepared, tmp_path
  ):
    (tmp_path / "cache").touch()
    check_arrays(load(prepared, tmp_path))

  def test_leaves_the_source_alone(self, folder, tmp_path):
    def state():
      paths = sorted(folder.rglob("*"))
      return [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in paths]

    before = state()
    load(folder, tmp_path)
    assert state() == before

  def test_goes_to_the_users_cache_by_default(
    self, prepared, tmp_path, monkeypatch
  ):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load(prepared, tmp_path, cache_dir="")
    assert len(list((tmp_path / "jaxr18").glob("cifar10-*.npz"))) == 1


class TestPrepare:
  def test_writes_what_tfds_reads(self, prepared):
    source = tfds.data_source("cifar10", data_dir=prepared, download=False)
    assert len(source["train"]) == 50 and len(source["test"]) == 20
    for example in source["train"]:
      number = int(example["id"].decode().removeprefix("train_"))
      np.testing.assert_array_equal(example["image"], TRAIN[0][number])
      assert example["label"] == TRAIN[1][number]
    builder = tfds.builder_from_directory(prepared / FOLDER)
    assert builder.info.features["label"].names == NAMES
    assert builder.info.module_name.startswith("tensorflow_datasets.")

  def test_leaves_nothing_but_the_folder(self, prepared):
    assert [path.name for path in prepared.iterdir()] == ["cifar10"]
    names = sorted(path.name for path in (prepared / FOLDER).iterdir())
    assert names == [
      "cifar10-test.array_record-00000-of-00001",
      "cifar10-train.array_record-00000-of-00001",
      "dataset_info.json",
      "features.json",
      "label.labels.txt",
    ]

  def test_a_prepared_folder_is_left_alone(self, prepared):
    times = [p.stat().st_mtime_ns for p in prepared.rglob("*")]
    cifar10.prepare(prepared, "no/such/archive")
    assert times == [p.stat().st_mtime_ns for p in prepared.rglob("*")]

  def test_a_failure_in_the_middle_leaves_nothing(self, tmp_path):
    splits = {"train": TRAIN, "test": (TEST[0], TEST[1] + 90)}
    with pytest.raises(ValueError):
      cifar10.write_folder(tmp_path, splits, NAMES)
    assert list(tmp_path.iterdir()) == []

  def test_what_a_killed_run_left_is_cleared_away(self, tmp_path):
    left = tmp_path / "tfds" / ".jaxr18-prepare" / FOLDER
    left.mkdir(parents=True)
    (left / "cifar10-train.array_record-00000-of-00001").write_text("half")
    source = write_archive(tmp_path / "archive.tar.gz")
    cifar10.prepare(tmp_path / "tfds", tmp_path / "archive.tar.gz", source)
    check_arrays(load(tmp_path / "tfds", tmp_path))
    assert os.listdir(tmp_path / "tfds") == ["cifar10"]

  def test_several_at_once_are_one_after_the_other(self, tmp_path):
    path = tmp_path / "archive.tar.gz"
    source = write_archive(path)
    with futures.ThreadPoolExecutor(4) as pool:
      roots = list(
        pool.map(
          lambda _: cifar10.prepare(tmp_path / "tfds", path, source), range(4)
        )
      )
    assert roots == [tmp_path / "tfds"] * 4
    assert os.listdir(tmp_path / "tfds") == ["cifar10"]

  def test_a_full_disk_is_told(self, tmp_path, capsys):
    source = write_archive(tmp_path / "archive.tar.gz")
    root = tmp_path / "tfds"
    flags = [f"--data_dir={root}", f"--archive={tmp_path}/archive.tar.gz"]
    with files_up_to(1000):
      assert prepare.main(flags, source) == 1
    told = capsys.readouterr().err
    assert "Could not write" in told and "make room" in told
    assert os.listdir(root) == []
    assert prepare.main(flags, source) == 0

  def test_a_missing_archive(self, tmp_path):
    with pytest.raises(data.DataError, match="No archive at .*nowhere"):
      cifar10.prepare(tmp_path / "tfds", tmp_path / "nowhere")
    assert os.listdir(tmp_path / "tfds") == []

  def test_an_archive_of_another_checksum(self, tmp_path):
    write_archive(tmp_path / "other.tar.gz")
    with pytest.raises(data.DataError, match="SHA-256.*expected c4a38c50a1b"):
      cifar10.prepare(tmp_path / "tfds", tmp_path / "other.tar.gz")
    assert not (tmp_path / "tfds" / "cifar10").exists()

  @pytest.mark.parametrize(
    "change, message",
    [
      ({"data_batch_3.bin": None}, "lacks data_batch_3.bin"),
      ({"batches.meta.txt": None}, "lacks batches.meta.txt"),
      ({"test_batch.bin": bytes(5000)}, "test_batch.bin has 5,000 bytes"),
      ({"data_batch_1.bin": b"\x0a" * 3073}, "label 10, expected 0 to 9"),
    ],
  )
  def test_archives_of_other_contents(self, tmp_path, change, message):
    files = archive_files() | change
    path = tmp_path / "archive.tar.gz"
    write_archive(path, {k: v for k, v in files.items() if v is not None})
    with pytest.raises(data.DataError, match=message):
      cifar10.read_archive(path)

  def test_archives_that_are_none(self, tmp_path):
    path = tmp_path / "archive.tar.gz"
    write_archive(path)
    for content in (b"nothing", path.read_bytes()[:100_000]):
      path.write_bytes(content)
      with pytest.raises(data.DataError, match="not a readable tar archive"):
        cifar10.read_archive(path)


class Server:
  """Serves `content` on 127.0.0.1, with the faults that networks have.

  Attributes:
    url: of the content.
    starts: first byte of every answer so far.
    ranges: whether Range headers are respected.
    most: bytes that it sends before it breaks the connection; None is all.
    errors: HTTP codes to answer the next requests with.
  """

  def __init__(self, content):
    self.starts, self.ranges, self.most, self.errors = [], True, None, []

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(handler):
        if self.errors:
          return handler.send_error(self.errors.pop(0))
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.ranges else 0
        if start and start >= len(content):
          return handler.send_error(416)
        self.starts.append(start)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start:][: self.most])

      def log_message(self, *args):
        pass

    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server.server_port}/cifar.tar.gz"

  @contextlib.contextmanager
  def running(self):
    threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()
    try:
      yield self
    finally:
      self.server.shutdown()
      self.server.server_close()


@contextlib.contextmanager
def files_up_to(size):
  """As on a full disk: no file may grow beyond `size` bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class TestDownload:
  CONTENT = np.random.default_rng(0).bytes(1_000_000)
  SHA256 = hashlib.sha256(CONTENT).hexdigest()

  @pytest.fixture
  def server(self):
    with Server(self.CONTENT).running() as server:
      yield server

  def download(self, server, tmp_path, sha256=SHA256):
    path = tmp_path / "cifar.tar.gz"
    cifar10.download(cifar10.Source(server.url, sha256), path, wait=0.01)
    assert path.read_bytes() == self.CONTENT
    assert os.listdir(tmp_path) == ["cifar.tar.gz"]

  def part(self, tmp_path, size, content=CONTENT):
    (tmp_path / "cifar.tar.gz.part").write_bytes(content[:size])

  def test_at_once_with_progress(self, server, tmp_path, capsys):
    self.download(server, tmp_path)
    assert server.starts == [0]
    assert re.search(
      r"cifar.tar.gz: 100% of 1.0 MB, \d+\.\d MB/s", capsys.readouterr().err
    )

  def test_goes_on_where_another_run_stopped(self, server, tmp_path):
    self.part(tmp_path, 300_000)
    self.download(server, tmp_path)
    assert server.starts == [300_000]

  def test_a_connection_that_breaks_again_and_again(self, server, tmp_path):
    server.most = 150_000
    self.download(server, tmp_path)
    assert server.starts == list(range(0, 1_000_000, 150_000))

  def test_a_server_that_sends_everything_again(self, server, tmp_path):
    self.part(tmp_path, 300_000)
    server.ranges = False
    self.download(server, tmp_path)
    assert server.starts == [0]

  def test_all_was_there_but_the_name(self, server, tmp_path):
    self.part(tmp_path, 1_000_000)
    self.download(server, tmp_path)
    assert server.starts == []

  def test_a_file_of_a_killed_run(self, server, tmp_path):
    (tmp_path / "cifar.tar.gz").write_bytes(self.CONTENT)
    self.download(server, tmp_path)
    assert server.starts == []

  def test_errors_that_pass(self, server, tmp_path):
    server.errors = [503, 500]
    self.download(server, tmp_path)

  def test_errors_that_do_not(self, server, tmp_path):
    server.errors = [503] * 3
    with pytest.raises(
      data.DataError, match=rf"{server.url}.*503.*attempt 3 of 3"
    ):
      self.download(server, tmp_path)
    assert server.errors == []

  def test_does_not_ask_twice_for_what_is_not_there(self, server, tmp_path):
    server.errors = [404, 404]
    with pytest.raises(data.DataError, match=rf"{server.url}.*404"):
      self.download(server, tmp_path)
    assert server.errors == [404]

  def test_no_server(self, tmp_path):
    server = Server(b"")
    server.server.server_close()
    self.part(tmp_path, 1234)
    with pytest.raises(data.DataError, match="refused.*1,234 bytes are kept"):
      self.download(server, tmp_path)

  def test_a_full_disk_is_told_at_once(self, server, tmp_path):
    with files_up_to(300_000):
      with pytest.raises(data.DataError, match="Could not write .*make room"):
        self.download(server, tmp_path)
    assert server.starts == [0]  # trying again mends nothing
    self.download(server, tmp_path)
    assert server.starts[1] > 0

  @pytest.mark.parametrize("link", [os.symlink, os.link])
  def test_a_link_is_not_followed(self, server, tmp_path, link):
    (tmp_path / "home").mkdir()
    (tmp_path / "to").mkdir()
    victim = tmp_path / "home" / "victim"
    victim.write_bytes(b"precious")
    link(victim, tmp_path / "to" / "cifar.tar.gz.part")
    self.download(server, tmp_path / "to")
    assert victim.read_bytes() == b"precious"

  def test_too_small_a_disk_is_known_before(self, server, tmp_path):
    source = cifar10.Source(server.url, self.SHA256, needs=2**62)
    with pytest.raises(
      data.DataError, match="bytes free, expected .*make room"
    ):
      cifar10.prepare(tmp_path, source=source)
    assert server.starts == [] and os.listdir(tmp_path) == []

  def test_wrong_contents_are_deleted(self, server, tmp_path):
    self.part(tmp_path, 5, content=b"wrong")
    with pytest.raises(data.DataError, match=f"expected {self.SHA256}"):
      self.download(server, tmp_path)
    assert os.listdir(tmp_path) == []
    self.download(server, tmp_path)


class TestMain:
  def test_help(self):
    out = subprocess.run(
      [sys.executable, "-m", "jaxr18.data", "--help"],
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    assert "--archive" in out and "--data_dir" in out and "TFDS" in out

  def test_from_an_archive(self, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = write_archive(tmp_path / "a.tar.gz")
    flags = [f"--data_dir={tmp_path}/tfds", f"--archive={tmp_path}/a.tar.gz"]
    assert prepare.main(flags, source) == 0
    assert "50 training and 20 test images" in capsys.readouterr().out
    assert (tmp_path / "a.tar.gz").exists()
    check_arrays(load(tmp_path / "tfds", tmp_path))

  def test_by_download(self, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_archive(tmp_path / "a.tar.gz")
    with Server((tmp_path / "a.tar.gz").read_bytes()).running() as server:
      source = source_of(tmp_path / "a.tar.gz", server.url)
      assert prepare.main([f"--data_dir={tmp_path}/tfds"], source) == 0
    assert os.listdir(tmp_path / "tfds") == ["cifar10"]
    check_arrays(load(tmp_path / "tfds", tmp_path))

  def test_an_error_is_one_text_and_status_1(self, tmp_path, capsys):
    flags = [f"--data_dir={tmp_path}", f"--archive={tmp_path}/no"]
    assert prepare.main(flags) == 1
    assert capsys.readouterr().err == f"No archive at {tmp_path}/no.\n"


class TestRealCifar10:
  def test_counts_and_statistics(self, tmp_path):
    root = cifar10.resolve_data_dir()
    if cifar10.open_folder(root) is None:
      pytest.skip(f"no CIFAR-10 in {root} (TFDS_DATA_DIR names another place)")
    dataset = load("", tmp_path, validation=5000)
    splits = {"train": 4500, "validation": 500, "test": 1000}
    for split, count in splits.items():
      labels = getattr(dataset, split).labels
      np.testing.assert_array_equal(np.bincount(labels), [count] * 10)
    both = np.r_[dataset.train.index, dataset.validation.index]
    np.testing.assert_array_equal(np.sort(both), np.arange(50000))
    images = np.concatenate([dataset.train.images, dataset.validation.images])
    # Exact sums: float means of 51 million values would take a second.
    values = np.stack(
      [np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]
    )
    levels = np.arange(256) / 255
    mean = values @ levels / values[0].sum()
    std = np.sqrt(values @ levels**2 / values[0].sum() - mean**2)
    np.testing.assert_allclose(mean, dataset.mean, atol=5.1e-5)
    np.testing.assert_allclose(std, dataset.std, atol=5.1e-5)
