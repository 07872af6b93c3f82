"""Removed channels that are not zero but constant: what they give to the next layer is folded into its bias.

A channel whose BatchNorm scale or filter is zero still gives a number, the same everywhere: activation(beta), or
activation(beta - gamma * mean / std). The next convolution multiplies it by the sum of its kernel, a constant too, so
that its bias can hold it. That is exact unless the convolution pads with zeros: at the border fewer weights of the
kernel meet the constant, while the bias is the same everywhere. Then the inside is exact and the border is not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from command.errors import RequestError
from prune.cut.spec import LayerCut, PruneSpec, layer_of
from prune.cut.surgery import removed_of
from prune.follow.layers import is_producer
from prune.held_tensors import modules_of
from prune.modes import FORWARD_ERRORS
from prune.private import Call, Inputs, PrivateModel

__all__ = ["fold_constants"]

_ROUNDING = 1e-5
"""Largest difference of equal numbers, relative to the largest."""
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
"""Dimensions of the weight -> function."""


def fold_constants(model: nn.Module, spec: PruneSpec, example_inputs: Inputs) -> tuple[str, ...]:
    """Add to the layers of a masked model, in place, what they read from removed channels; these may be cut then.

    The constants are observed in a forward pass in eval mode. A layer's bias takes them, or the running mean of the
    BatchNorm that reads the layer alone.

    Args:
        model: Its removed channels are constant: their filters, or the scales after them, are zero.
        spec: Which channels are removed.
        example_inputs: Positional arguments of `model`, or a `Call`.

    Returns:
        The layers that pad with zeros, where the border is not exact.

    Raises:
        RequestError: If a removed channel is not constant, or nothing can take its constant.
    """
    reading = _Reading(model, spec)
    reading.observe(Call.of(example_inputs))
    inexact = []
    with torch.no_grad():
        for name, constants in reading.constants.items():
            if not constants.any():
                continue
            layer = layer_of(model, name)
            shift = _shift(name, layer, constants)
            _add(name, layer, [model.get_submodule(norm) for norm in reading.norms.get(name, [])], shift)
            if _pads_with_zeros(layer):
                inexact.append(name)
    return tuple(inexact)


class _Reading:
    """What the layers of a model read from removed channels, and which norms read the layers."""

    def __init__(self, model: nn.Module, spec: PruneSpec) -> None:
        self.constants: dict[str, Tensor] = {}
        """Layer -> the constant of each of its inputs, zero for those that are kept."""
        self.norms: dict[str, list[str]] = {}
        """Layer -> BatchNorms that read what it gives."""
        self._given: dict[int, tuple[str, Tensor]] = {}
        self._private = PrivateModel(model)
        for name, module in modules_of(self._private.model).items():
            cut = spec.layers.get(name)
            if cut and cut.kept_in is not None and len(cut.kept_in) < cut.num_in and is_producer(module):
                module.register_forward_hook(partial(self._note_layer, name, cut), with_kwargs=True)
            elif isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(partial(self._note_norm, name))

    def observe(self, call: Call) -> None:
        """Run the model on noise, or on the example itself where that is out of its range."""
        try:
            self._private.run(call.noise(), torch.no_grad())
        except _NotConstantError:
            raise
        except FORWARD_ERRORS:
            self._private.run(call, torch.no_grad())

    def _note_layer(self, name: str, cut: LayerCut, layer: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        read: Tensor = [*args, *kwargs.values()][0]
        dim = read.ndim - 1 if isinstance(layer, nn.Linear) else read.ndim - layer.weight.ndim + 1
        removed = removed_of(read, dim, torch.tensor(cut.kept_in))
        values_CP = read.index_select(dim, removed).movedim(dim, 0).flatten(1)
        first_C = values_CP[:, 0]
        constants = read.new_zeros(read.shape[dim]).index_copy(0, removed, first_C)
        known = self.constants.setdefault(name, constants)
        for other in (values_CP - first_C[:, None], constants - known):  # a layer may run more than once
            if not (other.abs() <= _ROUNDING * first_C.abs().max()).all():
                raise _NotConstantError(
                    f"{name}: a removed channel that it reads is not constant; expected zero filters or BatchNorm "
                    "scales in all layers that write it: skip the group"
                )
        self._given[id(output)] = (name, output)

    def _note_norm(self, name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and id(args[0]) in self._given:
            self.norms.setdefault(self._given[id(args[0])][0], []).append(name)


class _NotConstantError(RequestError):
    """Found by a hook: no failure of the forward pass itself."""


def _shift(name: str, layer: Any, constants_C: Tensor) -> Tensor:
    """Return what the constants add to every output channel, away from zeros that pad."""
    if isinstance(layer, nn.Linear):
        return functional.linear(constants_C, layer.weight)
    if not isinstance(layer, _ConvNd) or layer.transposed:
        raise RequestError(
            f"{name}: cannot take a constant, got {type(layer).__name__}; expected a convolution or linear layer: "
            "skip the group that it reads"
        )
    extents = [(size - 1) * step + 1 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
    planes = constants_C.view(1, -1, *[1] * len(extents)).expand(1, -1, *extents)
    convolve = _CONVOLUTIONS[layer.weight.ndim]
    return convolve(planes, layer.weight, dilation=layer.dilation, groups=layer.groups).flatten()


def _add(name: str, layer: Any, norms: list[Any], shift_O: Tensor) -> None:
    if layer.bias is not None:
        layer.bias += shift_O
        return
    if len(norms) != 1:
        raise RequestError(
            f"{name}: nothing can take the constant that it reads, got no bias and {len(norms)} BatchNorms after it; "
            "expected one of these: skip the group that it reads"
        )
    if norms[0].running_mean is not None:  # its own mean takes the constant away otherwise
        norms[0].running_mean -= shift_O


def _pads_with_zeros(layer: Any) -> bool:
    if not isinstance(layer, _ConvNd) or layer.padding_mode != "zeros":
        return False
    return layer.padding == "same" or (layer.padding != "valid" and any(layer.padding))
