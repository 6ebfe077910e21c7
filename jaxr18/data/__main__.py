"""Prepares CIFAR-10's folder ahead of the first run.

python -m jaxr18.data [--data_dir=DIR] [--archive=FILE]
"""

import argparse
import sys
import time

from jaxr18.data import cifar10
from jaxr18.data.cifar10 import DataError
from jaxr18.data.dataset import load


def main(argv=None, source: cifar10.Source = cifar10.OFFICIAL) -> int:
  """Prepares CIFAR-10's folder and its cache."""
  parser = argparse.ArgumentParser(
    prog="python -m jaxr18.data",
    description="Prepares CIFAR-10 as a standard TFDS folder (ArrayRecord), "
    "without TensorFlow, and reads it once.",
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
  args = parser.parse_args(argv)
  try:
    root = cifar10.prepare(args.data_dir, args.archive, source)
    began = time.monotonic()
    loaded = load("cifar10", str(root), validation=0)
  except (DataError, OSError) as e:
    print(e, file=sys.stderr)
    return 1
  print(
    f"CIFAR-10 in {root}: {len(loaded.train):,} training and "
    f"{len(loaded.test):,} test images, read in "
    f"{time.monotonic() - began:.1f} s."
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
