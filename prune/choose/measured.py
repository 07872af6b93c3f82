"""Scores measured on data, by a copy of the model in eval mode."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.follow.layers import is_producer
from prune.private import PrivateModel

__all__ = ["Losses", "by_filter", "filter_effects", "input_means"]

Losses = Callable[[nn.Module], Iterator[Tensor]]
"""Yields the loss of one batch after another, each one number, computed by running the given model."""


def by_filter(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return the weight, or its gradient, by output channel: shape (out channels, weights of one filter), float32."""
    weight = weight.detach().float()
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def filter_effects(model: nn.Module, losses: Losses) -> dict[str, Tensor]:
    """Return layer -> |sum of gradient x weight| of each filter, averaged over batches, shape (out channels,).

    Layers that no loss depends on are left out. Frozen parameters count like all others.

    Raises:
        RequestError: If no batch comes, or a loss is not one finite number with a gradient.
    """
    model = PrivateModel(model).model
    layers = _layers(model)
    totals: dict[str, Tensor] = {}
    num_batches = 0
    with torch.enable_grad():
        weights = [layer.get_parameter("weight").requires_grad_() for layer in layers.values()]
        for loss in _checked(losses, model):
            if not loss.requires_grad:
                raise RequestError(
                    "losses: no gradient, got a loss cut off from the weights; expected one with gradient"
                )
            num_batches += 1
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for (name, layer), weight, gradient in zip(layers.items(), weights, gradients, strict=True):
                if gradient is not None:
                    effect_O = (by_filter(layer, gradient) * by_filter(layer, weight)).sum(1).abs()
                    totals[name] = totals.get(name, 0) + effect_O
    return {name: (total / num_batches).cpu() for name, total in totals.items()}


def input_means(model: nn.Module, losses: Losses, number_per_map: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return layer -> mean number per map that it reads, over images, batches and calls, shape (in channels,).

    A convolution reads maps (N, C, H, W); each position of a linear layer's input (..., C) counts as an image of 1 x 1
    maps. Layers that were never called are left out.

    Args:
        model: The model to run.
        losses: Only the forward passes inside it count.
        number_per_map: Maps (N, C, H, W) -> numbers (N, C).

    Raises:
        RequestError: If no batch comes, a loss is not finite, or a layer reads something that is not finite.
    """
    totals: dict[str, Tensor] = {}
    num_maps: dict[str, int] = {}

    def read(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        maps, *_ = (*args, *kwargs.values())
        if not maps.isfinite().all():
            raise RequestError(f"{name}: what it reads is not finite, got NaN or inf; expected finite weights and data")
        num_dims = layer.get_parameter("weight").ndim - 1  # of one image: C for a linear layer, C, H, W for Conv2d
        maps_NCHW = maps.detach().float().reshape(-1, *maps.shape[-num_dims:], 1, 1).flatten(3)
        numbers_NC = number_per_map(maps_NCHW).float()
        totals[name] = totals.get(name, 0) + numbers_NC.sum(0)
        num_maps[name] = num_maps.get(name, 0) + len(numbers_NC)

    model = PrivateModel(model).model
    for name, layer in _layers(model).items():
        layer.register_forward_pre_hook(partial(read, name), with_kwargs=True)
    with torch.no_grad():
        for _ in _checked(losses, model):
            pass
    return {name: (total / num_maps[name]).cpu() for name, total in totals.items()}


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have a weight of their own; that of a parametrized one is computed."""
    layers = {name: layer for name, layer in model.named_modules() if is_producer(layer)}
    return {name: layer for name, layer in layers.items() if "weight" in layer._parameters}


def _checked(losses: Losses, model: nn.Module) -> Iterator[Tensor]:
    number = 0
    for number, loss in enumerate(losses(model), 1):
        if loss.numel() != 1 or not loss.isfinite():
            got = loss.item() if loss.numel() == 1 else f"shape {tuple(loss.shape)}"
            raise RequestError(f"losses: batch {number} gave no finite number, got {got}; expected one per batch")
        yield loss
    if not number:
        raise RequestError("losses: no batch to measure on, got 0; expected at least one")
