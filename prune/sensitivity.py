"""Sensitivity: every group cut alone, with the accuracy lost and the MACs saved.

Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, sec. 3.2; they chose what to skip from such
curves by eye; here a limit on the loss decides.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from command.errors import RequestError, WorkError
from prune.choose.allocate import allocate
from prune.choose.criteria import Criterion
from prune.choose.forecast import Forecast
from prune.choose.recipe import Recipe
from prune.cost import Cost, cost_of
from prune.cut.spec import PruneSpec
from prune.cut.surgery import slim_model
from prune.follow.groups import Group
from prune.pruning import Decision, Scored

__all__ = ["DENSE", "Curve", "Evaluate", "Point", "Sensitivity", "Trial", "Trials", "sensitivity", "skip_list"]

Evaluate = Callable[[nn.Module], float]
"""Measures a model that is not used again; higher is better."""


@dataclass(frozen=True)
class Trial:
    """A model in which one group alone keeps `num_kept` of its channels."""

    group: str
    num_kept: int


DENSE = Trial("", 0)
"""The model as it is."""


@dataclass(frozen=True)
class Point:
    """Score and cost of the whole model with one group cut at one ratio."""

    prune_ratio: float
    num_kept: int
    """As the group's layers count their channels."""
    macs: int
    macs_won: int
    params: int
    score: float
    drop: float
    """The dense model's score minus this one."""
    lost_per_won: float | None
    """`drop` per share of the dense MACs saved; None where none were."""


@dataclass(frozen=True)
class Curve:
    """One group at every ratio, ascending."""

    group: str
    layers: tuple[str, ...]
    """Layers that write the group's channels."""
    num_channels: int
    points: tuple[Point, ...]

    def at(self, prune_ratio: float) -> Point:
        """Return the point of that ratio.

        Raises:
            RequestError: If it was not measured.
        """
        ratios = [point.prune_ratio for point in self.points]
        if prune_ratio not in ratios:
            raise RequestError(f"prune_ratio: not measured, got {prune_ratio}; expected one of {ratios}")
        return self.points[ratios.index(prune_ratio)]


@dataclass(frozen=True)
class Sensitivity:
    """The dense model's score and cost, and a curve per group that can be cut, in the model's own order."""

    score: float
    macs: int
    params: int
    curves: tuple[Curve, ...]
    untouched: tuple[Decision, ...]
    """The other groups, each with its reason."""


class Trials:
    """The models to evaluate: traced, scored, counted and checked, but not evaluated yet.

    Ratios at which a group keeps equally many channels share a trial; one that keeps them all needs none.

    Args:
        model: Any module; it is not changed.
        example_inputs: Positional arguments of `model`, of batch size 1.
        recipes: Those to try on every group alone; they differ in nothing but their `prune_ratio`.
        criterion: An object made on this model, in place of the recipes'.
        dense_cost: Cost of the model, where `example_inputs` are not what it is deployed with.

    Raises:
        RequestError: If there is no ratio or one outside [0, 1), a weight is not finite, a pattern matches no layer,
            the criterion cannot rank a group, or a slim copy does not run.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        recipes: Sequence[Recipe],
        *,
        criterion: Criterion | None = None,
        dense_cost: Cost | None = None,
    ) -> None:
        if not recipes:
            raise RequestError("prune_ratios: nothing to try, got none; expected at least one share in [0, 1)")
        self._recipe = recipes[0]
        self._scored = scored = Scored.of(model, example_inputs, self._recipe, criterion)
        by_ratio = {float(recipe.prune_ratio or 0): recipe for recipe in recipes}
        shares = {ratio: allocate(scored.free, scored.ranked, by_ratio[ratio], dict) for ratio in sorted(by_ratio)}
        self._num_kept = {g.name: {ratio: shares[ratio][g.name].num_kept for ratio in shares} for g in scored.free}
        self._dense = dense_cost or cost_of(model, example_inputs)
        self._forecast = Forecast(model, scored.free, scored.ranked, self._dense)
        self._check_run()

    def __iter__(self) -> Iterator[Trial]:
        """Yield every trial once: the dense model first, then the groups in the model's order."""
        yield DENSE
        for group in self._scored.groups:
            numbers = self._num_kept.get(group.name, {}).values()
            yield from (Trial(group.name, num) for num in dict.fromkeys(numbers) if num < group.num_channels)

    def model_of(self, trial: Trial) -> nn.Module:
        """Return the trial's model, a copy: slim, which is exact and does not cost more than the dense one."""
        return slim_model(self._scored.model, self._spec(trial))

    def outcome(self, scores: Mapping[Trial, float]) -> Sensitivity:
        """Return the sensitivity that follows from the scores of all trials."""
        cuttable = {trial.group for trial in self}
        curves = tuple(self._curve(group, scores) for group in self._scored.groups if group.name in cuttable)
        untouched = tuple(self._untouched(group) for group in self._scored.groups if group.name not in cuttable)
        return Sensitivity(scores[DENSE], self._dense.macs, self._dense.params, curves, untouched)

    def _spec(self, trial: Trial) -> PruneSpec:
        return self._scored.spec({} if trial == DENSE else {trial.group: trial.num_kept})

    def _curve(self, group: Group, scores: Mapping[Trial, float]) -> Curve:
        points = (self._point(group, ratio, num, scores) for ratio, num in self._num_kept[group.name].items())
        return Curve(group.name, group.producers, group.width, tuple(points))

    def _point(self, group: Group, prune_ratio: float, num_kept: int, scores: Mapping[Trial, float]) -> Point:
        cost = self._forecast.cost({group.name: num_kept})
        macs_won = self._dense.macs - cost["macs"]
        score = scores[DENSE if num_kept == group.num_channels else Trial(group.name, num_kept)]
        drop = round(scores[DENSE] - score, 9)  # 0.9 - 0.85 is more than 0.05
        lost_per_won = drop * self._dense.macs / macs_won if macs_won else None
        kept = num_kept * group.unit
        return Point(prune_ratio, kept, cost["macs"], macs_won, cost["params"], score, drop, lost_per_won)

    def _untouched(self, group: Group) -> Decision:
        whole = f"keeps all {group.width} channels at every ratio, rounded to a multiple of {self._recipe.round_to}"
        reason = self._recipe.reason_whole(group) or whole
        return Decision(group.name, group.producers or (group.name,), group.width, group.width, reason)

    def _check_run(self) -> None:
        """Run a slim copy of every group now, so that a failure does not come after hours."""
        narrowest = {trial.group: trial for trial in self if trial != DENSE}
        for name, trial in narrowest.items():
            spec = self._spec(trial)
            if fault := self._scored.fault_of(slim_model(self._scored.model, spec), spec, {name: trial.num_kept}):
                raise RequestError(f"{name}: cut alone, the model {fault}; skip this layer")


def sensitivity(
    trials: Trials,
    evaluate: Evaluate,
    known: Mapping[Trial, float] | None = None,
    measured: Callable[[Trial, float], None] | None = None,
) -> Sensitivity:
    """Evaluate every trial whose score is not known yet.

    Args:
        trials: What to evaluate.
        evaluate: Called with a copy of its own for each trial.
        known: Scores of an earlier run, which was interrupted.
        measured: Called with every new score as soon as it is known.

    Raises:
        WorkError: If a score is not a finite number.
    """
    scores = dict(known or {})
    for trial in trials:
        if trial in scores:
            continue
        score = evaluate(trials.model_of(trial))
        if not math.isfinite(score):
            raise WorkError(f"{trial.group or 'dense model'}: its score is not finite, got {score}")
        scores[trial] = score
        if measured:
            measured(trial, score)
    return trials.outcome(scores)


def skip_list(result: Sensitivity, prune_ratio: float, max_drop: float) -> tuple[str, ...]:
    """Return the groups that lose more than `max_drop` when cut alone at that ratio, the most sensitive first.

    Raises:
        RequestError: If the ratio was not measured.
    """
    points = {curve.group: curve.at(prune_ratio) for curve in result.curves}
    sensitive = [name for name, point in points.items() if point.drop > max_drop]
    return tuple(sorted(sensitive, key=lambda name: (-points[name].drop, -(points[name].lost_per_won or 0))))
