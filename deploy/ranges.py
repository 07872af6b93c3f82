"""Checks that a model's weights and activations fit the range of a precision."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError

__all__ = ["check_finite", "check_range"]

_FP16_MAX = torch.finfo(torch.float16).max
_LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d)  # sums between them are checked as their inputs


def check_finite(subject: Path | str, weights: Mapping[str, Tensor], remedy: str) -> None:
    """Raise RequestError at the first weight that is not finite."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise RequestError(
                f"{subject}: weight {name} is not finite, got NaN or infinity; expected numbers, {remedy}"
            )


def check_range(subject: str, graph: Any, examples: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise RequestError if a layer's inputs or outputs exceed the range of fp16; other precisions are not checked.

    No runtime computes in fp16 on a CPU, so the rounded weights are run in fp32 and every layer is recorded.

    Args:
        subject: Begins the error message.
        graph: Module with a `dtype`, to which it casts the inputs of its layers.
        examples: Inputs, in the order of its arguments.
    """
    if graph.dtype != torch.float16:
        return
    wide = copy.deepcopy(graph).float()
    for part in wide.modules():
        if getattr(part, "dtype", None) == torch.float16:
            part.dtype = torch.float32
    largest: dict[str, float] = {}

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], *outputs: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), *(float(tensor.abs().max()) for tensor in (*inputs, *outputs)))

    for name, layer in wide.named_modules():
        if isinstance(layer, _LAYERS):
            layer.register_forward_pre_hook(partial(record, name))  # before ReLU overwrites it
            layer.register_forward_hook(partial(record, name))
    with torch.no_grad():
        for example in examples:
            wide(*example.values())
    for name, value in largest.items():
        if not value <= _FP16_MAX:
            raise RequestError(
                f"{subject}: layer {name} exceeds the range of fp16, got {value:.3g}; expected at most "
                f"{_FP16_MAX:.0f}, use bf16 or fp32"
            )
