"""Scores and a recipe -> channels kept per group. Rounding to a hardware multiple lives here and nowhere else."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from command.errors import RequestError
from prune.choose.recipe import LIMITS, Recipe, check_ratio
from prune.follow.groups import Group

__all__ = ["Ranked", "Share", "allocate", "must_stay", "num_kept"]

Cost = Callable[[Mapping[str, int]], Mapping[str, int]]
"""Channels kept by group name -> macs, params, activations."""


def num_kept(num_channels: int, prune_ratio: float, round_to: int = 1) -> int:
    """Return how many channels stay: floor(n (1 - p)), moved to the nearest multiple of `round_to`.

    The decimal text of the ratio is taken exactly: in floats 10 * (1 - 0.9) is just under 1 and floor would lose a
    channel. Halfway between two multiples goes up. The result lies in [1, num_channels]; a layer narrower than
    `round_to` keeps all its channels, since no multiple fits into it.

    Source: floor as in the official code of Liu et al., Rethinking the Value of Network Pruning, ICLR 2019.
    """
    check_ratio(prune_ratio)
    if round_to < 1:
        raise RequestError(f"round_to: not a multiple, got {round_to}; expected 1 or more")
    return _rounded(_floor(num_channels, prune_ratio), num_channels, round_to)


@dataclass(frozen=True, eq=False)
class Ranked:
    """The channels of a group in the order in which they stay."""

    scores: Tensor
    """One per channel, higher = keep; comparable among groups where the ranking is global."""
    must_stay: Tensor
    """Bool, one per channel; these rank before all others, regardless of their scores."""

    @cached_property
    def order(self) -> Tensor:
        """Indices, the best channel first; of equal scores the lower index stays."""
        best_first = torch.sort(self.scores, descending=True, stable=True).indices
        return best_first[torch.sort(self.must_stay[best_first], descending=True, stable=True).indices]

    def kept(self, num: int) -> Tensor:
        """Return the indices of the `num` channels that stay, ascending."""
        return self.order[:num].sort().values


def must_stay(group: Group, scores_C: Tensor, min_channels: int) -> Tensor:
    """Return which channels always stay: the best of each layer that writes only part of the group.

    Otherwise channels of other layers could all rank higher, and that layer would lose every channel.
    """
    stays_C = torch.zeros(len(scores_C), dtype=torch.bool)
    for member in group.members:
        written = member.roots.unique()
        if member.side == "out" and len(written) < group.num_channels:
            needed = -(-min_channels * len(written) // len(member.roots))
            best = torch.sort(scores_C[written], descending=True, stable=True).indices[:needed]
            stays_C[written[best]] = True
    return stays_C


@dataclass(frozen=True)
class Share:
    """What one group keeps."""

    num_kept: int
    before_rounding: int
    """What it would keep with `round_to` 1."""


def allocate(groups: Sequence[Group], ranked: Mapping[str, Ranked], recipe: Recipe, cost: Cost) -> dict[str, Share]:
    """Decide how many channels each group keeps under the recipe.

    Under a limit as much as possible is kept: no group could keep one more rounding step.

    Args:
        groups: All of them can be pruned.
        ranked: Group name -> its channels, ranked.
        recipe: How much is cut, and the exceptions.
        cost: What a choice costs; called for limits only.

    Raises:
        RequestError: If the limit cannot be reached; the message gives the lowest one that can.
    """
    kept = _allocated(groups, ranked, recipe, cost)
    exact = kept if recipe.round_to == 1 else _allocated(groups, ranked, replace(recipe, round_to=1), cost)
    return {name: Share(num, exact[name]) for name, num in kept.items()}


def _allocated(groups: Sequence[Group], ranked: Mapping[str, Ranked], recipe: Recipe, cost: Cost) -> dict[str, int]:
    bounds = {group.name: _Bounds.of(group, ranked[group.name], recipe) for group in groups}
    fixed = {group.name: num for group in groups if (num := _own_number(group, recipe, bounds[group.name]))}
    levels = _Levels([group for group in groups if group.name not in fixed], ranked, recipe, bounds)
    if recipe.limit is None:
        assert recipe.prune_ratio is not None
        return {**fixed, **levels.at_ratio(recipe.prune_ratio)}
    name, limit = recipe.limit

    def spent(kept: Mapping[str, int]) -> int:
        return cost({**fixed, **kept})[LIMITS[name]]

    level = bisect.bisect_left(range(levels.num), True, key=lambda i: spent(levels[i]) <= limit)
    if level == levels.num:
        least = spent(levels[levels.num - 1])
        raise RequestError(f"{name}: below what can be reached, got {limit}; expected at least {least}")
    return {**fixed, **_filled(levels[level], bounds, levels.urgency, lambda kept: spent(kept) <= limit)}


@dataclass(frozen=True)
class _Bounds:
    """In channels of the group: how few and how many it keeps, and the step of rounding."""

    least: int
    most: int
    step: int

    @classmethod
    def of(cls, group: Group, ranked: Ranked, recipe: Recipe) -> "_Bounds":
        least = max(-(-recipe.min_channels // group.unit), int(ranked.must_stay.sum()))
        step = recipe.round_to // math.gcd(recipe.round_to, group.unit)
        return cls(min(group.num_channels, least), group.num_channels, step)

    def nearest(self, num: int) -> int:
        """Return the nearest allowed number; one below `least` goes up to the next multiple."""
        least = min(self.most, -(-self.least // self.step) * self.step)
        return max(_rounded(num, self.most, self.step), least)


def _own_number(group: Group, recipe: Recipe, bounds: _Bounds) -> int | None:
    width, ratio = recipe.own_width(group), recipe.own_ratio(group)
    if width is not None:
        return width
    return None if ratio is None else bounds.nearest(_floor(recipe.num_shared(group), ratio))


class _Levels:
    """The choices a ranking has, from everything kept to as little as can be."""

    def __init__(
        self, groups: Sequence[Group], ranked: Mapping[str, Ranked], recipe: Recipe, bounds: Mapping[str, _Bounds]
    ) -> None:
        self._groups, self._bounds, self._uniform = groups, bounds, recipe.ranking == "uniform"
        self._num_shared = {group.name: recipe.num_shared(group) for group in groups}
        self.urgency: dict[str, list[float]]
        """Per group: the priority of keeping one more than k channels."""
        if self._uniform:
            self.urgency = {g.name: [-k / g.num_channels for k in range(g.num_channels)] for g in groups}
        else:
            self._removed = _removal_order(groups, ranked, bounds)
            self.urgency = {g.name: _in_order(ranked[g.name]).tolist() for g in groups}

    @property
    def num(self) -> int:
        """How many there are."""
        return len(self._ratios) if self._uniform else len(self._removed) + 1

    @cached_property
    def _ratios(self) -> list[Fraction]:
        """Every ratio at which some group's number changes; needed for limits only."""
        sizes = {*self._num_shared.values()}
        return sorted({Fraction(gone, size) for size in sizes for gone in range(size)} | {Fraction(0)})

    def __getitem__(self, level: int) -> dict[str, int]:
        if self._uniform:
            return self.at_ratio(self._ratios[level])
        gone = torch.bincount(self._removed[:level], minlength=len(self._groups)).tolist()
        pairs = zip(self._groups, gone, strict=True)
        return {group.name: self._bounds[group.name].nearest(group.num_channels - num) for group, num in pairs}

    def at_ratio(self, prune_ratio: float | Fraction) -> dict[str, int]:
        if self._uniform:
            shared = self._num_shared.items()
            return {name: self._bounds[name].nearest(_floor(num, prune_ratio)) for name, num in shared}
        num_there = sum(group.num_channels for group in self._groups)
        num_gone = num_there - _floor(sum(self._num_shared.values()), prune_ratio)
        return self[min(max(num_gone, 0), self.num - 1)]


def _in_order(ranked: Ranked) -> Tensor:
    """Return the scores, the best channel first."""
    return ranked.scores[ranked.order]


def _removal_order(groups: Sequence[Group], ranked: Mapping[str, Ranked], bounds: Mapping[str, _Bounds]) -> Tensor:
    """Return, for every channel that may go, its group's index: the lowest score of all groups first."""
    going = [_in_order(ranked[group.name])[bounds[group.name].least :].flip(0) for group in groups]
    owner = torch.cat([torch.full((len(g),), i) for i, g in enumerate(going)] or [torch.empty(0, dtype=torch.long)])
    return owner[torch.cat(going or [torch.empty(0)]).sort(stable=True).indices]


def _filled(
    kept: dict[str, int],
    bounds: Mapping[str, _Bounds],
    urgency: Mapping[str, Sequence[float]],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """Give back rounding steps while the limit allows, the most urgent first."""
    open_names = set(kept)
    while open_names := {name for name in open_names if kept[name] < bounds[name].most}:
        name = max(sorted(open_names), key=lambda n: urgency[n][kept[n]])
        step = bounds[name].step
        wider = {**kept, name: min(bounds[name].most, (kept[name] // step + 1) * step)}
        if fits(wider):
            kept = wider
        else:
            open_names.discard(name)
    return kept


def _floor(num_channels: int, prune_ratio: float | Fraction) -> int:
    return max(1, int(num_channels * (1 - Fraction(str(prune_ratio)))))


def _rounded(num: int, most: int, step: int) -> int:
    multiple = max(step, (2 * num + step) // (2 * step) * step) if step > 1 else num
    return min(multiple, most)
