"""How far the outputs of two networks are apart, where they should be equal but for rounding."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from prune.cut.difference import shapes_of, wide
from prune.cut.verify import InDouble
from prune.modes import FORWARD_ERRORS
from prune.private import Call, Inputs, PrivateModel

__all__ = ["ROUNDING", "largest_difference"]

ROUNDING = 1e-4
"""Largest difference of outputs, relative to the largest, that sums in another order and float32 constants explain."""


def largest_difference(one: nn.Module, other: nn.Module, example_inputs: Inputs) -> float:
    """Return the largest difference of two networks' outputs in eval mode, relative to the largest number of each.

    They read random numbers, or the example itself where these are out of their range, and compute in float64 if they
    can. Infinite where shapes differ, one of them fails, or gives what is no finite number.
    """
    call = Call.of(example_inputs)
    expected, in_double, given = _first_that_runs(one, call)
    try:
        actual = _run(other, given, in_double)
    except FORWARD_ERRORS:
        return torch.inf
    if shapes_of(expected) != shapes_of(actual):
        return torch.inf
    return max((_apart(wide(a), wide(b)) for a, b in zip(expected, actual, strict=True)), default=torch.inf)


def _first_that_runs(model: nn.Module, call: Call) -> tuple[list[Tensor], bool, Call]:
    for in_double, given in ((True, call.noise()), (True, call), (False, call.noise())):
        with suppress(*FORWARD_ERRORS):
            return _run(model, given, in_double), in_double, given
    return _run(model, call, False), False, call


def _run(model: nn.Module, call: Call, in_double: bool) -> list[Tensor]:
    modes: list[Any] = [torch.no_grad()]
    if in_double:
        call = call.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor.clone())
        modes.append(InDouble())
    return PrivateModel(model).run(call, *modes)


def _apart(expected: Tensor, actual: Tensor) -> float:
    if not expected.numel():
        return 0.0
    difference = (expected - actual).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float(difference) if difference.isfinite() else torch.inf
