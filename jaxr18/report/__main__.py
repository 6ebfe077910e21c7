"""Shows finished runs on one page: python -m jaxr18.report WORKDIR...

    python -m jaxr18.report runs/kd_quant
    python -m jaxr18.report runs --out=report --quick

Each WORKDIR is a finished run's folder or a folder that holds some, whose
unfinished ones are named, and so is what cannot be shown. Writes
OUT/index.html, which needs no other file and opens from disk, and the same as
OUT/report.md with pictures in OUT/pictures/ (they need the extra `report`).
What takes the network (masks, the confusion matrix, wrong answers) needs its
checkpoints and the data, and some seconds a run; it is left out where only
result.json is there, and with --quick, as are pictures of single runs. With
--phase=NAME these are of the network of that phase, in runs that have one.

Exit status: 0 when it is written; 1 when there is no finished run; 2 when the
command cannot be run.
"""

import functools

from absl import app, flags

from jaxr18 import cli
from jaxr18.host import paths

_OUT = flags.DEFINE_string("out", "report", "Folder to write to.")
_DATA_DIR = cli.data_dir_flag()
_PHASE = cli.phase_flag()
_QUICK = flags.DEFINE_bool("quick", False, "Without networks and data.")
_FIGURE = flags.DEFINE_enum(
  "figure", "per_layer", ["per_network", "per_layer", "on_disk"],
  "Of the score, what is shown first; per_network is the published points'.",
)  # fmt: skip


def main(argv: list[str]) -> None:
  from jaxr18.report import runs

  found, remarks = runs.find(argv[1:])
  _check_phase(found)
  from jaxr18.config import schema as config
  from jaxr18.host.doing import doing
  from jaxr18.host.errors import writing
  from jaxr18.host.files import try_writing, write_atomically
  from jaxr18.report import draw, entry, markdown, points, sections

  for remark in remarks:
    print(f"left out, {remark}")
  out = paths.folder(_OUT.value)
  for name in ("index.html", "report.md"):  # before the work
    try_writing(out / name, "--out")
  entries = []
  for group in points.group(found, config.FREE):
    evidence, why = None, "the command was given --quick."
    if not _QUICK.value:
      print(group.name, flush=True)
      evidence, why = look_at(group.runs[0])
    entries.append(entry.Entry(group, evidence, why))
  doing("drawing the page and its charts")
  page = sections.report(entries, remarks, _FIGURE.value)
  write_atomically(out / "index.html", page, "--out")
  drawn = None
  if why := draw.missing():
    print(f"No charts: {why}")
  else:
    from jaxr18.report import pictures

    folder, each = out / "pictures", not _QUICK.value
    with writing(folder, "--out"):
      drawn = pictures.save_all(entries, folder, _FIGURE.value, each)
  text = markdown.report(entries, remarks, _FIGURE.value, drawn)
  write_atomically(out / "report.md", text, "--out")
  print(
    f"{out}/index.html ({len(page.encode()) / 1e6:.1f} MB), {out}/report.md"
  )


def _check_phase(found) -> None:
  """Raises where no run has the phase that is asked for."""
  if not _PHASE.value:
    return
  names = dict.fromkeys(n for run in found for n in run.result.config["phases"])
  if _PHASE.value not in names:
    raise app.UsageError(
      f"--phase={_PHASE.value} must be a phase of one of the runs, which have"
      f" {', '.join(names)}"
    )
  if _QUICK.value:
    raise app.UsageError(
      "--phase has no use with --quick: no network is loaded"
    )


def _phase_of(run) -> str:
  """The phase whose network is looked at."""
  phases = run.result.config["phases"]
  return _PHASE.value if _PHASE.value in phases else phases[-1]


def look_at(run):
  """Returns (what the run's network shows, ''), or (None, why not)."""
  name = _phase_of(run)
  if not (run.folder / name / "checkpoints").is_dir():
    return None, "the run's checkpoints are not beside its result.json."
  try:
    return evidence_of(run), ""
  except Exception as e:  # of one run among many, of which the others are shown
    ours = type(e).__module__.startswith("jaxr18.")
    what = str(e) if ours else f"{type(e).__name__}: {e}"
    return None, f"{' '.join(what.split())}."


def evidence_of(run):
  import jax.tree
  import numpy as np

  from jaxr18.compress import ensemble
  from jaxr18.report import evidence
  from jaxr18.run import members, sources
  from jaxr18.run.finished import settings
  from jaxr18.train.evaluate import check_finite, predict
  from jaxr18.train.mesh import make_mesh

  opened = settings(run.folder, _DATA_DIR.value)
  phase, last = _phase_of(run), run.result.config["phases"][-1]
  nets = sources.load_networks(run.folder, phase)
  dataset = _data(opened.data)  # type: ignore[arg-type]  # it is frozen
  test, result, remarks = dataset.test, run.result, []
  size, mesh, was = opened.eval_batch_size, make_mesh(), result.test
  if phase != last:
    logits = predict(nets[0], test.images, dataset, size, mesh)
    was = None
  elif result.votes:
    how = result.vote
    weights = result.weights if how == "weighted" else None
    logits = members.predict_members(nets, test, dataset, size, mesh)
    logits = np.log(ensemble.vote(logits, how, weights) + 1e-30)
    remarks.append("The answers are the vote's; masks are the first member's.")
  elif result.is_population:
    logits = members.predict_members(nets[:1], test, dataset, size, mesh)[0]
    was = result.members[0].test
    remarks.append("This is the population's first member.")
  else:
    logits = predict(nets[0], test.images, dataset, size, mesh)
  check_finite(logits)
  counts = evidence.confusion(logits.argmax(-1), test.labels, dataset.classes)
  right = int(counts.trace())
  if was is None:
    first = "the first network" if len(nets) > 1 else "the network"
    remarks.append(
      f"This is {first} of the phase {phase}, of whose {len(test):,} answers"
      f" {right:,} are right. The run's result is of {last}."
    )
  elif right != was.correct:
    remarks.append(
      f"Computed here, {right:,} of {len(test):,} answers are right, and"
      f" {was.correct:,} by the run's result."
    )
  return evidence.Evidence(
    dataset.class_names or evidence.class_names(dataset.name, dataset.classes),
    counts,
    evidence.most_wrong(logits, test.images, test.labels, test.index),
    evidence.mask_maps(
      jax.tree.map(np.asarray, nets[0].masks),
      [layer.path for layer in nets[0].spec.layers()],
    ),
    " ".join(remarks),
  )


@functools.lru_cache(1)
def _data(section):
  """The data set of a config's section `data`; kept for the next run."""
  from jaxr18.run import experiment

  return experiment.load_data(section)


if __name__ == "__main__":
  cli.run(main, arguments="WORKDIR")
