"""Chooses bits layer by layer, to lose least at a score.

    python -m jaxr18.allocate --workdir=runs/NAME --target=0.01

Takes a finished run's network in 32 bits, or where the last phase is quantized
the one that it began with, measures on the validation images (the training
images where there are none; no labels) what each layer loses in each number of
bits, and prints the best rules for config.PHASE.network.bits with their
per-layer score. Writes WORKDIR/sensitivity/bits.json.

Exit status: 0 when it is written; 1 when the run is not finished or damaged; 2
when the command cannot be run.
"""

from absl import app, flags

from jaxr18 import cli
from jaxr18.data.augment import normalize
from jaxr18.host.doing import doing

_WORKDIR = cli.workdir_flag()
_DATA_DIR = cli.data_dir_flag()
_PHASE = flags.DEFINE_string(
  "phase", "", "Whose network; default: the last, or what it was made of."
)
_TARGET = flags.DEFINE_float(
  "target", None, "Exact score to stay below.", lower_bound=1e-9
)
_BITS = flags.DEFINE_list("bits", "8,6,4,3,2", "To choose from, 2 to 8.")
_TWO_BITS = flags.DEFINE_enum(
  "two_bits",
  "ternary",
  ("ternary", "four_levels"),
  "What 2 bits of a weight are: -1, 0, 1; or -3, -1, 1, 3.",
)
_EDGES = flags.DEFINE_bool(
  "edges", False, "Choose for stem and head too, which have 8 otherwise."
)
_IMAGES = flags.DEFINE_integer(
  "images", 500, "Validation images to look at.", lower_bound=1
)


def main(argv: list[str]) -> None:
  del argv
  if not _WORKDIR.value or _TARGET.value is None:
    raise app.UsageError(
      "give --workdir=DIR of a finished run and --target=SCORE"
    )
  bits = tuple(int(b) if b.strip().isdigit() else 0 for b in _BITS.value)
  if not bits or not all(2 <= b <= 8 for b in bits):
    raise app.UsageError(
      f"--bits={','.join(_BITS.value)}: each must be an int from 2 to 8"
    )
  doing("loading JAX and the run")
  # Imported late: --help and a wrong flag need no JAX.
  from jaxr18.compress import allocate
  from jaxr18.host.files import try_writing
  from jaxr18.run import sources
  from jaxr18.run.finished import reopen

  workdir, opened, _, dataset, phase = reopen(
    _WORKDIR.value, _DATA_DIR.value, _PHASE.value
  )
  path = workdir / "sensitivity" / "bits.json"
  try_writing(path)
  net, whose = sources.load_float(workdir, opened, phase)
  print(f"bits for the network of {whose}", flush=True)
  split = dataset.validation if len(dataset.validation) else dataset.train
  count = min(_IMAGES.value, len(split))
  size = min(opened.eval_batch_size, count)
  count -= count % size  # whole batches: one program
  images = normalize(
    split.images[:count], dataset.mean, dataset.std, net.spec.resolution
  )
  batches = [images[i : i + size] for i in range(0, count, size)]
  try:
    measured = allocate.bit_losses(
      net,
      bits,
      batches,
      _TWO_BITS.value,
      lambda unit: doing(f"measured {unit}"),
    )
    print(_table(measured, bits, count))
    free = measured.losses
    if not _EDGES.value:
      free = {u: v for u, v in free.items() if u not in allocate.EDGES}
    spec = allocate.allocate(net.spec, free, _TARGET.value, net.masks)
  except ValueError as e:
    raise app.UsageError(str(e)) from e
  _keep(path, measured, spec, net.masks, list(free), count)


def _keep(path, measured, spec, masks, free: list[str], count: int) -> None:
  """Writes and prints the chosen bits, and which choices are not certain."""
  from jaxr18.compress import allocate
  from jaxr18.cost.score import score
  from jaxr18.host.files import write_json

  total = score(spec, masks=masks).per_layer.total
  chosen = {u: x.w_bits for u, x in spec.units()}
  rules = allocate.rules_for(chosen)
  undecided = measured.undecided({u: chosen[u] for u in free})
  result = {
    "images": count,
    "losses": measured.losses,
    "standard_errors": measured.errors,
    "undecided": undecided,
    "target": _TARGET.value,
    "bits": rules,
    "two_bits": _TWO_BITS.value,
    "per_layer": total,
  }
  write_json(path, result)
  print(f"network.bits = {rules!r}")
  if _TWO_BITS.value != "ternary":
    print(f"network.two_bits = {_TWO_BITS.value!r}")
  if undecided:
    print(
      f"within two standard errors of another choice on {count} images:"
      f" {', '.join(undecided)}; more --images tell them apart better"
    )
  print(f"per-layer score {total:.6f}; {path}")


def _table(measured, bits, count: int) -> str:
  losses, width = measured.losses, max(map(len, measured.losses))
  lines = [
    f"KL divergence from 32 bits on {count} images, one layer in so many bits"
    " and the others in 8 (the standard error is at most"
    f" {max(max(row.values()) for row in measured.errors.values()):.5f}):",
    " " * width + "".join(f"{b:>10}" for b in bits),
  ]
  for unit, row in losses.items():
    lines.append(unit.ljust(width) + "".join(f"{row[b]:>10.5f}" for b in bits))
  return "\n".join(lines)


if __name__ == "__main__":
  cli.run(main)
