"""The classification networks that come with Espalier, by name: how to build each, its head, its feature stages."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlock
from torchvision.models.resnet import ResNet
from torchvision.models.vgg import cfgs, make_layers

from classify.cifar import CifarResNet, cifar_vgg16, cifar_vgg19
from classify.data import MEAN, STD
from classify.own_backbone import Rgb
from classify.preactivation import CifarDenseNet, CifarPreResNet
from classify.selecting import resnet50_select
from command.errors import RequestError

__all__ = ["BACKBONES", "HEADS", "Family", "initialize"]

_Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Family:
    """How to build a kind of network, and what is where in it."""

    build: _Build
    """Takes `num_classes`."""
    heads: tuple[str, ...]
    """The layers that a detector does not need; those before them are the trunk."""
    steps: tuple[str, ...] = ()
    """The layers that are run one after the other; none where the network runs itself."""
    stages: tuple[str, ...] = ()
    """The layers that output a feature map, at strides 4, 8, 16 and 32; none if the network has no such strides."""
    narrow: Callable[[Any, int], None] | None = None
    """Changes the number of base channels of the network in place."""
    image_side: int = 224
    """Of the images that its published weights are for, in pixels."""
    normalisation: tuple[Rgb, Rgb] = (MEAN, STD)
    """Mean and standard deviation of the pixels of these images, in 0 to 255."""


def initialize(model: nn.Module) -> None:
    """Give every layer fresh random weights in place, scaled to its own (slim) width.

    Convolutions as torchvision's ResNets and VGGs (He, fan-out), linear layers as torch's own default; normalisation
    layers and ConvNeXt's layer scale get their usual initial values.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.Linear):
            module.reset_parameters()
        elif isinstance(module, CNBlock):
            nn.init.constant_(module.layer_scale, 1e-6)


def _narrow_resnet(net: ResNet, base_channels: int) -> None:
    """Set base channels other than 64, which torchvision's constructor does not support."""
    step = 64 // net.base_width if net.groups > 1 else 1  # one channel per group of the first grouped convolutions
    if base_channels % step:
        raise RequestError(
            f"base_channels: not divisible into {net.groups} groups, got {base_channels}; expected a multiple of {step}"
        )
    net.inplanes = base_channels
    net.conv1 = nn.Conv2d(3, base_channels, 7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(base_channels)
    for i, name in enumerate(_RESNET_LAYERS):
        blocks = getattr(net, name)
        layer = net._make_layer(type(blocks[0]), base_channels * 2**i, len(blocks), stride=1 if i == 0 else 2)
        setattr(net, name, layer)
    net.fc = nn.Linear(net.inplanes, net.fc.out_features)


def _vgg16_gap(num_classes: int) -> nn.Module:
    """VGG-16 with global average pooling before a single linear layer.

    Source: Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, ICCV 2017; theirs
    lacks the last max pooling, which a detector needs for its stride of 32. Parameters and macs are the same.
    """
    layers = OrderedDict(
        features=make_layers(cfgs["D"]),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(512, num_classes),
    )
    return nn.Sequential(layers)


def _initialized(build: _Build) -> _Build:
    def build_initialized(num_classes: int) -> nn.Module:
        net = build(num_classes=num_classes)
        initialize(net)
        return net

    return build_initialized


def _inside(parent: str, names: Iterable[object]) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for name in names)


_RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_DENSENET_STEPS = (
    "conv0 norm0 relu0 pool0 denseblock1 transition1 denseblock2 transition2 denseblock3 transition3 denseblock4 norm5"
)


def _resnet(build: _Build) -> Family:
    steps = ("conv1", "bn1", "relu", "maxpool", *_RESNET_LAYERS)
    return Family(build, ("fc",), steps, _RESNET_LAYERS, _narrow_resnet)


def _regnet(build: _Build) -> Family:
    stages = _inside("trunk_output", ("block1", "block2", "block3", "block4"))
    return Family(build, ("fc",), ("stem", *stages), stages)


def _features(build: _Build, steps: Iterable[object], *stages: object) -> Family:
    """Steps and stages by their names in the network's `features`."""
    return Family(build, ("classifier",), _inside("features", steps), _inside("features", stages))


def _cifar(build: _Build, head: str) -> Family:
    return Family(_initialized(build), (head,), image_side=32)


BACKBONES: dict[str, Family] = {
    "resnet18": _resnet(models.resnet18),
    "resnet34": _resnet(models.resnet34),
    "resnet50": _resnet(models.resnet50),
    "resnet50_select": _resnet(resnet50_select),
    "resnet101": _resnet(models.resnet101),
    "resnext50_32x4d": _resnet(models.resnext50_32x4d),
    "wide_resnet50_2": _resnet(models.wide_resnet50_2),
    "vgg11_bn": _features(models.vgg11_bn, range(29), 13, 20, 27, 28),
    "vgg16": _features(models.vgg16, range(31), 15, 22, 29, 30),
    "vgg16_bn": _features(models.vgg16_bn, range(44), 22, 32, 42, 43),
    "vgg16_gap": _features(_initialized(_vgg16_gap), range(31), 15, 22, 29, 30),
    "mobilenet_v2": _features(models.mobilenet_v2, range(19), 3, 6, 13, 18),
    "mobilenet_v3_large": _features(models.mobilenet_v3_large, range(17), 3, 6, 12, 16),
    "efficientnet_b0": _features(models.efficientnet_b0, range(9), 2, 3, 5, 8),
    "densenet121": _features(
        models.densenet121, _DENSENET_STEPS.split(), "denseblock1", "denseblock2", "denseblock3", "norm5"
    ),
    "regnet_x_400mf": _regnet(models.regnet_x_400mf),
    "regnet_y_400mf": _regnet(models.regnet_y_400mf),
    "convnext_tiny": _features(models.convnext_tiny, range(8), 1, 3, 5, 7),
    "resnet20_cifar": _cifar(partial(CifarResNet, 20), "linear"),
    "resnet56_cifar": _cifar(partial(CifarResNet, 56), "linear"),
    "resnet110_cifar": _cifar(partial(CifarResNet, 110), "linear"),
    "vgg16_cifar": _cifar(cifar_vgg16, "classifier"),
    "vgg19_cifar": _cifar(cifar_vgg19, "classifier"),
    "preresnet110_cifar": _cifar(partial(CifarPreResNet, 110), "fc"),
    "preresnet164_cifar": _cifar(partial(CifarPreResNet, 164), "fc"),
    "densenet40_cifar": _cifar(partial(CifarDenseNet, 40), "fc"),
    "densenet_bc100_cifar": _cifar(partial(CifarDenseNet, 100, is_bc=True), "fc"),
}
"""Name in a config -> how to build it.

A stage is the last feature map of its stride: a VGG's before its pools (and after the last one), a MobileNet's or
EfficientNet's last with the convolution that widens it for the head (as in torchvision's MobileNet detector), a
DenseNet's last with its normalisation.
"""

HEADS = tuple(sorted({f"{head}." for family in BACKBONES.values() for head in family.heads}))
"""Prefixes of the parameters that a detector leaves behind."""
