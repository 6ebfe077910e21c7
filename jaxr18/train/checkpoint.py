"""Checkpoints that resume to the same bits, or say why they cannot.

Orbax writes them, asynchronously and atomically. The arrays go in a flat
dictionary by path, beside a description in JSON that holds the spec and hashes
of both: Orbax restores a flipped byte without a word.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers

from jaxr18.host.digest import digest
from jaxr18.host.errors import writing
from jaxr18.nn.network import Network
from jaxr18.nn.spec import NetSpec
from jaxr18.train.files import CheckpointError as CheckpointError
from jaxr18.train.files import mend_checkpoint

FORMAT = "jaxr18 checkpoint 1"


@dataclasses.dataclass
class _LatestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the two latest checkpoints, since one may be damaged, and the best.

  Orbax's own BestN reads a metric that has to be known when the checkpoint is
  written; here it is written before the validation.
  """

  validation: Mapping[int, float]

  def should_preserve(self, checkpoints, *, context):
    del context
    steps = sorted(c.step for c in checkpoints)
    kept = {*steps[-2:], best_step(steps, self.validation)}
    return [c.step in kept for c in checkpoints]


def best_step(steps: Iterable[int], validation: Mapping[int, float]) -> int:
  """Returns the step of the best validation accuracy; in a tie the last one.

  Where none was validated, the last of all.
  """
  scored = [(validation[s], s) for s in steps if s in validation]
  return max(scored)[1] if scored else max(steps)


def open_manager(
  directory: str | os.PathLike, validation: Mapping[int, float]
) -> ocp.CheckpointManager:
  """Opens the checkpoints of a phase, and removes half-written ones.

  Args:
    directory: made if it is missing.
    validation: accuracy by step, read whenever a checkpoint is written.

  Raises:
    CheckpointError: the directory cannot be written.
  """
  _say_errors_once()
  path = pathlib.Path(directory).absolute()
  with writing(path):
    path.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(
      _without_backslash(path),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_LatestAndBest(validation),
        cleanup_tmp_directories=True,
      ),
    )


def _without_backslash(path: pathlib.Path) -> pathlib.Path:
  """The path, or one that leads to it: TensorStore reads a \\ as a /."""
  if "\\" not in str(path):
    return path
  link = _links() / hashlib.sha256(bytes(path)).hexdigest()
  if not link.is_symlink():
    link.symlink_to(path)
  return link


@functools.cache
def _links() -> pathlib.Path:
  """A folder of this process for links."""
  folder = tempfile.TemporaryDirectory(prefix="jaxr18-")
  atexit.register(folder.cleanup)
  return pathlib.Path(folder.name)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  arrays: dict[str, np.ndarray],
  meta: dict[str, Any],
) -> None:
  """Starts to write a checkpoint; an error may come with the next call.

  Args:
    manager: of `open_manager`.
    step: names the checkpoint; later than all that are there.
    arrays: of `flatten`.
    meta: JSON, kept beside the arrays.
  """
  meta = meta | {
    "format": FORMAT,
    "step": step,
    "arrays": sorted(arrays),
    "hash": digest(arrays),
  }
  meta["hash_of_this"] = _digest_of_json(meta)
  args = ocp.args.Composite(
    arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
  )
  with _surfacing(manager.directory):
    if not manager.save(step, args=args):
      raise FileExistsError(f"step {step} is there already, or a later one")


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until what was saved is on disk."""
  with _surfacing(manager.directory):
    manager.wait_until_finished()
    step = manager.latest_step() if jax.process_index() == 0 else None
    if step is not None and not (manager.directory / str(step)).is_dir():
      raise FileNotFoundError(f"step {step} was written and is not there")


@contextlib.contextmanager
def _surfacing(directory) -> Iterator[None]:
  """Turns a failed write into a CheckpointError that names what is left."""
  try:
    yield
  except Exception as e:  # of the file system, of TensorStore or of Orbax
    # What is on disk now, and not what the manager believes is there.
    if os.path.islink(directory):
      directory = os.readlink(directory)
    names = os.listdir(directory) if os.path.isdir(directory) else []
    steps = [int(name) for name in names if name.isdecimal()]
    left = f"the last good one is {max(steps)}" if steps else "none is there"
    raise CheckpointError(
      f"cannot write a checkpoint in {directory} ({_first(e)}); {left}; make"
      " room or mend the folder, and run the same command again"
    ) from e


def read(
  path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads the arrays, by path, and the description of one checkpoint.

  Args:
    path: its folder, .../PHASE/checkpoints/STEP.

  Raises:
    CheckpointError: missing, damaged, altered, or not one of ours.
  """
  path = pathlib.Path(path).absolute()
  meta, mend = read_meta(path), mend_checkpoint(path)
  reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
  try:
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
      restore_args=dict.fromkeys(meta["arrays"], as_numpy)
    )
    args = ocp.args.Composite(arrays=args)
    arrays = reader.restore(_without_backslash(path), args)["arrays"]
    arrays = {name: np.asarray(a) for name, a in arrays.items()}
  except Exception as e:
    raise CheckpointError(f"{path} is damaged ({_first(e)}); {mend}") from e
  got, written = digest(arrays), meta["hash"]
  if got != written:
    raise CheckpointError(
      f"{path} is damaged: its arrays have the hash {got[:12]}..., and"
      f" {written[:12]}... was written; {mend}"
    )
  return arrays, meta


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
  """Reads the description of a checkpoint alone, as `read` does."""
  _say_errors_once()
  path = pathlib.Path(path).absolute()
  mend = mend_checkpoint(path)
  if not path.is_dir():
    raise CheckpointError(f"there is no checkpoint {path}; {mend}")
  reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
  try:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = reader.restore(_without_backslash(path), args)["meta"]
  except Exception as e:
    raise CheckpointError(
      f"{path} is damaged or not a checkpoint of jaxr18 ({_first(e)}); {mend}"
    ) from e
  if not isinstance(meta, dict) or meta.get("format") != FORMAT:
    raise CheckpointError(
      f"{path} is not a checkpoint of this version: expected format"
      f" {FORMAT!r}, got {meta.get('format') if meta else meta!r}; use another"
      " --workdir"
    )
  if meta.get("hash_of_this") != _digest_of_json(meta):
    raise CheckpointError(
      f"{path} is damaged: its description is not what was written; {mend}"
    )
  return meta


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Returns host arrays by path, such as 'net.params.stem.kernel'."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  # A copy: a view of a donated buffer would change under the writer.
  return {_name(path): np.array(leaf) for path, leaf in leaves}


def unflatten(
  arrays: dict[str, np.ndarray], like: Any, where: str | os.PathLike
) -> Any:
  """Inverts `flatten`, and checks the arrays against the shapes of `like`.

  Raises:
    CheckpointError: of another form; the first differences are named, and
      `where` the arrays came from.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
  names = [_name(path) for path, _ in leaves]
  problems = [f"{n} is missing" for n in names if n not in arrays]
  problems += [f"{n} is not expected" for n in arrays if n not in set(names)]
  for name, (_, leaf) in zip(names, leaves, strict=True):
    if name in arrays:
      got, want = arrays[name], jax.typeof(leaf)
      if (got.shape, got.dtype) != (want.shape, want.dtype):
        problems.append(
          f"{name} is {got.dtype}{list(got.shape)}, expected"
          f" {want.dtype}{list(want.shape)}"
        )
  if problems:
    more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
    raise CheckpointError(
      f"{where} does not fit this config: {'; '.join(problems[:4])}{more}; use"
      " the config that wrote it, or another --workdir"
    )
  return jax.tree.unflatten(treedef, [arrays[n] for n in names])


def network_from(arrays: dict[str, np.ndarray], meta: dict) -> Network:
  """Makes the network that is evaluated of a training checkpoint."""
  net = _network(arrays, meta["network"], meta["spec"])
  estimated = _tree(arrays, "statistics")
  return net.replace(batch_stats=estimated) if estimated else net


def networks_from(arrays: dict[str, np.ndarray], meta: dict) -> list[Network]:
  """Makes the networks of a checkpoint: one, or all members of an ensemble."""
  if "members" not in meta:
    return [network_from(arrays, meta)]
  return [
    _network(arrays, f"member{i}", spec)
    for i, spec in enumerate(meta["members"])
  ]


def _network(arrays: dict[str, np.ndarray], name: str, spec: str) -> Network:
  trees = {"params": {}, "batch_stats": {}, "masks": {}} | _tree(arrays, name)
  return Network(**trees, spec=NetSpec.from_json(spec))


def _tree(arrays: dict[str, np.ndarray], name: str) -> dict[str, Any]:
  """What of the arrays lies below a name, as nested dictionaries."""
  prefix = f"{name}."
  below = {
    path.removeprefix(prefix): jnp.asarray(array)
    for path, array in arrays.items()
    if path.startswith(prefix)
  }
  return traverse_util.unflatten_dict(below, sep=".")


def _digest_of_json(meta: dict[str, Any]) -> str:
  meta = {k: v for k, v in meta.items() if k != "hash_of_this"}
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _name(path) -> str:
  parts = [getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))
           for k in path]  # fmt: skip
  return ".".join(str(p) for p in parts)


def _first(error: Exception) -> str:
  """The first line of what went wrong; TensorStore says why at its end."""
  line = (str(error).strip().splitlines() or [""])[0]
  line = line.partition(" [tensorstore_spec=")[0]
  if len(line) > 300:
    line = f"{line[:80]} ... {line[-215:]}"
  return f"{type(error).__name__}: {line}"


@functools.cache
def _say_errors_once() -> None:
  """Keeps Orbax from printing the tracebacks of errors that it also raises."""

  def not_of_orbax(record) -> bool:
    return record.levelname != "ERROR" or "orbax" not in record.pathname

  # Where one read or write fails, others go on and find nobody waiting.
  def not_abandoned(record) -> bool:
    return "exception was never retrieved" not in record.getMessage()

  def hook(unraisable) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
      before(unraisable)

  absl_logging.get_absl_logger().addFilter(not_of_orbax)
  logging.getLogger("asyncio").addFilter(not_abandoned)
  before, sys.unraisablehook = sys.unraisablehook, hook
