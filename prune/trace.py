"""Which channels belong together: every channel of every layer is followed through one real forward pass.

An operation joins the nodes that must go together, carries them on, or pins them with a reason; one that is not known
pins all that pass through it, so nothing is ever tied wrongly in silence.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prune.modes import FORWARD_ERRORS, evaluating
from prune.nodes import ChannelNodes, tensors_in
from prune.operators import RULES, Rule

__all__ = ["OUTPUT", "traced"]

OUTPUT = "its channels are an output of the model"


def traced(model: nn.Module, example_inputs: tuple[Any, ...]) -> ChannelNodes:
    """Return the model's channels after one forward pass in eval mode; the modes are restored.

    Raises:
        ValueError: If the forward pass fails.
    """
    channels = ChannelNodes(model)
    with evaluating(model), torch.no_grad(), _Following(channels):
        try:
            outputs = model(*example_inputs)
        except FORWARD_ERRORS as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"model: its forward pass fails on the example input, {cause}") from error
    channels.pin_all(outputs, OUTPUT)
    return channels


class _Following(TorchDispatchMode):
    """Applies a rule after every operation on a tensor that carries nodes."""

    def __init__(self, channels: ChannelNodes) -> None:
        super().__init__()
        self._channels = channels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [tensor for tensor in tensors_in((args, kwargs)) if self._channels.nodes(tensor)]
        if tensors:
            name = func.overloadpacket.__name__
            self._check_in_place(func, args, tensors, name)
            _rule(func, name)(self._channels, name, args, kwargs, out)
        return out

    def _check_in_place(self, func: Any, args: Any, tensors: list[Tensor], name: str) -> None:
        """Channels written into a tensor that has none would be lost to whatever else looks at its memory."""
        first = func._schema.arguments[0] if func._schema.arguments else None
        if first and first.alias_info and first.alias_info.is_write and not self._channels.nodes(args[0]):
            self._channels.pin_all(tensors, f"written into a tensor of fixed size by {name}")


def _rule(func: Any, name: str) -> Rule:
    if name in RULES:
        return RULES[name]
    plain = name.removesuffix("_")  # torch does not tag every operation in place
    packet = getattr(torch.ops.aten, plain, None)
    overloads = [func, *(getattr(packet, overload) for overload in (packet.overloads() if packet else ()))]
    pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
    return RULES.get(plain) or RULES["pointwise" if pointwise else "unknown"]
