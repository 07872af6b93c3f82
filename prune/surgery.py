"""Cut a model to kept channels -> a new slim model; the dense one is untouched."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prune.spec import LayerCut, PruneSpec, layer_widths

__all__ = ["masked_model", "narrowed_model", "slim_model"]


def slim_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Return a copy of `model` that holds only the kept channels.

    Raises:
        ValueError: If a layer of the spec is missing or has other widths than the spec was made for.
    """
    slim = copy.deepcopy(model)
    for name, cut in spec.layers.items():
        layer = _layer(slim, name)
        if layer_widths(layer) != (cut.num_in, cut.num_out):
            raise ValueError(
                f"{name}: the spec is for another model, got {layer_widths(layer)} (in, out); "
                f"expected {(cut.num_in, cut.num_out)}"
            )
        _cut_layer(layer, _tensor(cut.kept_in), _tensor(cut.kept_out))
    return slim


def narrowed_model(model: nn.Module, widths: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Return a copy with each named layer at (inputs, outputs) width; weights are the first ones, for loading over.

    Raises:
        ValueError: If a layer is missing or narrower than asked.
    """
    layers = {}
    for name, (num_in, num_out) in widths.items():
        has_in, has_out = layer_widths(_layer(model, name))
        if num_in > has_in or num_out > has_out:
            raise ValueError(
                f"{name}: cannot be widened, got {(num_in, num_out)}; expected at most {(has_in, has_out)}"
            )
        layers[name] = LayerCut(tuple(range(num_out)), tuple(range(num_in)), has_out, has_in)
    return slim_model(model, PruneSpec(layers))


def masked_model(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Return a copy of full width whose removed output channels are zero: the slim model's twin for checks.

    In eval mode both give the same outputs. Weights, biases and BatchNorm's weight and bias are zeroed.
    """
    masked = copy.deepcopy(model)
    for name, cut in spec.layers.items():
        if cut.kept_out is not None:
            removed = sorted(set(range(cut.num_out)) - set(cut.kept_out))
            for parameter in _layer(masked, name).parameters():
                parameter.data[removed] = 0
    return masked


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{name}: the spec is for another model; {type(model).__name__} has no such layer") from error


def _tensor(kept: tuple[int, ...] | None) -> Tensor | None:
    return None if kept is None else torch.tensor(kept)


def _cut_layer(layer: nn.Module, kept_in: Tensor | None, kept_out: Tensor | None) -> None:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, name, 0, kept_out)
    else:
        _select(layer, "weight", 0, kept_out)
        _select(layer, "bias", 0, kept_out)
        _select(layer, "weight", 1, kept_in)
    _store_widths(layer)


def _select(layer: nn.Module, name: str, dim: int, kept: Tensor | None) -> None:
    old = getattr(layer, name)
    if kept is None or old is None:
        return
    new = old.detach().index_select(dim, kept.to(old.device))
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _store_widths(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.num_features = layer.running_mean.shape[0] if layer.running_mean is not None else layer.weight.shape[0]
