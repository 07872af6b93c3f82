"""Which channels belong together: every channel of every layer is followed through real forward passes.

An operation joins the nodes that must go together, carries them on, or pins them with a reason; one that is not known
pins all that pass through it, so channels are never tied wrongly without notice.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.follow.functions import FollowingFunctions
from prune.follow.nodes import ChannelNodes
from prune.follow.operators import RULES, Rule
from prune.follow.widths import watched_attributes
from prune.held_tensors import modules_of, operands, stored, tensors_in
from prune.modes import FORWARD_ERRORS, first_line
from prune.private import Call, PrivateModel, Run, Watch, bookkeeping
from prune.shapes import is_elementwise

__all__ = ["OUTPUT", "check_kind", "traced"]

OUTPUT = "its channels are an output of the model"
_EMPTY = "reached only by an empty batch on the example input"


def traced(model: nn.Module, call: Call, unused: Sequence[str] = (), **options: Any) -> ChannelNodes:
    """Return the model's channels after a forward pass in eval mode and, where it does more in training, one in that.

    Args:
        model: It is only read.
        call: What it is called with.
        unused: Patterns of parameters that no forward pass ever uses.
        options: Of `ChannelNodes`.

    Raises:
        RequestError: If the forward pass fails or gives no tensor; see `check_kind` for what may be given.
    """
    with suppress(*FORWARD_ERRORS):  # what needs numbers fails on shapes alone
        return _traced(model, "meta", call, unused, options)
    return _traced(model, None, call, unused, options)


def _traced(
    model: nn.Module, device: str | None, call: Call, unused: Sequence[str], options: Mapping[str, Any]
) -> ChannelNodes:
    private = PrivateModel(model, device)
    with bookkeeping():
        channels = ChannelNodes(private.model, **options)
    try:
        outputs = _follow(private, channels, call)
    except FORWARD_ERRORS as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"model: its forward pass fails on the example input, {first_line(error)}") from error
    if not outputs:
        raise RequestError("model: gives no tensor, so that nothing can be compared; expected tensors in its output")
    if channels.needs_whole - channels.whole_parts:
        return _traced(
            model, device, call, unused, {**options, "whole_parts": channels.whole_parts | channels.needs_whole}
        )
    channels.eval_run = Run(private.operations, [tensor.shape for tensor in outputs]) if private.is_meta else None
    _follow_training(private, channels, call, outputs)
    _pin_feeding(channels, unused)
    return channels


def check_kind(model: nn.Module) -> None:
    """Raise RequestError if a module is of a kind whose layers cannot be cut, or has no size yet."""
    if not isinstance(model, nn.Module):
        raise RequestError(f"model: cannot be cut, got {type(model).__name__}; expected the module it was made from")
    first_of = {type(module): name for name, module in reversed([*modules_of(model).items()])}
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
    had = _tensors_kept(private)
    with watched_attributes(private.model, channels):
        outputs = private.run(call, torch.no_grad(), FollowingFunctions(channels), watch=_Following(channels))
    with bookkeeping():
        channels.pin_all(outputs, OUTPUT)
        for place, tensors in _tensors_kept(private).items():
            channels.pin_all([] if place in had else tensors, f"the forward pass keeps its channels in {place}")
    return outputs


def _tensors_kept(private: PrivateModel) -> dict[str, list[Tensor]]:
    """Return the tensors that modules hold beside their parameters and buffers, by the attribute's path."""
    return {f"{name}.{key}".lstrip("."): tensors for name, key, tensors in stored(private.modules)}


def _follow_training(private: PrivateModel, channels: ChannelNodes, call: Call, outputs: list[Tensor]) -> None:
    """Follow training mode too unless it runs the same operations on the same tensors, and gives as large outputs."""
    in_eval = (private.operations, private.flow, [tensor.shape for tensor in outputs])
    private.train()
    for attempt in (call, call.doubled()):
        try:
            trained = private.run(attempt, torch.no_grad())
            if (private.operations, private.flow, [tensor.shape for tensor in trained]) != in_eval:
                _follow(private, channels, attempt)
            else:
                channels.trains_alike = private.is_meta  # where it reads numbers, they may decide
        except FORWARD_ERRORS as error:
            failure = error
        else:
            return
    if private.is_meta:
        raise failure
    channels.no_training = first_line(failure)


def _pin_feeding(channels: ChannelNodes, unused: Sequence[str]) -> None:
    """Pin all channels if there is a part that no forward pass has reached: it may be fed with any of them."""
    for pattern in unused:
        if not fnmatch.filter(channels.owners, pattern):
            raise RequestError(f"unused: no layer or parameter of the model matches, got {pattern!r}; see the groups")
    left = [name for name in channels.owners if name not in channels.reached]
    left = [name for name in left if not any(fnmatch.fnmatchcase(name, pattern) for pattern in unused)]
    if left:
        why = f"training mode fails on the example input, {channels.no_training}; " if channels.no_training else ""
        reason = f"may feed {left[0]}, which no forward pass reached: {why}name it in `unused` if none ever does"
        channels.pin(torch.arange(channels.num_nodes, device="cpu"), reason)


class _Following(Watch):
    """Applies a rule after every operation on a tensor that carries nodes."""

    def __init__(self, channels: ChannelNodes) -> None:
        self._channels = channels

    def after(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Apply the operation's rule."""
        if self._channels.caller and self._channels.caller.rule:
            return
        tensors = [tensor for tensor in operands(args, kwargs) if self._channels.nodes(tensor)]
        if not tensors:
            return
        with torch._C._DisableTorchDispatch():  # our own tensors are on the CPU
            if _is_empty(func, [*tensors, *_results(out)]):
                self._channels.pin_all(tensors, _EMPTY)
            else:
                values = _by_schema(func, args, kwargs)
                self._check_in_place(func, values, tensors)
                self._follow(func, values, out)

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
        is_known = func.namespace in ("aten", "torchvision") and torch.Tag.inplace_view not in func.tags
        rule = _rule(func, plain) if is_known else RULES["unknown"]
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
    return RULES.get(plain) or RULES["pointwise" if is_elementwise(func) else "unknown"]
