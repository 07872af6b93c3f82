"""Cut a model to kept channels -> a new slim model; the dense one is untouched."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from command.errors import RequestError
from prune.cut.spec import LayerCut, PruneSpec, layer_of, layer_widths

__all__ = ["cut_tensors", "masked_model", "narrowed_model", "removed_of", "slim_model"]


def slim_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Return a copy of `model` that holds only the kept channels; tensors shared between layers stay shared.

    No more memory is taken than the slim model needs.

    Raises:
        RequestError: If a layer of the spec is missing or has other widths than the spec was made for.
    """
    cut_of: dict[int, Tensor] = {}  # deepcopy's memo: it uses these tensors instead of copying the originals
    for name, cut in spec.layers.items():
        layer = layer_of(model, name)
        if layer_widths(layer) != (cut.num_in, cut.num_out):
            raise RequestError(
                f"{name}: the spec is for another model, got {layer_widths(layer)} (in, out); "
                f"expected {(cut.num_in, cut.num_out)}"
            )
        for tensor, kept_by_dim in cut_tensors(layer, _tensor(cut.kept_in), _tensor(cut.kept_out)):
            cut_of[id(tensor)] = _selected(tensor, kept_by_dim)
    slim = copy.deepcopy(model, dict(cut_of))
    for name in spec.layers:
        _store_widths(layer_of(slim, name))
    return slim


def narrowed_model(model: nn.Module, widths: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Return a copy with each named layer at (inputs, outputs) width; it has the first weights until others load.

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
        layers[name] = LayerCut(tuple(range(num_out)), tuple(range(num_in)), has_out, has_in)
    return slim_model(model, PruneSpec(layers))


def masked_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Return a copy of full width whose removed channels are zero: the slim model's twin for checks.

    In eval mode both give the same outputs. A removed channel is neither written (weights, biases and BatchNorm's
    weight and bias are zero) nor read (so are the weights of its inputs).
    """
    masked = copy.deepcopy(model)
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
    layer: nn.Module | nn.Parameter, kept_in: Tensor | None, kept_out: Tensor | None
) -> list[tuple[Tensor, dict[int, Tensor]]]:
    """Return every tensor of the layer that is cut, with the kept indices per dimension."""
    tensors: list[tuple[Tensor | None, dict[int, Tensor | None]]]
    if isinstance(layer, nn.Parameter):
        tensors = [(layer, {next((dim for dim, size in enumerate(layer.shape) if size > 1), 0): kept_out})]
    elif isinstance(layer, _BatchNorm):
        tensors = [(t, {0: kept_out}) for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)]
    else:
        assert isinstance(layer, _ConvNd | nn.Linear)
        out_dim = 1 if getattr(layer, "transposed", False) else 0
        grouped = getattr(layer, "groups", 1) > 1  # each group of the convolution stays whole or goes
        kept_by_dim = {out_dim: kept_out} if grouped else {out_dim: kept_out, 1 - out_dim: kept_in}
        tensors = [(layer.weight, kept_by_dim), (layer.bias, {0: kept_out})]
    found = [(t, {dim: kept for dim, kept in dims.items() if kept is not None}) for t, dims in tensors if t is not None]
    return [(tensor, dims) for tensor, dims in found if dims]


def _selected(tensor: Tensor, kept_by_dim: dict[int, Tensor]) -> Tensor:
    new = tensor.detach()
    for dim, kept in kept_by_dim.items():
        new = new.index_select(dim, kept.to(tensor.device))
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _store_widths(layer: nn.Module | nn.Parameter) -> None:
    if isinstance(layer, _ConvNd):
        rows, columns = layer.weight.shape[:2]
        if layer.groups > 1:
            layer.groups = rows // (layer.out_channels // layer.groups)
        read = columns * layer.groups
        layer.in_channels, layer.out_channels = (rows, columns) if layer.transposed else (read, rows)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _BatchNorm):
        layer.num_features = layer.running_mean.shape[0] if layer.running_mean is not None else layer.weight.shape[0]
