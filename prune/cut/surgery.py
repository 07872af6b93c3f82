"""Cut a model to kept channels -> a new slim model; the dense one is untouched."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from command.errors import RequestError
from command.files import shown
from prune.copies import copied
from prune.cut.spec import Layer, LayerCut, PruneSpec, layer_of, layer_widths
from prune.follow.branches import without_branch
from prune.follow.layers import cut_dims, is_layer, own_widths, weight_of
from prune.private import bookkeeping
from prune.selection import ChannelSelection

__all__ = ["cut_tensors", "masked_model", "narrowed_model", "removed_of", "slim_model", "unchanged_widths"]


def slim_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Return a copy of `model` that holds only what is kept; tensors shared between layers stay shared.

    No more memory is taken than the slim model needs.

    Raises:
        RequestError: If a layer of the spec is missing or has other widths than the spec was made for, or a block has
            another branch.
    """
    slim = _cut_model(model, spec)
    for name, layers in spec.removed_blocks.items():
        _remove_branch(slim, name, layers)
    return slim


@bookkeeping()
def _cut_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    cut_of: dict[int, Tensor] = {}  # deepcopy's memo: it uses these tensors instead of copying the originals
    for name, cut in spec.layers.items():
        layer = layer_of(model, name)
        if layer_widths(layer) != (cut.num_in, cut.num_out):
            raise RequestError(
                f"{shown(name)}: the spec is for another model, got {layer_widths(layer)} (in, out); "
                f"expected {(cut.num_in, cut.num_out)}"
            )
        if isinstance(layer, ChannelSelection):
            cut_of[id(layer.index)] = layer.cut_index(_tensor(cut.kept_in), _tensor(cut.kept_out))
        for tensor, kept_by_dim in cut_tensors(layer, _tensor(cut.kept_in), _tensor(cut.kept_out)):
            cut_of[id(tensor)] = _selected(tensor, kept_by_dim)
    slim = copied(model, cut_of)
    for name, cut in spec.layers.items():
        _store_widths(model, slim, name, cut)
    return slim


def _remove_branch(model: nn.Module, name: str, layers: tuple[str, ...]) -> None:
    block = layer_of(model, name)
    if not isinstance(block, nn.Module):
        raise RequestError(f"{shown(name)}: cannot be removed, got {type(block).__name__}; expected a residual block")
    owner, _, key = name.rpartition(".")
    model.get_submodule(owner)._modules[key] = without_branch(block, layers, name)


def unchanged_widths(slim: nn.Module, spec: PruneSpec) -> dict[str, int]:
    """Return attributes, by their path, that still hold an old width of a layer cut below their module."""
    found: dict[str, int] = {}
    modules = dict(slim.named_modules(remove_duplicate=False))
    for name, (num_in, num_out) in spec.widths().items():
        cut = spec.layers[name]
        old = {num for num, left in ((cut.num_in, num_in), (cut.num_out, num_out)) if left != num}
        for end in [0, *(place for place, letter in enumerate(name) if letter == ".")]:
            module = modules.get(name[:end])  # none of a list
            held = {} if module is None or is_layer(module) else vars(module)
            found |= {f"{name[:end]}.{key}".lstrip("."): n for key, n in held.items() if type(n) is int and n in old}
    return {path: num for path, num in found.items() if path not in spec.layers}


def narrowed_model(
    model: nn.Module,
    widths: Mapping[str, tuple[int, int]],
    removed_blocks: Mapping[str, tuple[str, ...]] | None = None,
) -> nn.Module:
    """Return a copy with each named layer at (inputs, outputs) width; it has the first weights until others load.

    Args:
        model: The dense one.
        widths: `PruneSpec.widths`.
        removed_blocks: Those of the spec.

    Raises:
        RequestError: If a layer is missing or narrower than the given widths.
    """
    layers = {}
    for name, (num_in, num_out) in widths.items():
        has_in, has_out = layer_widths(layer_of(model, name))
        if num_in > has_in or num_out > has_out:
            raise RequestError(
                f"{name}: cannot be widened, got {(num_in, num_out)}; expected at most {(has_in, has_out)}"
            )
        _, left = widths.get(f"{name}.groups", (1, 1))
        groups = layer_widths(layer_of(model, f"{name}.groups"))[0] if f"{name}.groups" in widths else 1
        kept_out, kept_in = (
            _first_of_each(of // groups, num // left, left) for num, of in ((num_out, has_out), (num_in, has_in))
        )
        layers[name] = LayerCut(kept_out, kept_in, has_out, has_in)
    return slim_model(model, PruneSpec(layers, removed_blocks or {}))


def _first_of_each(width: int, num: int, groups: int) -> tuple[int, ...]:
    """Return the first `num` indices of each of the first groups, which are `width` wide."""
    return tuple(group * width + index for group in range(groups) for index in range(num))


@bookkeeping()
def masked_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Return a copy of full width whose removed channels are zero: the slim model's twin for checks.

    In eval mode both give the same outputs. A removed channel is neither written (weights, biases and BatchNorm's
    weight and bias are zero) nor read (so are the weights of its inputs). A removed block's branch gives zero.
    """
    masked = copied(model, {})
    for block, layers in spec.removed_blocks.items():
        for parameter in masked.get_submodule(f"{block}.{layers[-1]}").parameters():
            parameter.data.zero_()
    for name, cut in spec.layers.items():
        layer = layer_of(masked, name)
        for tensor, kept_by_dim in cut_tensors(layer, _tensor(cut.kept_in), _tensor(cut.kept_out)):
            for dim, kept in kept_by_dim.items() if isinstance(tensor, nn.Parameter) else ():
                tensor.data.index_fill_(dim, removed_of(tensor, dim, kept), 0)
    return masked


def removed_of(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    """Return the other indices of that dimension, on the tensor's device."""
    is_removed = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill_(0, kept, False)
    return is_removed.nonzero()[:, 0].to(tensor.device)


def _tensor(kept: tuple[int, ...] | None) -> Tensor | None:
    return None if kept is None else torch.tensor(kept, dtype=torch.long)


def cut_tensors(
    layer: Layer, kept_in: Tensor | None, kept_out: Tensor | None
) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """Return every tensor of the layer that is cut, with the kept indices per dimension."""
    tensors: list[tuple[Any, dict[int, Tensor | None]]] = []
    if isinstance(layer, Tensor):
        kept = {"out": kept_out, "in": kept_in}
        tensors = [(layer, {dim: kept[side] for side, dim in cut_dims(layer).items()})]
    elif isinstance(layer, _BatchNorm):
        tensors = [(t, {0: kept_out}) for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
    elif isinstance(layer, nn.Module) and not isinstance(layer, ChannelSelection):  # it is cut by its own method
        rows, columns = (kept_in, kept_out) if getattr(layer, "transposed", False) else (kept_out, kept_in)
        weight = weight_of(layer)
        if columns is not None and getattr(layer, "groups", 1) > 1:
            columns = (columns % weight.shape[1]).unique()  # each row has those of its own group
            columns = columns if len(columns) < weight.shape[1] else None
        tensors = [(weight, {0: rows, 1: columns}), (getattr(layer, "bias", None), {0: kept_out})]
    found = [(t, {dim: kept for dim, kept in dims.items() if kept is not None}) for t, dims in tensors if t is not None]
    return [(tensor, dims) for tensor, dims in found if dims]


def _selected(tensor: Tensor, kept_by_dim: dict[int, Tensor]) -> Tensor:
    new = tensor.detach()
    for dim, kept in kept_by_dim.items():
        new = new.index_select(dim, kept.to(tensor.device))
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _store_widths(model: nn.Module, slim: nn.Module, name: str, cut: LayerCut) -> None:
    """Set the attributes of the slim model that hold a width of the layer, tensor or attribute of that name."""
    layer = layer_of(model, name)
    if isinstance(layer, nn.Module):
        _store_layer_widths(slim.get_submodule(name), cut)
        return
    if isinstance(layer, int):
        _store_number(slim, name, layer if cut.kept_out is None else len(cut.kept_out))
        return
    owner, _, key = name.rpartition(".")
    module = slim.get_submodule(owner)
    for attribute, (tensor, side) in own_widths(model.get_submodule(owner)).items():
        if tensor == key:
            size = getattr(module, key).shape[cut_dims(layer)[side]]
            vars(module)[attribute] = (size,) if isinstance(vars(module)[attribute], tuple) else size


def _store_number(slim: nn.Module, name: str, number: int) -> None:
    """Set an attribute, or one of those in a list or tuple."""
    owner, _, key = name.rpartition(".")
    try:
        vars(slim.get_submodule(owner))[key] = number
    except AttributeError:
        owner, _, listed = owner.rpartition(".")
        held = vars(slim.get_submodule(owner))
        items = held[listed] if isinstance(held[listed], list) else [*held[listed]]
        items[int(key)] = number
        held[listed] = items if isinstance(held[listed], list) else tuple(items)


def _store_layer_widths(layer: Any, cut: LayerCut) -> None:
    if isinstance(layer, _BatchNorm):
        layer.num_features = layer.running_mean.shape[0] if layer.running_mean is not None else layer.weight.shape[0]
    elif isinstance(layer, ChannelSelection):
        layer.num_in = len(cut.kept_in) if cut.kept_in else layer.num_in
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight_of(layer).shape
    else:
        kept, num = (cut.kept_in, cut.num_in) if cut.kept_in else (cut.kept_out or (), cut.num_out)
        layer.groups = len({index // (num // layer.groups) for index in kept}) or layer.groups
        rows, columns = weight_of(layer).shape[:2]
        others = columns * layer.groups
        layer.in_channels, layer.out_channels = (
            (rows, others) if getattr(layer, "transposed", False) else (others, rows)
        )
