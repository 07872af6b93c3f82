"""Cost of a model, counted on a real forward pass.

The convention, everywhere in the project: `macs` are multiply-adds of convolutions and linear layers for one image;
biases, normalisation, activations and pooling count nothing. `params` are all parameters, shared ones once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune.follow.nodes import is_producer
from prune.modes import evaluating

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


def cost_of(model: nn.Module, example_inputs: tuple[Any, ...]) -> Cost:
    """Count one forward pass in eval mode; the mode of every module is restored afterwards.

    Args:
        model: Any module.
        example_inputs: Positional arguments of `model`, of batch size 1.
    """
    layers: dict[str, LayerCost] = {}
    with evaluating(model), _counting(model, layers), torch.no_grad():
        model(*example_inputs)
    return Cost(
        macs=sum(layer.macs for layer in layers.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
    )


@contextmanager
def _counting(model: nn.Module, layers: dict[str, LayerCost]) -> Iterator[None]:
    def count(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weights_per_row = next(layer.parameters())[0].numel()  # what one output reads; transposed: what one input feeds
        elements = inputs[0].numel() if getattr(layer, "transposed", False) else output.numel()
        before = layers.get(name, LayerCost(0, 0, 0))  # a shared head runs once per level
        layers[name] = LayerCost(
            macs=before.macs + elements * weights_per_row,
            params=sum(parameter.numel() for parameter in layer.parameters()),
            activations=before.activations + output.numel(),
        )

    hooks = [
        module.register_forward_hook(lambda layer, inputs, output, name=name: count(name, layer, inputs, output))
        for name, module in model.named_modules()
        if is_producer(module)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
