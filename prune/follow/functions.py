"""What the forward pass says when it calls a torch function: which numbers it gives; functions followed as a whole."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from prune.follow.arithmetic import attention, spatial
from prune.follow.layout import CONSTANT, PLACES, follow, pad
from prune.follow.nodes import Caller, ChannelNodes
from prune.follow.widths import Width
from prune.private import bookkeeping

__all__ = ["FollowingFunctions"]

_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]  # what Python calls for `x.shape`


_DROPOUT = {
    getattr(place, name)
    for place in (torch, functional)
    for name in dir(place)
    if name.rstrip("_").rstrip("123d").endswith("dropout")
}

_NUMBERS = ("__len__", "numel", "nelement", "stride", "tolist", "untyped_storage", "storage")
"""Functions that give plain numbers, or memory, for a tensor with channels."""

_FILLING = ("expand", "repeat", "zeros", "ones", "empty", "new_zeros", "new_ones", "new_empty")


class FollowingFunctions(TorchFunctionMode):
    """Reads shapes as widths, and tells the rules of operations which function runs, with which numbers.

    While it is there, torch fuses no attention layers.
    """

    def __init__(self, channels: ChannelNodes) -> None:
        super().__init__()
        self._channels = channels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _DROPOUT:  # its noise has channels of its own
            return args[0] if args else kwargs["input"]
        if func == _SHAPE or name == "size":
            return self._shape(args[0], args[1] if len(args) > 1 and name == "size" else kwargs.get("dim"))
        if name in _NUMBERS:
            with bookkeeping():
                self._pin_counted(name, [*args, *kwargs.values()][0])
        sizes = self._widths([*args, *kwargs.values()][1]) if name in ("view_as", "reshape_as") else (args, kwargs)
        caller = Caller(name, [self._own(number) for number in _numbers(sizes)], _rule(name, args, kwargs))
        if any(isinstance(number, Width) for number in caller.numbers):
            args, kwargs = tree_map_only(Width, int, (args, kwargs))  # the function may compute with them
        outer, self._channels.caller = self._channels.caller, caller
        try:
            out = func(*args, **kwargs)
            if caller.rule or caller.numbers:
                with bookkeeping():
                    self._finish(caller, func, args, kwargs, out)
        finally:
            self._channels.caller = outer
        return out

    def _pin_counted(self, name: str, tensor: Tensor) -> None:
        """Pin what a plain number is made of, which cannot be followed."""
        if isinstance(tensor, Tensor):
            dims = self._channels.dims(tensor)
            for nodes in dims[:1] if name == "__len__" else dims:
                self._channels.pin(nodes, "a number in the forward pass depends on its width")

    def _finish(self, caller: Caller, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if caller.rule:
            try:
                caller.rule(self._channels, args, kwargs, out)
            except NotImplementedError:  # it needs numbers, and there are shapes alone
                raise
            except (LookupError, TypeError, ValueError, RuntimeError):  # a form that the rule does not handle
                self._channels.pin_all(
                    (args, kwargs), f"passes through {caller.name}, whose channels cannot be followed"
                )
        if caller.name in _FILLING and len(caller.numbers) == out.ndim:
            self._fill(caller, out)
        for place, number in enumerate(caller.numbers):
            if isinstance(number, Width) and place not in caller.followed:
                number.fix()

    def _fill(self, caller: Caller, out: Tensor) -> None:
        """Give a result that is filled up to a width its nodes."""
        dims = list(self._channels.dims(out))
        for dim, number in enumerate(caller.numbers):
            if isinstance(number, Width) and out.shape[dim] == int(number):
                nodes = dims[dim]
                dims[dim] = nodes = number.nodes() if nodes is None else nodes
                follow(self._channels, dim, nodes)
        self._channels.carry(out, dims)

    def _own(self, number: int) -> int:
        """Return the number, as a plain one if it comes from another trace: models may cache what they compute."""
        return number if getattr(number, "channels", self._channels) is self._channels else int(number)

    def _shape(self, tensor: Tensor, dim: int | None) -> Any:
        widths = self._widths(tensor)
        return widths if dim is None else widths[dim]

    def _widths(self, tensor: Tensor) -> torch.Size:
        dims = self._channels.dims(tensor)
        return torch.Size(
            [
                size if nodes is None else Width.of(size, self._channels, partial(_itself, nodes))
                for size, nodes in zip(tensor.shape, dims, strict=True)
            ]
        )


def _itself(nodes: Tensor) -> Tensor:
    return nodes


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
    elif isinstance(value, dict):  # in the order of torch's own arguments, where `dim` follows sizes
        yield from _numbers(tuple(value[key] for key in sorted(value, key=lambda key: key == "dim")))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


def _rule(name: str, args: Any, kwargs: Any) -> Callable[..., None] | None:
    """Return the rule for a function that is followed as a whole: its parts would not tell."""
    if name == "multi_head_attention_forward":
        return _multi_head_attention
    if name == "scaled_dot_product_attention":  # what it is made of depends on the device
        return _attention
    if name == "selected_channels":
        return _selected
    if name == "adaptive_avg_pool2d":  # its as_strided_ changes the layout in memory alone
        return _pooled
    return _padded_in_a_circle if name == "pad" and "circular" in (*args, *kwargs.values()) else None


def _pooled(channels: ChannelNodes, args: Any, kwargs: Any, out: Tensor) -> None:
    spatial(channels, "adaptive_avg_pool2d", [args[0] if args else kwargs["input"]], out)


def _selected(channels: ChannelNodes, args: Any, kwargs: Any, out: Tensor) -> None:
    """What is selected goes with what is read; or each selection has channels of its own, and what it reads stays."""
    features, index = args
    (batch, read, *places), (outputs,) = channels.dims(features), channels.dims(index)
    assert outputs is not None
    inputs = channels.opposite(outputs, features.shape[1])
    assert inputs is not None
    channels.join(inputs, read, CONSTANT)
    if channels.select_channels:
        channels.pin(inputs, _SELECTED)
    else:
        channels.join(outputs, inputs if len(index) == len(inputs) else inputs[index.cpu()], CONSTANT)
    channels.carry(out, (batch, outputs, *places))


_SELECTED = "read through channel selections, each of which chooses for itself"


def _attention(channels: ChannelNodes, args: Any, kwargs: Any, out: Tensor) -> None:
    given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
    tensors = [given.get(key) for key in ("query", "key", "value", "attn_mask")]
    if given.get("scale") is None:
        for tensor in tensors[:2]:
            channels.pin_in_parts(channels.dims(tensor)[-1], "attention is scaled by its width")
    attention(channels, "scaled_dot_product_attention", tensors, (out,))


def _padded_in_a_circle(channels: ChannelNodes, args: Any, kwargs: Any, out: Tensor) -> None:
    given = dict(zip(("input", "pad"), args, strict=False)) | kwargs
    pad(channels, "pad", [given["input"], given["pad"]], out)


def _multi_head_attention(channels: ChannelNodes, args: Any, kwargs: Any, out: tuple[Tensor, Any]) -> None:
    """Heads go with as many of the channels that are read: torch's module has one width for both."""
    given = inspect.signature(functional.multi_head_attention_forward).bind(*args, **kwargs).arguments
    if any(given.get(key) is not None for key in ("q_proj_weight", "bias_k", "bias_v", "static_k", "static_v")):
        raise ValueError("attention")
    channels.pin_all([given.get("attn_mask"), given.get("key_padding_mask")], "part of an attention mask")
    (rows, columns), (written, inner) = (channels.dims(given[key]) for key in ("in_proj_weight", "out_proj_weight"))
    assert rows is not None
    parts = rows.view(3, -1)  # queries, keys and values
    channels.tie(parts, CONSTANT)
    for read in (columns, inner, *(channels.dims(given[key])[-1] for key in ("query", "key", "value"))):
        channels.join(parts[0], read, CONSTANT)
    for key, nodes in (("in_proj_bias", rows), ("out_proj_bias", written)):
        if given[key] is not None:
            channels.join(nodes, channels.dims(given[key])[0], CONSTANT)
    follow(channels, 0, parts[0])
    follow(channels, 1, channels.tie_runs(parts[0], len(parts[0]) // given["num_heads"], PLACES))
    channels.carry(out[0], (*(None,) * (out[0].ndim - 1), written))
    if out[1] is not None:
        channels.pin_if_used(out[1], parts[0], "attention weights that are used depend on the heads")
