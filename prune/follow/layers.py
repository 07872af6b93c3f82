"""What modules say of their own channels: which are layers, what a weight is made of, attributes that hold a width."""

import re
from typing import Literal, TypeGuard

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from prune.selection import ChannelSelection

__all__ = ["cut_dims", "is_layer", "is_producer", "own_widths", "vectors_of", "weight_of"]

Place = tuple[str, Literal["out", "in"]]
"""A tensor of a module by its key (empty: the layer itself), and which of its sides."""


def is_producer(module: object) -> TypeGuard[nn.Module]:
    """Return whether the module computes new channels: a convolution (transposed, deformable) or a linear layer."""
    if isinstance(module, _ConvNd | nn.Linear):
        own = module._parameters.get("weight")
        weights = module.parameters() if own is None else [own]  # what a weight is computed from is in a submodule
        return any(parameter.ndim > 1 and parameter.numel() for parameter in weights)
    return _is_convolution(module)


def is_layer(module: nn.Module | None) -> bool:
    """Return whether surgery knows the module as a whole."""
    return is_producer(module) or isinstance(module, _BatchNorm | ChannelSelection)


def _is_convolution(module: object) -> bool:
    """Return whether a foreign module has what a convolution has."""
    weight = module._parameters.get("weight") if isinstance(module, nn.Module) else None  # runs no property
    if weight is None or weight.ndim < 3:
        return False
    num_in, num_out, groups = (vars(module).get(key, 0) for key in ("in_channels", "out_channels", "groups"))
    return groups > 0 and weight.shape[:2] == (num_out, num_in // groups)


def weight_of(layer: nn.Module) -> Tensor:
    """Return the parameter that is cut with the layer: its weight, or what a parametrization computes that from."""
    if is_parametrized(layer, "weight"):
        return max(layer.get_submodule("parametrizations.weight").parameters(recurse=False), key=Tensor.numel)
    own = dict(layer.named_parameters(recurse=False))
    return own["weight"] if "weight" in own else max(own.values(), key=Tensor.numel)  # a hook computes it from that


def cut_dims(tensor: Tensor) -> dict[Literal["out", "in"], int]:
    """Return the dimensions of a free parameter or buffer that may hold channels: the first two longer than 1."""
    long = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    return dict(zip(("out", "in"), long, strict=False))


def vectors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's own floating tensors with channels, beside a layer's weight and bias."""
    known = {"weight", "bias", "running_mean", "running_var"} if is_layer(module) else set()
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {
        key: tensor
        for key, tensor in own.items()
        if key not in known and tensor.is_floating_point() and tensor.numel() > 1
    }


def own_widths(module: nn.Module) -> dict[str, Place]:
    """Return which attributes hold a width of the module's own channels, and whose."""
    if isinstance(module, nn.Linear):
        return {"in_features": ("", "in"), "out_features": ("", "out")}
    if is_producer(module):
        return {"in_channels": ("", "in"), "out_channels": ("", "out")}
    if isinstance(module, _BatchNorm):
        return {"num_features": ("", "out")}
    if not module._parameters and not module._buffers:
        return {}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and len(cut_dims(module.weight)) == 2:
        return {"num_embeddings": ("weight", "out"), "embedding_dim": ("weight", "in")}
    places: dict[int, Place] = {}
    for key, tensor in vectors_of(module).items():
        for side, dim in cut_dims(tensor).items():
            places.setdefault(tensor.shape[dim], (key, side))
    numbers = {key: size for key, size in _whole_numbers(module).items() if _NAMES.search(key)}
    return {key: places[size] for key, size in numbers.items() if size in places}


_NAMES = re.compile(r"(channels|features|planes|chs|dims?|width|normalized_shape|num_parameters)$")
"""Of attributes that hold a width; any other number may be equal to one by chance."""


def _whole_numbers(module: nn.Module) -> dict[str, int]:
    """Return the attributes that are a whole number above 1, or a tuple of one (as `normalized_shape` is)."""
    values = {
        key: value[0] if isinstance(value, tuple) and len(value) == 1 else value for key, value in vars(module).items()
    }
    return {key: value for key, value in values.items() if type(value) is int and value > 1}
