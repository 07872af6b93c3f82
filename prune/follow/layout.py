"""How operations that move numbers treat channels: views, permutations, parts, joints, padding."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prune.follow.nodes import Caller, ChannelNodes
from prune.follow.widths import Width

__all__ = [
    "CONSTANT",
    "PLACES",
    "cat",
    "channel_shuffle",
    "expand",
    "flip",
    "follow",
    "index",
    "pad",
    "permute",
    "pixel_shuffle",
    "pixel_unshuffle",
    "place_of",
    "pointwise",
    "repeat",
    "roll",
    "select",
    "slices",
    "split",
    "squeeze",
    "stack",
    "unfold",
    "unsqueeze",
    "view",
]

CONSTANT = "tied to the model's input or to a constant"
PLACES = "its channels are split at fixed places by the forward pass"


def pointwise(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Broadcast from the right; channels at the same position go together."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    out = out if isinstance(out, Tensor) else tensors[0]
    dims: list[Tensor | None] = [None] * out.ndim
    for back in range(1, out.ndim + 1):
        here = [(t.shape[-back], channels.dims(t)[-back]) for t in tensors if t.ndim >= back]
        tracked = [nodes for size, nodes in here if nodes is not None and size == out.shape[-back]]
        for size, nodes in here:
            if size != out.shape[-back]:
                channels.pin(nodes, "one channel is spread over many")
            elif tracked and size > 1:
                channels.join(tracked[0], nodes, CONSTANT)
        dims[-back] = tracked[0] if tracked else None
    channels.carry(out, dims)


def permute(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Dimensions change places."""
    dims = list(channels.dims(args[0]))
    if name == "permute":
        order: Sequence[int] = args[1]
    else:
        order = list(range(len(dims)))
        one, other = args[1:3] if name == "transpose" else (0, -1)
        order[one], order[other] = order[other], order[one]
    channels.carry(out, [dims[dim] for dim in order])


def view(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A dimension of channels may be merged with others, or taken apart by sizes that follow its width."""
    tensor, dims, places = args[0], channels.dims(args[0]), _places(channels, out.ndim)
    result: list[Tensor | None] = [None] * out.ndim
    for old, new in _segments(tensor.shape, out.shape):
        tracked = [nodes for nodes in dims[old] if nodes is not None]
        if len(tracked) == 1 and out.shape[new]:
            shape = [1 if nodes is None else -1 for nodes in dims[old]]
            table = tracked[0].view(shape).expand(tensor.shape[old]).reshape(out.shape[new])
            result[new] = _spread(channels, tracked[0], table, places[new])
        else:
            for nodes in tracked:
                channels.pin(nodes, PLACES)
    channels.carry(out, result)


def _segments(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield the shortest runs of old and new dimensions that hold the same numbers."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (one := math.prod(old[first:i])) != (other := math.prod(new[second:j])):
            i, j = (i + 1, j) if one < other else (i, j + 1)
        yield slice(first, i), slice(second, j)


def _places(channels: ChannelNodes, ndim: int) -> list[int | None]:
    """Return, per dimension of a view, the place of its size among the caller's numbers; None where torch computes it.

    Raises:
        LookupError: If the caller is not known, or gives another number of sizes.
    """
    caller = _caller(channels)
    if caller.name == "unflatten":
        num_before, num = caller.numbers[0] % (ndim + 2 - len(caller.numbers)), len(caller.numbers) - 1
        return [*[None] * num_before, *range(1, num + 1), *[None] * (ndim - num_before - num)]
    if caller.name not in ("view", "reshape", "view_as", "reshape_as"):
        return [None] * ndim
    if len(caller.numbers) != ndim:
        raise LookupError(caller.name)
    return [*range(ndim)]


def _spread(channels: ChannelNodes, whole: Tensor, table: Tensor, places: list[int | None]) -> list[Tensor | None]:
    """Return the nodes per dimension of a table of nodes, which are tied so that they vary along one of them."""
    result: list[Tensor | None] = [None] * table.ndim
    dim = _along(channels, table, places)
    if dim is None:
        channels.pin(whole, PLACES)
        return result
    rows = table.movedim(dim, -1).reshape(-1, table.shape[dim])
    if (rows != rows[:1]).any():
        channels.tie(rows, PLACES)
    follow(channels, places[dim], rows[0], whole)
    result[dim] = rows[0]
    return result


def _along(channels: ChannelNodes, table: Tensor, places: list[int | None]) -> int | None:
    """Return the dimension along which nodes vary, or can after a tie: one whose size follows.

    Rather channels of every part than whole parts, which an attribute counts; unless these channels cannot go.
    """
    varying = [dim for dim in range(table.ndim) if (table != table.narrow(dim, 0, 1)).any()]
    if not varying:
        return min(range(table.ndim), key=table.shape.__getitem__)
    if len(varying) == 1:
        return varying[0]
    numbers = {dim: _caller(channels).numbers[place] for dim in varying if (place := places[dim]) is not None}
    named = {dim: n.attribute for dim, n in numbers.items() if isinstance(n, Width) and n.attribute}
    free = [dim for dim, n in numbers.items() if dim not in named and (isinstance(n, Width) or n == -1)]
    if whole := [dim for dim, name in named.items() if name in channels.whole_parts]:
        return whole[0]
    if free and named:
        channels.or_whole |= dict.fromkeys(table.movedim(free[0], -1).flatten(0, -2)[0].tolist(), named[min(named)])
    return next(iter([*free, *named]), None)


def _caller(channels: ChannelNodes) -> Caller:
    if channels.caller is None:
        raise LookupError("caller")
    return channels.caller


def follow(channels: ChannelNodes, place: int | None, nodes: Tensor, whole: Tensor | None = None) -> None:
    """Tie nodes to the number that gives how many they are; they are pinned if it is fixed.

    Args:
        channels: It knows the caller's numbers.
        place: Which of them; None where torch computes it.
        nodes: What is counted.
        whole: Nodes of which they are a fixed share.
    """
    number = -1 if place is None else _caller(channels).numbers[place]
    if place is not None and isinstance(number, Width):
        number.follow(nodes, whole)
        _caller(channels).followed.add(place)
    elif number != -1:
        channels.pin(nodes, PLACES)


def place_of(channels: ChannelNodes, value: int) -> int:
    """Return where the caller gives that number; of several places one where it is fixed.

    Raises:
        LookupError: If it is not among the caller's numbers.
    """
    places = [place for place, number in enumerate(_caller(channels).numbers) if int(number) == value]
    return sorted(places, key=lambda place: isinstance(_caller(channels).numbers[place], Width))[0]


def unsqueeze(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A dimension of size 1 is added."""
    dims = list(channels.dims(args[0]))
    dims.insert(args[1] % out.ndim, None)
    channels.carry(out, dims)


def squeeze(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Dimensions of size 1 vanish."""
    tensor = args[0]
    over = args[1] if len(args) > 1 else range(tensor.ndim)
    gone = {dim % tensor.ndim for dim in ([over] if isinstance(over, int) else over)}
    kept = [n for dim, n in enumerate(channels.dims(tensor)) if dim not in gone or tensor.shape[dim] > 1]
    channels.carry(out, kept)


def expand(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Single numbers are spread over a dimension."""
    pointwise(channels, name, args[:1], out)


def repeat(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Channels follow each other as often as they are repeated."""
    dims = (*(None,) * (out.ndim - args[0].ndim), *channels.dims(args[0]))
    channels.carry(out, [None if n is None else n.repeat(times) for n, times in zip(dims, args[1], strict=True)])


def slices(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A part follows if its bounds are widths, or if it takes one of every few neighbours."""
    dims, dim, (start, end, step) = list(channels.dims(args[0])), args[1] % out.ndim, args[2:]
    nodes = dims[dim]
    if nodes is not None and out.shape[dim] != len(nodes):
        start, end = (start or 0), min(len(nodes) if end is None else end, len(nodes))
        if step == 1 and 0 <= start < end:
            for bound in {start, end} - {0, len(nodes)}:
                follow(channels, place_of(channels, bound), nodes[:bound])
        elif 0 <= start < step and end == len(nodes) and end % step == 0:
            channels.tie_runs(nodes, step, PLACES)
        else:
            channels.pin(nodes, PLACES)
        dims[dim] = nodes[slice(*args[2:])]
    channels.carry(out, dims)


def select(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """A place that is chosen by its number stays."""
    dims = list(channels.dims(args[0]))
    channels.pin(dims.pop(args[1]), PLACES)
    for result in out if isinstance(out, list | tuple) else [out]:
        channels.carry(result, dims)


def split(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Parts of one size have the same channels, position by position; others follow a width each."""
    dims, dim = list(channels.dims(args[0])), args[2] % args[0].ndim
    nodes = dims[dim]
    if nodes is None:
        for part in out:
            channels.carry(part, dims)
        return
    parts = nodes.split([part.shape[dim] for part in out])
    is_equal = len({len(part) for part in parts}) == 1
    is_list, caller = not isinstance(args[1], int), _caller(channels)
    if is_equal and caller.name in ("chunk", "unsafe_chunk", "glu"):
        channels.tie(torch.stack(parts), PLACES)
    elif caller.name in ("split", "split_with_sizes") and (is_equal or is_list):
        for place, part in enumerate(parts if len(parts) > 1 else ()):
            follow(channels, place if is_list else 0, part)
    elif len(parts) > 1:
        channels.pin(nodes, PLACES)
    for part, own in zip(out, parts, strict=True):
        channels.carry(part, (*dims[:dim], own, *dims[dim + 1 :]))


def cat(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Channels follow each other; those of the other dimensions go together."""
    tensors = [t for t in args[0] if t.numel()]
    along = args[1] % out.ndim
    dims: list[Tensor | None] = []
    for dim in range(out.ndim):
        columns = [channels.dims(t)[dim] for t in tensors]
        tracked = [nodes for nodes in columns if nodes is not None]
        if tracked and dim == along:
            fill = [
                n if n is not None else torch.full((t.shape[dim],), -1) for n, t in zip(columns, tensors, strict=True)
            ]
            dims.append(torch.cat(fill))
            continue
        for nodes in columns if tracked else ():
            channels.join(tracked[0], nodes, CONSTANT)
        dims.append(tracked[0] if tracked else None)
    channels.carry(out, dims)


def stack(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Channels of all tensors go together, position by position."""
    along = args[1] % out.ndim
    pointwise(channels, name, args[0], args[0][0])
    dims = list(channels.dims(args[0][0]))
    dims.insert(along, None)
    channels.carry(out, dims)


def pad(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Channels that get others beside them stay; in space they may."""
    dims = list(channels.dims(args[0]))
    for dim, nodes in enumerate(dims):
        before, after = (*args[1], *[0] * 2 * out.ndim)[2 * (out.ndim - 1 - dim) :][:2]
        if nodes is not None and (before or after):
            channels.pin(nodes, "padded with channels of zeros by the forward pass")
            dims[dim] = functional.pad(nodes, (before, after), value=-1)
    channels.carry(out, dims)


def flip(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Channels are in reverse order."""
    dims = list(channels.dims(args[0]))
    for dim in args[1]:
        nodes = dims[dim]
        dims[dim] = None if nodes is None else nodes.flip(0)
    channels.carry(out, dims)


def roll(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Channels move by a fixed number of places."""
    dims = list(channels.dims(args[0]))
    for dim in args[2] or range(out.ndim):
        channels.pin(dims[dim], "rolled by a fixed number of channels")
        dims[dim] = None
    channels.carry(out, dims)


def index(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Indexed dimensions are pinned; the others stay, in their order, where the indices lie side by side."""
    tensor, dims = args[0], channels.dims(args[0])
    if name == "index_select":
        indices: dict[int, Tensor] = {args[1] % tensor.ndim: args[2]}
    elif name == "embedding":
        tensor, dims, indices = args[0], channels.dims(args[0]), {0: args[1]}
    else:
        indices = {dim: where for dim, where in enumerate(args[1]) if where is not None}
    first, last = min(indices), max(indices)
    if len(indices) != last - first + 1 or any(where.dtype == torch.bool for where in indices.values()):
        raise ValueError(name)
    for dim in indices:
        channels.pin(dims[dim], PLACES)
    num_new = out.ndim - tensor.ndim + len(indices)
    channels.carry(out, (*dims[:first], *[None] * num_new, *dims[last + 1 :]))


def pixel_shuffle(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Each run of r * r channels becomes one of r * r times as many places."""
    _rearrange(channels, args[0], out, lambda nodes: channels.tie_runs(nodes, args[1] ** 2, PLACES))


def pixel_unshuffle(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """Each channel becomes a run of r * r."""
    _rearrange(channels, args[0], out, lambda nodes: nodes.repeat_interleave(args[1] ** 2))


def channel_shuffle(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """All groups have the same channels, position by position."""

    def shuffled(nodes: Tensor) -> Tensor:
        groups = nodes.view(args[1], -1)
        channels.tie(groups, PLACES)
        return groups[0].repeat_interleave(args[1])

    if out.ndim != 4:
        raise ValueError(name)
    _rearrange(channels, args[0], out, shuffled)


def _rearrange(channels: ChannelNodes, images: Tensor, out: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    *before, nodes, height, width = channels.dims(images)
    for place in (height, width):
        channels.pin(place, PLACES)
    channels.carry(out, (*before, None if nodes is None else change(nodes), None, None))


def unfold(channels: ChannelNodes, name: str, args: list[Any], out: Any) -> None:
    """The places that a window covers become channels beside each other (`im2col`), or come from such (`col2im`)."""
    dims = channels.dims(args[0])
    if name == "im2col":
        *before, nodes, height, width = dims
        spread = None if nodes is None else nodes.repeat_interleave(math.prod(args[1]))
        places, result = [height, width], (*before, spread, None)
    else:
        *before, nodes, place = dims
        single = None if nodes is None else channels.tie_runs(nodes, math.prod(args[2]), PLACES)
        places, result = [place], (*before, single, None, None)
    for place in places:
        channels.pin(place, PLACES)
    channels.carry(out, result)
