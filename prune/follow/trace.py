"""Which channels belong together: every channel of every layer is followed through one real forward pass.

An operation joins the nodes that must go together, carries them on, or pins them with a reason; one that is not known
pins all that pass through it, so channels are never tied wrongly without notice.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from command.errors import RequestError
from prune.follow.nodes import ChannelNodes, tensors_in
from prune.follow.operators import RULES, Rule
from prune.modes import FORWARD_ERRORS, evaluating, first_line

__all__ = ["OUTPUT", "traced"]

OUTPUT = "its channels are an output of the model"


def traced(model: nn.Module, example_inputs: tuple[Any, ...]) -> ChannelNodes:
    """Return the model's channels after one forward pass in eval mode; the modes are restored.

    Raises:
        RequestError: If the forward pass fails, or a part is TorchScript.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise RequestError(
                f"{name or 'model'}: cannot be cut, got TorchScript; expected the module it was made from"
            )
    channels = ChannelNodes(model)
    with evaluating(model), torch.no_grad(), _Following(channels):
        try:
            outputs = model(*example_inputs)
        except FORWARD_ERRORS as error:
            raise RequestError(f"model: its forward pass fails on the example input, {first_line(error)}") from error
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
            values = _by_schema(func, args, kwargs)
            self._check_in_place(func, values, tensors)
            self._follow(func, values, out)
        return out

    def _check_in_place(self, func: Any, values: list[Any], tensors: list[Tensor]) -> None:
        """Pin channels written into a tensor that has none: other views of its memory would not carry them."""
        for argument, value in zip(func._schema.arguments, values, strict=True):
            written = tensors_in(value) if argument.alias_info and argument.alias_info.is_write else []
            if any(not self._channels.nodes(tensor) for tensor in written):
                self._channels.pin_all(
                    tensors, f"written into a tensor of fixed size by {func.overloadpacket.__name__}"
                )

    def _follow(self, func: Any, values: list[Any], out: Any) -> None:
        name = func.overloadpacket.__name__
        plain = name.removesuffix("_") if not name.endswith("__") else name
        rule = RULES["unknown"] if torch.Tag.inplace_view in func.tags else _rule(func, plain)
        try:
            rule(self._channels, plain, values, out)
        except (LookupError, TypeError, ValueError, RuntimeError):  # a form that the rule does not handle
            RULES["unknown"](self._channels, name, values, out)


def _by_schema(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return every argument in the operation's own order, defaults too: callers may leave out or name any of them."""
    rest = func._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest)]


def _rule(func: Any, plain: str) -> Rule:
    if plain in RULES:
        return RULES[plain]
    # torch does not tag every operation in place
    packet = getattr(torch.ops.aten, plain, None)
    overloads = [func, *(getattr(packet, overload) for overload in (packet.overloads() if packet else ()))]
    pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
    return RULES["pointwise" if pointwise else "unknown"]
