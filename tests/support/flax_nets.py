"""Networks of known shapes, to count: Flax here, PyTorch in benchmarks.

Biases, norms and activations cost no MACs; they are there so that what is
counted looks like what people write.
"""

import flax.linen as nn
import jax


class Bottleneck(nn.Module):
  """MobileNetV2's inverted residual (Sandler et al., 2018)."""

  features: int
  stride: int
  expand: int

  @nn.compact
  def __call__(self, x):
    inner = x.shape[-1] * self.expand
    y = x
    if self.expand != 1:
      y = nn.relu6(nn.Conv(inner, (1, 1), name="expand")(y))
    y = nn.Conv(
      inner,
      (3, 3),
      strides=self.stride,
      padding=1,
      feature_group_count=inner,
      name="depthwise",
    )(y)
    y = nn.Conv(self.features, (1, 1), name="project")(nn.relu6(y))
    return x + y if x.shape == y.shape else y


# (expand, features, blocks, stride), the paper's table 2.
MOBILENET_V2 = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu6(nn.Conv(32, (3, 3), strides=2, padding=1, name="stem")(x))
    for i, (expand, features, blocks, stride) in enumerate(MOBILENET_V2):
      for j in range(blocks):
        s = stride if j == 0 else 1
        x = Bottleneck(features, s, expand, name=f"stage{i}_block{j}")(x)
    x = nn.relu6(nn.Conv(1280, (1, 1), name="last")(x))
    return nn.Dense(1000, name="head")(x.mean((1, 2)))


class DenseNet(nn.Module):
  """DenseNet-BC for CIFAR, 100 layers by default (Huang et al., 2017)."""

  growth: int = 12
  blocks: int = 16

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(2 * self.growth, (3, 3), padding=1, name="stem")(x)
    for i in range(3):
      for j in range(self.blocks):
        y = nn.Conv(4 * self.growth, (1, 1), name=f"squeeze{i}_{j}")(nn.relu(x))
        conv = nn.Conv(self.growth, (3, 3), padding=1, name=f"conv{i}_{j}")
        y = conv(nn.relu(y))
        x = jax.numpy.concatenate([x, y], -1)
      if i < 2:
        x = nn.Conv(x.shape[-1] // 2, (1, 1), name=f"transition{i}")(x)
        x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(10, name="head")(x.mean((1, 2)))


class Encoder(nn.Module):
  """A small transformer: [batch, length, features] to the same."""

  layers: int = 2
  heads: int = 4

  @nn.compact
  def __call__(self, x):
    attention = nn.MultiHeadDotProductAttention
    features = x.shape[-1]
    for i in range(self.layers):
      y = nn.LayerNorm(name=f"norm{i}a")(x)
      x = x + attention(self.heads, name=f"attention{i}")(y)
      y = nn.LayerNorm(name=f"norm{i}b")(x)
      y = nn.gelu(nn.Dense(4 * features, name=f"up{i}")(y))
      x = x + nn.Dense(features, name=f"down{i}")(y)
    return x


class LeNet(nn.Module):
  """LeNet-5 (LeCun et al., 1998), its convolutions without padding."""

  @nn.compact
  def __call__(self, x):
    for features in (6, 16):
      x = nn.tanh(nn.Conv(features, (5, 5), padding="VALID")(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    for features in (120, 84):
      x = nn.tanh(nn.Dense(features)(x))
    return nn.Dense(10)(x)
