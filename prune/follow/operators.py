"""How each tensor operation treats channels: the rules applied to each one in a forward pass.

A rule gets the nodes, the operation's name, all its arguments in its own order, and its result. Names are those of
torch's ATen library, to which every operation of a model is reduced, however Python spells it; elementwise operations
need no entry.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prune.follow.nodes import ChannelNodes, Nodes

__all__ = ["RULES", "Rule"]

Rule = Callable[[ChannelNodes, str, list[Any], Any], None]

_CONSTANT = "tied to the model's input or to a constant"
_PLACES = "its channels are split at fixed places by the forward pass"


def _dims(channels: ChannelNodes, tensor: Tensor) -> Nodes:
    return channels.nodes(tensor) or (None,) * tensor.ndim


def _same(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    channels.carry(out, _dims(channels, args[0]))


def _unknown(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    channels.pin_all(args, f"passes through {name}, whose channels cannot be followed")


def _pointwise(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Broadcast from the right; channels at the same position go together."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    out = out if isinstance(out, Tensor) else tensors[0]
    dims: list[Tensor | None] = [None] * out.ndim
    for back in range(1, out.ndim + 1):
        here = [(t.shape[-back], _dims(channels, t)[-back]) for t in tensors if t.ndim >= back]
        tracked = [nodes for size, nodes in here if nodes is not None and size == out.shape[-back]]
        for size, nodes in here:
            if size != out.shape[-back]:
                channels.pin(nodes, "one channel is spread over many")
            elif tracked and size > 1:
                channels.join(tracked[0], nodes, _CONSTANT)
        dims[-back] = tracked[0] if tracked else None
    channels.carry(out, dims)


def _contract(channels: ChannelNodes, read: Tensor | None, inputs: Tensor | None) -> None:
    """A layer reads channels; an input that no channel feeds is never cut."""
    if read is None or inputs is None:
        channels.pin(read if inputs is None else inputs, _CONSTANT)
    else:
        both = (read >= 0) & (inputs >= 0)
        channels.joined.append((read[both], inputs[both]))


def _convolution(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    images, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    read = _dims(channels, images)[1]
    rows, columns = _dims(channels, weight)[:2]
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    if groups > 1:
        inputs = channels.input_nodes(weight, images.shape[1])
    if outputs is None or inputs is None or (transposed and groups > 1):
        _unknown(channels, name, args, out)
        return
    if groups == 1:
        _contract(channels, read, inputs)
    else:
        channels.join(read, inputs, _CONSTANT)
        # one group of the convolution goes as a whole, with all that it reads and writes
        blocks = torch.cat([inputs.view(groups, -1), outputs.view(groups, -1)], 1)
        channels.joined.append((blocks[:, :1].expand(-1, blocks.shape[1] - 1).flatten(), blocks[:, 1:].flatten()))
    if bias is not None:
        channels.join(outputs, _dims(channels, bias)[0], _CONSTANT)
    channels.carry(out, (None, outputs, *(None,) * (out.ndim - 2)))


def _product(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    one, other = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
    left, right = _dims(channels, one), _dims(channels, other)
    if left[-1] is not None or right[-2] is not None:
        _contract(channels, left[-1], right[-2])
    if one.ndim == 3 and (left[0] is not None or right[0] is not None):
        channels.join(left[0], right[0], _CONSTANT)
    channels.carry(out, (*left[:-1], right[-1]))
    if name in ("addmm", "baddbmm"):
        _pointwise(channels, name, [out, args[0]], out)


def _batch_norm(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = _dims(channels, args[0])
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor):
            channels.join(dims[1], _dims(channels, tensor)[0], _CONSTANT)
    channels.carry(out[0], dims)


def _normalization(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Layer and group normalisation: a channel's values depend on which others are there."""
    images, dims = args[0], _dims(channels, args[0])
    layered = name == "native_layer_norm"
    over = range(images.ndim - len(args[1]), images.ndim) if layered else [1]
    for dim in over:
        channels.pin(dims[dim], f"normalised together with other channels by {name.removeprefix('native_')}")
    for tensor in args[2:4] if layered else args[1:3]:
        if isinstance(tensor, Tensor) and dims[over[-1]] is not None:
            channels.join(dims[over[-1]], _dims(channels, tensor)[-1], _CONSTANT)
    channels.carry(out[0], dims)


def _reduction(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Reduced dimensions vanish or become 1; channels reduced to one number are pinned."""
    tensor, dims = args[0], _dims(channels, args[0])
    over = args[1] if len(args) > 1 and not isinstance(args[1], bool | torch.dtype) else None
    over = range(tensor.ndim) if over is None or over == [] else [over] if isinstance(over, int) else over
    reduced = {dim % tensor.ndim for dim in over}
    for dim in reduced:
        channels.pin(dims[dim], f"combined with other channels by {name}")
    kept = [None if dim in reduced else nodes for dim, nodes in enumerate(dims)]
    left = [nodes for dim, nodes in enumerate(kept) if dim not in reduced]
    for result in out if isinstance(out, tuple) else [out]:
        channels.carry(result, left if result.ndim < tensor.ndim else kept)


def _across(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Softmax and cumsum mix the values along one dimension."""
    channels.pin(_dims(channels, args[0])[args[1]], f"combined with other channels by {name}")
    _same(channels, name, args, out)


def _spatial(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Pooling, resizing, RoIAlign: the dimension before height and width stays."""
    dims = list(_dims(channels, args[0]))
    for dim in (-2, -1):
        channels.pin(dims[dim], f"combined with other channels by {name}")
        dims[dim] = None
    for result in out if isinstance(out, tuple) else [out]:
        channels.carry(result, dims)


def _pad(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = list(_dims(channels, args[0]))
    for dim, nodes in enumerate(dims):
        before, after = (*args[1], *[0] * 2 * out.ndim)[2 * (out.ndim - 1 - dim) :][:2]
        if nodes is not None and (before or after):
            channels.pin(nodes, "padded with channels of zeros by the forward pass")
            dims[dim] = functional.pad(nodes, (before, after), value=-1)
    channels.carry(out, dims)


def _permute(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = list(_dims(channels, args[0]))
    if name == "permute":
        order: Sequence[int] = args[1]
    else:
        order = list(range(len(dims)))
        one, other = args[1:3] if name == "transpose" else (0, -1)
        order[one], order[other] = order[other], order[one]
    channels.carry(out, [dims[dim] for dim in order])


def _view(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A dimension of channels may stay or be merged with others; one that is taken apart is pinned."""
    tensor, dims = args[0], _dims(channels, args[0])
    result: list[Tensor | None] = [None] * out.ndim
    for dim, nodes in enumerate(dims):
        if nodes is None:
            continue
        place = _place_in_view(tensor.shape, dim, out.shape)
        if place is None or result[place] is not None:
            channels.pin(nodes, _PLACES)
            continue
        inner = math.prod(tensor.shape[dim + 1 :]) // math.prod(out.shape[place + 1 :])
        spread = nodes.repeat_interleave(inner)
        result[place] = spread.repeat(out.shape[place] // len(spread))
    channels.carry(out, result)


def _place_in_view(old: Sequence[int], dim: int, new: Sequence[int]) -> int | None:
    """Return the new dimension that holds the old one whole, or None."""
    inner, size = math.prod(old[dim + 1 :]), old[dim]
    for place in reversed(range(len(new))):
        behind = math.prod(new[place + 1 :])
        if inner % behind == 0 and new[place] * behind % (inner * size) == 0:
            return place
    return None


def _unsqueeze(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = list(_dims(channels, args[0]))
    dims.insert(args[1] % out.ndim, None)
    channels.carry(out, dims)


def _squeeze(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    tensor = args[0]
    over = args[1] if len(args) > 1 else range(tensor.ndim)
    gone = {dim % tensor.ndim for dim in ([over] if isinstance(over, int) else over)}
    kept = [n for dim, n in enumerate(_dims(channels, tensor)) if dim not in gone or tensor.shape[dim] > 1]
    channels.carry(out, kept)


def _expand(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    _pointwise(channels, name, args[:1], out)


def _slice(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = list(_dims(channels, args[0]))
    dim = args[1] % args[0].ndim
    nodes = dims[dim]
    if nodes is not None and out.shape[dim] != len(nodes):
        channels.pin(nodes, _PLACES)
        dims[dim] = nodes[slice(*args[2:])]
    channels.carry(out, dims)


def _select(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = list(_dims(channels, args[0]))
    channels.pin(dims.pop(args[1]), _PLACES)
    for result in out if isinstance(out, list | tuple) else [out]:
        channels.carry(result, dims)


def _split(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    dims = list(_dims(channels, args[0]))
    dim = args[2]
    nodes, start = dims[dim], 0
    channels.pin(nodes if len(out) > 1 else None, _PLACES)
    for part in out:
        if nodes is not None:
            dims[dim] = nodes[start : start + part.shape[dim]]
        start += part.shape[dim]
        channels.carry(part, dims)


def _cat(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    tensors = [t for t in args[0] if t.numel()]
    along = args[1] % out.ndim
    dims: list[Tensor | None] = []
    for dim in range(out.ndim):
        columns = [_dims(channels, t)[dim] for t in tensors]
        tracked = [nodes for nodes in columns if nodes is not None]
        if tracked and dim == along:
            fill = [
                n if n is not None else torch.full((t.shape[dim],), -1) for n, t in zip(columns, tensors, strict=True)
            ]
            dims.append(torch.cat(fill))
            continue
        for nodes in columns if tracked else ():
            channels.join(tracked[0], nodes, _CONSTANT)
        dims.append(tracked[0] if tracked else None)
    channels.carry(out, dims)


def _stack(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    along = args[1] % out.ndim
    _pointwise(channels, name, args[0], args[0][0])
    dims = list(_dims(channels, args[0][0]))
    dims.insert(along, None)
    channels.carry(out, dims)


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(_pointwise, "pointwise dropout native_dropout copy _prelu_kernel hardswish"),
    **_named(_unknown, "unknown"),
    **_named(_same, "alias detach lift_fresh contiguous _to_copy fill zero"),
    **_named(_convolution, "convolution"),
    **_named(_product, "mm bmm addmm baddbmm"),
    **_named(_batch_norm, "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit_no_training"),
    **_named(_normalization, "native_layer_norm native_group_norm"),
    **_named(_reduction, "mean sum amax amin max min var std argmax argmin prod logsumexp"),
    **_named(_across, "_softmax _log_softmax cumsum"),
    **_named(
        _spatial,
        "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d mkldnn_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d roi_align roi_pool",
    ),
    **_named(_pad, "constant_pad_nd"),
    **_named(_permute, "permute transpose t"),
    **_named(_view, "view _unsafe_view reshape _reshape_alias"),
    **_named(_unsqueeze, "unsqueeze"),
    **_named(_squeeze, "squeeze"),
    **_named(_expand, "expand"),
    **_named(_slice, "slice"),
    **_named(_select, "select unbind"),
    **_named(_split, "split split_with_sizes"),
    **_named(_cat, "cat"),
    **_named(_stack, "stack"),
}
"""ATen operation -> rule. Operations that torch tags as pointwise need no entry."""
