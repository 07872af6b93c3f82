"""Whether a model's numbers fit a precision: of its weights, and of what its layers make of pictures."""

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
_LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d)  # between them stand sums, which they are given


def check_finite(subject: Path | str, net: nn.Module, remedy: str) -> None:
    """Raise RequestError at the first weight that is no finite number."""
    for name, tensor in net.state_dict().items():
        if not tensor.isfinite().all():
            raise RequestError(f"{subject}: weight {name} got NaN or infinity; expected finite numbers, {remedy}")


def check_range(subject: str, graph: Any, examples: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise RequestError if a layer takes or gives more than fp16 holds; of other precisions nothing is looked at.

    No runtime computes in fp16 on a CPU, so the rounded weights are run in float32 and every layer is watched.

    Args:
        subject: What the error speaks of.
        graph: Module with a `dtype`, by which it casts what its layers take.
        examples: What it is fed, in the order of its arguments.
    """
    if graph.dtype != torch.float16:
        return
    wide = copy.deepcopy(graph).float()
    for part in wide.modules():
        if getattr(part, "dtype", None) == torch.float16:
            part.dtype = torch.float32
    largest: dict[str, float] = {}

    def look(name: str, layer: nn.Module, given: tuple[Tensor, ...], *gives: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), *(float(tensor.abs().max()) for tensor in (*given, *gives)))

    for name, layer in wide.named_modules():
        if isinstance(layer, _LAYERS):
            layer.register_forward_pre_hook(partial(look, name))  # before ReLU overwrites it
            layer.register_forward_hook(partial(look, name))
    with torch.no_grad():
        for example in examples:
            wide(*example.values())
    for name, value in largest.items():
        if not value <= _FP16_MAX:
            raise RequestError(
                f"{subject}: layer {name} takes or gives too large a value, got {value:.3g}; expected at most "
                f"{_FP16_MAX:.0f}, take bf16 or fp32"
            )
