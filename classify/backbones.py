"""Classification networks by name, and their feature stages.

A `Trunk` is a network without its head: it keeps the parameter names, so that weights and pruning specs move between
a classifier and a detector unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from prune import narrowed_model
from prune.modes import evaluating

__all__ = [
    "BACKBONES",
    "HEADS",
    "Architecture",
    "Trunk",
    "build_classifier",
    "build_trunk",
    "initialize",
    "stage_shapes",
]

Widths = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a classifier, apart from its weights."""

    name: str
    """A key of `BACKBONES`."""
    num_classes: int
    base_channels: int = 64
    """Channels of the stem; the stages follow in proportion. Only ResNets can differ from 64."""
    widths: Widths = field(default_factory=dict)
    """(inputs, outputs) of the layers that a slim network has narrower than the dense one."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that JSON and `Architecture(**...)` accept."""
        return asdict(self)


@dataclass(frozen=True)
class _Family:
    build: Callable[[int, int], nn.Module]
    head: str
    steps: tuple[str, ...]
    stages: tuple[str, ...]
    """The steps after which a feature map leaves, strides 4, 8, 16 and 32."""


def build_classifier(arch: Architecture) -> nn.Module:
    """Return the classifier with random weights.

    Raises:
        ValueError: If the name is unknown or the widths do not fit the network.
    """
    net = _family(arch.name).build(arch.num_classes, arch.base_channels)
    return narrowed_model(net, arch.widths) if arch.widths else net


def build_trunk(arch: Architecture) -> "Trunk":
    """Return the classifier without its head, with random weights."""
    family = _family(arch.name)
    net = family.build(arch.num_classes, arch.base_channels)
    setattr(net, family.head, nn.Identity())
    widths = {name: width for name, width in arch.widths.items() if name.split(".")[0] != family.head}
    return Trunk(narrowed_model(net, widths), family.steps, family.stages)


class Trunk(nn.Module):
    """Runs a network's steps in order and returns the feature maps of its stages, strides 4, 8, 16 and 32."""

    def __init__(self, net: nn.Module, steps: tuple[str, ...], stages: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.steps = steps
        self.stages = stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one (N, C, H / stride, W / stride) map per stage for images (N, 3, H, W)."""
        maps = []
        features = images
        for step in self.steps:
            features = self.net.get_submodule(step)(features)
            if step in self.stages:
                maps.append(features)
        return tuple(maps)


def stage_shapes(trunk: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return (channels, stride) of every stage, read from a forward pass."""
    side = 64
    with evaluating(trunk), torch.no_grad():
        maps = trunk(torch.zeros(1, 3, side, side))
    return tuple((m.shape[1], side // m.shape[-1]) for m in maps)


def initialize(model: nn.Module) -> None:
    """Give every layer fresh random weights in place, scaled to its own (slim) width.

    Convolutions as torchvision's ResNets and VGGs (He, fan-out), linear layers as torch's own default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()


def _family(name: str) -> _Family:
    if name not in BACKBONES:
        raise ValueError(f"backbone: unknown, got {name!r}; expected one of {sorted(BACKBONES)}")
    return BACKBONES[name]


def _resnet(block: type[BasicBlock | Bottleneck], num_blocks: tuple[int, ...]) -> _Family:
    def build(num_classes: int, base_channels: int) -> nn.Module:
        net = ResNet(block, list(num_blocks), num_classes)
        if base_channels != 64:  # torchvision's constructor knows 64 only
            _narrow(net, block, num_blocks, base_channels)
            initialize(net)
        return net

    stages = ("layer1", "layer2", "layer3", "layer4")
    return _Family(build, "fc", ("conv1", "bn1", "relu", "maxpool", *stages), stages)


def _narrow(net: ResNet, block: type[BasicBlock | Bottleneck], num_blocks: tuple[int, ...], base_channels: int) -> None:
    net.inplanes = base_channels
    net.conv1 = nn.Conv2d(3, base_channels, 7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(base_channels)
    for i, num in enumerate(num_blocks):
        layer = net._make_layer(block, base_channels * 2**i, num, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", layer)
    net.fc = nn.Linear(base_channels * 8 * block.expansion, net.fc.out_features)


def _vgg16_bn(num_classes: int, base_channels: int) -> nn.Module:
    if base_channels != 64:
        raise ValueError(f"vgg16_bn: base_channels cannot differ from 64, got {base_channels}; expected 64")
    return models.vgg16_bn(num_classes=num_classes)


BACKBONES: dict[str, _Family] = {
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _resnet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3)),
    "vgg16_bn": _Family(
        _vgg16_bn,
        "classifier",
        tuple(f"features.{i}" for i in range(44)),
        ("features.22", "features.32", "features.42", "features.43"),  # before the pools, and after the last
    ),
}
"""Name in a config -> how to build it."""

HEADS = tuple(sorted({f"{family.head}." for family in BACKBONES.values()}))
"""Prefixes of the parameters that a detector leaves behind."""
