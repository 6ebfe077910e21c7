"""Where a phase's network comes from: new, another phase's, another run's."""

import hashlib
import pathlib
from collections.abc import Collection

import jax
import jax.numpy as jnp

from jaxr18.compress import ensemble, factorize
from jaxr18.compress.shrink import drop_blocks, matching_blocks, shrink
from jaxr18.config.experiment import Experiment, Phase
from jaxr18.config.faults import ConfigError
from jaxr18.deploy import saved, torch_weights
from jaxr18.host import paths, sealed
from jaxr18.host.errors import ToldError
from jaxr18.host.inputs import read_bytes
from jaxr18.host.paths import names
from jaxr18.nn import network
from jaxr18.nn.network import Network
from jaxr18.nn.spec import BOUNDS, FLOAT_BITS, NetSpec
from jaxr18.train import checkpoint
from jaxr18.train.files import read_phase


class FloatError(ToldError):
  """No network in 32 bits stands behind a quantized one."""


def load_network(workdir: pathlib.Path, source: str = "") -> Network:
  """Loads a finished network: of a phase, of another run, or PyTorch's.

  Args:
    workdir: of the run.
    source: a phase's name; '' for the last phase; another workdir; or a file
      of a PyTorch state_dict, known by `torch_weights.SUFFIXES`.

  Raises:
    checkpoint.CheckpointError: there is none, it is damaged, or there are
      several.
    torch_weights.WeightsError: the file is not of a ResNet that we know.
  """
  nets = load_networks(workdir, source)
  if len(nets) > 1:
    raise checkpoint.CheckpointError(
      f"{source or workdir} holds {len(nets)} networks, and one is expected;"
      " give the --workdir of a run of one network"
    )
  return nets[0]


def load_networks(workdir: pathlib.Path, source: str = "") -> list[Network]:
  """Loads all networks that `source` names, separated by commas.

  Of a population or an ensemble, its members.
  """
  return [
    net for name in names(source) or ("",) for net in _load(workdir, name)
  ]


def load_other(name: str) -> list[Network]:
  """Loads the networks of another run's workdir, or of a file of PyTorch's."""
  path = paths.folder(name)
  return _load(path, name if torch_weights.is_name(path) else "")


def load_float(
  workdir: pathlib.Path, experiment: Experiment, phase: Phase
) -> tuple[Network, str]:
  """A phase's network in 32 bits, or the one that it was made of.

  Args:
    workdir: of the run.
    experiment: of the workdir.
    phase: of it; of a quantized one `start.init` is followed, again and again.

  Returns:
    The network, and whose it is.

  Raises:
    FloatError: what it began with is quantized too, or was new.
  """
  phases = {p.name: p for p in experiment.phases}
  net, whose = load_network(workdir, phase.name), phase.name
  while any(min(x.w_bits, x.a_bits) < FLOAT_BITS for x in net.spec.layers()):
    source = phases[whose].options.start.init if whose in phases else ""
    if not source:
      raise FloatError(
        f"{workdir}: the network of {whose} is quantized and began with no"
        " other one, expected one in 32 bits; give --phase of a float phase, or"
        " the --workdir of its float run"
      )
    net, whose = load_network(workdir, source), source
  return net, whose


def load_for(
  workdir: pathlib.Path, source: str, where: str, members: int, member: int
) -> Network:
  """Loads the network that one member of a phase's population starts from.

  Where the source is as many networks as there are members, each member has its
  own. Otherwise several are averaged (a soup).

  Args:
    workdir: of the run, whose phases a source may name.
    source: phases, folders or files, separated by commas.
    where: names the field in errors.
    members: of the population.
    member: its number, from 0.

  Raises:
    ConfigError: several of different specs or masks.
  """
  nets = load_networks(workdir, source)
  own = ensemble.of_member(nets, members, member)
  try:
    return ensemble.soup(nets) if own is None else own
  except ValueError as e:
    raise ConfigError(f"{where}: {e}") from e


def _load(workdir: pathlib.Path, source: str) -> list[Network]:
  file = paths.folder(source)
  if torch_weights.is_name(file):
    return [torch_weights.load(file)]
  arrays, meta = checkpoint.read(_checkpoint_of(workdir, source))
  return [
    net
    for one in checkpoint.networks_from(arrays, meta)
    for net in ensemble.unstack(one)
  ]


def _checkpoint_of(workdir: pathlib.Path, source: str) -> pathlib.Path:
  phases = _phases_of(workdir)
  if source and source not in phases:
    workdir, source = paths.folder(source), ""
    phases = _phases_of(workdir)
  directory = workdir / (source or phases[-1])
  return directory / "checkpoints" / str(read_phase(directory)["step"])


def identities(workdir: pathlib.Path, source: str) -> list[str]:
  """Hashes each network that `source` names, separated by commas."""

  def identity(name: str) -> str:
    file = paths.folder(name)
    if torch_weights.is_name(file):
      return hashlib.sha256(file.read_bytes()).hexdigest()
    return checkpoint.read_meta(_checkpoint_of(workdir, name))["hash"]

  return [identity(name) for name in names(source)]


def _phases_of(workdir: pathlib.Path) -> list[str]:
  path = workdir / "config.json"
  try:
    return sealed.parse(read_bytes(path))["phases"]
  except (OSError, ValueError, TypeError, KeyError) as e:
    raise checkpoint.CheckpointError(
      f"{workdir} holds no run: {path} cannot be read ({e!r}); give the"
      " --workdir of a run that has finished"
    ) from e


def initial_network(
  key: jax.Array,
  spec: NetSpec,
  images,
  source: Network | None,
  where: str,
  method: str = "mse",
  begin: network.Transform = lambda net: net,
) -> Network:
  """Makes a network from a source's numbers or anew, with all bounds of grids.

  A bound that the source has learned in the same bits is kept: a grid of fewer
  levels ends earlier. The other bounds of inputs are calibrated, and those of
  kernels begin where the squared error is least. A source of other groups or
  ranks is converted, and one of a packed file gets batch norm's statistics
  back.

  Args:
    key: for He-normal kernels where there is no source.
    spec: of the new network.
    images: [n, resolution, resolution, channels], normalized, to calibrate on.
    source: a network; None for none.
    where: names the source in errors.
    method: of `nn.calibrate`.
    begin: changes new kernels, where there is no source.

  Raises:
    ConfigError: the source is another network or cannot be converted.
  """
  net = network.init(key, spec)
  if source is None:
    return network.calibrate(begin(net), images, method)
  source = _unfolded(source, images)
  try:
    converted = factorize.convert(source, spec)
  except ValueError as e:
    raise ConfigError(
      f"{where}: {e}; start from a network of the same widths and blocks"
    ) from e
  old, new = dict(source.spec.units()), factorize.new_layers(source.spec, spec)
  made = set()
  for x in spec.layers():
    before = old[x.unit]
    if x.path in new or x.a_bits != before.a_bits:
      made.add(f"{x.path}/input_bound")
    grid = ("w_bits", "w_scales", "two_bits")
    same = all(getattr(x, n) == getattr(before, n) for n in grid)
    if x.path in new or not same:
      made.add(f"{x.path}/kernel_bound")
  if spec.sum_bits != source.spec.sum_bits:
    made |= {f"{name}/sum_bound" for name, _ in spec.blocks()}
  started = start_from(net, converted, where, made)
  try:
    network.check_four_levels(started)
  except ValueError as e:
    raise ConfigError(f"{where}: {e}") from e
  net = network.calibrate(started, images, method)
  return start_from(net, converted, where, made)


def _unfolded(source: Network, images) -> Network:
  """The source; of a packed file, with statistics of batch norm again."""
  if not saved.is_folded(source):
    return source
  return network.unfold_batch_norm(source, images)


def start_from(
  net: Network, source: Network, where: str, made: Collection[str] = ()
) -> Network:
  """Puts the source's numbers and masks into a spec of other bits.

  Args:
    net: what has the new spec.
    source: of the same widths, blocks, groups and ranks.
    where: names the source in an error.
    made: bounds that nobody has learned, by parameter path; they stay.

  Raises:
    ConfigError: a parameter that the source lacks or has in another shape.
  """
  old = checkpoint.flatten((source.params, source.batch_stats))

  def take(name, leaf):
    *layer, last = name.split(".")[1:]
    if "/".join((*layer, last)) in made:
      return leaf
    if name in old and old[name].shape == leaf.shape:
      return jnp.asarray(old[name])
    if last in BOUNDS:  # new where bits are; calibrated later
      return leaf
    got = f"is {list(old[name].shape)}" if name in old else "is missing"
    raise ConfigError(
      f"{where}: {name} {got} there, expected {list(leaf.shape)}; start from"
      " a network of the same widths, blocks and groups"
    )

  kept = checkpoint.flatten((source.masks,))

  def carry(name, mask, param):
    m = kept.get(name)
    fits = m is not None and m.shape in ((), param.shape)
    return jnp.asarray(m) if fits else mask

  names = checkpoint.flatten((net.masks,))
  masks = jax.tree.unflatten(
    jax.tree.structure(net.masks),
    [
      carry(n, mask, param)
      for (n, mask), param in zip(
        names.items(), jax.tree.leaves(net.params), strict=True
      )
    ],
  )
  new = (net.params, net.batch_stats)
  names = checkpoint.flatten(new)
  leaves = [take(n, leaf) for n, leaf in names.items()]
  params, batch_stats = jax.tree.unflatten(jax.tree.structure(new), leaves)
  return net.replace(params=params, batch_stats=batch_stats, masks=masks)


def shrunk(source: Network, drop: str, where: str) -> Network:
  """Removes the source's masked channels, and the blocks of `drop`.

  Raises:
    ConfigError: what cannot be removed.
  """
  try:
    names = matching_blocks(source.spec, drop)
  except ValueError as e:
    raise ConfigError(f"{where}.drop_blocks (={drop!r}) {e}") from e
  try:
    return shrink(drop_blocks(source, names))
  except ValueError as e:
    raise ConfigError(f"{where}.shrink: {e}") from e
