"""The stages of targets: a file for each model and target, its evaluation, and one measurement of times per target."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.config import ExperimentConfig
from experiment.data import Data, Part, inputs_of, read_settings
from experiment.leaves import Leaf, OnTarget
from experiment.measuring import (
    build,
    evaluate_classifier_on,
    evaluate_detector_on,
    export,
    export_and_count,
    measure_latency,
)
from experiment.stages import LATENCY, Figures, Report, Stage, StageStore
from experiment.targets import Scope, Target

__all__ = ["EVALUATION", "TARGET_STAGES", "TargetStages"]

EVALUATION = "evaluate_target"
TARGET_STAGES = ("export", "export_classifier", "build", EVALUATION, LATENCY)
"""Names of the stages that train nothing and follow all trainings."""


@dataclass(frozen=True)
class TargetStages:
    """Makes them."""

    config: ExperimentConfig
    store: StageStore
    data: Data
    scope: Scope
    unchanged: Callable[[str, tuple[Part[Any], ...], Path], AbstractContextManager[None]]
    """Fails if the parts that a step reads are not what the plan was made for."""

    def of(self, model: Stage) -> Iterator[OnTarget]:
        """Yield the model on each target on which this machine builds it."""
        for name, target in self.config.targets.items():
            if name in self.scope.run and target.is_plain:
                exported = self._export(model) if self.config.detection else self._export_classifier(model)
                yield OnTarget(name, exported, exported)
            elif name in (*self.scope.run, *self.scope.built):
                built = self._build(model, target)
                yield OnTarget(name, built, self._evaluation(built, target) if name in self.scope.run else None)

    def latency(self, name: str, leaves: Sequence[Leaf]) -> Stage:
        """Return the stage that times the models on one target; the first dense one of a backbone is its reference."""
        target, settings = self.config.targets[name], self.config.latency
        built = {leaf.name: leaf.build for leaf in leaves if leaf.target == name}
        files = {model: self.store.folder(stage) / target.file for model, stage in built.items()}
        dense: dict[str, str] = {}
        references = {leaf.name: dense.setdefault(leaf.backbone, leaf.name) for leaf in leaves if leaf.target == name}

        def work(folder: Path, progress: Report) -> Figures:
            return measure_latency(files, target, settings, folder, progress, references)

        runtime = {"onnxruntime": target.version} if target.is_plain else self._run_settings(target)
        described: dict[str, Any] = {**settings.model_dump(), **target.device_settings(), **runtime}
        described["names"] = list(built)
        if len(dense) > 1:
            described["references"] = references
        return Stage(LATENCY, described, tuple(built.values()), work, cost=5.0)

    def _run_settings(self, target: Target) -> dict[str, Any]:
        return {"target": target.opened_by, "version": target.version}

    def _build(self, model: Stage, target: Target) -> Stage:
        source, given = self.store.folder(model), self.config.detection and self.config.detection.given
        reads = (self.data.train_boxes,) if self.data.boxes else ()
        train = self.data.train_boxes.place if self.data.boxes else None

        def work(folder: Path, progress: Report) -> Figures:
            with self.unchanged("build", reads, folder):
                return build(source, target, train, folder, given)

        settings = {**read_settings(reads), **target.build_settings()}
        return Stage("build", settings, inputs_of(reads, model), work, cost=6.0)

    def _evaluation(self, built: Stage, target: Target) -> Stage:
        folder_of, num_threads = self.store.folder(built), self.config.num_threads
        step = "evaluate_detector" if self.data.boxes else "evaluate_classifier"
        reads: tuple[Part[Any], ...] = (self.data.val_boxes if self.data.boxes else self.data.val_images,)

        def work(folder: Path, progress: Report) -> Figures:
            with self.unchanged(step, reads, folder):
                if self.data.boxes:
                    val = self.data.boxes.val.place
                    return evaluate_detector_on(target, folder_of, val, folder, num_threads, progress)
                return evaluate_classifier_on(target, folder_of, self._val_images(), num_threads, progress)

        settings = {**read_settings(reads), **self._run_settings(target)}
        if not target.is_on_gpu:
            settings["num_threads"] = num_threads
        if target.opened_by != target.runtime:  # whether it computes in bf16 depends on the processor
            settings |= target.device_settings()
        return Stage(EVALUATION, settings, inputs_of(reads, built), work, cost=8.0)

    def _val_images(self) -> Any:
        """Return the images that classifiers are evaluated on, cut as in their evaluation in PyTorch."""
        settings = self.config.classification
        return self.data.val_images.place.images("val", settings.image_size, crop_share=settings.crop_share)

    def _export(self, model: Stage) -> Stage:
        source, val = self.store.folder(model), self.data.val_boxes
        num_threads, given = self.config.num_threads, self.config.detecting.given

        def work(folder: Path, progress: Report) -> Figures:
            with self.unchanged("evaluate_detector", (val,), folder):
                return export(source, val.place, folder, num_threads, progress, given)

        runtime = {"onnxruntime": Target().version, "num_threads": num_threads}
        return Stage("export", {**read_settings((val,)), **runtime}, inputs_of((val,), model), work, cost=9.0)

    def _export_classifier(self, model: Stage) -> Stage:
        source = self.store.folder(model)

        def work(folder: Path, progress: Report) -> Figures:
            return export_and_count(source, folder)

        settings = {"onnxruntime": Target().version, "num_threads": self.config.num_threads}
        return Stage("export_classifier", settings, (model,), work, cost=3.0)
