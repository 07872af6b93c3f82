"""Classification networks by name, and their feature stages.

A `Trunk` is a network without its head: it keeps the parameter names, so that weights and pruning specs move between
a classifier and a detector unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from classify.families import BACKBONES, HEADS, Family, initialize
from classify.own_backbone import OwnBackbone, Rgb, call_named, check_named, name_backbone
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
    return 0.875 if default_side(name) == Family.image_side else 1.0


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


def _family(name: str) -> Family:
    if is_own_code(name):
        check_named(name)
        return _own_family(name)
    if name not in BACKBONES:
        raise RequestError(f"backbone: unknown, got {name!r}; expected one of {sorted(BACKBONES)}")
    return BACKBONES[name]


@cache
def _own_family(name: str) -> Family:
    """Return what the user's code says of its networks, checked once on shapes alone."""
    with weightless(), torch.random.fork_rng(devices=[]):
        made = call_named(name, 2)
        _check_scores(name, made)
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
    return Family(
        lambda num_classes: call_named(name, num_classes).net,
        *(made.heads, (), trunk.stages),
        image_side=made.image_side,
        normalisation=(made.mean_rgb, made.std_rgb),
    )


def _check_scores(name: str, made: OwnBackbone) -> None:
    """Raise RequestError unless the user's network gives a score for each of its two classes."""
    side = 64 if made.stages else made.image_side
    try:
        with evaluating(made.net), torch.no_grad():
            scores = made.net(torch.zeros(1, 3, side, side))
    except Exception as error:  # whatever the user's network does
        raise RequestError(
            f"backbone: {name} fails on an image of {side} pixels, got {failure(error)}; expected a network for it"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (1, 2):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RequestError(
            f"backbone: {name} scores other classes, got {got} with num_classes=2; expected (1, 2) of one image"
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
