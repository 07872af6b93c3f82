"""What the commands of classification do; `cli.py` parses their arguments and prints."""

import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from classify.backbones import HEADS, Architecture, build_classifier, initialize, weightless
from classify.budget import scratch_epochs
from classify.checkpoint import (
    ModelCard,
    Preprocessing,
    check_classes,
    load_classifier,
    load_weights,
    read_weights,
    save_model,
)
from classify.config import ClassifierTraining, Dense, FolderData, Scratch, ShapesData
from classify.curve import curve_file, save_curve
from classify.data import check_folder, class_names, fingerprint, image_folder
from classify.evaluate import evaluate_classifier
from classify.provenance import origin, outcome
from classify.schedule import Schedule
from classify.synthetic import SHAPES, write_shapes
from classify.train import silent, train_classifier, using_threads
from command.folders import generated, training_folder
from command.progress import RunProgress
from prune.cost import cost_of

__all__ = ["evaluate_file", "train_to_file"]


def train_to_file(settings: ClassifierTraining, out: Path, force: bool, console: Console) -> dict[str, Any]:
    """Check the data, train, evaluate and write the model file `out` and its curve; return its figures.

    Raises:
        MissingFileError: If data or weights are missing.
        RequestError: If data or weights do not fit.
    """
    classes = _checked_classes(settings.data)
    net, card = _start(settings, classes)
    schedule = _schedule(settings, card.backbone, console)
    given = settings.data.root if isinstance(settings.data, FolderData) else None
    data = [fingerprint(given, split) for split in ("train", "val")] if given else []
    made_from = origin(settings, settings.start.file, data)
    with training_folder(out, made_from, force) as work, using_threads(settings.num_threads):
        images, side = _images(settings, out.parent), settings.image_size
        progress = RunProgress(console, [schedule.epochs, 0.2])
        with progress.stage("train"):
            train = image_folder(images, "train", side)
            curve = train_classifier(net, train, schedule, work, settings.seed, progress)
        with progress.stage("evaluate"):
            figures = evaluate_classifier(net, image_folder(images, "val", side), work / "evaluation")
        save_curve(curve.evaluated(figures), curve_file(out))
        save_model(out, net, replace(card, provenance={**made_from, **outcome(figures, schedule)}))
    return figures


def evaluate_file(model: Path, images: Path) -> dict[str, Any]:
    """Return the figures of a classifier file on the `val` split of an image folder.

    Raises:
        RequestError: If the classes differ from the model's.
    """
    net, card = load_classifier(model)
    check_folder(images)
    check_classes(model, card, class_names(images))
    fingerprint(images, "val")  # refuses images that do not decode
    side = card.preprocessing.image_hw[0]
    cost = cost_of(net, (torch.zeros(1, 3, side, side),))
    with silent(), tempfile.TemporaryDirectory() as folder:
        figures = evaluate_classifier(net, image_folder(images, "val", side), Path(folder))
    return {**figures, "macs": cost.macs, "params": cost.params}


def _checked_classes(data: ShapesData | FolderData) -> tuple[str, ...]:
    if isinstance(data, ShapesData):
        return SHAPES
    check_folder(data.root)
    return class_names(data.root)


def _images(settings: ClassifierTraining, beside: Path) -> Path:
    data, side = settings.data, settings.image_size
    if isinstance(data, FolderData):
        return data.root
    name = f"shapes2-{side}px-{data.num_train}-{data.num_val}-seed{data.seed}"  # the second way to draw seeds
    return generated(beside / name, lambda folder: write_shapes(folder, data.num_train, data.num_val, side, data.seed))


def _start(settings: ClassifierTraining, classes: tuple[str, ...]) -> tuple[nn.Module, ModelCard]:
    start = settings.start
    torch.manual_seed(settings.seed)
    if isinstance(start, Dense):
        arch = Architecture(start.name, len(classes), start.base_channels)
        net, card = build_classifier(arch), ModelCard("classifier", arch, classes)
        if start.weights:
            load_weights(net, read_weights(start.weights), str(start.weights), optional=HEADS)
    else:
        net, card = load_classifier(start.file)
        check_classes(start.file, card, classes)
        if isinstance(start, Scratch):
            initialize(net)
    return net, replace(card, preprocessing=Preprocessing((settings.image_size, settings.image_size)))


def _schedule(settings: ClassifierTraining, arch: Architecture, console: Console) -> Schedule:
    """Return the schedule of the training; a start from random weights has a budget, whose epochs are told."""
    start, schedule = settings.start, settings.schedule
    if not isinstance(start, Scratch):
        return schedule
    dense, slim = (_macs(one, settings.image_size) for one in (replace(arch, widths={}), arch))
    ratio = Fraction(dense, slim)
    epochs = scratch_epochs(start.budget, schedule.epochs, ratio, start.scratch_b_cap, start.finetune_epochs)
    console.print(
        f"{start.budget}: {epochs} epochs; the dense network has {schedule.epochs}, "
        f"and {float(ratio):.4f} times the MACs ({dense:,} / {slim:,})",
        highlight=False,
        soft_wrap=True,
    )
    return schedule.stretched(epochs)


def _macs(arch: Architecture, side: int) -> int:
    with weightless():
        return cost_of(build_classifier(arch), (torch.zeros(1, 3, side, side),)).macs
