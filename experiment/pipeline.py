"""An experiment as a graph of stages: data, the steps of every ordering, one export each, one latency measurement."""

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from deploy.record import cpu_model, installed_versions
from detect.orderings import ORDERINGS, steps
from experiment.config import ExperimentConfig
from experiment.data import Data, plan_data
from experiment.measuring import export, measure_latency
from experiment.stages import Figures, Report, Stage, StageStore
from experiment.steps import STEPS, Job

__all__ = ["Leaf", "Plan", "make_plan"]


@dataclass(frozen=True)
class Leaf:
    """One row of the result: a detector and the stages that lead to it."""

    name: str
    ordering: str
    budget: str | None
    prune_ratio: float
    seed: int
    chain: tuple[Stage, ...] = ()
    """Stages of its ordering, in order; the last one's model is exported."""
    export: Stage | None = None


@dataclass(frozen=True)
class Plan:
    """All stages of an experiment, each once, in an order in which they can run."""

    data: Data
    stages: tuple[Stage, ...]
    leaves: tuple[Leaf, ...]
    latency: Stage


def make_plan(config: ExperimentConfig, store: StageStore) -> Plan:
    """Plan the experiment; nothing is written. Given data is fingerprinted, so it must exist."""
    planner = _Planner(config, store, plan_data(config, store))
    leaves = tuple(planner.grown(leaf) for leaf in _bare_leaves(config))
    latency = planner.latency(leaves)
    stages = {stage.hash: stage for leaf in leaves for stage in (*leaf.chain, leaf.export) if stage}
    return Plan(planner.data, (*planner.data.stages, *stages.values(), latency), leaves, latency)


def _bare_leaves(config: ExperimentConfig) -> Iterable[Leaf]:
    """Yield the planned rows, the dense references first."""
    for seed in config.seeds:
        yield Leaf(_row_name(config, "dense", None, 0.0, seed), "dense", None, 0.0, seed)
    for seed, ratio in itertools.product(config.seeds, config.pruning.prune_ratios):
        for ordering in (name for name in ORDERINGS if name in config.orderings and name != "dense"):
            for budget in config.budgets if ordering == "scratch_transfer" else ("finetune",):
                yield Leaf(_row_name(config, ordering, budget, ratio, seed), ordering, budget, ratio, seed)


def _row_name(config: ExperimentConfig, ordering: str, budget: str | None, ratio: float, seed: int) -> str:
    parts = [ordering, *([budget] if budget else [])]
    if len(config.pruning.prune_ratios) > 1 and ordering != "dense":
        parts.append(f"{ratio:g}")
    if len(config.seeds) > 1:
        parts.append(f"seed{seed}")
    return "-".join(parts)


@dataclass(frozen=True)
class _Planner:
    config: ExperimentConfig
    store: StageStore
    data: Data

    def grown(self, leaf: Leaf) -> Leaf:
        """Return the leaf with its stages."""
        chain: list[Stage] = []
        for step in steps(leaf.ordering):
            chain.append(self._step(step, leaf, chain[-1] if chain else None))
        return Leaf(**{**vars(leaf), "chain": tuple(chain), "export": self._export(chain[-1])})

    def latency(self, leaves: tuple[Leaf, ...]) -> Stage:
        """Return the stage that times every exported detector, the first one being the reference."""
        exports = {leaf.name: leaf.export for leaf in leaves if leaf.export}
        folders = {name: self.store.folder(stage) for name, stage in exports.items()}
        settings = self.config.latency

        def work(folder: Path, progress: Report) -> Figures:
            return measure_latency(folders, settings, folder, progress)

        stages = tuple(exports.values())
        conditions = {"cpu": cpu_model(), "onnxruntime": installed_versions()["onnxruntime"]}
        described = {**settings.model_dump(), **conditions, "names": list(exports)}
        return Stage("latency", described, stages, work, cost=5.0)

    def _step(self, step: str, leaf: Leaf, parent: Stage | None) -> Stage:
        source = self.store.folder(parent) if parent else None
        job = Job(self.config, leaf.seed, leaf.prune_ratio, leaf.budget, self.data, source)

        def work(folder: Path, progress: Report) -> Figures:
            return STEPS[step](job, folder, progress)

        settings = {"data": self.data.fingerprint, "seed": leaf.seed, **self._settings(step, leaf)}
        inputs = (*self.data.stages, *((parent,) if parent else ()))
        return Stage(step, settings, inputs, work, self._cost(step, leaf))

    def _export(self, parent: Stage) -> Stage:
        source = self.store.folder(parent)

        def work(folder: Path, progress: Report) -> Figures:
            return export(source, self.data.val, folder, progress)

        return Stage("export", {}, (parent,), work, cost=9.0)

    def _settings(self, step: str, leaf: Leaf) -> dict[str, Any]:
        """Return the part of the config that a step depends on, so that other changes do not repeat its work."""
        config = self.config
        weights = config.backbone.weights
        pruning = to_jsonable_python(config.pruning.at(leaf.prune_ratio))
        del pruning["prune_ratios"]
        if not config.pruning.needs_data:
            del pruning["calibration"]
        by_step: dict[str, dict[str, Any]] = {
            "train_classifier": {
                "backbone": config.backbone.model_dump(exclude={"weights"}),
                "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None,
                "image_size": config.classification.image_size,
                "schedule": None if weights else asdict(config.classification.train),
            },
            "prune_classifier": pruning,
            "finetune_classifier": {"schedule": asdict(config.classification.finetune)},
            "scratch_classifier": {"schedule": asdict(config.classification.train), "budget": leaf.budget},
            "transfer": {"model": asdict(config.detection.model)},
            "train_detector": {"schedule": asdict(config.detection.train)},
            "prune_detector": pruning,
            "finetune_detector": {"schedule": asdict(config.detection.finetune)},
        }
        settings: dict[str, Any] = json.loads(json.dumps(by_step[step]))  # tuples as JSON has them
        return settings

    def _cost(self, step: str, leaf: Leaf) -> float:
        """Return seconds on one core for a small network; only the relation between steps matters."""
        c, d = self.config.classification, self.config.detection
        height, width = d.model.image_size_hw
        classify = self.data.num_images * c.image_size**2 * 1.0e-6
        detect = self.data.num_scenes * height * width * 1.5e-6
        costs = {
            "train_classifier": 0 if self.config.backbone.weights else c.train.epochs * classify,
            "finetune_classifier": c.finetune.epochs * classify,
            "scratch_classifier": c.train.epochs * classify * (2 if leaf.budget == "scratch_b" else 1),
            "train_detector": d.train.epochs * detect,
            "finetune_detector": d.finetune.epochs * detect,
        }
        return 1.0 + costs.get(step, 0)
