"""Operations on tensors without numbers: torch's own way takes up to milliseconds for the commonest of them."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_elementwise", "shape_alone"]

_NORMS = ("native_batch_norm", "native_layer_norm", "native_group_norm", "_native_batch_norm_legit_no_training")

_dtypes: dict[Any, torch.dtype] = {}
"""Operation, and what it is given -> the type of its result."""


def shape_alone(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
    """Return the result of one of the commonest operations on the meta device, None for any other.

    By-products of a normalisation (its statistics) are empty.
    """
    name, first = func.overloadpacket.__name__, tensors[0]
    if name == "convolution" and min(size := _convolved(*args), default=0) > 0:
        return _empty(size, first.dtype)
    if name == "addmm" and tensors[1].shape[1] == tensors[2].shape[0]:
        return _empty((len(tensors[1]), tensors[2].shape[1]), first.dtype)
    if name in _NORMS and all(_fits(tensor, first, name) for tensor in tensors[1:]):
        out = _like(first, first.dtype) if "batch" in name else _empty(first.shape, first.dtype)
        return (out, *(_empty((0,), first.dtype) for _ in func._schema.returns[1:]))
    if name == "mean" and len(args) > 1 and not kwargs and first.ndim and first.is_floating_point():
        return _empty(_averaged(*args), first.dtype)
    if name == "cat" and _are_alike(tensors, dim := args[1] % max(first.ndim, 1) if len(args) > 1 else 0):
        size = [*first.shape[:dim], sum(t.shape[dim] for t in tensors), *first.shape[dim + 1 :]]
        return _empty(size, first.dtype)
    if name == "roll":
        return _empty(first.shape, first.dtype)
    if name == "_safe_softmax" and len(args) == 2:
        return _like(first, first.dtype)
    if is_elementwise(func) and len(func._schema.returns) == 1 and not kwargs.keys() & {"out", "memory_format"}:
        return _elementwise(func, args, kwargs, tensors)
    return None


@cache
def is_elementwise(func: Any) -> bool:
    """Return whether every number of an operation's result is made of those at its place; torch does not tag all."""
    name = func.overloadpacket.__name__
    plain = name.removesuffix("_") if not name.endswith("__") else name
    if plain in _SOME_REDUCE and func._overloadname in ("default", "dim"):
        return False
    packet = getattr(torch.ops.aten, plain, None)
    overloads = [func, *(getattr(packet, overload) for overload in (packet.overloads() if packet else ()))]
    return plain in _ELEMENTWISE or any(torch.Tag.pointwise in overload.tags for overload in overloads)


_SOME_REDUCE = ("max", "min", "where")
"""Operations of which other forms are elementwise."""
_ELEMENTWISE = ("hardswish", "_prelu_kernel", "copy", "dropout")


def _convolved(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    is_transposed: bool,
    output_padding: list[int],
    groups: int,
) -> list[int]:
    """Return the size of a convolution's result; empty where the images do not fit the weight."""
    rows, columns = weight.shape[0], weight.shape[1] * groups
    read, written = (rows, columns) if is_transposed else (columns, rows)
    if images.ndim != weight.ndim or images.shape[1] != read:
        return []
    size = [len(images), written]
    for dim, (length, taps) in enumerate(zip(images.shape[2:], weight.shape[2:], strict=True)):
        step, pad, apart, more = (of[dim % len(of)] for of in (stride, padding, dilation, output_padding))
        reach = apart * (taps - 1) + 1
        size.append(
            (length - 1) * step + reach + more - 2 * pad if is_transposed else (length + 2 * pad - reach) // step + 1
        )
    return size


def _averaged(tensor: Tensor, dims: list[int] | None, keepdim: bool = False) -> list[int]:
    gone = {dim % tensor.ndim for dim in dims or range(tensor.ndim)}
    return [1 if dim in gone else size for dim, size in enumerate(tensor.shape) if keepdim or dim not in gone]


def _are_alike(tensors: list[Tensor], dim: int) -> bool:
    """Return whether tensors follow each other in memory when they are joined: equal but for one dimension."""
    kinds = {(t.dtype, t.ndim, t.shape[:dim], t.shape[dim + 1 :], t.is_contiguous()) for t in tensors}
    return len(kinds) == 1 and tensors[0].ndim > 0 and tensors[0].is_contiguous()


def _fits(tensor: Tensor, images: Tensor, norm: str) -> bool:
    """Return whether it has a number for every channel, or every position that is normalised together."""
    return tensor.shape == (images.shape[-tensor.ndim :] if "layer" in norm else images.shape[1:2])


def _elementwise(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Tensor | None:
    whole = max(tensors, key=lambda tensor: (tensor.ndim, tensor.numel()))
    if not all(_broadcasts(tensor.shape, whole.shape) for tensor in tensors):
        return None
    if func._schema.is_mutable:
        return tensors[0] if tensors[0].shape == whole.shape else None
    key = (
        func,
        *((t.dtype, t.ndim > 0) for t in tensors),
        *(type(v) for v in args),
        *((k, str(v)) for k, v in kwargs.items()),
    )
    if key not in _dtypes:
        _dtypes[key] = func(*args, **kwargs).dtype
    return _like(whole, _dtypes[key])


def _empty(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor of that shape and order; torch's own function is slow without numbers."""
    return _empty(tensor.shape, dtype) if tensor.is_contiguous() else torch.empty_like(tensor, dtype=dtype)


def _broadcasts(shape: torch.Size, whole: torch.Size) -> bool:
    return shape == whole or all(
        one in (1, other) for one, other in zip(reversed(shape), reversed(whole), strict=False)
    )
