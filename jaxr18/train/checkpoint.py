"""Checkpoints that resume to the same bits, or say why they cannot.

Orbax writes them, asynchronously and atomically. The arrays go in a flat
dictionary by path, beside a description in JSON that holds the spec and a hash
of the arrays: Orbax restores a flipped byte without a word.
"""

import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxr18.network import Network
from jaxr18.spec import NetSpec

FORMAT = "jaxr18 checkpoint 1"


class CheckpointError(Exception):
  """A checkpoint that cannot be written, read or trusted."""


def _validation(metrics: dict[str, float]) -> float:
  return metrics["validation"]


def open_manager(directory: str | os.PathLike) -> ocp.CheckpointManager:
  """The checkpoints of one phase: the latest two and the best one are kept.

  The best is that of the highest metric 'validation', of equal ones the
  latest. Two are kept so that a damaged latest one loses little.

  Raises:
    CheckpointError: the directory cannot be written.
  """
  policy = checkpoint_managers.AnyPreservationPolicy(
    [
      checkpoint_managers.LatestN(2),
      checkpoint_managers.BestN(
        n=1,
        get_metric_fn=_validation,
        keep_checkpoints_without_metrics=False,
      ),
    ]
  )
  path = pathlib.Path(directory).absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(
      path,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy, cleanup_tmp_directories=True
      ),
    )
  except OSError as e:
    raise CheckpointError(
      f"cannot write checkpoints in {path}: {e.strerror or e}; give a folder"
      " that can be written, --workdir=..."
    ) from e


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  meta: dict[str, Any],
  validation: float | None = None,
) -> None:
  """Starts to write a checkpoint; errors may come with the next call.

  Args:
    manager: of `open_manager`.
    step: names the checkpoint; one that is there already is left alone.
    state: a pytree of arrays, copied to the host before this returns.
    meta: JSON, kept beside the arrays.
    validation: accuracy, where the checkpoint follows a validation.
  """
  if step in manager.all_steps():
    return
  arrays = flatten(state)
  meta = meta | {
    "format": FORMAT,
    "step": step,
    "arrays": sorted(arrays),
    "hash": digest(arrays),
  }
  metrics = None if validation is None else {"validation": float(validation)}
  with _writing(manager, step):
    manager.save(
      step,
      args=ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
      ),
      metrics=metrics,
    )


def finish(manager: ocp.CheckpointManager) -> None:
  """Waits until what was saved is on disk."""
  with _writing(manager, None):
    manager.wait_until_finished()


class _writing:
  """Turns a failed write into a CheckpointError that names what is left."""

  def __init__(self, manager, step):
    self.manager, self.step = manager, step

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, Exception):
      # What is on disk now, not what the manager believes it has written.
      manager = self.manager
      manager.reload()
      good = manager.latest_step()
      left = "none is left" if good is None else f"the last good one is {good}"
      what = "" if self.step is None else f" at step {self.step}"
      first = str(error).strip().splitlines() or [repr(error)]
      raise CheckpointError(
        f"cannot write the checkpoint{what} in {manager.directory}: {first[0]};"
        f" {left}; make room or mend the folder and run the same command again"
      ) from error


def best_step(manager: ocp.CheckpointManager) -> int:
  """The step of the highest validation accuracy, or the last of all."""
  steps = sorted(manager.all_steps())
  scored = [(manager.metrics(s), s) for s in steps]
  scored = [(_validation(m), s) for m, s in scored if m]
  return max(scored)[1] if scored else steps[-1]


def read(
  manager: ocp.CheckpointManager, step: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The arrays by path and the description of one checkpoint.

  Raises:
    CheckpointError: damaged, altered, or not one of ours.
  """
  path = manager.directory / str(step)
  mend = f"remove {path} to go on from an earlier one"
  try:
    meta = manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
    )["meta"]
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
  try:
    arrays = manager.restore(
      step,
      args=ocp.args.Composite(
        arrays=ocp.args.PyTreeRestore(
          restore_args={
            name: ocp.RestoreArgs(restore_type=np.ndarray)
            for name in meta["arrays"]
          }
        )
      ),
    )["arrays"]
    arrays = {name: np.asarray(a) for name, a in arrays.items()}
  except Exception as e:
    raise CheckpointError(f"{path} is damaged ({_first(e)}); {mend}") from e
  if digest(arrays) != meta["hash"]:
    raise CheckpointError(
      f"{path} is damaged: its arrays have the hash {digest(arrays)[:12]}...,"
      f" {meta['hash'][:12]}... was written; {mend}"
    )
  return arrays, meta


def restore(
  manager: ocp.CheckpointManager, step: int, like: Any
) -> tuple[Any, float]:
  """One checkpoint in the form of `like`, as host arrays, and its seconds.

  Raises:
    CheckpointError: damaged, or of another form; the first differences are
      named.
  """
  arrays, meta = read(manager, step)
  where = str(manager.directory / str(step))
  return unflatten(arrays, like, where), meta["seconds"]


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Host arrays by path, such as 'net.params.stem.kernel'."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  # A copy: a view of a donated buffer would change under the writer.
  return {_name(path): np.array(leaf) for path, leaf in leaves}


def unflatten(arrays: dict[str, np.ndarray], like: Any, where: str) -> Any:
  """The inverse of `flatten`, checked against the shapes of `like`."""
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
  """The network that a training checkpoint would evaluate."""
  prefix = meta["network"] + "."
  spec = NetSpec.from_json(meta["spec"])
  trees: dict[str, dict] = {"params": {}, "batch_stats": {}, "masks": {}}
  for name, array in arrays.items():
    if name.startswith(prefix):
      *folders, leaf = name.removeprefix(prefix).split(".")
      node = trees
      for folder in folders:
        node = node.setdefault(folder, {})
      node[leaf] = jnp.asarray(array)
  return Network(**trees, spec=spec)


def digest(arrays: dict[str, np.ndarray]) -> str:
  """SHA-256 over names, types, shapes and bytes, sorted by name."""
  h = hashlib.sha256()
  for name in sorted(arrays):
    a = np.ascontiguousarray(arrays[name])
    h.update(f"{name} {a.dtype} {a.shape}\n".encode())
    h.update(a.tobytes())
  return h.hexdigest()


def _name(path) -> str:
  parts = [getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))
           for k in path]  # fmt: skip
  return ".".join(str(p) for p in parts)


def _first(error: Exception) -> str:
  lines = str(error).strip().splitlines()
  return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
