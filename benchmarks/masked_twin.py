"""Proof that a slim model computes what its dense one does without the removed channels, whoever cut it.

Nothing of prune/ is used: the kept channels are read off the slim weights, whose numbers are found among the dense
ones. So the dense weights must differ from each other: see `randomised`.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

__all__ = ["FOREIGN_ERRORS", "Verdict", "randomised", "verdict"]

FOREIGN_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
"""What foreign models and pruners may raise."""


TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest difference between equal outputs, relative to their largest number: deep random networks magnify rounding."""


@dataclass(frozen=True)
class Verdict:
    """Whether a slim model is right, and if not, why."""

    status: Literal["equal", "wrong", "unmatched", "unmeasured"]
    why: str = ""
    difference: float | None = None
    """Of the outputs, relative to the largest number of each."""
    removed: str = ""
    """What was done to removed channels in the dense model that the slim one equals: "not read" or "zero"."""


def randomised(model: nn.Module) -> nn.Module:
    """Give the model numbers that differ from each other; those of scales and normalisation layers are often equal."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    tables = [buffer for buffer in buffers if buffer.ndim > 1]
    for tensor in (*(p.data for p in model.parameters() if p.numel()), *(b for b in buffers if b.ndim == 1)):
        low, high = tensor.min().item(), tensor.max().item()
        if low == high:
            low, high = (0.5, 1.5) if low else (-0.2, 0.2)
        elif tensor.numel() > max(tensor.shape):  # a matrix: its rows and columns differ, if not all of its numbers
            continue
        tensor.copy_(_shuffled(low, high, tensor.numel()).view(tensor.shape))
    for table in tables:
        if (table == table[:1]).all():  # the same filter for each channel
            table.mul_(_shuffled(0.5, 1.5, len(table)).view(-1, *(1,) * (table.ndim - 1)))
    return model


def _shuffled(low: float, high: float, num: int) -> Tensor:
    return torch.linspace(low, high, num)[torch.randperm(num)]


def verdict(dense: nn.Module, slim: nn.Module, inputs: tuple[Any, ...], training: tuple[Any, ...]) -> Verdict:
    """Compare the outputs of a slim model with those of the dense one without the channels that the slim one lacks.

    They are compared in eval mode and float64, on two random inputs; float32, where the dense model does not run in
    float64. A removed channel is not read: what the layers behind it read it with is zero. Where two activations are
    multiplied nothing else reads it, so it may be zero itself.

    Args:
        dense: Its weights differ from each other; it is spoilt.
        slim: It is spoilt too.
        inputs: Positional arguments of both.
        training: Positional arguments in train mode, in which every parameter of the slim model must get a gradient
            that gets one in the dense model.
    """
    try:
        masks = dict(_masks(dense, slim))
    except LookupError as error:
        return Verdict("unmatched", str(error.args[0]))
    dtype = _widest(dense, slim, inputs)
    batches = [_noise(inputs, seed, dtype) for seed in (1, 2)]
    whole = [_outputs(dense, batch) for batch in batches]
    try:
        actual = [_outputs(slim, batch) for batch in batches]
    except FOREIGN_ERRORS as error:
        return Verdict("wrong", f"slim does not run: {_line(error)}")
    found = _compared(dense, masks, batches, whole, actual, TOLERANCE[dtype])
    return found if found.status != "equal" else _trained(dense, slim, _noise(training, 3, dtype), found)


def _compared(
    dense: nn.Module, masks: Any, batches: list[Any], whole: list[Any], actual: list[Any], tolerance: float
) -> Verdict:
    least = float("inf")
    for removed, kept in (("not read", _unread), ("zero", lambda mask, owner: mask)):
        _zero(dense, masks, kept)
        expected = [_outputs(dense, batch) for batch in batches]
        if not all(tensor.isfinite().all() for tensor in expected[0]) or not expected[0]:
            return Verdict("unmeasured", "the dense model has no finite outputs to compare")
        least = min(least, _difference(expected, actual))
        if least <= tolerance:
            cut = any(not mask.all() for mask, _ in masks.values())
            if cut and _difference(whole, expected) == 0:
                return Verdict("unmeasured", "the removed channels do not change the outputs")
            return Verdict("equal", difference=least, removed=removed)
    return Verdict("wrong", f"outputs differ by {least:.2g} of the largest", least)


def _masks(dense: nn.Module, slim: nn.Module) -> Iterator[tuple[str, tuple[Tensor, nn.Module]]]:
    """Yield (name, (which numbers of the dense tensor the slim one has, its module)) of every tensor that was cut.

    Raises:
        LookupError: If a slim tensor is no part of the dense one.
    """
    tensors = dict(_tensors(slim))
    if missing := set(dict(_tensors(dense))) ^ set(tensors):
        raise LookupError(f"{min(missing)} is in one of the two only")
    for name, tensor in _tensors(dense):
        part, owner = tensors[name].detach(), slim.get_submodule(name.rpartition(".")[0])
        mask = _mask(tensor.detach(), part, getattr(owner, "groups", 1))
        if mask is None:
            raise LookupError(f"{name} {tuple(part.shape)} is no part of the dense {tuple(tensor.shape)}")
        if not mask.all():
            yield name, (mask, dense.get_submodule(name.rpartition(".")[0]))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from (pair for pair in model.named_buffers(remove_duplicate=False) if pair[1].is_floating_point())


def _mask(dense: Tensor, slim: Tensor, groups: int) -> Tensor | None:
    """Return which numbers of `dense` are in `slim`, or None if it is no part of it.

    A grouped convolution may keep other inputs in each of its groups.
    """
    if dense.shape == slim.shape:
        return torch.ones_like(dense, dtype=torch.bool) if torch.equal(dense, slim) else None
    if dense.ndim != slim.ndim:
        return None
    mask = torch.zeros_like(dense, dtype=torch.bool)
    for part in slim.chunk(groups if dense.ndim > 1 and dense.shape[1] != slim.shape[1] else 1):
        kept = _kept(dense, part)
        if kept is None:
            return None
        block = torch.ones((), dtype=torch.bool)
        for dim, indices in enumerate(kept):
            is_kept = torch.zeros(dense.shape[dim], dtype=torch.bool).index_fill(0, indices, True)
            block = block & is_kept.view(-1, *(1,) * (dense.ndim - 1 - dim))
        mask |= block
    return mask


def _kept(dense: Tensor, part: Tensor) -> list[Tensor] | None:
    """Return, per dimension, the indices of `dense` that give `part`; some numbers show them, and all are compared."""
    kept = _shown(dense, part)
    for dim, size in enumerate(part.shape):
        if (kept[dim] < 0).any() and size == dense.shape[dim]:
            kept[dim] = torch.arange(size)
        elif (kept[dim] < 0).any():  # among fewer numbers fewer are equal
            few, own = dense, part
            for other in set(range(dense.ndim)) - {dim}:
                known = (kept[other] >= 0).nonzero()[:8, 0]
                few, own = few.index_select(other, kept[other][known]), own.index_select(other, known)
            kept[dim] = _shown(few, own)[dim]
    if any((indices < 0).any() for indices in kept):
        return None
    found = dense
    for dim, indices in enumerate(kept):
        found = found.index_select(dim, indices)
    return kept if torch.equal(found, part) else None


def _shown(dense: Tensor, part: Tensor) -> list[Tensor]:
    """Return, per dimension, the indices of numbers that `dense` has once; -1 where no number shows the index."""
    if not part.numel():
        return [torch.full((size,), -1) for size in part.shape]
    chosen = torch.stack([_few(part.shape, dim) for dim in range(part.ndim)]).any(0)
    values, order = part[chosen].sort()
    is_likely = torch.zeros(1 << 22, dtype=torch.bool).index_fill(0, _end(values), True)  # faster than a search for all
    places = is_likely.index_select(0, _end(dense.flatten())).nonzero()[:, 0]
    at = torch.searchsorted(values, dense.flatten()[places]).clamp_max(len(values) - 1)
    is_same = values[at] == dense.flatten()[places]
    places, at = places[is_same], at[is_same]
    once = at.bincount(minlength=len(values))[at] == 1
    own = chosen.nonzero()[order[at[once]]].unbind(1)
    found = torch.unravel_index(places[once], dense.shape)
    return [torch.full((size,), -1).index_put((o,), f) for size, o, f in zip(part.shape, own, found, strict=True)]


def _end(numbers: Tensor) -> Tensor:
    """Return the last bits of each float32 number."""
    return numbers.contiguous().view(torch.int32).bitwise_and((1 << 22) - 1).long()


def _few(shape: torch.Size, dim: int, num: int = 8) -> Tensor:
    """Return a mask of a few numbers for every index of that dimension."""
    rest = math.prod(shape) // shape[dim]
    few = torch.zeros(rest, dtype=torch.bool).index_fill(0, torch.linspace(0, rest - 1, num).long(), True)
    others = [size for other, size in enumerate(shape) if other != dim]
    return few.view(others).unsqueeze(dim).expand(shape)


def _zero(dense: nn.Module, masks: Any, kept: Callable[[Tensor, nn.Module], Tensor]) -> None:
    tensors = dict(_tensors(dense))
    for name, (mask, owner) in masks.items():
        tensors[name].data.masked_fill_(~kept(mask, owner), 0)


def _unread(mask: Tensor, owner: nn.Module) -> Tensor:
    """Return the mask with removed outputs as in the dense model: only what reads removed inputs is not kept."""
    is_transposed = isinstance(owner, _ConvTransposeNd) and mask.ndim > 1
    by_output = mask.unflatten(0, (owner.groups, -1)) if is_transposed else mask
    others = [dim for dim in range(1, by_output.ndim) if not (is_transposed and dim == 2)]
    is_written = by_output.any(others, keepdim=True) if others else by_output
    return (by_output | ~is_written).view_as(mask)


def _trained(dense: nn.Module, slim: nn.Module, inputs: tuple[Any, ...], found: Verdict) -> Verdict:
    """Return the verdict so far, or what the slim model's training step lacks; a dense one that cannot train passes."""
    try:
        needed = _with_gradients(dense, inputs)
    except FOREIGN_ERRORS:  # not all models train on random numbers
        return found
    try:
        missing = needed - _with_gradients(slim, inputs)
    except FOREIGN_ERRORS as error:
        return Verdict("wrong", f"slim does not train: {_line(error)}")
    return Verdict("wrong", f"no gradient reaches {min(missing)} in training") if missing else found


def _with_gradients(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    model.train()
    _seed(0)
    sum(tensor.square().mean() for tensor in _floating(model(*inputs)) if tensor.requires_grad).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _widest(dense: nn.Module, slim: nn.Module, inputs: tuple[Any, ...]) -> torch.dtype:
    """Turn both models to float64, or back to float32 where the dense one does not run in it."""
    try:
        _outputs(dense.double(), _noise(inputs, 0, torch.float64))
    except FOREIGN_ERRORS:  # it converts some of its numbers itself
        dense.float()
        return torch.float32
    slim.double()
    return torch.float64


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    model.eval()
    _seed(0)
    with torch.no_grad():
        return [tensor.clone() for tensor in _tensors_in(model(*inputs))]


def _noise(inputs: Any, seed: int, dtype: torch.dtype) -> Any:
    """Return the inputs with normal noise in place of floating tensors of images; boxes and other matrices stay."""
    generator = torch.Generator().manual_seed(seed)

    def noise(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return (torch.randn(value.shape, generator=generator) if value.ndim > 2 else value).to(dtype)

    return torch.utils._pytree.tree_map(noise, inputs)


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)


def _difference(expected: list[list[Tensor]], actual: list[list[Tensor]]) -> float:
    """Return the largest difference, relative to the largest number of each output; other shapes differ infinitely."""
    pairs = [pair for one, other in zip(expected, actual, strict=True) for pair in zip_longest(one, other)]
    return max((_apart(one, other) for one, other in pairs), default=0.0)


def _apart(one: Tensor | None, other: Tensor | None) -> float:
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    apart = (one.double() - other.double()).abs().max() / one.double().abs().max().clamp_min(1e-30)
    return float("inf") if apart.isnan() else apart.item()


def _floating(value: Any) -> list[Tensor]:
    return [tensor for tensor in _tensors_in(value) if tensor.is_floating_point()]


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _tensors_in(list(value.values()))
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors_in(item)]
    return _tensors_in(vars(value)) if hasattr(value, "__dict__") else []


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
