"""Tests a finished run again: python -m jaxr18.evaluate --workdir=runs/NAME

Loads the data and the network as the run's own config says, counts correct
answers on the test split, and compares the count with the run's result.json.
With --integer it does so once more with integers, int8 times int8 summed in
int32, and says where the answers differ. With --phase it tests the network of
another phase, whose count the result does not have.

Exit status: 0 when they are the same; 1 when they differ, or the run is not
finished or damaged; 2 when the command cannot be run.
"""

from absl import app, flags

from jaxr18 import cli
from jaxr18.host.doing import doing

_WORKDIR = cli.workdir_flag()
_DATA_DIR = cli.data_dir_flag()
_PHASE = cli.phase_flag()
_INTEGER = flags.DEFINE_bool(
  "integer", False, "Also compute quantized layers with integers."
)


def main(argv: list[str]) -> None:
  del argv
  if not _WORKDIR.value:
    raise app.UsageError("give --workdir=DIR of a finished run")
  doing("loading JAX and the run")
  # Imported late: --help and a wrong flag need no JAX.
  from jaxr18.host.workdir import WorkdirError
  from jaxr18.run import experiment, sources
  from jaxr18.run.finished import reopen
  from jaxr18.train.mesh import make_mesh

  run = reopen(_WORKDIR.value, _DATA_DIR.value, _PHASE.value)
  workdir, opened, result, dataset, phase = run
  nets = sources.load_networks(workdir, phase.name)
  test, _ = experiment.test_networks(
    opened, phase, nets, result.phases, dataset, make_mesh()
  )
  print(f"test accuracy {test.accuracy:.2%} ({test.correct} of {test.count})")
  was = result.test.correct, result.test.count
  if not run.is_last:
    print(f"of phase {phase.name}; {workdir}/result.json is of the last one")
  elif (test.correct, test.count) != was:
    raise WorkdirError(
      f"{workdir}/result.json has {was[0]} of {was[1]}, measured on"
      f" {result.made.device}: the checkpoint, the result or the data were"
      " changed, or this device rounds otherwise; compare there"
    )
  else:
    print(f"the same as in {workdir}/result.json")
  if _INTEGER.value:
    from jaxr18.run import export as exporting

    net = sources.load_network(workdir, phase.name)
    found = exporting.by_integers(net, dataset, opened.eval_batch_size)
    n = found["count"]
    print(
      f"with {found['arithmetic']}: test accuracy {found['accuracy']:.2%}"
      f" ({found['correct']} of {n}); the same answer in"
      f" {found['same_answers']}, logits differ by up to"
      f" {found['largest_difference']:.2g}, by more than 1e-4 in"
      f" {found['images_beyond_1e-4']} images"
    )


if __name__ == "__main__":
  cli.run(main)
