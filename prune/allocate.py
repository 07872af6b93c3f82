"""Scores and a recipe -> channels kept per group. Rounding to a hardware multiple lives here and nowhere else."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from prune.groups import Group
from prune.recipe import LIMITS, Recipe, check_ratio

__all__ = ["Share", "allocate", "kept_channels", "num_kept"]

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
        raise ValueError(f"round_to: not a multiple, got {round_to}; expected 1 or more")
    return _rounded(_floor(num_channels, prune_ratio), num_channels, round_to)


def kept_channels(scores_C: Tensor, num: int) -> Tensor:
    """Return the indices of the `num` highest scores, ascending; of equal scores the lower index stays."""
    ranked = torch.sort(scores_C, descending=True, stable=True).indices
    return ranked[:num].sort().values


@dataclass(frozen=True)
class Share:
    """What one group keeps."""

    num_kept: int
    before_rounding: int


def allocate(groups: Sequence[Group], scores: Mapping[str, Tensor], recipe: Recipe, cost: Cost) -> dict[str, Share]:
    """Share the recipe's budget out among groups that may be cut.

    Under a limit as much is kept as fits: no group could keep one rounding step more.

    Args:
        groups: All of them can be pruned.
        scores: Group name -> score per channel, comparable among groups where the ranking is global.
        recipe: The budget and its exceptions.
        cost: What a choice costs; asked for limits only.

    Raises:
        ValueError: If the limit is below what can be reached; the message says what can.
    """
    bounds = {group.name: _Bounds.of(group, recipe) for group in groups}
    fixed = {group.name: share for group in groups if (share := _own_share(group, recipe, bounds[group.name]))}
    levels = _Levels([group for group in groups if group.name not in fixed], scores, recipe, bounds)
    if recipe.limit is None:
        assert recipe.prune_ratio is not None
        return {**fixed, **levels.at_ratio(recipe.prune_ratio)}
    name, limit = recipe.limit

    def over(shares: Mapping[str, Share]) -> int:
        return cost({key: share.num_kept for key, share in {**fixed, **shares}.items()})[LIMITS[name]] - limit

    level = bisect.bisect_left(range(levels.num), True, key=lambda i: over(levels[i]) <= 0)
    if level == levels.num:
        least = over(levels[levels.num - 1]) + limit
        raise ValueError(f"{name}: below what can be reached, got {limit}; expected at least {least}")
    return {**fixed, **_filled(levels[level], bounds, levels.urgency, over)}


@dataclass(frozen=True)
class _Bounds:
    """In channels of the group: how few and how many it keeps, and the step of rounding."""

    least: int
    most: int
    step: int

    @classmethod
    def of(cls, group: Group, recipe: Recipe) -> "_Bounds":
        least = min(group.num_channels, -(-recipe.min_channels // group.unit))
        return cls(least, group.num_channels, recipe.round_to // math.gcd(recipe.round_to, group.unit))

    def share(self, exact: int) -> Share:
        """Return the nearest allowed number; too few for `min_channels` goes up to the next multiple."""
        rounded = _rounded(exact, self.most, self.step)
        least = min(self.most, -(-self.least // self.step) * self.step)
        return Share(max(rounded, least), exact)


def _own_share(group: Group, recipe: Recipe, bounds: _Bounds) -> Share | None:
    width, ratio = recipe.own_width(group), recipe.own_ratio(group)
    if width is not None:
        return Share(width, width)
    return None if ratio is None else bounds.share(_floor(group.num_channels, ratio))


class _Levels:
    """The choices a ranking has, from everything kept to as little as can be."""

    def __init__(
        self, groups: Sequence[Group], scores: Mapping[str, Tensor], recipe: Recipe, bounds: Mapping[str, _Bounds]
    ) -> None:
        self._groups, self._bounds, self._uniform = groups, bounds, recipe.ranking == "uniform"
        if self._uniform:
            sizes = {group.num_channels for group in groups}
            self._ratios = sorted({Fraction(gone, size) for size in sizes for gone in range(size)} | {Fraction(0)})
        else:
            self._ranked = _removal_order(groups, scores, bounds)
        self.num = len(self._ratios) if self._uniform else len(self._ranked) + 1
        self.urgency = {g.name: scores[g.name].sort(descending=True).values.tolist() for g in groups}

    def __getitem__(self, level: int) -> dict[str, Share]:
        if self._uniform:
            kept = {g.name: max(1, math.floor(g.num_channels * (1 - self._ratios[level]))) for g in self._groups}
        else:
            gone = torch.bincount(self._ranked[:level], minlength=len(self._groups)).tolist()
            kept = {group.name: group.num_channels - num for group, num in zip(self._groups, gone, strict=True)}
        return {name: self._bounds[name].share(num) for name, num in kept.items()}

    def at_ratio(self, prune_ratio: float) -> dict[str, Share]:
        if self._uniform:
            return {g.name: self._bounds[g.name].share(_floor(g.num_channels, prune_ratio)) for g in self._groups}
        total = sum(group.num_channels for group in self._groups)
        return self[min(total - _floor(total, prune_ratio), self.num - 1)]


def _removal_order(groups: Sequence[Group], scores: Mapping[str, Tensor], bounds: Mapping[str, _Bounds]) -> Tensor:
    """Return, for every channel that may go, its group's index: the lowest score of all groups first."""
    ranked = []
    for group in groups:
        ascending = scores[group.name].sort().values
        ranked.append(ascending[: group.num_channels - bounds[group.name].least])
    owner = torch.cat([torch.full((len(r),), i) for i, r in enumerate(ranked)] or [torch.empty(0, dtype=torch.long)])
    return owner[torch.cat(ranked or [torch.empty(0)]).sort(stable=True).indices]


def _filled(
    shares: dict[str, Share],
    bounds: Mapping[str, _Bounds],
    urgency: Mapping[str, Sequence[float]],
    over: Callable[[Mapping[str, Share]], int],
) -> dict[str, Share]:
    """Give back rounding steps while the limit allows, the best channel that would go first."""
    shares, open_names = dict(shares), set(shares)
    while open_names := {name for name in open_names if shares[name].num_kept < bounds[name].most}:
        name = max(sorted(open_names), key=lambda n: urgency[n][shares[n].num_kept])
        share = shares[name]
        more = min(bounds[name].most, (share.num_kept // bounds[name].step + 1) * bounds[name].step)
        wider = {**shares, name: Share(more, share.before_rounding)}
        if over(wider) <= 0:
            shares = wider
        else:
            open_names.discard(name)
    return shares


def _floor(num_channels: int, prune_ratio: float) -> int:
    return max(1, int(num_channels * (1 - Fraction(str(prune_ratio)))))


def _rounded(num: int, most: int, step: int) -> int:
    multiple = max(step, (2 * num + step) // (2 * step) * step) if step > 1 else num
    return min(multiple, most)
