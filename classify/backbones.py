"""Classification networks by name, and their feature stages.

A `Trunk` is a network without its head: it keeps the parameter names, so that weights and pruning specs move between
a classifier and a detector unchanged.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.convnext import CNBlock
from torchvision.models.resnet import ResNet
from torchvision.models.vgg import cfgs, make_layers

from classify.cifar import CifarResNet, cifar_vgg16, cifar_vgg19
from classify.data import MEAN, STD
from classify.own_backbone import Rgb, call_named, check_named, name_backbone
from classify.preactivation import CifarDenseNet, CifarPreResNet
from classify.selecting import resnet50_select
from command.config import check_name
from command.errors import RequestError
from command.own_code import failure, is_own_code
from prune.cut.spec import PruneSpec
from prune.cut.surgery import narrowed_model
from prune.modes import evaluating

__all__ = [
    "BACKBONES",
    "HEADS",
    "Architecture",
    "Branches",
    "Trunk",
    "Widths",
    "build_classifier",
    "build_trunk",
    "check_backbone",
    "default_crop_share",
    "default_normalisation",
    "default_side",
    "heads_of",
    "initialize",
    "stage_shapes",
    "weightless",
]

_Width = Annotated[int, Field(ge=1, le=10**6)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
Widths = Mapping[_Name, tuple[_Width, _Width]]
"""Layer -> (inputs, outputs)."""
Branches = Mapping[_Name, tuple[_Name, ...]]
"""Residual block -> the layers of its branch, as in `PruneSpec.removed_blocks`."""
_Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a classifier, apart from its weights."""

    name: str
    """A key of `BACKBONES`, or the name of the user's own code; see `classify.own_backbone`."""
    num_classes: Annotated[int, Field(ge=1, le=10**6)]
    base_channels: Annotated[int, Field(ge=1, le=512)] = 64
    """Channels of the stem; the stages follow in proportion. Only torchvision's ResNets can differ from 64."""
    widths: Widths = field(default_factory=dict)
    """(inputs, outputs) of the layers that a slim network has narrower than the dense one."""
    removed_blocks: Branches = field(default_factory=dict)
    """Residual blocks of which a slim network has the shortcut alone."""

    @property
    def is_slim(self) -> bool:
        """Whether anything of it was cut."""
        return bool(self.widths or self.removed_blocks)

    @property
    def dense(self) -> "Architecture":
        """That of which nothing was cut."""
        return self.cut_by(PruneSpec({}))

    def cut_by(self, spec: PruneSpec) -> "Architecture":
        """Return what a spec that counts from the dense network leaves."""
        return replace(self, widths=spec.widths(), removed_blocks=spec.removed_blocks)


@dataclass(frozen=True)
class _Family:
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


def check_backbone(name: str) -> str:
    """Return the name that a config has for a network; code of the user's own is imported.

    Raises:
        RequestError: If it is unknown, or the code does not make a network.
    """
    if is_own_code(name):
        name_backbone(name)
        _own_family(name)
        return name
    return check_name(name, BACKBONES)


def build_classifier(arch: Architecture) -> nn.Module:
    """Return the classifier with random weights.

    Raises:
        RequestError: If the name is unknown, or base channels or widths do not fit the network.
    """
    return narrowed_model(_dense(arch), arch.widths, arch.removed_blocks) if arch.is_slim else _dense(arch)


def build_trunk(arch: Architecture) -> "Trunk":
    """Return the classifier without its head, with random weights.

    Raises:
        RequestError: As `build_classifier`, or if the network has no feature maps of strides 4 to 32.
    """
    family = _family(arch.name)
    if not family.stages:
        known = sorted(name for name, other in BACKBONES.items() if other.stages)
        raise RequestError(
            f"backbone: has no feature maps of strides 4 to 32, got {arch.name!r}; expected one of {known}"
        )
    net = _dense(arch)
    for head in family.heads:
        net.set_submodule(head, nn.Identity())
    widths = {name: width for name, width in arch.widths.items() if not f"{name}.".startswith(heads_of(arch.name))}
    slim = narrowed_model(net, widths, arch.removed_blocks) if arch.is_slim else net
    return Trunk(slim, family.steps, family.stages)


def default_side(name: str) -> int:
    """Return the side of the images that the published weights of a network are for, in pixels.

    Raises:
        RequestError: If the name is unknown.
    """
    return _family(name).image_side


def default_normalisation(name: str) -> tuple[Rgb, Rgb]:
    """Return the mean and standard deviation of the pixels that a network is made for, in 0 to 255.

    Raises:
        RequestError: If the name is unknown.
    """
    return _family(name).normalisation


def heads_of(name: str) -> tuple[str, ...]:
    """Return the prefixes of the parameters that a detector leaves behind; of a network of ours, all known ones.

    Raises:
        RequestError: If code outside Espalier was not named.
    """
    return tuple(f"{head}." for head in _family(name).heads) if is_own_code(name) else HEADS


def default_crop_share(name: str) -> float:
    """Return the share of the scaled image's shorter side in their crops: 224 of 256 on ImageNet, all on CIFAR.

    Raises:
        RequestError: If the name is unknown.
    """
    return 0.875 if default_side(name) == _Family.image_side else 1.0


class Trunk(nn.Module):
    """Runs a network's steps in order and returns the feature maps of its stages, strides 4, 8, 16 and 32.

    Without steps, the network runs itself, and what its stages return is kept.
    """

    def __init__(self, net: nn.Module, steps: tuple[str, ...], stages: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.steps = steps
        self.stages = stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one (N, C, H / stride, W / stride) map per stage for images (N, 3, H, W)."""
        if not self.steps:
            return self._noted(images)
        maps = []
        features = images
        for step in self.steps:
            features = self.net.get_submodule(step)(features)
            if step in self.stages:
                maps.append(features)
        return tuple(maps)

    def _noted(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: dict[str, Tensor] = {}
        hooks = [
            self.net.get_submodule(stage).register_forward_hook(
                lambda *call, stage=stage: maps.update({stage: call[2]})
            )
            for stage in self.stages
        ]
        try:
            self.net(images)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(maps[stage] for stage in self.stages)


def stage_shapes(trunk: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return (channels, stride) of every stage, read from a forward pass."""
    side = 64
    with evaluating(trunk), torch.no_grad():
        maps = trunk(torch.zeros(1, 3, side, side))
    return tuple((m.shape[1], side // m.shape[-1]) for m in maps)


class weightless(TorchFunctionMode):  # noqa: N801  # used as a function
    """Make the networks of a block without memory for their tensors: they have names and shapes only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make tensors on PyTorch's device without memory; not with `torch.device`, as some networks compute sizes."""
        where = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **where})


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


def _family(name: str) -> _Family:
    if is_own_code(name):
        check_named(name)
        return _own_family(name)
    if name not in BACKBONES:
        raise RequestError(f"backbone: unknown, got {name!r}; expected one of {sorted(BACKBONES)}")
    return BACKBONES[name]


@cache
def _own_family(name: str) -> _Family:
    """Return what the user's code says of its networks, checked once on shapes alone."""
    with weightless(), torch.random.fork_rng(devices=[]):
        made = call_named(name, 2)
        trunk = Trunk(made.net, (), tuple(made.stages))
        try:
            strides = [stride for _, stride in stage_shapes(trunk)] if made.stages else []
        except Exception as error:  # whatever the user's network does
            raise RequestError(
                f"backbone: stages of {name} return no maps of an image of 64 pixels, got {failure(error)}; expected "
                "layers that each return one map when the network runs"
            ) from error
    if strides not in ([], [4, 8, 16, 32]):
        raise RequestError(
            f"backbone: stages of {name} are wrong, got maps of strides {strides}; expected 4, 8, 16, 32"
        )
    return _Family(
        lambda num_classes: call_named(name, num_classes).net,
        *(made.heads, (), trunk.stages),
        image_side=made.image_side,
        normalisation=(made.mean_rgb, made.std_rgb),
    )


def _dense(arch: Architecture) -> nn.Module:
    family = _family(arch.name)
    if arch.base_channels == 64:
        return family.build(num_classes=arch.num_classes)
    if family.narrow is None:
        raise RequestError(f"{arch.name}: base_channels cannot differ from 64, got {arch.base_channels}; expected 64")
    net = family.build(num_classes=arch.num_classes)
    family.narrow(net, arch.base_channels)
    initialize(net)
    return net


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


def _resnet(build: _Build) -> _Family:
    steps = ("conv1", "bn1", "relu", "maxpool", *_RESNET_LAYERS)
    return _Family(build, ("fc",), steps, _RESNET_LAYERS, _narrow_resnet)


def _regnet(build: _Build) -> _Family:
    stages = _inside("trunk_output", ("block1", "block2", "block3", "block4"))
    return _Family(build, ("fc",), ("stem", *stages), stages)


def _features(build: _Build, steps: Iterable[object], *stages: object) -> _Family:
    """Steps and stages by their names in the network's `features`."""
    return _Family(build, ("classifier",), _inside("features", steps), _inside("features", stages))


def _cifar(build: _Build, head: str) -> _Family:
    return _Family(_initialized(build), (head,), image_side=32)


BACKBONES: dict[str, _Family] = {
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
}
"""Name in a config -> how to build it.

A stage is the last feature map of its stride: a VGG's before its pools (and after the last one), a MobileNet's or
EfficientNet's last with the convolution that widens it for the head (as in torchvision's MobileNet detector), a
DenseNet's last with its normalisation.
"""

HEADS = tuple(sorted({f"{head}." for family in BACKBONES.values() for head in family.heads}))
"""Prefixes of the parameters that a detector leaves behind."""
