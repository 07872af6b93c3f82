"""One pruning step: groups -> scores -> kept channels -> slim model, with a report of every group."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prune.allocate import Share, allocate, kept_channels, protected
from prune.cost import Cost, cost_of
from prune.criteria import Criterion, group_scores, make_criterion
from prune.forecast import Forecast
from prune.groups import Group, find_groups
from prune.recipe import Recipe
from prune.spec import PruneSpec
from prune.surgery import slim_model
from prune.verify import fault_of, finite_weights

__all__ = ["Decision", "Pruned", "prune_model"]


@dataclass(frozen=True)
class Decision:
    """What happened to one group."""

    group: str
    layers: tuple[str, ...]
    """Layers that write the group's channels."""
    num_channels: int
    """All, as its layers count them."""
    num_kept: int
    reason: str | None
    """Why it is untouched, or None where it was pruned."""
    before_rounding: int | None = None
    """What would be kept without rounding, or None where nothing was decided."""


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

    @property
    def num_rounded(self) -> int:
        """How many channels rounding added, less those it took."""
        return sum(d.num_kept - d.before_rounding for d in self.decisions if d.before_rounding is not None)


def prune_model(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    prune_ratio: float | None = None,
    *,
    criterion: str | Criterion = "l1",
    reduction: str = "sum",
    dense_cost: Cost | None = None,
    verify: bool = True,
    **budget: Any,
) -> Pruned:
    """Prune every group that can be pruned; the given model is not changed.

    A model is followed through its tensor operations: what it computes in numpy, or holds fixed as a number of its own,
    is seen only when the slim model is verified.

    Args:
        model: Any module; see `find_groups`.
        example_inputs: Positional arguments of `model`, batch first.
        prune_ratio: Share of channels removed, [0, 1); None where a limit is given.
        criterion: A criterion, or the name of one that needs no data; see `prune.criteria`.
        reduction: How the scores of coupled layers become one; see `group_scores`.
        dense_cost: Cost that a limit refers to, where `example_inputs` are not what the model is deployed with.
        verify: Run the slim model beside the dense one; see `prune.verify.fault_of`.
        budget: The other fields of `Recipe`: limits, ranking, rounding, exceptions.

    Raises:
        ValueError: If the recipe does not fit the model, a weight is not finite, the criterion cannot rank a group, the
            forward pass fails, or the slim model does not compute what it should; the layers to skip are named.
    """
    recipe = Recipe(prune_ratio, **budget)
    finite_weights(model)
    ranker = make_criterion(criterion, model) if isinstance(criterion, str) else criterion
    groups = find_groups(model, example_inputs)
    recipe.check_patterns(groups)
    recipe.check_widths(groups)
    free = [group for group in groups if not recipe.reason_whole(group)]
    scores = {group.name: _scores(ranker, model, group, reduction, recipe.min_channels) for group in free}
    shares = _shares(model, example_inputs, free, scores, recipe, dense_cost)
    kept = {
        group.name: kept_channels(scores[group.name], shares[group.name].num_kept)
        for group in free
        if shares[group.name].num_kept < group.num_channels
    }
    spec = PruneSpec.from_kept(model, kept, groups)
    slim = slim_model(model, spec)
    if verify and (fault := fault_of(model, slim, spec, example_inputs)):
        names = ", ".join(_at_fault(model, kept, groups, example_inputs)) or "some of the layers"
        raise ValueError(f"model: its slim copy {fault}; skip {names}")
    return Pruned(slim, spec, tuple(_decision(group, recipe, shares.get(group.name)) for group in groups))


def _scores(ranker: Criterion, model: nn.Module, group: Group, reduction: str, min_channels: int) -> Tensor:
    """Return the group's scores on a scale that groups share; float64, so that dividing makes no two of them equal."""
    scores_C = group_scores(ranker, model, group, reduction).double()
    if not ranker.comparable:
        scores_C /= scores_C.mean().clamp_min(1e-12)
    return protected(group, scores_C, min_channels)


def _shares(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    groups: list[Group],
    scores: dict[str, Tensor],
    recipe: Recipe,
    dense_cost: Cost | None,
) -> dict[str, Share]:
    if recipe.limit is None:
        return allocate(groups, scores, recipe, lambda kept: {})
    one_image = tuple(value[:1] if isinstance(value, Tensor) else value for value in example_inputs)
    forecast = Forecast(model, groups, scores, dense_cost or cost_of(model, one_image))
    return allocate(groups, scores, recipe, forecast.cost)


def _decision(group: Group, recipe: Recipe, share: Share | None) -> Decision:
    reason = recipe.reason_whole(group)
    if share is None:
        return Decision(group.name, group.producers or (group.name,), group.width, group.width, reason)
    kept, exact = share.num_kept * group.unit, share.before_rounding * group.unit
    if share.num_kept == group.num_channels:
        reason = _whole(group, recipe, exact)
    return Decision(group.name, group.producers, group.width, kept, reason, exact)


def _whole(group: Group, recipe: Recipe, exact: int) -> str:
    if recipe.own_width(group) is None and recipe.min_channels > group.width - group.unit:
        return f"min_channels {recipe.min_channels} keeps all {group.width} channels"
    if exact < group.width:
        return f"{_asked(group, recipe)} rounded to a multiple of {recipe.round_to} keeps all {group.width} channels"
    return f"{_asked(group, recipe)} keeps all {group.width} channels"


def _asked(group: Group, recipe: Recipe) -> str:
    if recipe.own_width(group) is not None:
        return "widths"
    own = recipe.own_ratio(group)
    name, value = recipe.limit or ("prune_ratio", recipe.prune_ratio)
    return f"{name} {value}" if own is None else f"ratio {own}"


def _at_fault(
    model: nn.Module, kept: dict[str, Tensor], groups: list[Group], example_inputs: tuple[Any, ...]
) -> list[str]:
    """Return the groups that the model cannot do without when each is cut alone."""
    specs = {name: PruneSpec.from_kept(model, {name: kept[name]}, groups) for name in kept}
    return [name for name, spec in specs.items() if fault_of(model, slim_model(model, spec), spec, example_inputs)]
