"""PruneSpec: which channels of which layers stay. JSON in and out; rebuilds a slim model without dense weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, with_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from command.errors import RequestError
from command.files import shown
from prune.follow.groups import Group
from prune.follow.layers import cut_dims, is_layer, is_producer, own_widths
from prune.held_tensors import modules_of
from prune.selection import ChannelSelection

__all__ = ["Layer", "LayerCut", "PruneSpec", "check_removed", "layer_of", "layer_widths"]

_VERSION: Literal[1] = 1
_WITH_BLOCKS: Literal[2] = 2
"""Version of specs that remove blocks: readers of version 1 alone would build the blocks again."""
_T = TypeVar("_T")
_GROUPS = ".groups"
"""Ends the name under which a grouped convolution that is cut within its groups is listed again, with the groups left;
one that is not has lost whole groups."""
_MOST_DIGITS = 10
"""Of a place in a list."""


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

    def check_widths(self, name: str, widths: tuple[int, int]) -> None:
        """Raise RequestError unless these (inputs, outputs) of the layer of that name are what the cut leaves."""
        for got, kept in zip(widths, (self.kept_in, self.kept_out), strict=True):
            if kept is not None and got != len(kept):
                raise _of_another_model(name, f"{got} channels", len(kept))

    def check_layer(self, name: str, layer: "Layer") -> None:
        """Raise RequestError unless the layer, tensor or attribute of that name is as wide as the cut leaves it.

        A tensor's side of one channel counts no more among its `cut_dims`: the spec tells which one it was.
        """
        widths = layer_widths(layer)
        ones = [kept is not None and len(kept) == 1 for kept in (self.kept_out, self.kept_in)]
        if isinstance(layer, Tensor) and [*layer.shape].count(1) >= sum(ones):
            long = iter([size for size in layer.shape if size > 1])
            num_out, num_in = (1 if is_one else next(long, 1) for is_one in ones)
            widths = num_in, num_out
        self.check_widths(name, widths)


@dataclass(frozen=True)
class PruneSpec:
    """Kept indices per layer name; layers that are absent are untouched.

    A tensor outside the layers that surgery knows (a scale per channel, a buffer) and an attribute that counts channels
    are listed under their own names.
    """

    layers: Mapping[str, LayerCut]
    removed_blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Residual block -> the layers of its branch, named from the block, in the order of the forward pass.

    They are gone; the block's shortcut stays, with what follows the sum. See `prune.follow.branches`."""

    def __post_init__(self) -> None:
        """Raise RequestError for kept indices that no layer has, and for blocks that cannot be removed."""
        for name, cut in self.layers.items():
            _check_indices(name, cut)
        for block, layers in self.removed_blocks.items():
            if not block or not layers:
                raise RequestError(f"PruneSpec: {shown(block) or 'the model'} loses no branch; expected its layers")
        if gone := [name for name in self.layers if self.is_removed(name)]:
            raise RequestError(f"PruneSpec: {shown(gone[0])} is cut in a removed block; expected one of both")

    def is_removed(self, layer: str) -> bool:
        """Return whether the layer, or what it is part of, goes with a removed block."""
        return any(layer == gone or layer.startswith(f"{gone}.") for gone in self._removed)

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
        names = [name for name, _ in modules_of(model).items() if name in stays]
        names += [name for name in stays if name not in names]
        layers = {name: _layer_cut(layer_of(model, name), stays[name]) for name in names}
        for name in [name for name in names if _is_cut_within_groups(layer_of(model, name), stays[name])]:
            num = layer_widths(layer_of(model, name + _GROUPS))[0]
            layers[name + _GROUPS] = LayerCut(num_out=num, num_in=num)
        return cls(layers)

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        layers = {name: vars(cut) for name, cut in self.layers.items()}
        if not self.removed_blocks:
            return json.dumps({"version": _VERSION, "layers": layers})
        return json.dumps({"version": _WITH_BLOCKS, "layers": layers, "removed_blocks": {**self.removed_blocks}})

    @classmethod
    def from_json(cls, text: str | bytes) -> "PruneSpec":
        """Read a spec from JSON text, or from its bytes in UTF-8.

        Raises:
            RequestError: If the text is not a spec of a version known here.
        """
        try:
            file = _File.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "text"
            raise RequestError(
                f"PruneSpec: not a spec, got {shown(where)}: {fault['msg']}; expected the JSON of PruneSpec"
            ) from error
        if file.removed_blocks and file.version != _WITH_BLOCKS:
            raise RequestError(f"PruneSpec: removed_blocks in version {file.version}; expected version {_WITH_BLOCKS}")
        return cls(file.layers, file.removed_blocks)

    def after(self, first: "PruneSpec") -> "PruneSpec":
        """Return the spec that does in one step what `first` does and then this one, made for the slim model.

        Raises:
            RequestError: If this one was made for another model than `first` gives.
        """
        twice = [name for name in (*self.layers, *self._removed) if first.is_removed(name)]
        if twice:
            raise _of_another_model(twice[0], "a layer of a removed block", "one that is left")
        before, layers = (
            {name: cut for name, cut in first.layers.items() if not self.is_removed(name)},
            dict(self.layers),
        )
        for name in [name for name in {**before, **layers} if name.endswith(_GROUPS)]:
            layer = name.removesuffix(_GROUPS)
            if name not in before and layer in before:  # it cut whole groups, whose width stayed
                cut, left = before[layer], layers[name].num_out
                width = _size(cut.kept_out, cut.num_out) // max(left, 1)
                before[name] = _whole_groups(name, cut, cut.num_out // max(width, 1))
            elif name not in layers and layer in layers:
                num_groups = _size(before[name].kept_out, before[name].num_out)
                layers[name] = _whole_groups(name, layers[layer], num_groups)
        composed = {name: _composed(name, before.get(name), cut) for name, cut in layers.items()}
        return PruneSpec({**before, **composed}, {**first.removed_blocks, **self.removed_blocks})

    def under(self, prefix: str) -> "PruneSpec":
        """Return the part of the spec below a submodule, with names relative to it; `prefix` ends with a dot."""
        return PruneSpec(_below(prefix, self.layers), _below(prefix, self.removed_blocks))

    @cached_property
    def _removed(self) -> frozenset[str]:
        """The layers that go with removed blocks, by their whole names."""
        return frozenset(f"{block}.{name}" for block, layers in self.removed_blocks.items() for name in layers)

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) kept per layer: enough to rebuild the architecture, and short."""
        return {name: (_size(c.kept_in, c.num_in), _size(c.kept_out, c.num_out)) for name, c in self.layers.items()}


def check_removed(model: nn.Module, spec: PruneSpec) -> None:
    """Raise RequestError if a model still has the branch of a block that the spec removes."""
    for name in modules_of(model):
        if spec.is_removed(name):
            raise _of_another_model(name, "a layer of a removed block", "a model without it")


Layer = nn.Module | Tensor | int
"""A layer, or a parameter, buffer or whole number of a module, or of a list or tuple of numbers that it has."""


def layer_of(model: nn.Module, name: str) -> Layer:
    """Return the layer, tensor or attribute of that name; no code of the model's own runs.

    Raises:
        RequestError: If there is none.
    """
    owner, _, key = name.rpartition(".")
    found = _held(model, owner).get(key)
    if found is None and key.isdecimal() and len(key) < _MOST_DIGITS:
        owner, _, key = owner.rpartition(".")
        listed = _held(model, owner).get(key)
        found = dict(enumerate(listed)).get(int(name.rpartition(".")[2])) if isinstance(listed, list | tuple) else None
    if type(found) is int and key != "groups" and is_layer(_module(model, owner)):
        found = None  # its stride, say: its widths follow from those of its weight
    if not isinstance(found, nn.Module | Tensor) and type(found) is not int:
        raise RequestError(f"{shown(name)}: the spec is for another model; {type(model).__name__} has no such layer")
    return found


def _held(model: nn.Module, name: str) -> dict[str, object]:
    """Return what the module of that name holds, by its key; nothing if there is no such module."""
    module = _module(model, name)
    return {**vars(module), **module._modules, **module._parameters, **module._buffers} if module is not None else {}


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module of that name, None where there is none."""
    module: nn.Module | None = model
    for key in name.split(".") if name else ():
        module = None if module is None else module._modules.get(key)
    return module


def layer_widths(layer: Layer) -> tuple[int, int]:
    """Return (inputs, outputs) of a convolution, linear or batch normalisation layer, a tensor or an attribute.

    Raises:
        RequestError: If it is none of these.
    """
    if isinstance(layer, int):
        return layer, layer
    if isinstance(layer, Tensor):
        sizes = [layer.shape[dim] for dim in cut_dims(layer).values()] or [layer.numel()]
        return sizes[-1], sizes[0]
    if isinstance(layer, _BatchNorm):
        return layer.num_features, layer.num_features
    if isinstance(layer, ChannelSelection):
        return layer.num_in, len(layer.index)
    if is_producer(layer):
        num_in, num_out = (vars(layer)[key] for key in own_widths(layer))
        return num_in, num_out
    raise RequestError(f"layer: has no widths, got {type(layer).__name__}; expected a convolution, linear or BatchNorm")


def _layer_cut(layer: Layer, stays: Mapping[str, Tensor]) -> LayerCut:
    num_in, num_out = layer_widths(layer)
    return LayerCut(_indices(stays.get("out")), _indices(stays.get("in")), num_out, num_in)


def _whole_groups(name: str, cut: LayerCut, num_groups: int) -> LayerCut:
    """Return which groups are left by a cut of whole groups.

    Raises:
        RequestError: If it is none.
    """
    kept = tuple(range(cut.num_out)) if cut.kept_out is None and cut.kept_in is None else cut.kept_out or ()
    width = cut.num_out // max(num_groups, 1)
    left = tuple(sorted({index // width for index in kept})) if width else ()
    if not left or width * num_groups != cut.num_out or width * len(left) != len(kept):
        raise _of_another_model(name, f"{len(kept)} of {cut.num_out} channels", f"whole ones of {num_groups} groups")
    return LayerCut(left, None, num_groups, num_groups)


def _composed(name: str, first: LayerCut | None, second: LayerCut) -> LayerCut:
    if first is None:
        return second
    second = _with_lost_side(first, second)
    first.check_widths(name, (second.num_in, second.num_out))
    kept_out, kept_in = _both(first.kept_out, second.kept_out), _both(first.kept_in, second.kept_in)
    return LayerCut(kept_out, kept_in, first.num_out, first.num_in)


def _with_lost_side(first: LayerCut, second: LayerCut) -> LayerCut:
    """Return the second cut with the side of a tensor that the first one left with one channel.

    `cut_dims` passes over such a side, so that the second cut calls the other one "out".
    """
    left_out, left_in = (_size(first.kept_out, first.num_out), _size(first.kept_in, first.num_in))
    if second.kept_in is not None or (second.num_in, second.num_out) == (left_in, left_out):
        return second
    if left_out == 1 < first.num_out and second.num_out == left_in:
        return LayerCut(None, second.kept_out, 1, left_in)
    if left_in == 1 < first.num_in and second.num_out == left_out:
        return LayerCut(second.kept_out, None, left_out, 1)
    return second


def _both(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if first is None or second is None:
        return second if first is None else first
    return tuple(first[index] for index in second)


def _is_cut_within_groups(layer: Layer, stays: Mapping[str, Tensor]) -> bool:
    groups = [is_kept.view(getattr(layer, "groups", 1), -1) for is_kept in stays.values()]
    return getattr(layer, "groups", 1) > 1 and any((g.any(1) != g.all(1)).any() for g in groups)


def _indices(stays: Tensor | None) -> tuple[int, ...] | None:
    return None if stays is None else tuple(stays.nonzero().flatten().tolist())


class _File(BaseModel):
    version: Literal[1, 2]
    layers: dict[str, LayerCut]
    removed_blocks: dict[str, tuple[str, ...]] = {}


def _below(prefix: str, named: Mapping[str, _T]) -> dict[str, _T]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _of_another_model(name: str, got: object, expected: object) -> RequestError:
    return RequestError(f"{shown(name)}: the spec is for another model, got {got}; expected {expected}")


def _check_indices(name: str, cut: LayerCut) -> None:
    for kept, num in ((cut.kept_out, cut.num_out), (cut.kept_in, cut.num_in)):
        if kept is not None and not (kept and list(kept) == sorted(set(kept)) and 0 <= kept[0] <= kept[-1] < num):
            raise RequestError(
                f"PruneSpec: {shown(name)} keeps {shown(str(list(kept)[:8]))}; expected ascending indices below {num}"
            )


def _size(kept: tuple[int, ...] | None, num: int) -> int:
    return num if kept is None else len(kept)
