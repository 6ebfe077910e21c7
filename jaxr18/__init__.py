"""ResNet-18 for CIFAR-10, small and cheap, every number proven."""

__version__ = "0.1.0"
