"""Eval mode for a while; every module returns to its own mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["FORWARD_ERRORS", "evaluating", "first_line"]

FORWARD_ERRORS = (Exception,)
"""What a model's own forward pass may raise."""


def first_line(error: Exception) -> str:
    """Return the first line of the error's message, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode; each module's own mode returns afterwards, also one frozen on purpose."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
