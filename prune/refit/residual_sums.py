"""The residual sums that layers feed, found while the model runs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ResidualSums"]


class ResidualSums(TorchDispatchMode):
    """Finds the residual sums that layers' outputs go into, at once or through a BatchNorm.

    Args:
        found: Called with the layer's name, the layer, the sum and the layer's factor in it, per channel.
    """

    def __init__(self, found: Callable[[str, nn.Module, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._found = found
        self._open: dict[int, tuple[Tensor, str, nn.Module, Tensor]] = {}  # tensors are kept: no other gets their id

    def __enter__(self) -> "ResidualSums":
        self._open.clear()
        super().__enter__()
        return self

    def follow(self, name: str, layer: nn.Module, output: Tensor) -> None:
        """Look for the sum that this output of a layer goes into."""
        channels = -1 if isinstance(layer, nn.Linear) else 1
        self._open[id(output)] = (output, name, layer, torch.ones(output.shape[channels]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for place, read in enumerate(() if kwargs else args[:2]):  # a factor is given by name
            if isinstance(read, Tensor) and (known := self._open.get(id(read))) and known[0] is read:
                self._pass_on(func, args, place, known, out)
        return out

    def _pass_on(
        self, func: Any, args: Any, place: int, known: tuple[Tensor, str, nn.Module, Tensor], out: Any
    ) -> None:
        read, name, layer, scale_O = known
        if "batch_norm" in func.name() and place == 0:
            normed = out[0] if isinstance(out, tuple) else out
            self._open[id(normed)] = (normed, name, layer, scale_O * _factor(args))
        elif func in _ADDITIONS and isinstance(other := args[1 - place], Tensor) and other.shape == read.shape:
            del self._open[id(read)]
            self._found(name, layer, out, scale_O)
        elif func._schema.is_mutable and place == 0:
            del self._open[id(read)]


_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


def _factor(args: Sequence[Any]) -> Tensor:
    """Return what BatchNorm in eval mode multiplies each channel by; one that is next to nothing is 0."""
    weight, variance, epsilon = args[1], args[4], args[-1]
    factor_O = (variance + epsilon).rsqrt() * (1 if weight is None else weight)
    return factor_O.masked_fill(factor_O.abs() < 1e-6 * factor_O.abs().max(), 0).float().cpu()
