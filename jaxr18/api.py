"""The public API: networks, what changes them, and what they cost.

A `Network` is a pytree with a static spec. Each function takes one and gives a
new one; nothing is changed in place. Folders and files are given as strings.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxr18.compress import ensemble, gradual
from jaxr18.compress import factorize as factorize_lib
from jaxr18.compress import shrink as shrink_lib
from jaxr18.config.schema import staged
from jaxr18.cost import score as score_lib
from jaxr18.cost.figures import Score
from jaxr18.cost.macs import count_macs as count_macs
from jaxr18.data import dataset as data_lib
from jaxr18.data import named
from jaxr18.data.augment import normalize
from jaxr18.data.dataset import Dataset
from jaxr18.deploy import packed, saved, torch_weights
from jaxr18.host import paths
from jaxr18.nn import network
from jaxr18.nn import spec as spec_lib
from jaxr18.nn.network import Network
from jaxr18.nn.spec import NetSpec
from jaxr18.run.result import Result
from jaxr18.train.evaluate import Evaluation

Path = str | os.PathLike
CALIBRATION_IMAGES = 512


def load(path: Path, phase: str = "") -> Network:
  """Opens a network, wherever it is.

  Args:
    path: a finished run's folder, a file of `save`, a packed file
      (.safetensors, which trains on), an .onnx file of a ResNet, or PyTorch's.
    phase: of the run whose network is wanted; '' is the last.

  Raises:
    ToldError: there is none, it is damaged, or it is an ensemble.
  """
  from jaxr18.run import sources

  file = paths.folder(os.fspath(path))
  if torch_weights.is_name(file):
    if phase:
      raise ValueError(f"phase (={phase!r}) is for runs, and {path} is a file")
    return torch_weights.load(file)
  return sources.load_network(file, phase)


def save(net: Network, path: Path) -> pathlib.Path:
  """Writes one network to a file, which `load` and every config's `init` read.

  Args:
    net: any network.
    path: of the file, which ends in .npz.

  Raises:
    ValueError: another suffix.
    ToldError: the file cannot be written.
  """
  from jaxr18.host.files import write_atomically

  file = paths.folder(os.fspath(path))
  if file.suffix != saved.SUFFIX:
    raise ValueError(f"path (={file}) must end in {saved.SUFFIX}")
  write_atomically(file, saved.to_bytes(net), "path")
  return file


def resnet(
  widths: Sequence[int] = (64, 128, 256, 512),
  blocks: int | Sequence[int] = 2,
  strides: Sequence[int] = (),
  groups: int | Sequence[int] = 1,
  depthwise: bool | Sequence[bool] = False,
  **more: Any,
) -> NetSpec:
  """Describes a ResNet of basic blocks.

  Args:
    widths: channels of each stage.
    blocks: of a stage; one number for all stages, or one for each.
    strides: of each stage's first block; () is 1, then 2.
    groups: of the 3x3 convolutions, as `blocks`.
    depthwise: whether they are depthwise-separable, as `blocks`.
    **more: `stem_features`, `classes`, `resolution`, as in `nn.spec.resnet`;
      `channels` of the images (3); `stem_stride` (1).

  Raises:
    ValueError: what is no network, with the field and the mend.
  """
  each = lambda x: (x,) if isinstance(x, int) else tuple(x)
  network: dict[str, Any] = staged(
    {
      "widths": tuple(widths),
      "blocks": each(blocks),
      "strides": tuple(strides),
      "groups": each(groups),
      "depthwise": each(depthwise),
    }
  )
  channels, stride = more.pop("channels", 3), more.pop("stem_stride", 1)
  spec = spec_lib.resnet(**network | more)
  return spec_lib.with_input(spec, channels, stride)


def init(key: int | jax.Array, spec: NetSpec) -> Network:
  """Makes a network with He-normal kernels.

  Args:
    key: of `jax.random`, or a seed for one.
    spec: of `resnet`.
  """
  key = jax.random.key(key) if isinstance(key, int) else key
  return network.init(key, spec)


def prune(
  net: Network,
  density: float = 1.0,
  *,
  structured: bool = False,
  criterion: str = "",
  distribution: str = "global",
  pattern: tuple[int, int] | None = None,
  layers: str = ".*",
  data: Dataset | None = None,
) -> Network:
  """Masks the least important weights or channels; nothing comes back.

  Args:
    net: one network.
    density: share that is kept, of weights or of channels.
    structured: whole channels, which `shrink` then removes.
    criterion: '' is the size of a weight or the norm of a channel; all names
      are in `compress.criteria.NAMES` and `compress.channels.CRITERIA`.
    distribution: of the density over layers, see docs/pruning.md.
    pattern: (n, m) keeps n of m weights in a row, in place of density.
    layers: regex on whole layer paths, of weights.
    data: for criteria that look at images.

  Raises:
    ValueError: names or shares that do not exist.
  """
  plan = gradual.Plan(
    density,
    structured,
    criterion or ("l2" if structured else "magnitude_l1"),
    distribution,
    pattern=pattern,
    layers=layers,
  )
  images: Any = None
  labels: Any = None
  if data is not None:
    images = _images(data, net.spec, CALIBRATION_IMAGES)
    labels = data.train.labels[:CALIBRATION_IMAGES]
  return gradual.update(
    gradual.prepare(net, plan), plan, 0, key=jax.random.key(0),
    images=images, labels=labels,
  )  # fmt: skip


def shrink(net: Network) -> Network:
  """Removes the channels that masks have emptied; the answers stay."""
  return shrink_lib.shrink(net)


def factorize(net: Network, rules: Sequence[tuple[str, str]]) -> Network:
  """Converts convolutions to grouped, depthwise-separable or low-rank ones.

  Args:
    net: unpruned where it changes.
    rules: (regex on layer paths, form), such as ('stage[34].*', 'grouped:4');
      the first that matches decides. Forms: docs/factorize.md.
  """
  return factorize_lib.convert(net, tuple(rules))


def quantize(
  net: Network,
  rules: int | Sequence[tuple[str, int, int]],
  data: Dataset,
  *,
  w_scales: str = "least_error",
  method: str = "mse",
) -> Network:
  """Sets the bits of weights and activations, and the ends of their grids.

  The weights stay floats, which training goes on with; the network computes as
  if they were integers.

  Args:
    net: one network; its masks are kept.
    rules: (regex on layer paths, bits of weights, bits of activations), the
      first that matches decides; or bits for all layers but stem and head,
      which get 8.
    data: its training images calibrate the inputs.
    w_scales: 'least_error', 'learned' or 'learned_channel'.
    method: of calibration: 'mse', 'percentile', 'absmax' or 'lsq'.

  Raises:
    ValueError: rules that do not fit the layers.
  """
  from jaxr18.run.sources import initial_network

  if isinstance(rules, int):
    rules = [("stem|head", 8, 8), (".*", rules, rules)]
  spec = spec_lib.with_bits(net.spec, rules, w_scales=w_scales)
  images = _images(data, spec, CALIBRATION_IMAGES)
  return initial_network(jax.random.key(0), spec, images, net, "net", method)


def distill(
  logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  temperature: float = 4.0,
  weight: float = 0.9,
) -> jax.Array:
  """Computes the loss of a student with a teacher (Hinton et al., 2015).

  Args:
    logits: [batch, classes], the student's.
    teacher_logits: [batch, classes].
    labels: [batch] ints.
    temperature: that softens both.
    weight: of the teacher's part; the labels have the rest.

  Returns:
    A scalar: the mean over the batch.
  """
  from jaxr18.train import terms

  teacher = terms.TeacherOutputs(teacher_logits)
  context = terms.Context(logits, labels, teacher)
  parts = terms.answers("kd", temperature=temperature, weight=weight)
  return terms.total(parts, context)[0]


def vote(
  nets: Sequence[Network], images: np.ndarray, data: Dataset, how="probability"
) -> np.ndarray:
  """Computes the joint answer of several networks.

  Args:
    nets: of any specs.
    images: uint8 [n, size, size, channels].
    data: whose mean and deviation images are normalized by.
    how: 'probability', 'logit' or 'majority'.

  Returns:
    Scores [n, classes]; the largest is the answer.
  """
  logits = [_predict(net, images, data) for net in nets]
  return ensemble.vote(np.stack(logits), how)


def score(net: Network | NetSpec) -> Score:
  """Scores a network: three figures and a row for each layer.

  Args:
    net: a network, masks included, or a spec.
  """
  if isinstance(net, NetSpec):
    return score_lib.score(net)
  return score_lib.score(net.spec, masks=net.masks)


def judge(path: Path, **how: Any):
  """Scores anybody's ONNX or QONNX file; see `deploy.judge.judge`."""
  from jaxr18.deploy.judge import judge

  return judge(path, **how)


def evaluate(net: Network, data: Dataset, split: str = "test") -> Evaluation:
  """Counts right answers.

  Args:
    net: one network.
    data: of `dataset`.
    split: 'train', 'validation' or 'test'.
  """
  from jaxr18.train import evaluate
  from jaxr18.train.mesh import make_mesh

  images = getattr(data, split)
  size = min(500, len(images.labels))
  return evaluate.evaluate(net, images, data, size, make_mesh())


def dataset(
  name: str = "cifar10", validation: int | None = None, **how: Any
) -> Dataset:
  """Loads a data set.

  Args:
    name: 'cifar10', 'cifar100', 'svhn_cropped' or 'digits'; or, of
      your own, an .npz, a folder of images or 'module:function' (docs/data.md).
    validation: training images to hold out; None is a tenth of them.
    **how: as `data.dataset.load` takes it.

  Raises:
    DataError: there is none, or it is not as it should be.
  """
  if validation is None:
    validation = named.facts_of(name, how.get("data_dir", "")).train // 10
  return data_lib.load(name, validation=validation, **how)


def export(net: Network, path: Path, data: Dataset) -> pathlib.Path:
  """Writes a network for others; the suffix says in which form.

  Args:
    net: one network.
    path: .safetensors is the packed form (`deploy/packed.py` runs it with
      NumPy alone), .onnx is for ONNX Runtime, .stablehlo for XLA, .tflite for
      LiteRT.
    data: whose mean, deviation and image size go into the file.

  Raises:
    ValueError: another suffix, or a network that the form cannot hold.
    ImportError: a package that the form needs.
  """
  from jaxr18.host.files import write_atomically

  file = paths.folder(os.fspath(path))
  if file.suffix not in _FORMS:
    raise ValueError(f"path (={file}) must end in one of {', '.join(_FORMS)}")
  write_atomically(file, _FORMS[file.suffix](net, data), "path")
  return file


def run(config: Any, workdir: Path, *fields: str) -> Result:
  """Runs an experiment to its end, or goes on with it.

  Args:
    config: of `jaxr18.config.base`, or the name of a config's file.
    workdir: where the run lives.
    *fields: set in it, such as 'train.epochs=10'.

  Returns:
    What was found, and what result.json holds.
  """
  from jaxr18.config import file
  from jaxr18.config.configdict import plain
  from jaxr18.run import experiment

  if isinstance(config, str | os.PathLike):
    values = file.load(os.fspath(config))
  else:
    values = plain(config)
  file.override(values, fields)
  return experiment.run(values, paths.folder(os.fspath(workdir)))


def _images(data: Dataset, spec: NetSpec, count: int) -> jax.Array:
  images = data.train.images[:count]
  return normalize(images, data.mean, data.std, spec.resolution)


def _predict(net: Network, images: np.ndarray, data: Dataset) -> np.ndarray:
  from jaxr18.train.evaluate import predict
  from jaxr18.train.mesh import make_mesh

  return predict(net, images, data, min(500, len(images)), make_mesh())


def _packed(net: Network, data: Dataset) -> bytes:
  from jaxr18.deploy.pack import pack

  test = data.test
  about = packed.identity(data.name, test.images, test.labels)
  return pack(net, mean=data.mean, std=data.std, provenance={}, data=about)


def _onnx(net: Network, data: Dataset) -> bytes:
  from jaxr18.deploy.to_onnx import to_onnx

  size = data.test.images.shape[1]
  return to_onnx(net, mean=data.mean, std=data.std, size=size, provenance={})


def _stablehlo(net: Network, data: Dataset) -> bytes:
  from jaxr18.deploy.to_stablehlo import to_stablehlo

  size = data.test.images.shape[1]
  return to_stablehlo(net, mean=data.mean, std=data.std, size=size)


def _litert(net: Network, data: Dataset) -> bytes:
  from jaxr18.deploy.program_xla import lower_with_sums
  from jaxr18.deploy.to_litert import SUM_BITS, to_litert

  numbers = packed.parse(_packed(net, data), "the packed network")
  images = data.train.images[:100]
  return to_litert(lower_with_sums(*numbers, SUM_BITS, images))


_FORMS: dict[str, Callable[[Network, Dataset], bytes]] = {
  ".safetensors": _packed,
  ".onnx": _onnx,
  ".stablehlo": _stablehlo,
  ".tflite": _litert,
}
