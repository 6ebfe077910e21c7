"""Makes resnet18_logits.npz: logits of CIFAR ResNets in PyTorch.

python tests/golden/make_resnet18_logits.py

The network is kuangliu/pytorch-cifar's ResNet-18 written out again, with
options for groups and depthwise-separable convolutions. Weights and images
come from random_weights.py, so the file holds only names, shapes and logits.
Made with torch 2.13.0 on a CPU.
"""

import json
import pathlib

import numpy as np
import random_weights
import torch
from torch import nn
from torch.nn import functional as F

SEED = 18
IMAGES = (4, 32, 32, 3)  # NHWC

# The arguments are those of jaxr18.nn.spec.resnet.
NETWORKS = {
  "resnet18": dict(widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)),
  "grouped": dict(
    widths=(8, 16, 24),
    blocks=(2, 1, 1),
    strides=(1, 2, 2),
    groups=(2, 4, 8),
    depthwise=(False, False, False),
  ),
  "depthwise": dict(
    widths=(8, 16, 24),
    blocks=(1, 2, 1),
    strides=(1, 2, 2),
    groups=(1, 1, 2),
    depthwise=(True, True, False),
  ),
}


def conv(inputs, features, kernel, stride=1, groups=1):
  return nn.Conv2d(
    inputs,
    features,
    kernel,
    stride=stride,
    padding=kernel // 2,
    groups=groups,
    bias=False,
  )


def conv3x3(inputs, features, stride, groups, depthwise):
  if not depthwise:
    return conv(inputs, features, 3, stride, groups)
  return nn.Sequential(
    conv(inputs, inputs, 3, stride, inputs), conv(inputs, features, 1)
  )


class BasicBlock(nn.Module):
  def __init__(self, inputs, features, stride, groups, depthwise):
    super().__init__()
    self.conv1 = conv3x3(inputs, features, stride, groups, depthwise)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = conv3x3(features, features, 1, groups, depthwise)
    self.bn2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Sequential()
    if stride != 1 or inputs != features:
      self.shortcut = nn.Sequential(
        conv(inputs, features, 1, stride), nn.BatchNorm2d(features)
      )

  def forward(self, x):
    out = F.relu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
  def __init__(
    self,
    widths,
    blocks,
    strides=(1, 2, 2, 2),
    groups=(1, 1, 1, 1),
    depthwise=(False, False, False, False),
  ):
    super().__init__()
    self.conv1 = conv(3, widths[0], 3)
    self.bn1 = nn.BatchNorm2d(widths[0])
    inputs = widths[0]
    self.stages = len(widths)
    for i, features in enumerate(widths):
      stage = []
      for j in range(blocks[i]):
        stride = strides[i] if j == 0 else 1
        stage.append(
          BasicBlock(inputs, features, stride, groups[i], depthwise[i])
        )
        inputs = features
      setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
    self.linear = nn.Linear(inputs, 10)

  def forward(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    for i in range(self.stages):
      x = getattr(self, f"layer{i + 1}")(x)
    x = F.avg_pool2d(x, x.shape[-1]).flatten(1)
    return self.linear(x)


@torch.no_grad()
def main():
  images = random_weights.uniform(SEED, IMAGES, -2, 2)
  out = {"seed": np.array(SEED), "images_shape": np.array(IMAGES)}
  for name, arguments in NETWORKS.items():
    model = ResNet(**arguments).eval()
    shapes = {
      k: tuple(v.shape)
      for k, v in model.state_dict().items()
      if not k.endswith("num_batches_tracked")
    }
    weights = random_weights.state_dict(shapes, SEED)
    model.load_state_dict(
      {k: torch.from_numpy(v) for k, v in weights.items()}, strict=False
    )
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    logits = model(x).numpy()
    # The same in float64, to see that the file's precision suffices.
    exact = model.double()(x.double()).numpy()
    parameters = sum(p.numel() for p in model.parameters())
    print(
      f"{name}: {parameters:,} parameters, logits {logits.min():.2f} to"
      f" {logits.max():.2f}, rounding error {np.abs(logits - exact).max():.1e}"
    )
    out[f"{name}_logits"] = exact.astype(np.float32)
    out[f"{name}_parameters"] = np.array(parameters)
    out[f"{name}_shapes"] = np.array(json.dumps(shapes))
    out[f"{name}_arguments"] = np.array(json.dumps(arguments))
  path = pathlib.Path(__file__).with_name("resnet18_logits.npz")
  np.savez_compressed(path, **out)
  print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
