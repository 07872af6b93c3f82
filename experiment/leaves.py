"""The rows of an experiment: which there are, and what they are called."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from detect.orderings import ORDERINGS
from experiment.config import ExperimentConfig
from experiment.cuts import Pruning
from experiment.stages import Stage

__all__ = ["Leaf", "OnTarget", "bare_leaves"]


@dataclass(frozen=True)
class OnTarget:
    """A model on a target."""

    target: str
    build: Stage
    """Writes the file."""
    evaluation: Stage | None
    """Evaluates it; on the target of an experiment without `targets` the same stage. None where it is not run."""


@dataclass(frozen=True)
class Leaf:
    """One row of the result: a model and the stages that lead to it."""

    name: str
    ordering: str
    budget: str | None
    seed: int
    method: str | None = None
    """Name of the method among those that are compared; None in the dense references, like `pruning`."""
    pruning: Pruning | None = None
    chain: tuple[Stage, ...] = ()
    """Stages of its ordering, in order; the last one's model is built for the target."""
    evaluations: tuple[Stage, ...] = ()
    """Of its last classifier and of its detector, in PyTorch."""
    backbone: str = ""
    """Its name among those that are compared."""
    on: OnTarget | None = None
    """Its file on one target; a row has one."""
    is_one_of_targets: bool = False
    """Whether there are several, so that its row's name has the target's."""

    @property
    def row(self) -> str:
        """Name of its row."""
        return f"{self.name}@{self.target}" if self.is_one_of_targets else self.name

    @property
    def target(self) -> str:
        """Name of the target."""
        assert self.on is not None
        return self.on.target

    @property
    def build(self) -> Stage:
        """The stage that writes the file for the target."""
        assert self.on is not None
        return self.on.build

    @property
    def prune_ratio(self) -> float | None:
        """Share of channels removed from every group; None for a preset or a limit."""
        if self.pruning is None:
            return 0.0
        return None if self.pruning.preset or self.pruning.kept else self.pruning.prune_ratio

    @property
    def limit(self) -> str | None:
        """The share of a cost that is kept, in place of a ratio."""
        kept = self.pruning and self.pruning.kept
        return f"{kept[0]} {kept[1]:g}" if kept else None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, in an order in which they can run."""
        on = (self.on.build, self.on.evaluation) if self.on else ()
        return tuple(dict.fromkeys((*self.chain, *self.evaluations, *filter(None, on))))


def bare_leaves(config: ExperimentConfig) -> Iterator[Leaf]:
    """Yield the planned rows: of each backbone the dense references first, then their controls."""
    for backbone, one in config.by_backbone.items():
        prunings = one.prunings
        amounts = {recipe.amount for pruning in prunings.values() for recipe in pruning.recipes}
        for leaf in _leaves_of(one):
            parts = [
                backbone if config.backbones else None,
                leaf.ordering,
                leaf.budget,
                leaf.method if len(prunings) > 1 else None,
                leaf.pruning.amount if len(amounts) > 1 and leaf.pruning else None,
                f"seed{leaf.seed}" if len(config.seeds) > 1 else None,
            ]
            name, is_one = "-".join(filter(None, parts)), len(config.targets) > 1
            yield replace(leaf, backbone=backbone, name=name, is_one_of_targets=is_one)


def _leaves_of(config: ExperimentConfig) -> Iterator[Leaf]:
    """Yield the rows of one backbone, without names."""
    for ordering, seed in itertools.product(("dense", *config.controls), config.seeds):
        yield Leaf(ordering, ordering, None, seed)
    orderings = [name for name in ORDERINGS if name in config.orderings and _is_possible(name, config)]
    for seed, (method, pruning) in itertools.product(config.seeds, config.prunings.items()):
        for recipe, ordering in itertools.product(pruning.recipes, orderings):
            for budget in _budgets(ordering, config):
                yield Leaf(ordering, ordering, budget, seed, method, recipe)


def _budgets(ordering: str, config: ExperimentConfig) -> tuple[str, ...]:
    if ordering == "scratch_transfer":
        return config.budgets
    return ("untrained",) if ordering == "prune_transfer" and not config.classification.finetune else ("finetune",)


def _is_possible(ordering: str, config: ExperimentConfig) -> bool:
    needs = {"dense": False, "transfer_prune": config.detection, "scratch_transfer": config.classification.finetune}
    return bool(needs.get(ordering, True))
