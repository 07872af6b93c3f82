"""The steps of the orderings: each reads one model file and writes one, and returns figures.

Every step is a function (job, folder, progress) -> figures. `job.source` is the folder of the step before.
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classify.accuracy import accuracy
from classify.backbones import Architecture, build_classifier, heads_of, initialize
from classify.budget import scratch_epochs
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, load_weights, read_weights, save_model
from classify.curve import CURVE, Curve, save_curve
from classify.evaluate import predictions
from classify.learning import MethodHook
from classify.provenance import provenance
from classify.pruning import example_of, with_card
from classify.resampling import drawn_means
from classify.schedule import Schedule
from classify.tracking import tracked
from classify.train import train_classifier
from detect.detector_file import load_detector, save_detector
from detect.evaluate import evaluate_detector
from detect.foreign import new_given_detector
from detect.given_training import GivenSchedule, train_by_config
from detect.model import new_detector, transfer
from detect.pruning import in_detector, prune_detector
from detect.traced import TracedDetector, example_images
from detect.train import train_detector
from experiment.config import ExperimentConfig
from experiment.cuts import Pruning
from experiment.cutting import TrainingImages, check_settled, cut_in_steps, method_on, recalibrate
from experiment.data import Data, Part
from experiment.row_tracking import tracking_of
from experiment.stages import CHECKPOINTS, Figures, Report, figures_in
from experiment.train_macs import affordable, classifier_macs, counted, detector_macs, macs_before, train_macs
from prune.cost import cost_of
from prune.learn.method import Method

__all__ = ["MODEL", "STEPS", "Job", "parts_read"]

MODEL = "model.safetensors"
"""Name of the model file in a step's folder."""


@dataclass(frozen=True)
class Job:
    """What a step works on."""

    config: ExperimentConfig
    seed: int
    pruning: Pruning | None
    """What is cut, at one ratio; None in the dense reference."""
    budget: str | None
    data: Data
    source: Path | None
    """Folder of the step before; None for the first."""
    reads: tuple[Part[Any], ...] = ()
    """The parts of the data whose files it reads."""
    reference: Path | None = None
    """Folder of the dense detector's last training, whose computation this one is to reach; None = its own length."""

    @property
    def cut(self) -> Pruning:
        """What is cut."""
        assert self.pruning is not None
        return self.pruning

    @property
    def source_model(self) -> Path:
        """The model file of the step before."""
        assert self.source is not None
        return self.source / MODEL

    def source_detector(self) -> tuple[nn.Module, ModelCard]:
        """Return the detector of the step before, and its card."""
        return load_detector(self.source_model, self.config.detecting.given)

    def source_figures(self) -> Figures:
        """Return the figures of the step before."""
        assert self.source is not None
        return figures_in(self.source)

    def classifier_macs(self, net: nn.Module, epochs: int) -> int:
        """Return the multiply-adds of a training of a classifier."""
        return train_macs(classifier_macs(net, self.config.classification.image_size), self.data.num_images, epochs)

    def detector_macs(self, detector: nn.Module, epochs: int) -> int:
        """Return the multiply-adds of a training of a detector."""
        assert self.data.boxes is not None
        size_hw = self.config.detecting.image_hw
        return train_macs(detector_macs(detector, size_hw), self.data.boxes.num_scenes, epochs)

    def counted(self, added: int = 0) -> Figures:
        """Return the figure of all multiply-adds up to this step, which adds its own."""
        return counted(macs_before(self.source), added)


def _dense_classifier(job: Job, folder: Path, progress: Report) -> Figures:
    """Train the dense classifier, or take the weights that the config names."""
    backbone, classes, side = job.config.backbone, job.data.image_classes, job.config.classification.image_size
    torch.manual_seed(job.seed)
    arch = Architecture(backbone.name, len(classes), backbone.base_channels)
    net = build_classifier(arch)
    seen = Preprocessing.of(backbone.name, (side, side), job.config.classification.crop_share)
    card = ModelCard("classifier", arch, classes, seen)
    if backbone.weights:
        weights = read_weights(backbone.weights)
        load_weights(net, weights, str(backbone.weights), optional=heads_of(backbone.name))
        head = [name for name in net.state_dict() if name.startswith(heads_of(backbone.name))]
        has_head = all(name in weights and weights[name].shape == net.state_dict()[name].shape for name in head)
        return {**_saved_classifier(job, folder, net.eval(), card), "has_head": has_head, **job.counted()}
    return _trained_classifier(job, folder, net, card, job.config.classification.train, progress)


def _prune_classifier(job: Job, folder: Path, progress: Report) -> Figures:
    """Cut the classifier: after a training in which the method acts, at once, or in steps with trainings between."""
    net, card = load_classifier(job.source_model)
    pruning = job.cut
    data = TrainingImages.of_classifier(card, job.data.train_images.place)
    if schedule := job.config.learning_of("classification", pruning):
        if pruning.is_ticket:
            torch.manual_seed(job.seed)
            initialize(net)
        macs = job.classifier_macs(net, 1)
        method = method_on(net, example_of(card), pruning, pruning)
        curve = _learn_to_classify(job, folder, net, schedule, progress, method=method)
        check_settled(method, len(curve.epochs))
        slim, card, pruned = with_card(card, method.slim(net))
        recalibrate(slim, pruning, data, job.seed)
        untouched, added = pruned.untouched, macs * len(curve.epochs)
    else:
        schedule = job.config.between_cuts("classification", pruning)
        train = _Between(partial(_learn_to_classify, job, folder), schedule, progress, job.classifier_macs)
        slim, card, untouched = cut_in_steps(net, card, pruning, data, job.seed, train)
        curve, added = train.curve, train.macs
    figures = _saved_classifier(job, folder, slim, card, schedule)
    return {
        **figures,
        **_epochs(curve, folder),
        **counted(0 if pruning.is_ticket else macs_before(job.source), added),  # a ticket has none of dense's weights
        "dense_macs": job.source_figures()["macs"],
        "untouched": [asdict(d) for d in untouched],
    }


def _finetune_classifier(job: Job, folder: Path, progress: Report) -> Figures:
    """Train the slim classifier on from its kept weights."""
    net, card = load_classifier(job.source_model)
    schedule = job.config.classification.finetune
    assert schedule is not None
    return _trained_classifier(job, folder, net, card, schedule, progress)


def _scratch_classifier(job: Job, folder: Path, progress: Report) -> Figures:
    """Train the slim architecture from random weights, for the budget's epochs."""
    net, card = load_classifier(job.source_model)
    torch.manual_seed(job.seed)
    initialize(net)
    config, figures = job.config, job.source_figures()
    schedule, ratio = config.classification.train, Fraction(figures["dense_macs"], figures["macs"])
    is_longer = config.strict_budget and config.between_cuts("classification", job.cut)
    added = config.added_epochs + (figures.get("epochs", 0) if is_longer else 0)
    epochs = scratch_epochs(str(job.budget), schedule.epochs, ratio, config.scratch_b_cap, added)
    trained = _trained_classifier(job, folder, net, card, schedule.stretched(epochs), progress)
    # what was trained before told the widths alone
    return {**trained, **counted(0, job.classifier_macs(net, epochs))}


def _transfer_classifier(job: Job, folder: Path, progress: Report) -> Figures:
    """Build a new Faster R-CNN on the classifier's backbone."""
    _, source = load_classifier(job.source_model)
    detection, classes = job.config.detecting, job.data.box_classes
    if detection.given:
        detector, card = new_given_detector(detection.given, source.backbone, classes, job.seed)
    else:
        assert detection.model is not None
        detector, card = new_detector(source.backbone, classes, detection.model, job.seed)
    transfer(detector, read_weights(job.source_model), str(job.source_model))
    card = replace(card, spec=source.spec, provenance=_provenance(job, {}))
    save_detector(folder / MODEL, detector, card, detection.given)
    return job.counted()


def _dense_or_slim_detector(job: Job, folder: Path, progress: Report) -> Figures:
    """Train the detector that the transfer made."""
    detector, card = job.source_detector()
    return _trained_detector(job, folder, detector, card, job.config.detecting.train, progress)


def _slim_detector(job: Job, folder: Path, progress: Report) -> Figures:
    """Cut the trained detector's backbone, as `_prune_classifier` cuts a classifier."""
    detector, card = job.source_detector()
    data = TrainingImages.of_detector(detector, card, job.data.train_boxes.place)
    pruning = _in_trunk(job.cut, detector)
    if schedule := job.config.learning_of("detection", pruning):
        traced = TracedDetector(detector)
        method = method_on(traced, example_images(), in_detector(pruning, ("backbone",), traced), pruning)
        macs, acting = job.detector_macs(detector, 1), MethodHook(method, traced)
        curve = _learn_to_detect(job, folder, card, detector, schedule, progress, acting=acting)
        slim, card, pruned = prune_detector(detector, card, pruning, pruner=lambda *_, **__: method.slim(traced))
        recalibrate(slim, pruning, data, job.seed)
        untouched, added = pruned.untouched, macs * len(curve.epochs)
    else:
        schedule = job.config.between_cuts("detection", pruning)
        train = _Between(partial(_learn_to_detect, job, folder, card), schedule, progress, job.detector_macs)
        slim, card, untouched = cut_in_steps(detector, card, pruning, data, job.seed, train)
        curve, added = train.curve, train.macs
    save_detector(
        folder / MODEL, slim, replace(card, provenance=_provenance(job, {}, schedule)), job.config.detecting.given
    )
    return {**_epochs(curve, folder), **job.counted(added), "untouched": [asdict(d) for d in untouched]}


class _Between:
    """Trains a model between two cuts, and keeps the curve of all these trainings, and their multiply-adds."""

    def __init__(
        self,
        learn: Callable[..., Curve],
        schedule: Schedule | None,
        progress: Report,
        macs_of: Callable[[nn.Module, int], int],
    ) -> None:
        self._learn, self._schedule, self._progress, self._macs_of = learn, schedule, progress, macs_of
        self.curve, self.macs = Curve(), 0

    def __call__(self, model: nn.Module, name: str) -> None:
        """Train it; one that was interrupted goes on, and a finished one is there at once."""
        curve = self._learn(model, self._schedule, self._progress, name=name)
        self.curve = self.curve.followed_by(curve)
        self.macs += self._macs_of(model, len(curve.epochs))


def _epochs(curve: Curve, folder: Path) -> Figures:
    """Return the epochs of the trainings around a cut, and save their curve; nothing where there was none."""
    if not curve.epochs:
        return {}
    save_curve(curve, folder / CURVE)
    return {"epochs": len(curve.epochs)}


def _finetune_detector(job: Job, folder: Path, progress: Report) -> Figures:
    """Train the slim detector on from its kept weights."""
    detector, card = job.source_detector()
    return _trained_detector(job, folder, detector, card, job.config.detecting.finetune, progress)


def _evaluate_classifier(job: Job, folder: Path, progress: Report) -> Figures:
    """Measure a classifier, on draws of the images too; not a new head on given weights, which knows nothing yet."""
    if not job.source_figures().get("has_head", True):
        return {"top1": None}
    net, card = load_classifier(job.source_model)
    seen = card.preprocessing
    images = job.data.val_images.place.images("val", seen.image_hw[0], crop_share=seen.crop_share)
    found = predictions(net, images, folder / CHECKPOINTS)
    return {**accuracy(found), "draws": drawn_means(found.is_right)}


def _evaluate_detector(job: Job, folder: Path, progress: Report) -> Figures:
    """Measure a detector in mmdet; the exported one is measured where it is written."""
    detector, card = job.source_detector()
    return dict(evaluate_detector(detector, card, job.data.val_boxes.place, folder / CHECKPOINTS, progress))


STEPS: Mapping[str, Callable[[Job, Path, Report], Figures]] = {
    "train_classifier": _dense_classifier,
    "prune_classifier": _prune_classifier,
    "finetune_classifier": _finetune_classifier,
    "scratch_classifier": _scratch_classifier,
    "transfer": _transfer_classifier,
    "train_detector": _dense_or_slim_detector,
    "prune_detector": _slim_detector,
    "finetune_detector": _finetune_detector,
    "evaluate_classifier": _evaluate_classifier,
    "evaluate_detector": _evaluate_detector,
}
"""Step of an ordering, or the evaluation that follows it -> its work."""

_TRAIN_IMAGES, _TRAIN_BOXES = ("train_images",), ("train_boxes",)
_PARTS: Mapping[str, tuple[str, ...]] = {
    "train_classifier": _TRAIN_IMAGES,
    "prune_classifier": _TRAIN_IMAGES,
    "finetune_classifier": _TRAIN_IMAGES,
    "scratch_classifier": _TRAIN_IMAGES,
    "transfer": (),
    "train_detector": _TRAIN_BOXES,
    "prune_detector": _TRAIN_BOXES,
    "finetune_detector": _TRAIN_BOXES,
    "evaluate_classifier": ("val_images",),
    "evaluate_detector": ("val_boxes",),
    "build": _TRAIN_BOXES,
}


def parts_read(step: str, config: ExperimentConfig, pruning: Pruning | None, data: Data) -> tuple[Part[Any], ...]:
    """Return the parts of the data whose files a step reads."""
    is_given = step == "train_classifier" and config.backbone.weights is not None
    if is_given or (step.startswith("prune_") and not (pruning and pruning.needs_data)):
        return ()
    return tuple(getattr(data, name) for name in _PARTS[step])


def _trained_classifier(
    job: Job, folder: Path, net: nn.Module, card: ModelCard, schedule: Schedule, progress: Report
) -> Figures:
    save_curve(_learn_to_classify(job, folder, net, schedule, progress), folder / CURVE)
    added = job.classifier_macs(net, schedule.epochs)
    return {"epochs": schedule.epochs, **_saved_classifier(job, folder, net, card, schedule), **job.counted(added)}


def _learn_to_classify(
    job: Job,
    folder: Path,
    net: nn.Module,
    schedule: Schedule,
    progress: Report,
    name: str = "",
    method: Method | None = None,
) -> Curve:
    settings = job.config.classification
    images = job.data.train_images.place.images("train", settings.image_size, settings.augmentation)
    work_dir = folder / CHECKPOINTS / name
    with tracked(job.config.tracking, tracking_of(folder) / name) as tracker:
        return train_classifier(net, images, schedule, work_dir, job.seed, progress, tracker=tracker, method=method)


def _saved_classifier(
    job: Job, folder: Path, net: nn.Module, card: ModelCard, schedule: Schedule | None = None
) -> Figures:
    side = job.config.classification.image_size
    cost = cost_of(net, (torch.zeros(1, 3, side, side),))
    figures = {"macs": cost.macs, "params": cost.params}
    save_model(folder / MODEL, net, replace(card, provenance=_provenance(job, figures, schedule)))
    return figures


def _trained_detector(
    job: Job, folder: Path, detector: nn.Module, card: ModelCard, schedule: Schedule, progress: Report
) -> Figures:
    macs = job.detector_macs(detector, 1)
    if job.reference:
        assert job.source is not None
        schedule = affordable(schedule, job.source, job.reference, macs)
    save_curve(_learn_to_detect(job, folder, card, detector, schedule, progress), folder / CURVE)
    card = replace(card, provenance=_provenance(job, {}, schedule))
    save_detector(folder / MODEL, detector, card, job.config.detecting.given)
    return {"epochs": schedule.epochs, **job.counted(macs * schedule.epochs)}


def _learn_to_detect(
    job: Job,
    folder: Path,
    card: ModelCard,
    detector: nn.Module,
    schedule: Schedule,
    progress: Report,
    name: str = "",
    acting: MethodHook | None = None,
) -> Curve:
    place, work_dir = job.data.train_boxes.place, folder / CHECKPOINTS / name
    with tracked(job.config.tracking, tracking_of(folder) / name) as tracker:
        if isinstance(schedule, GivenSchedule):
            return train_by_config(detector, schedule, work_dir, job.seed, progress, tracker, acting)
        return train_detector(detector, card, place, schedule, work_dir, job.seed, progress, tracker, acting)


def _in_trunk(recipe: Pruning, detector: nn.Module) -> Pruning:
    """Return the classifier's recipe for a detector: patterns of the head, which a detector lacks, are dropped."""
    names = [name for name, _ in detector.named_modules()]

    def is_there(pattern: str) -> bool:
        return bool(fnmatch.filter(names, f"backbone.net.{pattern}"))

    return replace(
        recipe,
        skip=tuple(filter(is_there, recipe.skip)),
        ratios={pattern: ratio for pattern, ratio in recipe.ratios.items() if is_there(pattern)},
        widths={pattern: width for pattern, width in recipe.widths.items() if is_there(pattern)},
    )


def _provenance(job: Job, metrics: Figures, schedule: Schedule | None = None) -> dict[str, Any]:
    """Provenance of a model: enough to find its parent and to repeat the step."""
    parent = job.source_model if job.source else None
    data = [part.key for part in job.reads]
    config = job.config.model_copy(update={"tracking": ()})  # models are the same with and without
    return {**provenance(config, parent, metrics, schedule), "seed": job.seed, "data": data}
