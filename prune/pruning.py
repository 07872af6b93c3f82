"""One pruning step: groups -> scores -> kept channels -> slim model, with a report of every group."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from command.errors import RequestError
from prune.choose.allocate import Ranked, Share, allocate, must_stay
from prune.choose.criteria import Criterion, group_scores, make_criterion
from prune.choose.forecast import Forecast
from prune.choose.recipe import Recipe, resolved
from prune.cost import Cost, cost_of
from prune.cut.spec import PruneSpec
from prune.cut.surgery import slim_model, unchanged_widths
from prune.cut.verify import fault_of, finite_weights, first_layer_apart
from prune.follow.groups import Group, groups_of
from prune.follow.nodes import ChannelNodes
from prune.follow.trace import check_kind, traced
from prune.modes import FORWARD_ERRORS
from prune.private import Call, Inputs, PrivateModel, bookkeeping

__all__ = ["Decision", "Pruned", "Scored", "prune_model"]


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
    """A slim model and what was cut to make it."""

    model: nn.Module
    spec: PruneSpec
    decisions: tuple[Decision, ...] = field(repr=False)

    @property
    def untouched(self) -> tuple[Decision, ...]:
        """The groups that were not pruned, each with its reason."""
        return tuple(decision for decision in self.decisions if decision.reason)

    @property
    def unchanged_widths(self) -> dict[str, int]:
        """Attributes of the slim model, by their path, that still hold an old width of a layer cut below them.

        Those that hold a width for the forward pass, or belong to a cut layer, were updated; these may have other uses.
        """
        return unchanged_widths(self.model, self.spec)

    @property
    def num_rounded(self) -> int:
        """How many channels rounding added, minus those it removed."""
        return sum(d.num_kept - d.before_rounding for d in self.decisions if d.before_rounding is not None)


def prune_model(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    recipe: Recipe | float | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    criterion: Criterion | str | None = None,
    dense_cost: Cost | None = None,
    verify: bool = True,
    **fields: Any,
) -> Pruned:
    """Prune every group that can be pruned; the given model is not changed.

    A model is followed through its tensor operations: computations in numpy and hard-coded sizes are found
    only when the slim model is verified. Layers that the example input does not reach stay whole, and are among the
    decisions; what an input of another kind would feed them with, may be cut.

    Args:
        model: Any module; see `find_groups`.
        example_inputs: Positional arguments of `model`, batch first.
        example_kwargs: Arguments by name.
        recipe: What is cut; a number is the `prune_ratio` of a recipe whose other fields are given by name.
        criterion: An object made on this model, in place of the recipe's; or the recipe's by name.
        dense_cost: Cost that a limit refers to, where `example_inputs` are not what the model is deployed with.
        verify: Run the slim model beside the dense one; see `prune.cut.verify.fault_of`.
        fields: Those of `Recipe`, where none is given.

    Raises:
        RequestError: If the recipe does not fit the model, a weight is not finite, the criterion cannot rank a group,
            the forward pass fails, or the slim model does not compute what it should; the layers to skip are named.
    """
    recipe, measured = resolved(recipe, criterion, fields)
    scored = Scored.of(model, Call.of(example_inputs, example_kwargs), recipe, measured)
    return scored.pruned(recipe, dense_cost, verify)


@dataclass(frozen=True)
class Scored:
    """A model traced, checked and scored: the work that every pruning of it shares."""

    model: nn.Module
    call: Call
    """What the model is called with."""
    groups: list[Group]
    free: tuple[Group, ...]
    """Those that may be cut."""
    ranked: Mapping[str, Ranked]
    """Name of a group that may be cut -> its channels."""
    channels: ChannelNodes
    """What was found out on the way."""

    @classmethod
    def of(
        cls, model: nn.Module, example_inputs: Inputs, recipe: Recipe, criterion: Criterion | None = None
    ) -> "Scored":
        """Follow a model and score its groups; raises as `prune_model` does.

        Args:
            model: It is not changed.
            example_inputs: Positional arguments of `model`, batch first, or a `Call`.
            recipe: Names the criterion, and what stays whole.
            criterion: An object made on this model, in place of the recipe's.
        """
        check_kind(model)
        finite_weights(model)
        call = Call.of(example_inputs)
        channels = traced(model, call, recipe.unused, **recipe.following)
        groups = groups_of(model, channels)
        ranker = criterion or make_criterion(recipe.criterion, model)
        recipe.check_patterns(groups)
        recipe.check_widths(groups)
        free = tuple(group for group in groups if not recipe.reason_whole(group))
        weighed = _with_weights(model)
        ranked = {group.name: _ranked(ranker, weighed, group, recipe) for group in free}
        return cls(model, call, groups, free, ranked, channels)

    def without(self, reasons: Mapping[str, str], recipe: Recipe) -> "Scored":
        """Return it with some more groups that cannot be cut, by name, each with its reason.

        Raises:
            RequestError: If the recipe gives one of them a width.
        """
        groups = [replace(group, obstacle=group.obstacle or reasons.get(group.name)) for group in self.groups]
        recipe.check_widths(groups)
        return replace(self, groups=groups, free=tuple(group for group in groups if not recipe.reason_whole(group)))

    def pruned(self, recipe: Recipe, dense_cost: Cost | None = None, verify: bool = True) -> Pruned:
        """Cut what the recipe says; arguments and errors are those of `prune_model`."""
        shares = _shares(self, recipe, dense_cost)
        num_kept = {name: share.num_kept for name, share in shares.items()}
        spec = self.spec(num_kept)
        slim = slim_model(self.model, spec)
        if verify and (fault := self.fault_of(slim, spec, num_kept)):
            raise RequestError(f"model: its slim copy {fault}; {_remedy(self, shares, slim, spec)}")
        return Pruned(slim, spec, tuple(_decision(group, recipe, shares.get(group.name)) for group in self.groups))

    @bookkeeping()
    def spec(self, num_kept: Mapping[str, int]) -> PruneSpec:
        """Return the spec in which groups keep their best `num_kept` channels; groups not named keep all."""
        kept = {
            group.name: self.ranked[group.name].kept(num_kept[group.name])
            for group in self.free
            if num_kept.get(group.name, group.num_channels) < group.num_channels
        }
        return PruneSpec.from_kept(self.model, kept, self.groups)

    def fault_of(self, slim: nn.Module, spec: PruneSpec, num_kept: Mapping[str, int]) -> str | None:
        """Return what is wrong with the slim copy in words, or None.

        Where channels that are normalised together are cut too, only shapes are compared, and numbers of a slim copy
        without these cuts. See `prune.cut.verify.fault_of`.

        Args:
            slim: The slim copy.
            spec: What was cut.
            num_kept: Name of a group -> how many channels it keeps by that spec.
        """
        cut = [group for group in self.free if num_kept.get(group.name, group.num_channels) < group.num_channels]
        exact = {group.name: num_kept[group.name] for group in cut if not group.is_normalised}
        if len(exact) < len(cut):
            exact_spec = self.spec(exact)
            if fault := self._fault(slim_model(self.model, exact_spec), exact_spec):
                return fault
        return self._fault(slim, spec, shapes_only=len(exact) < len(cut))

    def _fault(self, slim: nn.Module, spec: PruneSpec, shapes_only: bool = False) -> str | None:
        return fault_of(
            self.model,
            slim,
            spec,
            self.call,
            eval_run=self.channels.eval_run,
            shapes_only=shapes_only,
            trains_alike=self.channels.trains_alike,
        )


def _with_weights(model: nn.Module) -> nn.Module:
    """Return the model, or a copy if it computes weights: that writes to it, and those of the last pass may be old."""
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    if not hooks and not any(is_parametrized(module) for module in model.modules()):
        return model
    own = PrivateModel(model).model
    for module in own.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                setattr(module, hook.name, hook.compute_weight(module))
    return own


@bookkeeping()
def _ranked(ranker: Criterion, model: nn.Module, group: Group, recipe: Recipe) -> Ranked:
    """Return the group's channels, their scores on a scale that groups share."""
    scores_C = group_scores(ranker, model, group, recipe.reduction).double()  # dividing makes no two of them equal
    if not ranker.comparable:
        scores_C /= scores_C.mean().clamp_min(1e-12)
    return Ranked(scores_C, must_stay(group, scores_C, recipe.min_channels))


def _shares(scored: Scored, recipe: Recipe, dense_cost: Cost | None) -> dict[str, Share]:
    cost = dense_cost or _cost_of_one(scored) if recipe.limit else None
    with bookkeeping():
        forecast = Forecast(scored.model, scored.free, scored.ranked, cost) if cost else None
        return allocate(scored.free, scored.ranked, recipe, forecast.cost if forecast else lambda kept: {})


def _cost_of_one(scored: Scored) -> Cost:
    """Return the cost of the first of the batch, or of the whole call where the model does not take one alone."""
    with suppress(*FORWARD_ERRORS):
        return cost_of(scored.model, scored.call.single())
    return cost_of(scored.model, scored.call)


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
        return f"{_amount(group, recipe)} rounded to a multiple of {recipe.round_to} keeps all {group.width} channels"
    return f"{_amount(group, recipe)} keeps all {group.width} channels"


def _amount(group: Group, recipe: Recipe) -> str:
    if recipe.own_width(group) is not None:
        return "widths"
    own = recipe.own_ratio(group)
    name, value = recipe.limit or ("prune_ratio", recipe.prune_ratio)
    return f"{name} {value}" if own is None else f"ratio {own}"


def _remedy(scored: Scored, shares: Mapping[str, Share], slim: nn.Module, spec: PruneSpec) -> str:
    """Return what to skip, in words: the groups that break the model when each is cut alone, or those of a layer."""
    layer = first_layer_apart(scored.model, slim, spec, scored.call)
    where = (
        f"the first difference is in {layer}" if layer else "its layers agree in eval mode, what follows them differs"
    )
    cut = [group for group in scored.free if group.name in shares and shares[group.name].num_kept < group.num_channels]
    read = [g.name for g in cut if any((m.layer, m.side) == (layer, "in") for m in g.members)]
    own = [g.name for g in cut if any(member.layer == layer for member in g.members)]
    names = _at_fault(scored, shares) or read or own or [group.name for group in cut]
    return f"{where}; skip {', '.join(names)}"


def _at_fault(scored: Scored, shares: Mapping[str, Share]) -> list[str]:
    """Return the groups that break the model when each is cut alone."""
    found = []
    for name, share in shares.items():
        spec = scored.spec({name: share.num_kept})
        if scored.fault_of(slim_model(scored.model, spec), spec, {name: share.num_kept}):
            found.append(name)
    return found
