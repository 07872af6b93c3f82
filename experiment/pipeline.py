"""An experiment as a graph of stages: data, the steps of every ordering, their measurements, one latency stage."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from classify.backbones import Architecture
from classify.budget import SCRATCH_B_CAP
from command.errors import RequestError, WorkError
from command.files import sha256_of
from command.own_code import code_prints
from detect.given_training import given_content
from detect.orderings import CONTROLS, steps
from experiment.config import LEARNT_PARTS, ExperimentConfig, LearntPart
from experiment.cuts import RANK, Pruning
from experiment.data import Data, Part, inputs_of, plan_data, read_settings
from experiment.leaves import Leaf, bare_leaves
from experiment.limits import at_limit
from experiment.stages import Figures, Report, Stage, StageStore
from experiment.steps import STEPS, Job, parts_read
from experiment.target_stages import TargetStages
from experiment.targets import Target, scope_of
from experiment.terms import on_terms

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """All stages of an experiment, each once, in an order in which they can run."""

    data: Data
    stages: tuple[Stage, ...]
    leaves: tuple[Leaf, ...]
    """Each of a model on a target; those on one that is not run here have no row."""
    latencies: Mapping[str, Stage]
    """Name of each target that is run -> the stage that times all models on it."""
    targets: Mapping[str, Target]
    """By name."""
    left_out: Mapping[str, str]
    """Name of each target that is not run here -> why."""

    @property
    def rows(self) -> tuple[Leaf, ...]:
        """The leaves that are run on their target."""
        return tuple(leaf for leaf in self.leaves if leaf.target in self.latencies)


def make_plan(
    config: ExperimentConfig, store: StageStore, without: Collection[str] = (), only_latency: bool = False
) -> Plan:
    """Plan the experiment; nothing is written. Given data is fingerprinted, so it must exist.

    Args:
        config: The experiment.
        store: Of its stages.
        without: Names of rows that are left out.
        only_latency: As for `experiment.targets.scope_of`.
    """
    scope = scope_of(config.targets, only_latency)
    data = plan_data(config, store)
    planners = {name: _Planner.of_experiment(one, store, data) for name, one in config.by_backbone.items()}
    targets = TargetStages(config, store, data, scope, next(iter(planners.values())).unchanged)
    grown = [planners[leaf.backbone].of(leaf).grown(leaf) for leaf in bare_leaves(config)]
    on_targets = (replace(leaf, on=on) for leaf in grown for on in targets.of(leaf.chain[-1]))
    leaves = tuple(leaf for leaf in on_targets if leaf.row not in without)
    latencies = {name: targets.latency(name, leaves) for name in scope.run if name in {one.target for one in leaves}}
    stages = {stage.hash: stage for leaf in leaves for stage in leaf.stages}
    read = {stage.hash for reader in stages.values() for stage in reader.inputs}
    made = [stage for stage in data.stages if stage.hash in read]  # crops are not, where nothing learns them
    planned = (*made, *stages.values(), *{stage.hash: stage for stage in latencies.values()}.values())
    return Plan(data, planned, leaves, latencies, config.targets, scope.left_out)


@dataclass(frozen=True)
class _Planner:
    config: ExperimentConfig
    store: StageStore
    data: Data
    weights_sha256: str | None
    pruning: Pruning | None = None

    @classmethod
    def of_experiment(cls, config: ExperimentConfig, store: StageStore, data: Data) -> "_Planner":
        """Return the planner of an experiment with one backbone."""
        weights = config.backbone.weights
        return cls(config, store, data, sha256_of(weights) if weights else None)

    def of(self, leaf: Leaf) -> "_Planner":
        """Return the leaf's planner: a control is the dense row of an experiment with other settings."""
        is_control = leaf.ordering in CONTROLS
        config = (
            self.config.with_longer_training() if is_control else on_terms(self.config, leaf.ordering, leaf.pruning)
        )
        return replace(self, config=config, pruning=leaf.pruning and self._at_limit(leaf.pruning))

    def _at_limit(self, pruning: Pruning) -> Pruning:
        backbone = self.config.backbone
        arch = Architecture(backbone.name, len(self.data.image_classes), backbone.base_channels)
        return at_limit(pruning, arch, self.config.classification.image_size)

    def grown(self, leaf: Leaf) -> Leaf:
        """Return the leaf with its stages."""
        chain: list[Stage] = []
        for step in self._steps(leaf.ordering):
            chain.append(self._step(step, leaf, chain[-1] if chain else None))
        last = [stage for stage in chain if stage.name.endswith("_classifier")][-1]
        is_trained = self.config.classification.finetune is not None
        evaluations = [self._step("evaluate_classifier", leaf, last)] if is_trained else []
        if self.config.detection:
            evaluations.append(self._step("evaluate_detector", leaf, chain[-1]))
        return replace(leaf, chain=tuple(chain), evaluations=tuple(evaluations))

    def _steps(self, ordering: str) -> tuple[str, ...]:
        """Return the steps of an ordering, up to the transfer where there are no detectors."""
        untrained = () if self.config.classification.finetune else ("finetune_classifier",)
        named = tuple(step for step in steps(ordering) if step not in untrained)
        return named if self.config.detection else named[: named.index("transfer")]

    def _step(self, step: str, leaf: Leaf, parent: Stage | None) -> Stage:
        source = self.store.folder(parent) if parent else None
        reads = parts_read(step, self.config, self.pruning, self.data)
        reference = self._reference(step, leaf)
        folder_of = self.store.folder(reference) if reference else None
        job = Job(self.config, leaf.seed, self.pruning, leaf.budget, self.data, source, reads, folder_of)

        def work(folder: Path, progress: Report) -> Figures:
            with self.unchanged(step, reads, folder):
                return STEPS[step](job, folder, progress)

        prints = code_prints(self.config.backbone.name, self.pruning.criterion if self.pruning else "")
        code = {"code": prints} if prints else {}
        settings = {
            **read_settings(reads),
            **code,
            "num_threads": self.config.num_threads,
            **self._settings(step, leaf),
        }
        inputs = (*inputs_of(reads, parent), *((reference,) if reference else ()))
        return Stage(step, settings, inputs, work, self._cost(step, leaf))

    def _reference(self, step: str, leaf: Leaf) -> Stage | None:
        """Return the dense detector's training whose computation a last training is to reach, where terms say so."""
        if (
            not self.config.detection
            or self.config.terms != "equal_macs"
            or not leaf.pruning
            or step != steps(leaf.ordering)[-1]
        ):
            return None
        dense = Leaf("dense", "dense", None, leaf.seed)
        return self.of(dense).grown(dense).chain[-1]

    @contextmanager
    def unchanged(self, step: str, reads: tuple[Part[Any], ...], folder: Path) -> Iterator[None]:
        """Raise WorkError, whatever else went wrong, if given data is not what the plan was made for.

        What was made of it is deleted.
        """
        try:
            yield
        except Exception as error:
            if fault := self._change(step, reads):
                shutil.rmtree(folder)
                raise WorkError(fault) from error
            raise
        if fault := self._change(step, reads):
            shutil.rmtree(folder)
            raise WorkError(fault)

    def _change(self, step: str, reads: tuple[Part[Any], ...]) -> str | None:
        if not any(part.fingerprint for part in reads):
            return None
        try:
            now = parts_read(step, self.config, self.pruning, plan_data(self.config, self.store))
        except (RequestError, OSError) as error:
            return f"{step}: its data was changed while it ran; {error}"
        if [part.fingerprint for part in now] == [part.fingerprint for part in reads]:
            return None
        return f"{step}: its data was changed while it ran, got another hash; give the same command again"

    def _settings(self, step: str, leaf: Leaf) -> dict[str, Any]:
        """Return the part of the config that a step depends on, so that other changes do not repeat its work."""
        config = self.config
        weights, share = config.backbone.weights, config.classification.crop_share
        finetune = config.classification.finetune
        drawn = config.classification.augmentation.effective()
        augmentation = {"augmentation": drawn} if drawn else {}  # defaults change no hash of earlier versions
        pruning = self._pruning_settings(leaf.seed)
        detecting: dict[str, dict[str, Any]] = self._detection_settings(leaf.seed, pruning) if config.detection else {}
        by_step: dict[str, dict[str, Any]] = {
            "train_classifier": {
                "classes": self.data.image_classes,
                "seed": leaf.seed,
                "backbone": config.backbone.model_dump(exclude={"weights"}),
                "weights": self.weights_sha256,
                "image_size": config.classification.image_size,
                "schedule": None if weights else config.classification.train.effective(),
                **({} if weights else augmentation),
                **({"crop_share": share} if share != 1 else {}),
            },
            "prune_classifier": {**pruning, **self._learning_settings("classification", augmentation)},
            "finetune_classifier": {
                "schedule": finetune.effective() if finetune else None,
                "seed": leaf.seed,
                **augmentation,
            },
            "scratch_classifier": {"seed": leaf.seed, **augmentation, **self._budget_settings(leaf)},
            "evaluate_classifier": {},
            **detecting,
        }
        settings: dict[str, Any] = json.loads(json.dumps(by_step[step]))  # tuples as JSON has them
        return settings

    def _detection_settings(self, seed: int, pruning: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        detection, given = self.config.detecting, self.config.detecting.given

        def part(name: str) -> dict[str, Any]:
            return {"mmdet": given_content(given, name)} if given else {}

        model = {"model": asdict(detection.model)} if detection.model else part("model")
        images = part("train_dataloader") if self.pruning and self.pruning.needs_data else {}
        return {
            "transfer": {**model, "classes": self.data.box_classes, "seed": seed},
            "train_detector": {"schedule": detection.train.effective(), "seed": seed},
            "prune_detector": {**pruning, **images, **self._learning_settings("detection")},
            "finetune_detector": {"schedule": detection.finetune.effective(), "seed": seed},
            "evaluate_detector": part("val_dataloader"),
        }

    def _pruning_settings(self, seed: int) -> dict[str, Any]:
        """Return what a cut depends on; defaults change no hash of earlier versions."""
        if self.pruning is None:
            return {}
        settings: dict[str, Any] = to_jsonable_python(self.pruning)
        for name in ("prune_ratios", "preset", "kept_macs", "kept_params", "kept"):  # their widths are there
            del settings[name]
        for name in ("ratios", "widths"):  # the first pattern that matches counts, and hashes sort keys
            settings[name] = list(settings[name].items())
        if not self.pruning.is_calibrated:
            del settings["calibration"]["num_batches"]
        if not (self.pruning.is_calibrated or self.pruning.recalibrate):
            del settings["calibration"]
        if not self.pruning.recalibrate:
            del settings["recalibrate"]
        if self.pruning.steps == 1:
            del settings["steps"], settings["step_schedule"]
        del settings["epochs_per_step"], settings["epochs_per_layer"]  # in the schedule of the trainings between
        del settings["dense_widths"]
        if not self.pruning.select_channels:
            del settings["select_channels"]
        if self.pruning.method == RANK:
            del settings["method"]
        settings["penalty"] = self.pruning.effective_penalty
        if settings["penalty"] is None:
            del settings["penalty"]
        if self.pruning.method != "slimming":
            del settings["shift"]
        if not self.pruning.is_ticket:
            del settings["window"], settings["tolerance"]
        if self.pruning.needs_data or self.pruning.criterion == "random":
            settings["seed"] = seed
        return settings

    def _learning_settings(self, part: LearntPart, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        schedule = self.config.learning_of(part, self.pruning) or self.config.between_cuts(part, self.pruning)
        return {"schedule": schedule.effective(), **(more or {})} if schedule else {}

    def _budget_settings(self, leaf: Leaf) -> dict[str, Any]:
        """Return what the length of a training from scratch depends on; defaults change no hash of earlier versions."""
        config = self.config
        schedule, is_b = config.classification.train, leaf.budget == "scratch_b"
        settings: dict[str, Any] = {"schedule": schedule.effective(), "budget": leaf.budget}
        if is_b and config.scratch_b_cap != SCRATCH_B_CAP:
            settings["cap"] = config.scratch_b_cap
        if config.added_epochs:
            settings["finetune_epochs"] = config.added_epochs
        if is_b and schedule.milestones:
            settings["decay"] = "rounded down"  # version 0.1.0 rounded to the nearest epoch
        return settings

    def _cost(self, step: str, leaf: Leaf) -> float:
        """Return seconds on one core for a small network; only the relation between steps matters."""
        c, d = self.config.classification, self.config.detection
        height, width = d.image_hw if d else (0, 0)
        classify = self.data.num_images * c.image_size**2 * 1.0e-6
        scratch = c.train.epochs * (2 if leaf.budget == "scratch_b" else 1) + self.config.added_epochs
        detect = self.data.boxes.num_scenes * height * width * 1.5e-6 if self.data.boxes else 0
        learning = {part: self.config.learning_of(part, self.pruning) for part in LEARNT_PARTS}
        learnt = {part: schedule.epochs if schedule else 0 for part, schedule in learning.items()}
        between = (self.pruning.steps - 1) * self.pruning.epochs_per_step if self.pruning else 0
        costs = {
            "train_classifier": 0 if self.config.backbone.weights else c.train.epochs * classify,
            "finetune_classifier": c.finetune.epochs * classify if c.finetune else 0,
            "scratch_classifier": scratch * classify,
            "train_detector": d.train.epochs * detect if d else 0,
            "prune_classifier": (learnt["classification"] + between) * classify,
            "prune_detector": (learnt["detection"] + between) * detect,
            "finetune_detector": d.finetune.epochs * detect if d else 0,
        }
        return 1.0 + costs.get(step, 0)
