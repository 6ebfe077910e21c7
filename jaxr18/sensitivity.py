"""How much accuracy each layer, or channel group, costs when it is pruned.

    python -m jaxr18.sensitivity --workdir=runs/NAME
    python -m jaxr18.sensitivity --workdir=runs/NAME --structured

Prunes one layer at a time to each sparsity, without training, and measures
accuracy on the validation split (on the training images where there is none;
never on the test split). Writes WORKDIR/sensitivity/weights.json and .svg, or
channels.json and .svg, a heat map; the picture needs the extra `report`. With
--phase, the file's name ends in that phase's.

Exit status: 0 when it is written; 1 when the run is not finished or damaged; 2
when the command cannot be run.
"""

import pathlib
import tempfile
from typing import Any

from absl import app, flags

from jaxr18 import cli
from jaxr18.data.augment import normalize
from jaxr18.host.doing import doing

_WORKDIR = cli.workdir_flag()
_DATA_DIR = cli.data_dir_flag()
_PHASE = cli.phase_flag()
_STRUCTURED = flags.DEFINE_bool(
  "structured", False, "Whole channels, by coupled group."
)
_SPARSITIES = flags.DEFINE_list(
  "sparsities", "0.2,0.4,0.6,0.8,0.9,0.95", "Shares to remove, each below 1."
)
_CRITERION = flags.DEFINE_string(
  "criterion", "", "What matters; '' is magnitude_l1, or l2 for channels."
)
_IMAGES = flags.DEFINE_integer(
  "images", 1000, "Validation images to look at.", lower_bound=1
)


def main(argv: list[str]) -> None:
  del argv
  if not _WORKDIR.value:
    raise app.UsageError("give --workdir=DIR of a finished run")
  try:
    sparsities = tuple(map(float, _SPARSITIES.value))
  except ValueError as e:
    raise app.UsageError(f"--sparsities: {e}; write 0.5,0.9") from e
  if not sparsities or not all(0 <= s < 1 for s in sparsities):
    raise app.UsageError(
      f"--sparsities={','.join(_SPARSITIES.value)}: each must be at least 0"
      " and below 1"
    )
  doing("loading JAX and the run")
  # Imported late: --help and a wrong flag need no JAX.
  from jaxr18.compress import channels, criteria
  from jaxr18.host.files import try_writing, write_json
  from jaxr18.report import draw
  from jaxr18.run.finished import reopen

  known = channels.CRITERIA if _STRUCTURED.value else criteria.NAMES
  criterion = _CRITERION.value or ("l2" if _STRUCTURED.value else known[0])
  if criterion not in known or criterion == "movement":
    usable = [n for n in known if n != "movement"]
    raise app.UsageError(f"--criterion={criterion}: must be one of {usable}")
  run = reopen(_WORKDIR.value, _DATA_DIR.value, _PHASE.value)
  name = "channels" if _STRUCTURED.value else "weights"
  name += f"_{_PHASE.value}" if _PHASE.value else ""
  path = run.workdir / "sensitivity" / f"{name}.json"
  try_writing(path)
  try_writing(path.with_suffix(".svg"))
  result = _measured(run, criterion, sparsities)
  write_json(path, result)
  print(_table(result))
  if why := draw.missing():
    print(f"No picture: {why}")
    return
  _draw(result, path.with_suffix(".svg"))
  print(f"{path}, {path.with_suffix('.svg')}")


def _measured(run, criterion: str, sparsities) -> dict[str, Any]:
  """Measures each layer, or group of channels, pruned to each sparsity."""
  from jaxr18.compress import sensitivity
  from jaxr18.run import sources

  net, dataset = sources.load_network(run.workdir, run.phase.name), run.dataset
  ranks = _ranks(net, criterion, run.experiment.seed, dataset)
  split = dataset.validation if len(dataset.validation) else dataset.train
  x, y = _inputs(net, dataset, split, _IMAGES.value)
  size = min(run.experiment.eval_batch_size, len(y))
  count = len(y) // size * size  # whole batches: one program

  def batches():
    for i in range(0, count, size):
      yield x[i : i + size], y[i : i + size]

  densities = (1.0, *(1 - s for s in sparsities))
  table = sensitivity.sensitivity(
    net, ranks, densities, batches, structured=_STRUCTURED.value
  )
  return {
    "criterion": criterion,
    "images": count,
    "split": "validation" if split is dataset.validation else "train",
    "accuracy": next(iter(table.values()))[0],
    "sparsities": sparsities,
    "accuracies": {layer: row[1:] for layer, row in table.items()},
  }


def _inputs(net, dataset, split, count: int):
  """Returns the first images of a split as a network sees them, and labels."""
  import jax.numpy as jnp

  part = split.take(slice(0, count))
  x = normalize(part.images, dataset.mean, dataset.std, net.spec.resolution)
  return x, jnp.asarray(part.labels)


def _ranks(net, criterion: str, seed: int, dataset):
  """Ranks the weights of each layer, or the channels of each group."""
  import jax

  from jaxr18.compress import channels, criteria, sensitivity
  from jaxr18.nn.spec import has_four_levels

  images, labels = _inputs(net, dataset, dataset.train, 512)
  key = jax.random.key(seed)
  if _STRUCTURED.value:
    grads = None
    if criterion == "taylor":
      grads = criteria.gradients(net, images, labels)
    scores = channels.importance(criterion, net, key=key, grads=grads)
    return sensitivity.channel_ranks(net, scores)
  scores = criteria.score(criterion, net, key=key, images=images, labels=labels)
  layers = [x for x in net.spec.layers() if not has_four_levels(x)]
  if not layers:
    raise app.UsageError(
      f"--workdir={_WORKDIR.value}: no layer can be pruned, since four levels"
      " of 2 bits have no zero; --structured takes whole channels"
    )
  return sensitivity.weight_ranks({x.path: scores[x.path] for x in layers})


def _draw(result, path: pathlib.Path) -> None:
  from jaxr18.host.errors import writing
  from jaxr18.host.files import write_atomically
  from jaxr18.report import draw, layer_charts

  with writing(path), tempfile.TemporaryDirectory() as folder:
    drawn = pathlib.Path(folder, path.name)
    draw.save(layer_charts.heatmap(result), drawn)
    write_atomically(path, drawn.read_bytes())


def _table(result) -> str:
  names = list(result["accuracies"])
  width = max(map(len, names))
  head = "".join(f"{s:>8.0%}" for s in result["sparsities"])
  lines = [
    f"accuracy on {result['images']} images of the {result['split']} split,"
    f" {result['accuracy']:.2%} unpruned, by sparsity of one layer:",
    " " * width + head,
  ]
  for name in names:
    row = "".join(f"{a:>8.1%}" for a in result["accuracies"][name])
    lines.append(name.ljust(width) + row)
  return "\n".join(lines)


if __name__ == "__main__":
  cli.run(main)
