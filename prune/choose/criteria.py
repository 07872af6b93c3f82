"""Criteria: what ranks the channels of a group. A higher score means "keep".

A criterion scores one side of one layer; `group_scores` puts the layers of a group together. Shape letters: C channels,
O output channels, K weights of one filter, L layers.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from command.errors import RequestError, WorkError, is_of_the_machine
from command.own_code import failure, is_own_code, own_code
from prune.choose.measured import Losses, by_filter, filter_effects, input_means
from prune.follow.groups import Group, Member
from prune.follow.layers import is_producer
from prune.selection import ChannelSelection

__all__ = [
    "CRITERIA",
    "REDUCTIONS",
    "AverageRank",
    "BatchNormScale",
    "Criterion",
    "DataDriven",
    "GeometricMedian",
    "L1Norm",
    "L2Norm",
    "MeanActivation",
    "Random",
    "Taylor",
    "criterion_kind",
    "group_scores",
    "is_data_driven",
    "make_criterion",
]

# scores_LC is NaN where a layer does not cover a channel; every channel is covered by some layer
_REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores_LC: scores_LC.nansum(0),
    "mean": lambda scores_LC: scores_LC.nanmean(0),
    "max": lambda scores_LC: scores_LC.nan_to_num(nan=-torch.inf).amax(0),
    "first": lambda scores_LC: scores_LC.gather(0, (~scores_LC.isnan()).int().argmax(0, keepdim=True))[0],
}
REDUCTIONS = tuple(_REDUCE)
"""How the scores of the layers that cover a channel become one score."""


class Criterion(Protocol):
    """Ranks channels."""

    comparable: bool
    """Scores of different groups are on one scale, so that a global ranking needs no normalising."""

    def member_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return one score per channel of that side of that layer, float32 on the CPU, higher = keep.

        All channels of the layer's side are scored, also those outside `member.channels`. None where this criterion
        does not look at the member.
        """


def group_scores(criterion: Criterion, model: nn.Module, group: Group, reduction: str = "sum") -> Tensor:
    """Return one score per channel of the group, shape (num_channels,), float32; higher = keep.

    Scores of a layer's channels that go with one channel of the group add up; `reduction` then takes the sum, mean,
    maximum or first (in the members' order) over the layers that cover the channel. Where a channel selection writes
    the group, a norm of filters is that of the weights that read the channel.

    Raises:
        RequestError: If the reduction is unknown, a score is not finite, a channel is covered by no scored layer, or a
            criterion of the user's own fails.
    """
    if reduction not in _REDUCE:
        raise RequestError(f"reduction: unknown, got {reduction!r}; expected one of {list(REDUCTIONS)}")
    uncovered_C = torch.full((group.num_channels,), torch.nan, dtype=torch.float32)
    rows = [uncovered_C]
    scores_of = criterion.member_scores
    if isinstance(criterion, _FilterNorm) and _is_selected(model, group):
        scores_of = criterion.reader_scores
    for member in group.members:
        with _named(criterion, f"fails on {member.layer}"):
            layer_scores = scores_of(model, member)
        if layer_scores is not None:
            scores = _checked(layer_scores, criterion, member)[member.channels].float()
            if not scores.isfinite().all():
                bad = scores[~scores.isfinite()][0].item()
                raise RequestError(
                    f"{member.layer}: a score is not finite, got {bad}; expected finite weights and data"
                )
            rows.append(uncovered_C.index_fill(0, member.roots, 0.0).index_add(0, member.roots, scores))
    scores_LC = torch.stack(rows)
    num_scored = int((~scores_LC.isnan()).any(0).sum())
    if num_scored < group.num_channels:
        raise RequestError(
            f"{group.name}: {type(criterion).__name__} cannot rank this group, got scores for {num_scored} of its "
            f"{group.num_channels} channels; expected all: skip the group or choose another criterion"
        )
    return _REDUCE[reduction](scores_LC)


def _is_selected(model: nn.Module, group: Group) -> bool:
    """Return whether a channel selection writes the group, and no filter does."""
    writers = [_layer(model, member) for member in group.members if member.side == "out"]
    is_there = any(isinstance(layer, ChannelSelection) for layer in writers)
    return is_there and not any(layer is not None and is_producer(layer) for layer in writers)


def _checked(layer_scores: object, criterion: Criterion, member: Member) -> Tensor:
    """Return the scores of a layer's side; raise RequestError where a criterion of the user's own returns others."""
    num = int(member.channels.max()) + 1
    if not isinstance(layer_scores, Tensor) or layer_scores.ndim != 1 or len(layer_scores) < num:
        got = tuple(layer_scores.shape) if isinstance(layer_scores, Tensor) else type(layer_scores).__name__
        raise RequestError(
            f"{member.layer}: {type(criterion).__name__} does not score its channels, got {got}; expected a tensor of "
            f"one score for each of at least {num} channels, or None"
        )
    return layer_scores.detach().cpu()


def _layer(model: nn.Module, member: Member) -> nn.Module | None:
    """Return the member's layer, or None for a free parameter."""
    try:
        return model.get_submodule(member.layer)
    except AttributeError:
        return None


def _filters(model: nn.Module, member: Member) -> Tensor | None:
    """Return the weights behind each output channel, (O, K), or None unless a convolution or linear layer writes."""
    layer = _layer(model, member)
    if member.side != "out" or layer is None or not is_producer(layer):
        return None
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return by_filter(layer, weight).cpu()


class _FilterNorm:
    comparable = False
    _p: int

    def member_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return the norm per output channel, >= 0."""
        filters_OK = _filters(model, member)
        return None if filters_OK is None else filters_OK.norm(p=self._p, dim=1)

    def reader_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return the norm of the weights that read each input channel, >= 0."""
        layer = _layer(model, member)
        if member.side != "in" or layer is None or not is_producer(layer) or getattr(layer, "groups", 1) > 1:
            return None
        weight = layer.weight
        assert isinstance(weight, Tensor)
        by_input = weight.detach().float().movedim(0 if getattr(layer, "transposed", False) else 1, 0)
        return by_input.flatten(1).norm(p=self._p, dim=1).cpu()


class L1Norm(_FilterNorm):
    """Sum of absolute weights of each filter.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.1. The sum over coupled layers is
    what their residual "shortcut" rule lacks; it equals the L1 norm of the concatenated filters.
    """

    _p = 1


class L2Norm(_FilterNorm):
    """Euclidean norm of each filter.

    Source: He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018.
    """

    _p = 2


class BatchNormScale:
    """Absolute scale factor |gamma| of each BatchNorm channel.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017. It ranks
    well only after training with their penalty on gamma.
    """

    comparable = True

    def member_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return |gamma| per channel; None for other layers and for a BatchNorm without gamma."""
        layer = _layer(model, member)
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or not layer.affine:
            return None
        return layer.weight.detach().float().abs().cpu()


class Random:
    """A random score: the baseline that every other criterion has to beat.

    A layer's scores depend on the seed and its name alone, not on which groups were scored before.
    Source: the baseline of Mittal et al., Recovering from Random Pruning, WACV 2018.
    """

    comparable = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def member_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return scores in [0, 1) per output channel of a convolution or linear layer."""
        filters_OK = _filters(model, member)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {member.layer}".encode()))
        return None if filters_OK is None else torch.rand(len(filters_OK), generator=generator)


class GeometricMedian:
    """Sum of Euclidean distances of each filter to all filters of its layer: the most replaceable goes first.

    Source: He et al., Filter Pruning via Geometric Median for Deep CNN Acceleration, CVPR 2019.
    """

    comparable = False

    def member_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return the sum of distances per output channel, >= 0."""
        filters_OK = _filters(model, member)
        if filters_OK is None:
            return None
        filters_OK = filters_OK.double() - filters_OK.double().mean(0)  # cdist cancels: close filters need the digits
        return torch.cdist(filters_OK, filters_OK).sum(1).float()


class DataDriven:
    """Scores of one side of every layer, measured once when made; the model is left as it was.

    Args:
        model: The model to prune; parameters may be frozen.
        losses: The data; see `Losses`.

    Raises:
        RequestError: If no batch comes, or a loss or what a layer reads is not finite.
    """

    comparable = False
    side: Literal["out", "in"] = "in"

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        self._scores = self._measure(model, losses)

    def member_scores(self, model: nn.Module, member: Member) -> Tensor | None:
        """Return the layer's scores, >= 0; None on its other side, and where the data never reached it."""
        return self._scores.get(member.layer) if member.side == self.side else None

    def _measure(self, model: nn.Module, losses: Losses) -> dict[str, Tensor]:
        raise NotImplementedError


class Taylor(DataDriven):
    """How much the loss changes without the filter, to first order: |sum of gradient x weight|, averaged over batches.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, for the weights of a filter
    jointly. Within one batch their square ranks alike.
    """

    comparable = True
    side = "out"

    def _measure(self, model: nn.Module, losses: Losses) -> dict[str, Tensor]:
        return filter_effects(model, losses)


class MeanActivation(DataDriven):
    """Mean absolute activation of the channel, as the layers after it read it.

    Source: the mean activation of Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
    Inference, ICLR 2017, sec. 2.2; absolute, because not every activation is ReLU's.
    """

    def _measure(self, model: nn.Module, losses: Losses) -> dict[str, Tensor]:
        return input_means(model, losses, lambda maps_NCHW: maps_NCHW.abs().mean((2, 3)))


class AverageRank(DataDriven):
    """Average matrix rank of the channel's feature map, as the layers after it read it.

    Source: Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020.
    """

    def _measure(self, model: nn.Module, losses: Losses) -> dict[str, Tensor]:
        return input_means(model, losses, torch.linalg.matrix_rank)


CRITERIA: dict[str, type[Criterion]] = {
    "l1": L1Norm,
    "l2": L2Norm,
    "bn_scale": BatchNormScale,
    "random": Random,
    "fpgm": GeometricMedian,
    "taylor": Taylor,
    "mean_activation": MeanActivation,
    "average_rank": AverageRank,
}
"""Name in a config -> criterion."""


def criterion_kind(name: str) -> Callable[..., Criterion]:
    """Return what makes the criterion of that name: a class, or a function of the user's own.

    Args:
        name: A key of `CRITERIA`, or `package.module:Class`, which is imported: the words of a config, never of a file.

    Raises:
        RequestError: If it is unknown, or is no such code.
    """
    if is_own_code(name):
        return own_code(name, "criterion")
    if name not in CRITERIA:
        raise RequestError(f"criterion: unknown, got {name!r}; expected one of {sorted(CRITERIA)}")
    return CRITERIA[name]


def is_data_driven(name: str) -> bool:
    """Return whether the criterion of that name is measured on data; raises as `criterion_kind`."""
    kind = criterion_kind(name)
    return isinstance(kind, type) and issubclass(kind, DataDriven)


def make_criterion(name: str, model: nn.Module, losses: Losses | None = None, seed: int = 0) -> Criterion:
    """Return the criterion of that name, measured on the model where it is data-driven.

    Args:
        name: As for `criterion_kind`. A class of the user's own is made without arguments, a `DataDriven` one as ours.
        model: The model to prune; it is left as it was.
        losses: The data that `DataDriven` criteria measure on; the others ignore it.
        seed: For `random` alone.

    Raises:
        RequestError: If the name is unknown or makes no criterion, or the data is missing or unfit.
    """
    kind = criterion_kind(name)
    if not is_data_driven(name):
        return Random(seed) if kind is Random else _own_criterion(name, kind)
    if losses is None:
        raise RequestError(f"criterion: {name} measures on data, got none; expected losses, a loss for each batch")
    with _named(kind, "cannot be measured"):
        return kind(model, losses)


@contextmanager
def _named(code: object, fault: str) -> Iterator[None]:
    """Raise RequestError that names a criterion of the user's own, whatever it raises in the block."""
    kind = code if isinstance(code, type) else type(code)
    try:
        yield
    except Exception as error:
        is_told = isinstance(error, RequestError | WorkError) or is_of_the_machine(error)
        if is_told or kind in CRITERIA.values():
            raise
        raise RequestError(
            f"criterion: {kind.__module__}:{kind.__qualname__} {fault}, got {failure(error)}; correct your code"
        ) from error


def _own_criterion(name: str, kind: Callable[..., Criterion]) -> Criterion:
    try:
        made = kind()
    except (Exception, SystemExit) as error:  # whatever the user's class does
        raise RequestError(
            f"criterion: {name} cannot be made, got {failure(error)}; expected a class that takes no arguments, or a "
            "DataDriven one"
        ) from error
    if isinstance(made, type) or not hasattr(made, "member_scores") or not hasattr(made, "comparable"):
        raise RequestError(
            f"criterion: {name} ranks no channels, got {type(made).__name__}; expected a Criterion, with "
            "comparable and member_scores"
        )
    return made
