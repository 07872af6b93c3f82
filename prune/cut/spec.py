"""PruneSpec: which channels of which layers stay. JSON in and out; rebuilds a slim model without dense weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, with_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from command.errors import RequestError
from prune.follow.groups import Group

__all__ = ["LayerCut", "PruneSpec", "layer_of", "layer_widths"]

_VERSION: Literal[1] = 1


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class LayerCut:
    """Kept indices of one layer; None on a side that is not cut."""

    kept_out: tuple[int, ...] | None = None
    kept_in: tuple[int, ...] | None = None
    num_out: int = 0
    """Output channels before the cut."""
    num_in: int = 0
    """Input channels before the cut."""


@dataclass(frozen=True)
class PruneSpec:
    """Kept indices per layer name; layers that are absent are untouched.

    A parameter outside the layers that surgery knows (a scale per channel) is listed under its own name.
    """

    layers: Mapping[str, LayerCut]

    @classmethod
    def from_kept(cls, model: nn.Module, kept: Mapping[str, Tensor], groups: list[Group]) -> "PruneSpec":
        """Turn kept channels per group name into kept indices per layer.

        A side that two groups share (after a concatenation) keeps the channels that neither group removes.
        """
        stays: dict[str, dict[str, Tensor]] = {}
        for group in groups:
            if group.name not in kept:
                continue
            is_kept = torch.zeros(group.num_channels, dtype=torch.bool).index_fill_(0, kept[group.name], True)
            for member in group.members:
                num = layer_widths(layer_of(model, member.layer))[member.side == "out"]
                sides = stays.setdefault(member.layer, {})
                sides.setdefault(member.side, torch.ones(num, dtype=torch.bool))
                sides[member.side][member.channels] &= is_kept[member.roots]
        names = [name for name, _ in model.named_modules() if name in stays]
        names += [name for name, _ in model.named_parameters() if name in stays]
        return cls({name: _layer_cut(layer_of(model, name), stays[name]) for name in names})

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        layers = {name: vars(cut) for name, cut in self.layers.items()}
        return json.dumps({"version": _VERSION, "layers": layers})

    @classmethod
    def from_json(cls, text: str | bytes) -> "PruneSpec":
        """Read a spec from JSON text, or from its bytes in UTF-8.

        Raises:
            RequestError: If the text is not a spec of a version known here.
        """
        try:
            layers = _File.model_validate_json(text).layers
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "text"
            raise RequestError(
                f"PruneSpec: not a spec, got {where}: {fault['msg']}; expected the JSON of PruneSpec"
            ) from error
        for name, cut in layers.items():
            _check_indices(name, cut)
        return cls(layers)

    def under(self, prefix: str) -> "PruneSpec":
        """Return the part of the spec below a submodule, with names relative to it; `prefix` ends with a dot."""
        below = {name.removeprefix(prefix): cut for name, cut in self.layers.items() if name.startswith(prefix)}
        return PruneSpec(below)

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) kept per layer: enough to rebuild the architecture, and short."""
        return {name: (_size(c.kept_in, c.num_in), _size(c.kept_out, c.num_out)) for name, c in self.layers.items()}


def layer_of(model: nn.Module, name: str) -> nn.Module | nn.Parameter:
    """Return the layer or the parameter of that name.

    Raises:
        RequestError: If there is neither.
    """
    owner, _, key = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(owner), key)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module | nn.Parameter):
        raise RequestError(f"{name}: the spec is for another model; {type(model).__name__} has no such layer")
    return found


def layer_widths(layer: nn.Module | nn.Parameter) -> tuple[int, int]:
    """Return (inputs, outputs) of a convolution, linear or batch normalisation layer, or of a scale per channel.

    Raises:
        RequestError: If it is none of these.
    """
    if isinstance(layer, _ConvNd):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, _BatchNorm):
        return layer.num_features, layer.num_features
    if isinstance(layer, nn.Parameter):
        return layer.numel(), layer.numel()
    raise RequestError(f"layer: has no widths, got {type(layer).__name__}; expected a convolution, linear or BatchNorm")


def _layer_cut(layer: nn.Module | nn.Parameter, stays: Mapping[str, Tensor]) -> LayerCut:
    num_in, num_out = layer_widths(layer)
    return LayerCut(_indices(stays.get("out")), _indices(stays.get("in")), num_out, num_in)


def _indices(stays: Tensor | None) -> tuple[int, ...] | None:
    return None if stays is None else tuple(stays.nonzero().flatten().tolist())


class _File(BaseModel):
    version: Literal[1]
    layers: dict[str, LayerCut]


def _check_indices(name: str, cut: LayerCut) -> None:
    for kept, num in ((cut.kept_out, cut.num_out), (cut.kept_in, cut.num_in)):
        if kept is not None and not (kept and list(kept) == sorted(set(kept)) and 0 <= kept[0] <= kept[-1] < num):
            raise RequestError(f"PruneSpec: {name} keeps {list(kept)[:8]}; expected ascending indices below {num}")


def _size(kept: tuple[int, ...] | None, num: int) -> int:
    return num if kept is None else len(kept)
