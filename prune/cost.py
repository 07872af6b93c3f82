"""Cost of a model, counted on a real forward pass.

The convention, everywhere in the project: `macs` are multiply-adds of convolutions and linear layers for one image;
biases, normalisation, activations and pooling count nothing. `params` are all parameters, shared ones once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prune.follow.layers import is_producer, weight_of
from prune.private import Call, Inputs, PrivateModel

__all__ = ["Cost", "LayerCost", "cost_of"]


@dataclass(frozen=True)
class LayerCost:
    """Cost of one convolution or linear layer for one image."""

    macs: int
    params: int
    activations: int
    """Elements of the layer's output."""


@dataclass(frozen=True)
class Cost:
    """Whole numbers for one image; `layers` in the order of the forward pass."""

    macs: int
    params: int
    layers: dict[str, LayerCost]


def cost_of(model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None) -> Cost:
    """Count one forward pass in eval mode, of a copy.

    Args:
        model: Any module; it is only read.
        example_inputs: Positional arguments of `model`, of batch size 1.
        example_kwargs: Arguments by name.
    """
    layers: dict[str, LayerCost] = {}

    def count(name: str, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        read, *_ = (*args, *kwargs.values())
        weights_per_row = weight_of(layer)[0].numel()  # what one output reads; transposed: what one input feeds
        elements = read.numel() if getattr(layer, "transposed", False) else output.numel()
        before = layers.get(name, LayerCost(0, 0, 0))  # a shared head runs once per level
        layers[name] = LayerCost(
            macs=before.macs + elements * weights_per_row,
            params=sum(parameter.numel() for parameter in layer.parameters()),
            activations=before.activations + output.numel(),
        )

    private = PrivateModel(model)
    for name, module in private.model.named_modules():
        if is_producer(module):
            module.register_forward_hook(partial(count, name), with_kwargs=True)
    private.run(Call.of(example_inputs, example_kwargs), torch.no_grad())
    return Cost(
        macs=sum(layer.macs for layer in layers.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
    )
