"""Fetches ONNX Runtime Web for the page beside this file, from its npm package.

    python -m docs.browser.vendor

The page loads what lies in vendor/ and nothing from elsewhere. 14 MB of
WebAssembly are not kept in the repository; they are fetched once, and the
package must have the hash that stands here.
"""

import base64
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

FOLDER = pathlib.Path(__file__).parent / "vendor"
PACKAGE = "onnxruntime-web@1.30.0"
# As npm prints it: npm view onnxruntime-web@VERSION dist.integrity
INTEGRITY = (
  "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02V"
  "b7QmRMDs1SigqR4CXAfKYQ=="
)
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


class MissingError(Exception):
  """Says why ONNX Runtime Web is not there, and how it can be had."""


def is_there(folder: pathlib.Path = FOLDER) -> bool:
  """Tells whether the files of this version have been fetched."""
  note = folder / "package.txt"
  return note.exists() and note.read_text() == PACKAGE


def npm() -> str | None:
  """Returns the path of npm, where there is one."""
  return shutil.which("npm")


def fetch(folder: pathlib.Path = FOLDER) -> None:
  """Fetches the files into a folder, unless they are there.

  Raises:
    MissingError: npm is not there or fails, or the package is another one.
  """
  if is_there(folder):
    return
  program = npm()
  if program is None:
    raise MissingError(
      f"npm is not on PATH, and {PACKAGE} comes from there: install Node.js"
      " (https://nodejs.org), which brings npm, and start this again"
    )
  with tempfile.TemporaryDirectory() as scratch:
    done = subprocess.run(
      [program, "pack", PACKAGE, "--json", f"--pack-destination={scratch}"],
      cwd=scratch, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
      raise MissingError(f"npm pack {PACKAGE} failed:\n{done.stderr.strip()}")
    name = json.loads(done.stdout)[0]["filename"]
    unpack(pathlib.Path(scratch) / name, folder)


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
  """Takes the page's files out of a package whose hash is the known one."""
  digest = hashlib.sha512(archive.read_bytes()).digest()
  found = f"sha512-{base64.b64encode(digest).decode()}"
  if found != INTEGRITY:
    raise MissingError(
      f"{archive.name} has the hash {found} and not {INTEGRITY}: it is another"
      f" package than {PACKAGE}, or it is damaged"
    )
  folder.mkdir(exist_ok=True)
  (folder / "package.txt").unlink(missing_ok=True)
  with tarfile.open(archive) as package:
    for name in FILES:
      content = package.extractfile(f"package/dist/{name}")
      assert content is not None
      (folder / name).write_bytes(content.read())
  (folder / "package.txt").write_text(PACKAGE)  # last: all others are whole


if __name__ == "__main__":
  try:
    fetch()
  except MissingError as e:
    sys.exit(f"docs.browser.vendor: {e}")
  print(f"{PACKAGE} is in {FOLDER}")
