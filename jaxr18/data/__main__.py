"""Prepares CIFAR-10's folder, or writes images of one's own as one file.

python -m jaxr18.data [--data_dir=DIR] [--archive=FILE]
python -m jaxr18.data --images=FOLDER --npz=FILE [--size=64]
"""

import argparse
import sys
import time

from jaxr18.data import cifar10, facts, folder, named, npz
from jaxr18.data.dataset import load
from jaxr18.data.facts import DataError, ImagesError
from jaxr18.host import paths
from jaxr18.host.errors import FileError
from jaxr18.host.files import try_writing


def main(argv=None, source: cifar10.Source = cifar10.OFFICIAL) -> int:
  """Does what the command line asks for; returns the exit status."""
  args = _arguments(source).parse_args(argv)
  try:
    print(_written(args) if args.npz else _prepared(args, source))
  except (DataError, FileError, OSError) as e:
    print(e, file=sys.stderr)
    return 1
  return 0


def _arguments(source: cifar10.Source) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m jaxr18.data",
    description="Prepares CIFAR-10 as a standard TFDS folder (ArrayRecord),"
    " without TensorFlow, and reads it once. With --npz, writes a data set as"
    " one file, which config.data.name takes.",
  )
  parser.add_argument(
    "--data_dir",
    default="",
    help=f"TFDS folder (default: TFDS_DATA_DIR, else {cifar10.DEFAULT_DIR})",
  )
  parser.add_argument(
    "--archive",
    default="",
    help="cifar-10-binary.tar.gz, if it is here already (default: download "
    f"{source.url})",
  )
  parser.add_argument("--npz", default="", help="the file to write")
  parser.add_argument(
    "--images",
    default="cifar10",
    help="what to write: FOLDER with train/CLASS/FILE and test/CLASS/FILE, or"
    " with CLASS/FILE, of which a fifth is the test set; or a data set's name"
    " (default: cifar10)",
  )
  parser.add_argument(
    "--size",
    type=int,
    default=0,
    help="pixels a side, to which the middle square of each of a folder's"
    " images is resized (default: as they are, all alike)",
  )
  return parser


def _prepared(args, source: cifar10.Source) -> str:
  """Prepares CIFAR-10's folder and its cache."""
  root = cifar10.prepare(args.data_dir, args.archive, source)
  began = time.monotonic()
  loaded = load("cifar10", str(root), validation=0)
  return (
    f"CIFAR-10 in {root}: {len(loaded.train):,} training and"
    f" {len(loaded.test):,} test images, read in"
    f" {time.monotonic() - began:.1f} s."
  )


def _written(args) -> str:
  """Writes --images as --npz."""
  out, began = paths.folder(args.npz), time.monotonic()
  if out.suffix != npz.SUFFIX:
    raise ImagesError(f"--npz={args.npz} must end in .npz", "add it")
  low, high = npz.SIZES
  if args.size and not low <= args.size <= high:
    raise ImagesError(f"--size={args.size} must be from {low} to {high}",
                      "0 takes the images as they are")  # fmt: skip
  try_writing(out, "--npz")
  if args.images not in facts.KNOWN:
    given = named.locate(args.images)
    if given.is_dir():
      arrays, names = folder.read(given, args.size, _said)
      return _told(out, arrays, names, began)
  if args.size:
    raise ImagesError(
      f"--size={args.size} is for a folder, and --images={args.images} is none",
      "leave it out: config.PHASE.network.resolution resizes while training",
    )
  loaded = load(args.images, args.data_dir, validation=0)
  arrays = {}
  for split in npz.SPLITS:
    part = getattr(loaded, split)
    arrays |= {f"{split}_images": part.images, f"{split}_labels": part.labels}
  return _told(out, arrays, loaded.class_names, began)


def _told(out, arrays, names, began: float) -> str:
  npz.write(out, arrays, names)
  found = npz.facts(out)
  return (
    f"{out}: {found.train:,} training and {len(arrays['test_labels']):,} test"
    f" images of {found.size}x{found.size} pixels and {found.channels} channels"
    f" in {found.classes} classes, in {time.monotonic() - began:.1f} s."
  )


def _said(count: int) -> None:
  if not count % 5000:
    print(f"{count:,} images read", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
