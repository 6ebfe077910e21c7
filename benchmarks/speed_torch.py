"""A process that trains one row of benchmarks.train_step with PyTorch.

The same network, optimizer and batch, in channels_last; see speed_ours for
what it reads and answers.
"""

import json
import sys
import time

_START = time.perf_counter()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.ao import quantization as ao  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.speed_rows import STRIDES  # noqa: E402
from benchmarks.speed_serve import serve  # noqa: E402


def _fake_quantize(bits: int, signed: bool, channels: bool):
  """PyTorch's own module, as its quantization-aware training uses it."""
  if channels:
    return ao.FusedMovingAvgObsFakeQuantize(
      observer=ao.MovingAveragePerChannelMinMaxObserver,
      quant_min=-(2 ** (bits - 1)) + 1,
      quant_max=2 ** (bits - 1) - 1,
      dtype=torch.qint8,
      qscheme=torch.per_channel_symmetric,
    )
  return ao.FusedMovingAvgObsFakeQuantize(
    observer=ao.MovingAverageMinMaxObserver,
    quant_min=0,
    quant_max=2**bits - 1,
    dtype=torch.quint8,
  )


class Conv(nn.Module):
  """A convolution whose kernel is masked and quantized before its use."""

  def __init__(self, row, inputs, features, kernel, stride=1, groups=1):
    super().__init__()
    self.stride, self.padding, self.groups = stride, kernel // 2, groups
    shape = (features, inputs // groups, kernel, kernel)
    self.weight = nn.Parameter(torch.empty(shape))
    nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
    self.quantized = row["bits"] < 32
    if self.quantized:
      self.quantize_weight = _fake_quantize(row["bits"], True, True)
      self.quantize_input = _fake_quantize(row["bits"], False, False)
    mask = None
    if row["density"] < 1:
      mask = (torch.rand(shape) < row["density"]).float()
    self.register_buffer("mask", mask)

  def forward(self, x):
    weight = self.weight
    if self.mask is not None:
      weight = weight * self.mask
    if self.quantized:
      x, weight = self.quantize_input(x), self.quantize_weight(weight)
    return functional.conv2d(
      x, weight, None, self.stride, self.padding, 1, self.groups
    )


def conv3x3(row, inputs, features, stride):
  if row["depthwise"]:
    return nn.Sequential(
      Conv(row, inputs, inputs, 3, stride, inputs),
      Conv(row, inputs, features, 1),
    )
  return Conv(row, inputs, features, 3, stride, row["groups"])


class Block(nn.Module):
  def __init__(self, row, inputs, features, stride):
    super().__init__()
    self.conv1 = conv3x3(row, inputs, features, stride)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = conv3x3(row, features, features, 1)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Identity()
    if stride > 1 or inputs != features:
      self.shortcut = nn.Sequential(
        Conv(row, inputs, features, 1, stride), nn.BatchNorm2d(features)
      )

  def forward(self, x):
    y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
    y = self.bn2(self.conv2(y))
    y += self.shortcut(x)
    return functional.relu(y, inplace=True)


class ResNet(nn.Module):
  def __init__(self, row):
    super().__init__()
    inputs = row["widths"][0]
    self.stem = Conv(row, 3, inputs, 3)
    self.bn = nn.BatchNorm2d(inputs)
    blocks = []
    for features, first in zip(row["widths"], STRIDES, strict=False):
      for stride in (first, *[1] * (row["blocks"] - 1)):
        blocks.append(Block(row, inputs, features, stride))
        inputs = features
    self.blocks = nn.Sequential(*blocks)
    self.head = nn.Linear(inputs, 10)

  def forward(self, x):
    x = functional.relu(self.bn(self.stem(x)), inplace=True)
    return self.head(self.blocks(x).mean((2, 3)))


class Theirs:
  """The training step and the forward pass of a row."""

  def __init__(self, row: dict):
    torch.manual_seed(0)
    self.size = row["batch"]
    images = torch.randint(0, 256, (self.size, 3, 32, 32), dtype=torch.uint8)
    self.uint8 = images.to(memory_format=torch.channels_last)
    self.images = self.uint8.float() / 255
    self.labels = torch.randint(0, 10, (self.size,))
    self.net = ResNet(row).to(memory_format=torch.channels_last)
    decayed = [p for p in self.net.parameters() if p.ndim > 1]
    others = [p for p in self.net.parameters() if p.ndim <= 1]
    self.optimizer = torch.optim.SGD(
      [dict(params=decayed, weight_decay=5e-4), dict(params=others)],
      lr=0.01,
      momentum=0.9,
      nesterov=True,
    )
    self.compiled = row["compile"]
    self.run = torch.compile(self.net) if self.compiled else self.net
    self.bfloat16 = row["dtype"] == "bfloat16"

  def train(self):
    self.net.train()
    images = (self.uint8.float() / 255 - 0.5) / 0.25
    self.optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(self.logits(images), self.labels)
    loss.backward()
    self.optimizer.step()
    return loss.item()

  def forward(self):
    self.net.eval()
    with torch.no_grad():
      return self.logits(self.images)

  def logits(self, images):
    with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
      return self.run(images).float()

  def describe(self) -> str:
    mode = "torch.compile" if self.compiled else "eager"
    return f"PyTorch {torch.__version__} {mode}"


if __name__ == "__main__":
  serve(Theirs(json.loads(sys.argv[1])), _START)
