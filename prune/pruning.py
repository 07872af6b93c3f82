"""One pruning step: groups -> scores -> kept channels -> slim model, with a report of every group."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prune.allocate import check_ratio, kept_channels, num_kept
from prune.criteria import CRITERIA
from prune.groups import Group, find_groups
from prune.modes import evaluating
from prune.spec import PruneSpec
from prune.surgery import slim_model

__all__ = ["Decision", "Pruned", "prune_model"]


@dataclass(frozen=True)
class Decision:
    """What happened to one group."""

    group: str
    layers: tuple[str, ...]
    """Layers that write the group's channels."""
    num_channels: int
    num_kept: int
    reason: str | None
    """Why it is untouched, or None where it was pruned."""


@dataclass(frozen=True)
class Pruned:
    """A slim model and how it came about."""

    model: nn.Module
    spec: PruneSpec
    decisions: tuple[Decision, ...] = field(repr=False)

    @property
    def untouched(self) -> tuple[Decision, ...]:
        """The groups that were not pruned, each with its reason."""
        return tuple(decision for decision in self.decisions if decision.reason)


def prune_model(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    prune_ratio: float,
    *,
    criterion: str = "l1",
    round_to: int = 1,
    ratios: Mapping[str, float] | None = None,
    skip: Sequence[str] = (),
) -> Pruned:
    """Prune every group that can be pruned; the given model is not changed.

    Args:
        model: Any module of convolutions, linear layers and BatchNorm; see `find_groups`.
        example_inputs: Positional arguments of `model`, batch first.
        prune_ratio: Share of channels removed from each group, [0, 1).
        criterion: A key of `CRITERIA`.
        round_to: Kept channels are moved to the nearest multiple of it.
        ratios: Layer pattern -> its own ratio, for the group that holds the layer; the first match counts.
        skip: Layer patterns (`layer1.*`) whose groups stay whole.

    Raises:
        ValueError: If a ratio lies outside [0, 1), a pattern matches no layer, the criterion is unknown, or a
            weight is not finite.
    """
    check_ratio(prune_ratio)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: unknown, got {criterion!r}; expected one of {sorted(CRITERIA)}")
    ratios = ratios or {}
    for pattern, ratio in ratios.items():
        check_ratio(ratio, f"ratios[{pattern!r}]")
    groups = find_groups(model, example_inputs)
    _check_patterns(groups, [*ratios, *skip])
    kept: dict[str, Tensor] = {}
    decisions = []
    for group in groups:
        reason = group.obstacle or _skip_reason(group, skip)
        ratio = next((r for pattern, r in ratios.items() if _matches(group, pattern)), prune_ratio)
        num = group.num_channels if reason else num_kept(group.num_channels, ratio, round_to)
        if num < group.num_channels:
            kept[group.name] = kept_channels(CRITERIA[criterion]().scores(model, group), num)
        elif reason is None:
            reason = f"prune_ratio {ratio} rounded to a multiple of {round_to} keeps all {num} channels"
        decisions.append(Decision(group.name, group.producers, group.num_channels, num, reason))
    spec = PruneSpec.from_kept(model, kept, groups)
    slim = slim_model(model, spec)
    _check_runs(slim, example_inputs)
    return Pruned(slim, spec, tuple(decisions))


def _check_runs(slim: nn.Module, example_inputs: tuple[Any, ...]) -> None:
    """A sum with the model's input or with a constant ties channels where no layer shows it."""
    try:
        with evaluating(slim), torch.no_grad():
            slim(*example_inputs)
    except RuntimeError as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"model: its slim copy does not run, {cause}; skip the layers tied to an input or constant"
        ) from error


def _matches(group: Group, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (group.name, *group.producers))


def _skip_reason(group: Group, skip: Sequence[str]) -> str | None:
    return next((f"skipped as asked ({pattern})" for pattern in skip if _matches(group, pattern)), None)


def _check_patterns(groups: Sequence[Group], patterns: Sequence[str]) -> None:
    names = [name for group in groups for name in (group.producers or (group.name,))]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            raise ValueError(f"{pattern}: no layer of the model matches; nearest names: {', '.join(near) or 'none'}")
