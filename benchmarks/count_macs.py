"""Our MAC counts beside PyTorch's, and beside other tools' for ResNet-18.

    python -m benchmarks.count_macs           # needs torch
    python -m benchmarks.count_macs --tools   # and thop, fvcore, ptflops

The same networks are traced twice: in Flax by `jaxr18.cost.count_macs`, in
PyTorch by `torch.utils.flop_counter.FlopCounterMode`, whose FLOPs are halved.
A training step is the gradient of the sum of squared outputs in the
parameters. No array is allocated by ours; PyTorch's run on the meta device.
"""

import argparse
import contextlib
import functools
import io
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from jaxr18.cost.macs import count_macs
from jaxr18.cost.score import per_network_score
from jaxr18.nn import network
from jaxr18.nn.conv import conv
from jaxr18.nn.spec import resnet18
from tests import flax_nets


class BasicBlock(nn.Module):
  def __init__(self, inputs, features, stride):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Sequential()
    if stride != 1 or inputs != features:
      self.shortcut = nn.Sequential(
        nn.Conv2d(inputs, features, 1, stride, bias=False),
        nn.BatchNorm2d(features),
      )

  def forward(self, x):
    y = functional.relu(self.bn1(self.conv1(x)))
    return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
  """The usual ResNet-18 for CIFAR: 3x3 stem, no pooling after it."""

  def __init__(self):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    blocks, inputs = [], 64
    for features, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
      for stride in (first, 1):
        blocks.append(BasicBlock(inputs, features, stride))
        inputs = features
    self.blocks = nn.Sequential(*blocks)
    self.linear = nn.Linear(512, 10)

  def forward(self, x):
    x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
    return self.linear(functional.avg_pool2d(x, 4).flatten(1))


class Bottleneck(nn.Module):
  def __init__(self, inputs, features, stride, expand):
    super().__init__()
    inner = inputs * expand
    self.expand = nn.Conv2d(inputs, inner, 1) if expand != 1 else None
    self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner)
    self.project = nn.Conv2d(inner, features, 1)

  def forward(self, x):
    y = x if self.expand is None else functional.relu6(self.expand(x))
    y = self.project(functional.relu6(self.depthwise(y)))
    return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
  def __init__(self):
    super().__init__()
    self.stem = nn.Conv2d(3, 32, 3, 2, 1)
    blocks, inputs = [], 32
    for expand, features, count, first in flax_nets.MOBILENET_V2:
      for j in range(count):
        stride = first if j == 0 else 1
        blocks.append(Bottleneck(inputs, features, stride, expand))
        inputs = features
    self.blocks = nn.Sequential(*blocks)
    self.last = nn.Conv2d(inputs, 1280, 1)
    self.head = nn.Linear(1280, 1000)

  def forward(self, x):
    x = self.blocks(functional.relu6(self.stem(x)))
    return self.head(functional.relu6(self.last(x)).mean((2, 3)))


class DenseNet(nn.Module):
  def __init__(self, growth=12, blocks=16):
    super().__init__()
    features = 2 * growth
    self.stem = nn.Conv2d(3, features, 3, 1, 1)
    self.layers = nn.ModuleList()
    for i in range(3):
      for _ in range(blocks):
        self.layers.append(nn.Conv2d(features, 4 * growth, 1))
        self.layers.append(nn.Conv2d(4 * growth, growth, 3, 1, 1))
        features += growth
      if i < 2:
        self.layers.append(nn.Conv2d(features, features // 2, 1))
        features //= 2
    self.blocks = blocks
    self.head = nn.Linear(features, 10)

  def forward(self, x):
    x = self.stem(x)
    layers = iter(self.layers)
    for i in range(3):
      for _ in range(self.blocks):
        y = next(layers)(functional.relu(x))
        x = torch.cat([x, next(layers)(functional.relu(y))], 1)
      if i < 2:
        x = functional.avg_pool2d(next(layers)(x), 2)
    return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
  def __init__(self, features=64, layers=2, heads=4):
    super().__init__()
    self.heads = heads
    self.layers = nn.ModuleList(
      nn.ModuleDict(
        {
          "norm1": nn.LayerNorm(features),
          "norm2": nn.LayerNorm(features),
          "q": nn.Linear(features, features),
          "k": nn.Linear(features, features),
          "v": nn.Linear(features, features),
          "o": nn.Linear(features, features),
          "up": nn.Linear(features, 4 * features),
          "down": nn.Linear(4 * features, features),
        }
      )
      for _ in range(layers)
    )

  def forward(self, x):
    batch, length, features = x.shape
    split = (batch, length, self.heads, features // self.heads)
    for layer in self.layers:
      y = layer["norm1"](x)
      q, k, v = (layer[n](y).view(split).transpose(1, 2) for n in "qkv")
      weights = torch.softmax(q @ k.transpose(2, 3), -1)
      y = (weights @ v).transpose(1, 2).reshape(x.shape)
      x = x + layer["o"](y)
      y = functional.gelu(layer["up"](layer["norm2"](x)))
      x = x + layer["down"](y)
    return x


def pytorch_macs(module, shape, training):
  """Half of FlopCounterMode's FLOPs of a forward or a gradient."""
  with torch.device("meta"):
    module, x = module(), torch.empty(shape)
  with FlopCounterMode(display=False) as counter:
    loss = module(x).pow(2).sum()
    if training:
      loss.backward()
  return counter.get_total_flops() // 2


def count_ours(module, shape):
  """Reports of a forward and of a gradient in the parameters."""
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  if module is None:
    spec = resnet18()
    net = jax.eval_shape(lambda k: network.init(k, spec), jax.random.key(0))
    variables, rest = net.params, (net.batch_stats, net.masks)

    def apply(params, x, batch_stats, masks):
      net = network.Network(params, batch_stats, masks, spec)
      return network.forward_train(net, x)[0]
  else:
    apply, rest = module.apply, ()
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
  loss = lambda *args: jnp.sum(apply(*args) ** 2)
  return (
    count_macs(apply, variables, x, *rest),
    count_macs(jax.grad(loss), variables, x, *rest),
  )


RESNET18_PARAMS = 11_173_962

NETWORKS = (
  ("ResNet-18", None, ResNet18, (1, 32, 32, 3)),
  ("MobileNetV2", flax_nets.MobileNetV2(), MobileNetV2, (1, 224, 224, 3)),
  ("DenseNet", flax_nets.DenseNet(), DenseNet, (1, 32, 32, 3)),
  ("transformer", flax_nets.Encoder(), Encoder, (1, 16, 64)),
)


def side_by_side():
  """One dict a network and mode: ours, PyTorch's count, PyTorch's excess.

  FlopCounterMode counts the kernel gradient of a grouped convolution as if it
  were dense, `groups` times too much (torch 2.13): that is the excess.
  """
  for name, flax_module, torch_module, shape in NETWORKS:
    nchw = (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape
    forward, training = count_ours(flax_module, shape)
    excess = sum((row.groups - 1) * row.macs for row in forward.rows)
    for mode, ours in (("forward", forward), ("training", training)):
      is_training = mode == "training"
      yield dict(
        network=name,
        mode=mode,
        ours=ours.total,
        pytorch=pytorch_macs(torch_module, nchw, is_training),
        excess=excess if is_training else 0,
      )


def xla_macs():
  """Half of XLA's FLOPs of ResNet-18's layers, each one compiled alone."""
  flops = 0
  for layer in resnet18().layers():
    kernel = jax.ShapeDtypeStruct(layer.kernel_shape, jnp.float32)
    if layer.kind == "dense":
      x = jax.ShapeDtypeStruct((1, layer.in_features), jnp.float32)
      apply = jnp.matmul
    else:
      shape = (1, layer.in_size, layer.in_size, layer.in_features)
      x = jax.ShapeDtypeStruct(shape, jnp.float32)
      apply = functools.partial(
        conv,
        stride=layer.stride,
        padding=layer.kernel // 2,
        groups=layer.groups,
        path="xla",
      )
    flops += jax.jit(apply).lower(x, kernel).cost_analysis()["flops"]
  return int(flops) // 2


def taps_on_padding(layer):
  """MACs of a layer that multiply a zero of its padding."""
  at = np.arange(layer.out_size)[:, None] * layer.stride
  at = at + np.arange(layer.kernel) - layer.kernel // 2
  inside = int(((at >= 0) & (at < layer.in_size)).sum())
  weights = layer.macs // (layer.out_size * layer.kernel) ** 2
  return layer.macs - weights * inside**2


def tools():
  """(tool, what it reports for one image through ResNet-18, why) by tool."""
  import ptflops
  import thop
  from fvcore.nn import FlopCountAnalysis

  layers = [x for x in resnet18().layers() if x.kind == "conv"]
  # Batch norm follows every convolution, a ReLU every one but projections.
  norm = sum(x.features * x.out_size**2 for x in layers)
  relu = sum(
    x.features * x.out_size**2 for x in layers if not x.path.endswith("proj")
  )
  last = layers[-1]
  pool, bias = last.features * last.out_size**2, 10

  padding = sum(taps_on_padding(layer) for layer in layers)
  yield (
    "XLA cost_analysis / 2, layers alone",
    xla_macs(),
    -padding,
    f"skips {padding:,} taps on the padding",
  )
  image = torch.zeros(1, 3, 32, 32)
  yield (
    "PyTorch FlopCounterMode / 2",
    pytorch_macs(ResNet18, (1, 3, 32, 32), False),
    0,
    "convolutions and head alone",
  )
  macs, _ = thop.profile(ResNet18(), (image,), verbose=False)
  yield "thop", int(macs), 4 * norm, f"batch norm, 4 x {norm:,} elements"
  for name in ("fvcore", "jit"):
    logging.getLogger(name).setLevel(logging.ERROR)
  flops = FlopCountAnalysis(ResNet18().eval(), image)
  flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
  yield (
    "fvcore (its flops are MACs)",
    flops.total(),
    2 * norm,
    f"batch norm, 2 x {norm:,} elements",
  )
  for backend, more, why in (
    (
      "pytorch",
      2 * norm + relu + pool + bias,
      f"batch norm 2 x {norm:,}, ReLU {relu:,}, pooling {pool:,}, bias {bias}",
    ),
    ("aten", bias, f"bias of the head, {bias}"),
  ):
    with contextlib.redirect_stdout(io.StringIO()):
      macs, _ = ptflops.get_model_complexity_info(
        ResNet18().eval(),
        (3, 32, 32),
        as_strings=False,
        backend=backend,
        print_per_layer_stat=False,
        verbose=False,
      )
    yield f"ptflops, {backend} backend", int(macs), more, why


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", action="store_true", help="print JSON")
  parser.add_argument(
    "--tools", action="store_true", help="thop, fvcore and ptflops too"
  )
  args = parser.parse_args()
  rows = list(side_by_side())
  if args.json:
    print(json.dumps(rows))
    return
  console = Console()
  table = Table("network", "mode", title="MACs")
  for name in ("ours", "PyTorch", "its excess", "rest"):
    table.add_column(name, justify="right")
  for row in rows:
    rest = row["pytorch"] - row["ours"] - row["excess"]
    table.add_row(
      row["network"],
      row["mode"],
      *(f"{n:,}" for n in (row["ours"], row["pytorch"], row["excess"], rest)),
    )
  console.print(table)
  if args.tools:
    table = Table("tool", title="ResNet-18 for CIFAR, one image")
    for name in ("reports", "minus ours", "unexplained", "per-network score"):
      table.add_column(name, justify="right")
    table.add_column("what it counts besides")
    ours = rows[0]["ours"]
    for name, macs, more, why in tools():
      table.add_row(
        name,
        f"{macs:,}",
        f"{macs - ours:+,}",
        str(macs - ours - more),
        f"{per_network_score(RESNET18_PARAMS, macs).total:.6f}",
        why,
      )
    console.print(table)


if __name__ == "__main__":
  main()
