"""How operations that compute treat channels: products, normalisation, reductions, pooling, attention."""

from typing import Any

import torch
from torch import Tensor

from prune.follow.layout import CONSTANT, PLACES, follow, place_of, pointwise
from prune.follow.nodes import ChannelNodes

__all__ = [
    "across",
    "attention",
    "batch_norm",
    "convolution",
    "deform_conv",
    "fresh",
    "gated",
    "group_norm",
    "layer_norm",
    "mixed",
    "product",
    "reduction",
    "same",
    "spatial",
    "unknown",
    "weight_norm",
]


def same(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """The result has the channels of the first argument."""
    channels.carry(out, channels.dims(args[0]))


def unknown(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Nothing is known of the result: all that passes through it stays."""
    channels.pin_all(args, f"passes through {name}, whose channels cannot be followed")


def fresh(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Nothing of the tensor is in the result but its type."""


def mixed(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Every number of the result is made of all channels."""
    channels.pin_all(args, _mixed_by(name))


def convolution(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A layer reads channels and writes others.

    Of a grouped one whole groups go, with all that they read and write; or all groups lose the same of their channels.
    """
    images, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    _convolved(channels, name, (images, weight, bias), out, transposed, groups)


def deform_conv(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Offsets and mask belong to places of the kernel; channels share them within equal parts of all."""
    images, weight, offset, mask, bias, groups, parts = *args[:5], *args[11:13]
    channels.pin_all((offset, mask), f"says where {name} reads")
    read = channels.dims(images)[1]
    if parts > 1 and read is not None:
        channels.tie(read.view(parts, -1), PLACES)
    if groups > 1 and read is not None:
        follow(channels, 6, read, read)  # the caller's seventh number: what is read, over what one group reads
    _convolved(channels, name, (images, weight, bias), out, False, groups)


def _convolved(
    channels: ChannelNodes,
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    out: Tensor,
    transposed: bool,
    groups: int,
) -> None:
    images, weight, bias = tensors
    batch, read, *places = channels.dims(images)
    rows, columns, *kernel = channels.dims(weight)
    for nodes in (*places, *kernel):
        channels.pin(nodes, _mixed_by(name))
    if groups > 1 and rows is not None:
        columns = channels.opposite(rows, weight.shape[1] * groups)
        if columns is None and weight.shape[1] == 1 and read is not None and not transposed:
            follow(channels, place_of(channels, groups), read)
            columns = read
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    if inputs is None or outputs is None:
        unknown(channels, name, list(tensors), out)
        return
    channels.join(read, inputs, CONSTANT)
    if groups > 1:
        read_by, written_by = inputs.view(groups, -1), outputs.view(groups, -1)
        if channels.within_groups and read_by.shape[1] > 1 and written_by.shape[1] > 1:
            channels.tie(read_by, CONSTANT)
            channels.tie(written_by, CONSTANT)
            if not channels.is_own(weight):  # which may be normalised over its columns
                channels.normalised(columns, _normed_by("what computes a weight"))
        else:
            channels.tie(torch.cat([read_by, written_by], 1).T, CONSTANT)
    if bias is not None:
        channels.join(outputs, channels.dims(bias)[0], CONSTANT)
    channels.carry(out, (batch, outputs, *(None,) * (out.ndim - 2)))


def product(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A sum over channels reads those of both sides together."""
    one, other = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
    left, right = channels.dims(one), channels.dims(other)
    channels.join(left[-1], right[-2], CONSTANT)
    if one.ndim == 3:
        channels.join(left[0], right[0], CONSTANT)
    channels.carry(out, (*left[:-1], right[-1]))
    if name in ("addmm", "baddbmm"):
        pointwise(channels, name, [out, args[0]], out)


def attention(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Heads go as a whole, queries, keys and values alike; what values are made of is free of queries and keys."""
    query, key, value = (channels.dims(tensor) for tensor in args[:3])
    for other in (key, value):
        channels.join(query[-3], other[-3], CONSTANT)
    channels.join(query[-1], key[-1], CONSTANT)
    for bias in (arg for arg in args[3:] if isinstance(arg, Tensor)):
        dims = channels.dims(bias)
        if bias.ndim > 2 and bias.shape[-3] > 1:
            channels.join(query[-3], dims[-3], CONSTANT)
        for nodes in dims[-2:]:
            channels.pin(nodes, _mixed_by(name))
    for nodes in (query[-2], key[-2], value[-2]):
        channels.pin(nodes, _mixed_by(name))
    channels.carry(out[0], (*query[:-2], None, value[-1]))


def batch_norm(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Every channel has numbers of its own, unless statistics are over other dimensions of channels too."""
    dims = channels.dims(args[0])
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor):
            channels.join(dims[1], channels.dims(tensor)[0], CONSTANT)
    if True in [arg for arg in args if isinstance(arg, bool)]:  # statistics of this batch
        for nodes in (dims[0], *dims[2:]):
            channels.normalised(nodes, _normed_by(name))
    channels.carry(out[0], dims)


def layer_norm(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A channel's values depend on which others are there."""
    images, dims, num = args[0], channels.dims(args[0]), len(args[1])
    for place, nodes in enumerate(dims[images.ndim - num :]):
        if nodes is not None:
            channels.normalised(nodes, _normed_by(name))
            follow(channels, place, nodes)
            for tensor in (arg for arg in args[2:] if isinstance(arg, Tensor)):
                channels.join(nodes, channels.dims(tensor)[place], CONSTANT)
    channels.carry(out[0], dims)


def group_norm(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Groups go as a whole where their number follows; if the recipe accepts other widths, all groups lose alike."""
    dims, groups = channels.dims(args[0]), args[6]
    nodes = dims[1]
    for tensor in args[1:3]:
        if isinstance(tensor, Tensor):
            channels.join(nodes, channels.dims(tensor)[0], CONSTANT)
    if nodes is not None and channels.norm_widths:
        channels.normalised(nodes, _normed_by(name))
        channels.tie(nodes.view(groups, -1), PLACES)
    elif nodes is not None:
        runs = channels.tie_runs(nodes, len(nodes) // groups, _normed_by(name))
        channels.pin(nodes if groups == 1 else None, _normed_by(name))
        follow(channels, place_of(channels, groups), runs)
    channels.carry(out[0], dims)


def weight_norm(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A weight of a norm of its own per filter: the norm is over what the filter reads."""
    dims, along = channels.dims(args[0]), args[2]
    channels.join(dims[along], channels.dims(args[1])[along], CONSTANT)
    for dim, nodes in enumerate(dims):
        if dim != along:
            channels.normalised(nodes, _normed_by(name))
    channels.carry(out[0], dims)


_OF_NORMS = ("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
"""Reductions with which norms are written by hand."""


def reduction(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Reduced dimensions vanish or become 1; channels reduced to one number are pinned."""
    tensor, dims = args[0], channels.dims(args[0])
    place = 2 if name in ("linalg_vector_norm", "norm", "kthvalue") else 1
    over = args[place] if len(args) > place and not isinstance(args[place], bool | torch.dtype) else None
    over = range(tensor.ndim) if over is None or over == [] else [over] if isinstance(over, int) else over
    reduced = {dim % tensor.ndim for dim in over}
    results = out if isinstance(out, tuple) else [out]
    for place, dim in enumerate(over if channels.caller and channels.caller.name == "rms_norm" else ()):
        if (counted := dims[dim]) is not None:
            follow(channels, place, counted)
    is_norm = name in _OF_NORMS and all(result.ndim == tensor.ndim for result in results)  # goes back to all channels
    for nodes in (dims[dim] for dim in reduced):
        # a weight may be standardised over its inputs by anything
        if nodes is not None and (is_norm or channels.is_read_by_layer(nodes)):
            channels.normalised(nodes, _normed_by(name))
        else:
            channels.pin(nodes, _mixed_by(name))
    kept = [None if dim in reduced else nodes for dim, nodes in enumerate(dims)]
    left = [nodes for dim, nodes in enumerate(kept) if dim not in reduced]
    for result in results:
        channels.carry(result, left if result.ndim < tensor.ndim else kept)


def across(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Softmax, cumulative sums, sorting and Fourier transforms mix the values along some dimensions."""
    dims = channels.dims(args[0])
    over = next(arg for arg in args[2 if name in ("topk", "renorm") else 1 :] if not isinstance(arg, bool | None))
    mixed = {dim % len(dims) for dim in (over if isinstance(over, list) else [over])}
    if name == "renorm":  # it names the dimension that is not mixed
        mixed = set(range(len(dims))) - mixed
    for dim in mixed:
        channels.pin(dims[dim], _mixed_by(name))
    for result in out if isinstance(out, tuple) else [out]:
        sizes = zip(dims, args[0].shape, result.shape, strict=True)
        channels.carry(result, [nodes if size == new_size else None for nodes, size, new_size in sizes])


def gated(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A gated linear unit: each half of the channels is multiplied by the other."""
    dims = list(channels.dims(args[0]))
    nodes = dims[args[1]]
    if nodes is not None:
        halves = nodes.view(2, -1)
        channels.tie(halves, CONSTANT)
        dims[args[1]] = halves[0]
    channels.carry(out, dims)


def spatial(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Pooling, resizing, sampling, RoIAlign: the dimension before the places in space stays."""
    dims = list(channels.dims(args[0]))
    num = next((num for num in (1, 3) if f"{num}d" in name), 2)
    for dim in range(-num, 0):
        channels.pin(dims[dim], _mixed_by(name))
        dims[dim] = None
    for grid in (arg for arg in args[1:] if isinstance(arg, Tensor)):
        channels.pin_all(grid, f"says where {name} reads")
    for result in out if isinstance(out, tuple) else [out]:
        channels.carry(result, dims)


def _mixed_by(name: str) -> str:
    return f"combined with other channels by {name}"


def _normed_by(name: str) -> str:
    return f"normalised together with other channels by {name.removeprefix('native_')}, see norm_widths"
