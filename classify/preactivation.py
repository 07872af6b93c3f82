"""Networks for the 32 x 32 images of CIFAR that normalise before they convolve: ResNet-164, DenseNet-40 and -BC-100.

Every norm that reads a sum or a concatenation is behind a channel selection, so that Network Slimming can cut what
each of them reads. Layers have the names of Eric-mingjie/rethinking-network-pruning, cifar/network-slimming, of which
`select` is before its norm here.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from prune.selection import ChannelSelection

__all__ = ["CifarDenseNet", "CifarPreResNet"]


class CifarPreResNet(nn.Module):
    """ResNet of bottlenecks with three stages of 64, 128 and 256 channels, each norm and ReLU before its convolution.

    Args:
        depth: 9n + 2, with n blocks per stage: 110, 164, ...
        num_classes: Outputs.

    Source: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, section 4; shortcuts with a projection,
    where widths change, as in Liu et al., Rethinking the Value of Network Pruning, ICLR 2019.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        num_blocks = (depth - 2) // 9
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(64, 32, num_blocks, stride=2)
        self.layer3 = _stage(128, 64, num_blocks, stride=2)
        self.select = ChannelSelection(256)
        self.bn = nn.BatchNorm2d(256)
        self.fc = nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, 3, H, W)."""
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(torch.relu(self.bn(self.select(features))).mean((2, 3)))


class CifarDenseNet(nn.Module):
    """DenseNet of three dense blocks; each layer is one convolution of 3 x 3, and transitions keep the width.

    Args:
        depth: 3n + 4, with n layers per block: 40, ...; 6n + 4 of a DenseNet-BC: 100, ...
        num_classes: Outputs.
        growth: Channels that each layer adds; the stem has twice as many.
        is_bc: DenseNet-BC: a 1 x 1 convolution to 4 x `growth` channels before each of 3 x 3, and transitions halve
            the width.

    Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017; the stem is that of Liu et al. (2019).
    """

    def __init__(self, depth: int, num_classes: int, growth: int = 12, is_bc: bool = False) -> None:
        super().__init__()
        layer, per_layer, divisor = (_BottleneckLayer, 2, 2) if is_bc else (_DenseLayer, 1, 1)
        num_layers = (depth - 4) // (3 * per_layer)
        first, added = 2 * growth, num_layers * growth
        second = (first + added) // divisor
        third = (second + added) // divisor
        last = third + added
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.dense1 = _dense_block(layer, first, growth, num_layers)
        self.trans1 = _Transition(first + added, second)
        self.dense2 = _dense_block(layer, second, growth, num_layers)
        self.trans2 = _Transition(second + added, third)
        self.dense3 = _dense_block(layer, third, growth, num_layers)
        self.select = ChannelSelection(last)
        self.bn = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, 3, H, W)."""
        features = self.trans1(self.dense1(self.conv1(images)))
        features = self.dense3(self.trans2(self.dense2(features)))
        return self.fc(torch.relu(self.bn(self.select(features))).mean((2, 3)))


class _Bottleneck(nn.Module):
    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.select = ChannelSelection(num_in)
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.downsample: nn.Module = nn.Identity()
        if num_in != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(num_in, 4 * width, 1, stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        branch = self.conv1(torch.relu(self.bn1(self.select(features))))
        branch = self.conv2(torch.relu(self.bn2(branch)))
        branch = self.conv3(torch.relu(self.bn3(branch)))
        return branch + self.downsample(features)


class _DenseLayer(nn.Module):
    def __init__(self, num_in: int, growth: int) -> None:
        super().__init__()
        self.select = ChannelSelection(num_in)
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, growth, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.bn1(self.select(features))))
        return torch.cat((features, new), 1)


class _BottleneckLayer(nn.Module):
    def __init__(self, num_in: int, growth: int) -> None:
        super().__init__()
        self.select = ChannelSelection(num_in)
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.bn1(self.select(features))))
        new = self.conv2(torch.relu(self.bn2(new)))
        return torch.cat((features, new), 1)


class _Transition(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.select = ChannelSelection(num_in)
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return avg_pool2d(self.conv1(torch.relu(self.bn1(self.select(features)))), 2)


def _stage(num_in: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(4 * width, width, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(_Bottleneck(num_in, width, stride), *rest)


def _dense_block(layer: Callable[[int, int], nn.Module], num_in: int, growth: int, num_layers: int) -> nn.Sequential:
    return nn.Sequential(*(layer(num_in + i * growth, growth) for i in range(num_layers)))
