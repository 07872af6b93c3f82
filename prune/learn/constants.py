"""Removed channels that are not zero but constant: what they give to the next layer is folded into what follows it.

A channel whose BatchNorm scale or filter is zero still gives a number, the same everywhere: activation(beta), or
activation(beta - gamma * mean / std). The next convolution multiplies it by the sum of its kernel, a constant too, so
that its bias can hold it; without a bias, it goes through sums and concatenations to every BatchNorm that reads them,
whose running mean can. That is exact unless the convolution pads with zeros: at the border fewer weights of the kernel
meet the constant, while the bias is the same everywhere. Then the inside is exact and the border is not.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from command.errors import RequestError
from prune.cut.spec import LayerCut, PruneSpec, layer_of
from prune.cut.surgery import removed_of
from prune.follow.layers import is_producer
from prune.held_tensors import modules_of
from prune.modes import FORWARD_ERRORS
from prune.private import Call, Inputs, PrivateModel

__all__ = ["fold_constants", "repeat_borders"]

_ROUNDING = 1e-5
"""Largest difference of equal numbers, relative to the largest."""


def fold_constants(model: nn.Module, spec: PruneSpec, example_inputs: Inputs) -> tuple[str, ...]:
    """Add to the layers of a masked model, in place, what they read from removed channels; these may be cut then.

    The constants are observed in two forward passes in eval mode, with them and without: whatever a bias or a
    BatchNorm meets as a difference is added to the bias, or subtracted from the running mean. What nothing meets is
    lost: compare the outputs afterwards.

    Args:
        model: Its removed channels are constant: their filters, or the scales after them, are zero.
        spec: Which channels are removed.
        example_inputs: Positional arguments of `model`, or a `Call`.

    Returns:
        The layers that pad with zeros, where the border is not exact.

    Raises:
        RequestError: If a removed channel is not constant, or no constant any more where something could take it.
    """
    folding = _Folding(model, spec)
    folding.observe(Call.of(example_inputs))
    with torch.no_grad():
        for name, shift in ((name, shift) for name, shift in folding.shifts.items() if shift.any()):
            layer: Any = layer_of(model, name)
            if not isinstance(layer, _BatchNorm):
                layer.bias += shift
            elif layer.running_mean is not None:  # its own mean takes the constant away otherwise
                layer.running_mean -= shift
    read = (name for name, constants in folding.constants.items() if constants.any())
    return tuple(name for name in read if _pads_with_zeros(layer_of(model, name)))


def repeat_borders(layer: object) -> None:
    """Let a convolution that pads with zeros repeat the border of what it reads: a constant stays one there."""
    if _pads_with_zeros(layer):
        vars(layer)["padding_mode"] = "replicate"


class _Folding:
    """What the layers of a model read from removed channels, and what of it meets biases and BatchNorms."""

    def __init__(self, model: nn.Module, spec: PruneSpec) -> None:
        self.constants: dict[str, Tensor] = {}
        """Layer -> the constant of each of its inputs, zero for those that are kept."""
        self.shifts: dict[str, Tensor] = {}
        """BatchNorm, or layer with a bias -> what is missing there, per channel, without the constants."""
        self._whole: dict[str, list[Tensor]] = {}
        """The same -> what it reads or gives, with the constants; an item for each time that it runs."""
        self._is_whole = True
        self._private = PrivateModel(model)
        for name, module in modules_of(self._private.model).items():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(partial(self._at_norm, name))
            if not is_producer(module):
                continue
            cut = spec.layers.get(name)
            if cut and cut.kept_in is not None and len(cut.kept_in) < cut.num_in:
                repeat_borders(module)
                module.register_forward_pre_hook(partial(self._at_reader, name, cut), with_kwargs=True)
            if module._parameters.get("bias") is not None:
                module.register_forward_hook(partial(self._at_bias, name))

    def observe(self, call: Call) -> None:
        """Run the model on noise, or on the example itself where that is out of its range."""
        try:
            self._run_twice(call.noise())
        except _NotConstantError:
            raise
        except FORWARD_ERRORS:
            self._run_twice(call)

    def _run_twice(self, call: Call) -> None:
        self.constants, self.shifts, self._whole = {}, {}, {}
        for self._is_whole in (True, False):
            self._private.run(call, torch.no_grad())

    def _at_reader(self, name: str, cut: LayerCut, layer: Any, args: Any, kwargs: Any) -> Any:
        """Note the constants, or take them away."""
        read: Tensor = [*args, *kwargs.values()][0]
        dim = _channel_dim(layer, read)
        removed = removed_of(read, dim, torch.tensor(cut.kept_in))
        if self._is_whole:
            self._note_constants(name, read.index_select(dim, removed).movedim(dim, 0).flatten(1), removed)
            return None
        read = read.index_fill(dim, removed, 0)
        return ((read, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): read})

    def _note_constants(self, name: str, values_CP: Tensor, removed: Tensor) -> None:
        first_C = values_CP[:, 0]
        known_C = self.constants.setdefault(name, first_C)
        for other in (values_CP - first_C[:, None], first_C - known_C):  # a layer may run more than once
            if not (other.abs() <= _ROUNDING * first_C.abs().max()).all():
                raise _NotConstantError(
                    f"{name}: a removed channel that it reads is not constant; expected zero filters or BatchNorm "
                    "scales in all layers that write it: skip the group"
                )

    def _at_norm(self, name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> Any:
        return (self._restored(name, args[0], 1), *args[1:]) if args else None

    def _at_bias(self, name: str, layer: Any, args: Any, output: Tensor) -> Tensor:
        return self._restored(name, output, _channel_dim(layer, output))

    def _restored(self, name: str, found: Tensor, dim: int) -> Tensor:
        """Return a tensor with the constants, and note what was missing in one without."""
        if self._is_whole:
            self._whole.setdefault(name, []).append(found.clone())
            return found
        whole = self._whole[name].pop(0)
        missing_CP = (whole - found).movedim(dim, 0).flatten(1)
        shift_C = self.shifts.get(name, missing_CP.mean(1))
        if ((missing_CP - shift_C[:, None]).abs() > _ROUNDING * whole.abs().max()).any():
            raise _NotConstantError(
                f"{name}: nothing can take the constants that come to it from removed channels, got other numbers at "
                "other places; expected a bias or a BatchNorm before: skip the groups whose readers it follows"
            )
        self.shifts[name] = shift_C
        return whole


class _NotConstantError(RequestError):
    """Found by a hook: no failure of the forward pass itself."""


def _channel_dim(layer: Any, tensor: Tensor) -> int:
    """Return the dimension of the channels in what a layer reads or gives, with a batch or without."""
    return tensor.ndim - 1 if isinstance(layer, nn.Linear) else tensor.ndim - layer.weight.ndim + 1


def _pads_with_zeros(layer: object) -> bool:
    if not isinstance(layer, _ConvNd) or layer.transposed or layer.padding_mode != "zeros":
        return False
    return layer.padding == "same" or (layer.padding != "valid" and any(layer.padding))
