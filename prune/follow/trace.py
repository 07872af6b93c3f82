"""Which channels belong together: every channel of every layer is followed through real forward passes.

An operation joins the nodes that must go together, carries them on, or pins them with a reason; one that is not known
pins all that pass through it, so channels are never tied wrongly without notice.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from command.errors import RequestError
from prune.follow.functions import FollowingFunctions
from prune.follow.nodes import ChannelNodes, tensors_in
from prune.follow.operators import RULES, Rule
from prune.follow.widths import watch_attributes
from prune.modes import FORWARD_ERRORS, first_line
from prune.private import Call, PrivateModel, bookkeeping, operands

__all__ = ["OUTPUT", "check_kind", "traced"]

OUTPUT = "its channels are an output of the model"
_EMPTY = "reached only by an empty batch on the example input"


def traced(model: nn.Module, call: Call, norm_widths: bool = False, within_groups: bool = False) -> ChannelNodes:
    """Return the model's channels after a forward pass in eval mode and, where it does more in training, one in that.

    Raises:
        RequestError: If the forward pass fails, gives no tensor, or a part is of a kind that cannot be cut.
    """
    check_kind(model)
    private = PrivateModel(model)
    private.watch_noise()
    with bookkeeping():
        channels = ChannelNodes(private.model, norm_widths, within_groups)
        watch_attributes(private.model, channels)
    try:
        outputs = _follow(private, channels, call)
    except FORWARD_ERRORS as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"model: its forward pass fails on the example input, {first_line(error)}") from error
    if not outputs:
        raise RequestError("model: gives no tensor, so that nothing can be compared; expected tensors in its output")
    if all(type(module).__module__.startswith("torch.nn.") for module in model.modules()):
        channels.trains_alike = True
    else:
        _follow_training(model, private, channels, call, outputs)
    return channels


def check_kind(model: nn.Module) -> None:
    """Raise RequestError if a module is of a kind whose layers cannot be cut, or has no size yet."""
    if not isinstance(model, nn.Module):
        raise RequestError(f"model: cannot be cut, got {type(model).__name__}; expected the module it was made from")
    first_of = {type(module): name for name, module in reversed([*model.named_modules()])}
    for kind, name in reversed(first_of.items()):
        for package, word in _KINDS.items():
            if any(base.__module__.startswith(package) for base in kind.__mro__):
                raise RequestError(
                    f"{name or 'model'}: cannot be cut, got {word}; expected the module it was made from"
                )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise RequestError(f"{name}: has no size yet, got a lazy module; run the model once first")


_KINDS = {
    "torch.jit": "TorchScript",
    "torch.export": "an exported program",
    "torch.ao.nn.quantized": "a quantised layer",
    "torch.ao.nn.intrinsic.quantized": "a quantised layer",
    "torch._dynamo": "a compiled module",
}
"""Package of a module's class or of a base -> what it is."""


def _follow(private: PrivateModel, channels: ChannelNodes, call: Call) -> list[Tensor]:
    outputs = private.run(call, torch.no_grad(), _Unfused(), FollowingFunctions(channels), _Following(channels))
    with bookkeeping():
        channels.pin_all(outputs, OUTPUT)
    return outputs


def _follow_training(
    model: nn.Module, private: PrivateModel, channels: ChannelNodes, call: Call, outputs: list[Tensor]
) -> None:
    """Follow training mode too if it uses other parameters, gives other outputs, or shapes alone do not tell."""
    rehearsal, shapes_alone = PrivateModel(model, "meta"), call.map(lambda t: t.to("meta"))
    modes = (torch.device("meta"), torch.no_grad())
    with suppress(*FORWARD_ERRORS):
        trained = rehearsal.train(private.noise).run(shapes_alone, *modes)
        if rehearsal.used <= private.used and [t.shape for t in trained] == [t.shape for t in outputs]:
            in_training, in_eval = rehearsal.operations, private.operations
            if in_training != in_eval:  # without numbers, torch may compute the same by other operations
                rehearsal.model.eval()
                rehearsal.run(shapes_alone, *modes)
                in_eval = rehearsal.operations
            channels.trains_alike = in_training == in_eval
            return
    private.train()
    for attempt in (call, call.doubled()):
        try:
            _follow(private, channels, attempt)
        except FORWARD_ERRORS as error:
            failure = first_line(error)
        else:
            return
    if private.unused:  # what feeds them may be anything
        reason = f"may feed {private.unused[0]}, used by no forward pass: training mode fails on the example input"
        channels.pin(torch.arange(channels.num_nodes, device="cpu"), f"{reason}, {failure}")


class _Unfused(TorchFunctionMode):
    """Leaves out dropout, whose noise has channels of its own; while it is there, torch fuses no attention layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUT:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


_DROPOUT = {
    getattr(place, name)
    for place in (torch, functional)
    for name in dir(place)
    if name.rstrip("_").rstrip("123d").endswith("dropout")
}


class _Following(TorchDispatchMode):
    """Applies a rule after every operation on a tensor that carries nodes."""

    def __init__(self, channels: ChannelNodes) -> None:
        super().__init__()
        self._channels = channels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._channels.caller and self._channels.caller.rule:
            return out
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # our own tensors are on the CPU
            tensors = [tensor for tensor in operands(args, kwargs) if self._channels.nodes(tensor)]
            if tensors and _is_empty(func, [*tensors, *_results(out)]):
                self._channels.pin_all(tensors, _EMPTY)
            elif tensors:
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


def _is_empty(func: Any, tensors: list[Tensor]) -> bool:
    """Return whether a tensor is empty: layers may run otherwise on it, or not at all. New tensors do not count."""
    name = func.overloadpacket.__name__
    return any(not tensor.numel() for tensor in tensors) and not (name.startswith("new_") or name.endswith("_like"))


def _results(out: Any) -> list[Tensor]:
    """Return the tensors that an operation computes; of several, only the first is no by-product."""
    return [
        t
        for t in (out if isinstance(out, list) else out[:1] if isinstance(out, tuple) else [out])
        if isinstance(t, Tensor)
    ]


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
