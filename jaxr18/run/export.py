"""A finished run's network as a file for others, held against the network."""

import dataclasses
import functools
import importlib.metadata
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxr18.compress import ensemble
from jaxr18.cost.score import score
from jaxr18.data.augment import normalize
from jaxr18.deploy import integer, packed, to_c
from jaxr18.deploy.fold import fold
from jaxr18.deploy.lower import lower
from jaxr18.deploy.pack import bytes_of_data, pack
from jaxr18.deploy.program_xla import lower_with_sums, runner, with_sums
from jaxr18.deploy.speed import measure
from jaxr18.host import paths, sealed
from jaxr18.host.errors import ToldError, writing
from jaxr18.host.files import try_writing, write_atomically
from jaxr18.host.locks import in_turn
from jaxr18.host.provenance import computer
from jaxr18.nn.network import Network
from jaxr18.run import result as result_lib
from jaxr18.run import sources
from jaxr18.run.finished import Finished, reopen
from jaxr18.run.parts import Export
from jaxr18.run.result import Result
from jaxr18.train.evaluate import compare, in_batches, predict
from jaxr18.train.mesh import make_mesh

_APART = 3e-3  # of the largest logit; a GPU's TensorFloat-32 is off by 1e-3


class ExportError(ToldError):
  """A file that would not be the network is not written."""


SUFFIXES = {
  "packed": "safetensors",
  "stablehlo": "stablehlo",
  "stablehlo_int": "int.stablehlo",
  "onnx": "onnx",
  "onnx_int": "int.onnx",
  "onnx4": "int4.onnx",
  "qonnx": "qonnx.onnx",
  "litert": "tflite",
  "litert4": "int4.tflite",
}
FORMATS = (*SUFFIXES, "c")
_EXACT = ("packed", "stablehlo")  # in the network's own order of operations
# What holds an ensemble.
_VOTING = ("onnx", "onnx_int", "onnx4", "stablehlo", "litert", "litert4")
_UNTIMED = ("c", "qonnx")  # what runs them is elsewhere
_COMPARED = 100  # images that C and LiteRT are held against the definition on
_LOOKED_AT = 100  # training images whose residual sums grids of 8 bits cover


def export_run(
  workdir: str,
  name: str,
  out: str = "",
  data_dir: str | None = None,
  phase: str = "",
) -> tuple[pathlib.Path, Export]:
  """Writes the file, loads it again, and tests it on the test split.

  An ensemble's file has its vote in it: its logits are logarithms of the
  probabilities that the vote gives.

  Args:
    workdir: of a finished run of one network or of an ensemble.
    name: of the format, one of `FORMATS`.
    out: the file, or C's folder; '' is network.SUFFIX or c in WORKDIR/export;
      of a phase that is not the last, in the folder of its name there.
    data_dir: TFDS's folder, in place of the config's.
    phase: whose network; '' is the last.

  Returns:
    The file, and what is known of it, which of the last phase the run's result
    now holds too.

  Raises:
    WorkdirError, CheckpointError: no finished run, or a file that cannot be
      written.
    ExportError: what is read back is another network, or the format holds no
      ensemble; nothing is written.
    ProgramError, LitertError, QonnxError: C, LiteRT or QONNX cannot hold a
      layer; the text names it.
    ImportError: a package that the format needs.
  """
  finished = reopen(workdir, data_dir, phase)
  folder, opened, result, dataset, _ = finished
  nets = _networks(finished, name)
  path = paths.folder(out)
  if not out:
    file = "c" if name == "c" else f"network.{SUFFIXES[name]}"
    path = folder / "export" / ("" if finished.is_last else phase) / file
  first = path / "network.h" if name == "c" else path
  try_writing(first, "--out", make_folder=not out or name == "c")
  try_writing(folder / "result.json")
  images, labels = dataset.test.images, dataset.test.labels
  size = min(opened.eval_batch_size, len(images))
  mesh = make_mesh()
  each = [predict(net, images, dataset, size, mesh) for net in nets.each]
  reference = nets.vote(np.stack(each))
  correct = result.test.correct
  if not finished.is_last:
    correct = int((reference.argmax(-1) == labels).sum())
  making = _MAKING.get(name, _one_file)
  made = making(name, nets, dataset, _provenance(result, correct), path)
  logits = in_batches(made.run, images, size)
  found = compare(logits, reference, labels)
  made.check(logits, reference)
  export = Export(
    path.name,
    sum(map(len, made.files.values())),
    found["correct"],
    found["count"],
    found["same_answers"],
    found["largest_difference"],
    found["images_beyond_1e-4"],
    **made.about,
    **({} if name in _UNTIMED else _speed(made.run, images)),
  )
  for file, data in made.files.items():
    write_atomically(file, data, "--out")
  if not finished.is_last:
    return path, export
  with in_turn(folder):  # another export may have added its own meanwhile
    result = result_lib.read(folder)
    exports = {**result.exports, name: export}
    result = dataclasses.replace(result, exports=exports)
    sealed.write(folder / "result.json", result.to_json())
  return path, export


class _Networks(NamedTuple):
  """A run's network, or the members of an ensemble and how they vote."""

  each: list[Network]
  method: str | None = None
  weights: tuple[float, ...] | None = None

  def vote(self, logits, xp: Any = np):
    """Makes logits of those of all members, [members, n, classes]."""
    if self.method is None:
      return logits[0]
    return ensemble.voted_logits(logits, self.method, self.weights, xp)


def _networks(finished: Finished, name: str) -> _Networks:
  """Loads what a format is asked to hold."""
  folder, phase = finished.workdir, finished.phase
  if not phase.options.ensemble.members:
    return _Networks([sources.load_network(folder, phase.name)])
  each = sources.load_networks(folder, phase.name)
  if name not in _VOTING:
    raise ExportError(
      f"{folder} holds an ensemble of {len(each)} networks, and --format={name}"
      f" one network: give --format={' or '.join(_VOTING)}, or the --workdir of"
      " a member's own run"
    )
  known = finished.result.phases[phase.name]
  return _Networks(each, known.vote, known.weights)


def _speed(run: Callable[[np.ndarray], np.ndarray], images) -> dict[str, Any]:
  """How fast a file runs here."""
  found = measure(run, images)
  return {
    "milliseconds": found.milliseconds,
    "images_per_second": found.images_per_second,
    "measured_on": computer(),
  }


class _Made(NamedTuple):
  """What is written, what computes the same, and what is worth knowing.

  `check` is given that computation's logits and the network's, and raises where
  they are of another network.
  """

  files: dict[pathlib.Path, bytes]
  run: Callable[[np.ndarray], np.ndarray]
  about: dict[str, int]
  check: Callable[[np.ndarray, np.ndarray], None]


def _one_file(name, nets, dataset, provenance, path) -> _Made:
  """A format of one file, which is loaded again."""
  data, about = _export(name, nets, dataset, provenance)
  check = functools.partial(_check_same, name)
  return _Made({path: data}, _loaded(name, data, path), about, check)


def _loaded(name, data: bytes, path) -> Callable[[np.ndarray], np.ndarray]:
  """What a file computes, loaded from a trial of it."""
  with tempfile.TemporaryDirectory() as trial, writing(pathlib.Path(trial)):
    file = pathlib.Path(trial, path.name)
    file.write_bytes(data)
    return load(name, file)


def _numbers(net, dataset, provenance) -> tuple[dict, dict]:
  """What a packed file holds, as integers are made of it."""
  data, _ = _export("packed", _Networks([net]), dataset, provenance)
  return packed.parse(data, "the packed network")


def _stablehlo_int(name, nets, dataset, provenance, path) -> _Made:
  """StableHLO's file of integers alone, as docs/integer.md defines them."""
  from jaxr18.deploy.to_stablehlo import program_to_stablehlo

  data = program_to_stablehlo(
    lower(*_numbers(nets.each[0], dataset, provenance))
  )
  return _Made({path: data}, _loaded(name, data, path), {}, _check_answers)


def _litert(name, nets, dataset, provenance, path) -> _Made:
  """LiteRT's file, whose int8 is held against the definition on some images."""
  from jaxr18.deploy.to_litert import SUM_BITS, held, to_litert

  programs, int4 = [], name == "litert4"
  for net in nets.each:
    numbers = _numbers(net, dataset, provenance)
    images = dataset.train.images[:_LOOKED_AT]
    programs.append(lower_with_sums(*numbers, SUM_BITS, images))
  vote, weights = nets.method or "", nets.weights
  data = to_litert(*programs, int4=int4, vote=vote, weights=weights)

  def check(logits, reference):
    _check_answers(logits, reference)
    if not int4:  # whose kernels round otherwise
      some = dataset.test.images[:_COMPARED]
      expected = np.stack([runner(held(p))(some) for p in programs])
      _check_same(name, logits[:_COMPARED], nets.vote(expected))

  return _Made({path: data}, _loaded(name, data, path), {}, check)


def _onnx_int(name, nets, dataset, provenance, path) -> _Made:
  """ONNX with residual sums of 8 bits, held against the network with these."""
  from jaxr18.deploy.onnx_fused import SUM_BITS

  images = dataset.train.images[:_LOOKED_AT]
  each = [
    with_sums(net, *_numbers(net, dataset, provenance), SUM_BITS, images)
    for net in nets.each
  ]
  data, about = _export("onnx", nets._replace(each=each), dataset, provenance)

  def check(logits, reference):
    _check_answers(logits, reference)
    some, mesh = dataset.test.images[:_COMPARED], make_mesh()
    expected = [predict(net, some, dataset, len(some), mesh) for net in each]
    _check_same(name, logits[:_COMPARED], nets.vote(np.stack(expected)))

  return _Made({path: data}, _loaded(name, data, path), about, check)


def _c(name, nets, dataset, provenance, path) -> _Made:
  """C's files; XLA computes the same integers, as some images show here."""
  del name
  program = lower(*_numbers(nets.each[0], dataset, provenance))
  source, run = to_c.to_c(program), runner(program)
  with tempfile.TemporaryDirectory() as trial, writing(pathlib.Path(trial)):
    to_c.write(source, pathlib.Path(trial, "c"))
    if to_c.compiler() is None:
      logging.warning("There is no C compiler: the C was not tried")
    else:
      some = dataset.test.images[:_COMPARED]
      binary = to_c.compiled(pathlib.Path(trial, "c"))
      printed = to_c.logits_of(binary, some) / 2.0**program.logit_bits
      if not np.array_equal(np.float32(printed), run(some)):
        raise ExportError(
          "nothing is written: compiled here, the C gives other integers than"
          " XLA; report it, with the compiler's version, and export it as"
          " --format=packed"
        )
  files = {path / k: v.encode() for k, v in source.files.items()}
  files |= _an_image(path, dataset)
  about = {
    "bytes_of_weights": source.weights,
    "bytes_of_memory": source.memory,
  }
  return _Made(files, run, about, _check_answers)


_MAKING = {
  "stablehlo_int": _stablehlo_int,
  "onnx_int": _onnx_int,
  "litert": _litert,
  "litert4": _litert,
  "c": _c,
}


def _an_image(path: pathlib.Path, dataset) -> dict[pathlib.Path, bytes]:
  """The first test image as a file for C's main.c, where there is a format."""
  image = dataset.test.images[0]
  height, width, channels = image.shape
  kind, suffix = {1: (b"P5", "pgm"), 3: (b"P6", "ppm")}.get(channels, (b"", ""))
  if not kind:
    return {}
  head = kind + f"\n{width} {height}\n255\n".encode()
  return {path / f"image.{suffix}": head + image.tobytes()}


def _check_answers(logits, reference) -> None:
  """Raises ExportError where half of the answers are not the network's.

  Rounded sums move all logits of a network of few bits, and few answers.
  """
  same = np.mean(logits.argmax(-1) == reference.argmax(-1))
  if same < 0.5:
    raise ExportError(
      f"nothing is written: as integers alone the network gives {same:.0%} of"
      " its answers; export it as --format=packed"
    )


def _check_same(name, logits, reference) -> None:
  """Raises ExportError where most images get other logits than they should.

  Rounding alone moves those of a few images, in which a value lies in the
  middle of two codes; a program that computes another network moves all.
  """
  apart = np.median(np.abs(logits - reference).max(-1))
  allowed = _APART * np.abs(reference).max()
  if not apart <= allowed:
    others = " or ".join(f"--format={x}" for x in _EXACT if x != name)
    raise ExportError(
      f"nothing is written: {_runtime(name)} gives half of the test images"
      f" logits that are off by {apart:.2g} or more from the network's,"
      f" expected at most {allowed:.2g}; on this processor it computes another"
      " network than the file holds, or rounds a value that most images have to"
      f" another code; export it as {others}, whose order of operations is the"
      " network's own"
    )


def _runtime(name: str) -> str:
  """Names what runs a format, with its version."""
  program, package = {
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "onnx_int": ("ONNX Runtime", "onnxruntime"),
    "onnx4": ("ONNX Runtime", "onnxruntime"),
    "qonnx": ("QONNX", "qonnx"),
    "litert": ("LiteRT", "ai-edge-litert"),
    "stablehlo": ("XLA", "jaxlib"),
    "packed": ("NumPy", "numpy"),
  }[name]
  return f"{program} {importlib.metadata.version(package)}"


def load(name: str, path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from uint8 images to logits, from a file alone."""
  if name == "packed":
    return packed.load(path)[0]
  if name.startswith("onnx"):
    from jaxr18.deploy.to_onnx import load_onnx

    return load_onnx(path)
  if name == "qonnx":
    from jaxr18.deploy.to_qonnx import load_qonnx

    return load_qonnx(path)
  if name.startswith("litert"):
    from jaxr18.deploy.to_litert import load_litert

    return load_litert(path)
  return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def integer_logits(
  net: Network, dataset, images: np.ndarray
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
  """Returns a function from uint8 images to logits, and its arithmetic.

  Args:
    net: not stacked.
    dataset: what images are normalized as.
    images: on which integer convolutions are held against float32 ones.
  """
  folded, spec = fold(net), net.spec
  prepare = jax.jit(
    lambda x: normalize(x, dataset.mean, dataset.std, spec.resolution)
  )
  arithmetic = integer.choose_arithmetic(folded, spec, prepare(images))
  forward = jax.jit(
    lambda folded, x: integer.forward(folded, spec, prepare(x), arithmetic)
  )
  return lambda x: forward(folded, x), arithmetic


def by_integers(net: Network, dataset, batch_size: int) -> dict[str, Any]:
  """Compares integers with the network on the test split."""
  images, size = dataset.test.images, min(batch_size, len(dataset.test))
  reference = predict(net, images, dataset, size, make_mesh())
  run, arithmetic = integer_logits(net, dataset, images[:size])
  found = compare(in_batches(run, images, size), reference, dataset.test.labels)
  return {"arithmetic": arithmetic, **found}


def _provenance(result: Result, correct: int) -> dict[str, Any]:
  return {
    "test_correct": correct,
    "test_count": result.test.count,
    "trained_by": result.made.command,
    "exported_by": shlex.join(["python", "-m", "jaxr18.export", *sys.argv[1:]]),
    "versions": result.made.versions,
  }


def _export(name, nets, dataset, provenance) -> tuple[bytes, dict[str, int]]:
  """The file's content, and what else is worth knowing of it."""
  how = dict(mean=dataset.mean, std=dataset.std)
  size, net = dataset.test.images.shape[1], nets.each[0]
  if name == "packed":
    test = dataset.test
    tested_on = packed.identity(dataset.name, test.images, test.labels)
    data = pack(net, **how, provenance=provenance, data=tested_on)
    about = {
      "bytes_of_weights": bytes_of_data(data),
      "bytes_charged": score(net.spec, masks=net.masks).stored_bytes,
    }
    return data, about
  more = how | dict(size=size, provenance=provenance)
  if name.startswith("onnx"):
    from jaxr18.deploy.onnx_vote import together
    from jaxr18.deploy.to_onnx import to_onnx

    more["int4"] = name == "onnx4"
    models = [to_onnx(net, **more) for net in nets.each]
    if nets.method is None:
      return models[0], {}
    return together(models, nets.method, nets.weights), {}
  if name == "qonnx":
    from jaxr18.deploy.to_qonnx import to_qonnx

    return to_qonnx(net, **more), {}
  from jaxr18.deploy.to_stablehlo import to_stablehlo

  vote = functools.partial(nets.vote, xp=jnp)
  return to_stablehlo(*nets.each, **how, size=size, vote=vote), {}
