"""Networks for the 32 x 32 images of CIFAR: the ResNets of He et al. and the VGGs of Liu et al."""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["CifarResNet", "cifar_vgg16", "cifar_vgg19"]

_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions between two halvings of the feature map."""
_VGG19 = (*_VGG16[:2], *((width,) * 4 for width in (256, 512, 512)))


class CifarResNet(nn.Module):
    """ResNet with three stages of 16, 32 and 64 channels and shortcuts without parameters.

    Parameters have the names of the widely used weights of akamaster/pytorch_resnet_cifar10.

    Args:
        depth: 6n + 2, with n blocks per stage: 20, 56, 110, ...
        num_classes: Outputs.

    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2, shortcuts of option A.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(16, 32, num_blocks, stride=2)
        self.layer3 = _stage(32, 64, num_blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, 3, H, W)."""
        features = torch.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean((2, 3)))


def cifar_vgg16(num_classes: int) -> nn.Sequential:
    """Return VGG-16 with BatchNorm, average pooling and one hidden layer of 512 units.

    Layers have the names that torchvision's VGGs give them; convolutions have no bias.

    Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, cifar/l1-norm-pruning.
    """
    hidden = (nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True))
    return _vgg(_VGG16, nn.Sequential(*hidden, nn.Linear(512, num_classes)))


def cifar_vgg19(num_classes: int) -> nn.Sequential:
    """Return VGG-19 with BatchNorm, average pooling and a single linear layer, named as `cifar_vgg16`.

    Source: Liu et al. as there, cifar/network-slimming.
    """
    return _vgg(_VGG19, nn.Linear(512, num_classes))


def _vgg(stages: Iterable[tuple[int, ...]], classifier: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    num_in = 3
    for widths in stages:
        for num_out in widths:
            layers += [_conv3x3(num_in, num_out), nn.BatchNorm2d(num_out), nn.ReLU(inplace=True)]
            num_in = num_out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers[:-1]),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )


class _Block(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (num_out - num_in) // 2
        self.conv1 = _conv3x3(num_in, num_out, stride)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = _conv3x3(num_out, num_out)
        self.bn2 = nn.BatchNorm2d(num_out)

    def forward(self, features: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features)))))
        return torch.relu(branch + self._shortcut(features))

    def _shortcut(self, features: Tensor) -> Tensor:
        """Every other position, between channels of zeros: option A."""
        if not self.padding:
            return features
        return pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


def _stage(num_in: int, num_out: int, num_blocks: int, stride: int) -> nn.Sequential:
    rest = (_Block(num_out, num_out, 1) for _ in range(num_blocks - 1))
    return nn.Sequential(_Block(num_in, num_out, stride), *rest)


def _conv3x3(num_in: int, num_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
