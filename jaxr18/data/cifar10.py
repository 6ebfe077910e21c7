"""The official CIFAR-10 archive -> TFDS's standard folder, no TensorFlow.

The archive (https://www.cs.toronto.edu/~kriz/cifar.html, binary version) is
downloaded with its checksum, or given as a file, parsed with NumPy, and
written by TFDS's own Cifar10 builder as ArrayRecord, so that every other
program that reads TFDS folders reads this one too.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import os
import pathlib
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants, registered
from tensorflow_datasets.image_classification import cifar

from jaxr18.data.facts import DataError
from jaxr18.host import locks, paths
from jaxr18.host.inputs import make_way

NAME = "cifar10"
DEFAULT_DIR = constants.DATA_DIR  # of TFDS
SHAPE = (32, 32, 3)
_RECORD = 1 + 32 * 32 * 3  # bytes: the label, then the planes R, G and B
_FILES = {
  "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
  "test": ("test_batch.bin",),
}


# Errors of the disk and not of the network: trying again mends nothing.
_OF_THE_DISK = (
  errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES,
  errno.EPERM, errno.EIO, errno.ELOOP, errno.EISDIR,
)  # fmt: skip


# What mends a folder that others may read or have made: to leave it alone.
ANOTHER = (
  "`python -m jaxr18.data --data_dir=NEW` prepares a folder beside it, from the"
  " internet or from --archive=FILE; TFDS_DATA_DIR=NEW or --config.data.dir=NEW"
  " then names it to every command, and a run that had begun goes on."
)


class Source(NamedTuple):
  """Where an archive comes from and the SHA-256 that it must have."""

  url: str
  sha256: str
  needs: int = 0  # bytes on the disk, until the archive is removed


OFFICIAL = Source(
  "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
  "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
  350_000_000,
)


def resolve_data_dir(data_dir: str = "") -> pathlib.Path:
  """The TFDS folder: `data_dir`, else TFDS_DATA_DIR, else TFDS's default."""
  path = (
    data_dir
    or os.environ.get("TFDS_DATA_DIR")  # TFDS itself reads it only at import
    or DEFAULT_DIR
  )
  if paths.remote(path):
    raise DataError(
      f"the folder of data sets (={path}) {paths.LOCAL}; {paths.MOUNT} by"
      " --config.data.dir or TFDS_DATA_DIR"
    )
  return paths.folder(path)


def open_folder(data_dir: pathlib.Path, name: str = NAME) -> Any:
  """TFDS's builder of a set that is prepared under `data_dir`, or None.

  Raises:
    DataError: the folder is there, but damaged, or in a format that needs
      TensorFlow.
  """
  folder = data_dir / name / str(tfds.builder_cls(name).VERSION)
  if not (folder / "dataset_info.json").exists():
    return None
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except Exception as e:  # there is no end to how files can be damaged
    raise DataError(
      f"{name} in {folder} can not be read: {type(e).__name__}: {e}\n" + ANOTHER
    ) from e
  kind = builder.info.file_format
  if kind != tfds.core.FileFormat.ARRAY_RECORD:
    raise DataError(
      f"{folder} holds {name} as {kind.value if kind else 'nothing'},"
      " expected array_record (the other formats need TensorFlow to be read). "
      + ANOTHER
    )
  return builder


def prepare(
  data_dir: str = "", archive: str = "", source: Source = OFFICIAL
) -> pathlib.Path:
  """Writes TFDS's standard CIFAR-10 folder under `data_dir`.

  Does nothing where the folder is there already. The folder appears whole or
  not at all; an interrupted download goes on where it stopped.

  Args:
    data_dir: as in `resolve_data_dir`.
    archive: the archive as a file that is there already; '' downloads it.
    source: where to download from, and the checksum in either case.

  Returns:
    The TFDS folder that was used (the parent of `cifar10/`).

  Raises:
    DataError: no archive, a wrong checksum, or contents that do not parse.
    OSError: the folder can't be written.
  """
  root = resolve_data_dir(data_dir)
  if open_folder(root) is not None:
    return root
  root.mkdir(parents=True, exist_ok=True)
  with locks.held(root / ".jaxr18-prepare.lock"):
    if open_folder(root) is not None:  # another run was faster
      return root
    if archive:
      path = paths.folder(archive)
      if not path.is_file():
        raise DataError(f"No archive at {path}.")
      _check_sha256(path, source)
    else:
      path = root / source.url.rsplit("/", 1)[-1]
      _check_room(root, source.needs)
      download(source, path)
    write_folder(root, *read_archive(path))
    if not archive:
      path.unlink()
  return root


def _check_room(root: pathlib.Path, needs: int) -> None:
  """Raises DataError before a download that would fill the disk."""
  free = shutil.disk_usage(root).free
  free += sum(_size(part) for part in root.glob("*.part"))
  if free < needs:
    raise DataError(
      f"{root} has {free:,} bytes free, expected {needs:,}: make room, or name"
      " another folder by TFDS_DATA_DIR or --data_dir."
    )


def _check_sha256(path: pathlib.Path, source: Source) -> None:
  with open(path, "rb") as f:
    got = hashlib.file_digest(f, "sha256").hexdigest()
  if got != source.sha256:
    raise DataError(
      f"{path} ({_size(path):,} bytes) has SHA-256 {got}, expected "
      f"{source.sha256}: it is damaged or another file. Fetch "
      f"{source.url} again."
    )


def download(
  source: Source, path: pathlib.Path, attempts: int = 3, wait: float = 1.0
) -> None:
  """Downloads `source.url` to `path`, which appears only when it is right.

  The bytes so far stay in `path` + '.part', and both a connection that breaks
  and the next call go on from there.

  Args:
    source: where from, and the checksum.
    path: the file wanted.
    attempts: give up after so many in a row that brought no byte.
    wait: seconds before the second attempt, doubled for every further one.

  Raises:
    DataError: the server can't be reached, or the checksum is wrong (the bad
      bytes are then deleted).
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  if path.exists():  # of a run that was killed between this and the writing
    os.replace(path, part)
  make_way(part)
  failed = 0
  while True:
    have = _size(part)
    try:
      _fetch(source.url, part)
      break
    except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
      if getattr(e, "errno", None) in _OF_THE_DISK:
        raise DataError(
          f"Could not write {part}: {getattr(e, 'strerror', e)}; make room,"
          " mend the folder or name another by TFDS_DATA_DIR or --data_dir"
          f" ({_size(part):,} bytes are kept for the next time)."
        ) from e
      failed = failed + 1 if _size(part) <= have else 1
      refused = isinstance(e, urllib.error.HTTPError) and e.code < 500
      if refused or failed == attempts:
        raise DataError(
          f"Could not download {source.url} to {path}: {e} (attempt {failed} "
          f"of {attempts}; {_size(part):,} bytes are kept for the next time)."
        ) from e
    time.sleep(wait * 2 ** (failed - 1))
  try:
    _check_sha256(part, source)
  except DataError:
    part.unlink()  # nothing to build on: the next call starts from zero
    raise
  os.replace(part, path)


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: pathlib.Path) -> None:
  """Appends to `part` what it lacks of `url`."""
  have = _size(part)
  request = urllib.request.Request(url, headers={"User-Agent": "jaxr18"})
  if have:
    request.add_header("Range", f"bytes={have}-")
  try:
    response = urllib.request.urlopen(request, timeout=20)
  except urllib.error.HTTPError as e:
    if e.code == 416 and have:  # all of it was there: the checksum decides
      return
    raise
  # A link that appeared meanwhile is not followed.
  no_link = lambda path, how: os.open(path, how | os.O_NOFOLLOW, 0o666)
  with response, open(part, "ab", opener=no_link) as f:
    if response.status != 206:  # the server sends everything again
      have = 0
      f.truncate(0)
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else 0
    progress = _Progress(part.name.removesuffix(".part"), have, total)
    while chunk := response.read(1 << 18):
      f.write(chunk)
      have += len(chunk)
      progress(have)
  if have < total:  # read() does not raise where the connection ends early
    raise ConnectionError(f"got {have:,} of {total:,} bytes")


class _Progress:
  """One live line on a terminal; elsewhere a line for every tenth."""

  def __init__(self, what: str, start: int, total: int):
    self.what, self.start, self.total = what, start, total
    self.began = self.shown = time.monotonic()
    self.tenth = 10 * start // total if total else 0

  def __call__(self, have: int) -> None:
    now, done = time.monotonic(), have == self.total
    rate = (have - self.start) / 1e6 / max(now - self.began, 1e-9)
    percent = f"{have / self.total:4.0%} of " if self.total else ""
    size = f"{(self.total or have) / 1e6:.1f} MB"
    line = f"{self.what}: {percent}{size}, {rate:.1f} MB/s"
    if sys.stderr.isatty():
      if done or now - self.shown > 0.2:
        self.shown = now
        print(f"\r{line} ", end="\n" if done else "", file=sys.stderr)
    elif self.total and 10 * have // self.total > self.tenth:
      self.tenth = 10 * have // self.total
      print(line, file=sys.stderr)


def read_archive(path: pathlib.Path):
  """Parses the archive; nothing is unpacked to the disk.

  Returns:
    `{split: (images uint8 [n, 32, 32, 3], labels uint8 [n])}` and the names
    of the classes.

  Raises:
    DataError: a file is missing, of a wrong length, or has unknown labels.
  """
  contents = {}
  try:
    with tarfile.open(path, "r:*") as tar:
      for member in tar:
        file = tar.extractfile(member) if member.isfile() else None
        if file is not None:
          contents[os.path.basename(member.name)] = file.read()
  except (tarfile.TarError, EOFError, OSError) as e:
    raise DataError(f"{path} is not a readable tar archive: {e}") from e
  wanted = sum(_FILES.values(), ()) + ("batches.meta.txt",)
  if missing := [name for name in wanted if name not in contents]:
    raise DataError(
      f"{path} lacks {', '.join(missing)}; got {sorted(contents)}. Expected "
      "the archive of CIFAR-10's binary version."
    )
  names = contents["batches.meta.txt"].decode().split()
  splits = {}
  for split, files in _FILES.items():
    for name in files:
      if len(contents[name]) % _RECORD:
        raise DataError(
          f"{path}: {name} has {len(contents[name]):,} bytes, expected a "
          f"multiple of {_RECORD:,} (a label and 32x32x3 values)."
        )
    records = np.frombuffer(b"".join(contents[n] for n in files), np.uint8)
    records = records.reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.size and labels.max() >= len(names):
      raise DataError(
        f"{path}: {split} has label {labels.max()}, expected 0 to "
        f"{len(names) - 1}."
      )
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    splits[split] = planes.transpose(0, 2, 3, 1), labels
  return splits, names


def write_folder(root: pathlib.Path, splits, names) -> None:
  """Writes `read_archive`'s result as `root`/cifar10/<version>, atomically."""
  staging = root / ".jaxr18-prepare"
  shutil.rmtree(staging, ignore_errors=True)  # a killed run's, under our lock
  try:
    builder = _builder(staging, splits, names)
    count = sum(len(labels) for _, labels in splits.values())
    print(f"Writing {count:,} images to {root}/{NAME} ...", file=sys.stderr)
    tfds.display_progress_bar(False)  # it draws over several lines
    with contextlib.redirect_stdout(io.StringIO()):  # prints the staging path
      builder.download_and_prepare(file_format="array_record")
    target = root / pathlib.Path(builder.data_path).relative_to(staging)
    target.parent.mkdir(exist_ok=True)
    os.replace(builder.data_path, target)
  except RuntimeError as e:  # ArrayRecord's, of a full disk among others
    raise DataError(
      f"Could not write {root}/{NAME}: {e}; make room, or name another folder"
      " by TFDS_DATA_DIR or --data_dir."
    ) from e
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def _builder(data_dir: pathlib.Path, splits, names):
  with registered.skip_registration():

    class Cifar10(cifar.Cifar10):
      """TFDS's builder, fed with arrays in place of the archive."""

      url_infos = {}  # ours is no download that TFDS has to know

      def _split_generators(self, dl_manager):
        features: Any = self.info.features
        features["label"].names = names
        return {
          split: self._generate_examples(split, *arrays)
          for split, arrays in splits.items()
        }

      def _generate_examples(self, split, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
          yield (
            i,
            {
              "id": f"{split}_{i:05d}",
              "image": io.BytesIO(
                _png(image)
              ),  # an array would need TensorFlow
              "label": int(label),
            },
          )

  # What the folder's dataset_info.json names, for programs without jaxr18.
  Cifar10.__module__ = cifar.__name__
  return Cifar10(data_dir=data_dir)


def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "png")
  return buffer.getvalue()
