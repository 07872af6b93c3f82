"""What the commands of classification do; `cli.py` parses their arguments and prints."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from classify.accuracy import detailed_accuracy
from classify.backbones import BACKBONES, Architecture, build_classifier, heads_of, initialize, weightless
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
from classify.class_order import best_names
from classify.config import ClassifierTraining, Dense, Scratch
from classify.curve import Curve, curve_file, save_curve
from classify.curve_plot import save_curve_picture
from classify.cut_training import train_and_cut
from classify.evaluate import evaluate_classifier, predictions
from classify.image_data import GivenImages
from classify.importing import import_classifier
from classify.mmengine_runner import silent, using_threads
from classify.objective import TrainedClassifier
from classify.processes import processes
from classify.provenance import origin, outcome, what_counts
from classify.pruning import example_of, sparse_figures
from classify.schedule import Schedule
from classify.tracking import tracked, tracking_folder
from classify.train import train_classifier
from classify.validation import BEST, Validation, best_file
from command.config import read_config, shipped_configs
from command.errors import RequestError
from command.files import written_atomically
from command.folders import training_folder
from command.options import Launcher
from command.own_code import code_prints, is_own_code
from command.progress import RunProgress
from prune.cost import cost_of
from prune.learn.magnitude import nonzero_masks, sparse_macs
from prune.learn.method import Method

__all__ = ["evaluate_file", "train_to_file"]

_AFTER_CUT = "slim"
"""Where the slim network is trained on, in the folder of the training that a method has ended."""


def train_to_file(
    settings: ClassifierTraining, out: Path, force: bool, console: Console, launcher: Launcher | None = None
) -> dict[str, Any]:
    """Check the data, train, evaluate and write the model file `out` with its curve; return its figures.

    Args:
        settings: The config.
        out: Written.
        force: Whether what another training left may be deleted.
        console: Shows progress.
        launcher: What started this process and others, which train together. Only the first one evaluates and writes;
            the others return nothing.

    Raises:
        MissingFileError: If data or weights are missing.
        RequestError: If data or weights do not fit.
    """
    side = settings.image_size
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes(launcher))
        tracker = stack.enter_context(tracked(settings.tracking if group.is_first else (), tracking_folder(out)))
        with group.first_one_first():
            net, card = _start(settings, settings.data.check())
            method = settings.method.on(net, example_of(card)) if settings.method else None
            schedule = _schedule(settings, net, card, console)
            teacher = settings.objective.scores_of_teacher(card)
            prints = [*settings.data.fingerprints("train", "val"), *code_prints(card.backbone.name)]
            made_from = origin(settings, settings.start.file, prints, settings.objective.teacher)
            images = settings.data.placed(out.parent, side)
        work = stack.enter_context(training_folder(out, what_counts(made_from), force, group.is_first))
        stack.enter_context(using_threads(settings.num_threads))
        group.wait()
        progress = RunProgress(console if group.is_first else Console(quiet=True), [schedule.epochs, 0.2])
        val = images.images("val", side, crop_share=settings.crop_share)

        train = images.images("train", side, settings.augmentation)

        def save(path: Path, net: nn.Module, card: ModelCard, figures: Mapping[str, Any], **more: int) -> None:
            save_model(path, net, replace(card, provenance={**made_from, **outcome(figures, schedule), **more}))

        def train_on(net: nn.Module, card: ModelCard, method: Method | None, first_epoch: int) -> Curve:
            def save_best(curve: Curve) -> None:
                baked = method.baked_model(net) if method else net
                save(work / BEST, baked, card, curve.epochs[-1].figures, epoch=curve.epochs[-1].epoch)

            validation = Validation(settings.validate_every, val, save_best) if settings.validate_every else None
            model = TrainedClassifier(net, settings.objective, teacher)
            folder = work / _AFTER_CUT if first_epoch else work
            about = (progress, model, tracker, validation, method, first_epoch)
            return train_classifier(net, train, schedule, folder, settings.seed, *about)

        with progress.stage("train"):
            if settings.method and method:
                net, card, curve = train_and_cut(net, card, settings.method, method, schedule.epochs, train_on)
            else:
                curve = train_on(net, card, None, 0)
        group.leave()
        if not group.is_first:
            return {}
        with progress.stage("evaluate"):
            figures: dict[str, Any] = evaluate_classifier(net, val, work / "evaluation")
        found = settings.method.figures(method) if settings.method and method else {}
        curve, figures = curve.evaluated({**figures, **found}), {**figures, **found, **sparse_figures(net, card)}
        if settings.validate_every:  # copied: a kill must leave it to the next call
            with written_atomically(best_file(out)) as beside:
                shutil.copyfile(work / BEST, beside)
        save_curve(curve, curve_file(out))
        save_curve_picture(curve, out)
        save(out, net, card, figures)  # last: it completes them
        if tracker:
            tracker.write(figures, "validation")
    return figures


def evaluate_file(
    model: Path, data: GivenImages, weights: Path | None = None, crop_share: float | None = None
) -> dict[str, Any]:
    """Return the figures of a classifier on validation images, those of `detailed_accuracy` with its MACs and weights.

    Of one with masked weights, those of `sparse_figures` too.

    Args:
        model: Model file; with `weights`, a key of `BACKBONES`, or a config of a dense network.
        data: The images.
        weights: Trained elsewhere; see `import_classifier`.
        crop_share: In place of the model's; see `classify.augmentation.CropShare`.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If the classes differ from the model's, or the weights are of another network.
    """
    net, card = _opened(model, weights)
    classes = data.check()
    check_classes(weights or model, card, classes)
    data.fingerprint("val")  # refuses images that do not decode
    seen = card.preprocessing
    side = seen.image_hw[0]
    cost = cost_of(net, (torch.zeros(1, 3, side, side),))
    with silent(), tempfile.TemporaryDirectory() as folder:
        found = predictions(net, data.images("val", side, crop_share=crop_share or seen.crop_share), Path(folder))
    names = best_names(card.classes, classes)
    detailed = detailed_accuracy(found, names)
    head = {"top1": detailed["top1"], "top5": detailed["top5"], "macs": cost.macs, "params": cost.params}
    return {**head, **sparse_figures(net, card), **detailed}


def _opened(model: Path, weights: Path | None) -> tuple[nn.Module, ModelCard]:
    if weights:
        return import_classifier(_network(model), weights)
    if (str(model) in BACKBONES or is_own_code(str(model))) and not model.exists():
        raise RequestError(f"{model}: a network without weights; give a model file, or its weights with --weights FILE")
    return load_classifier(model)


def _network(name: Path) -> str:
    """Return the network that a config of `espalier classify train` begins with, or the name as it is."""
    if str(name) in BACKBONES or not (name.suffix == ".py" or str(name) in shipped_configs()):
        return str(name)
    start = read_config(name, (), ClassifierTraining).start
    if not isinstance(start, Dense):
        raise RequestError(
            f"{name}: starts from a model file, got start.type {start.type!r}; expected a config of a dense network"
        )
    return start.name


def _start(settings: ClassifierTraining, classes: tuple[str, ...]) -> tuple[nn.Module, ModelCard]:
    start = settings.start
    torch.manual_seed(settings.seed)
    if isinstance(start, Dense):
        arch = Architecture(start.name, len(classes), start.base_channels)
        net, card = build_classifier(arch), ModelCard("classifier", arch, classes)
        if start.weights:
            load_weights(net, read_weights(start.weights), str(start.weights), optional=heads_of(start.name))
    else:
        net, card = load_classifier(start.file)
        check_classes(start.file, card, classes)
        if isinstance(start, Scratch):
            if settings.method:
                settings.method.draw(net, settings.seed)
            else:
                initialize(net)
    size = (settings.image_size, settings.image_size)
    shape = Preprocessing.of(card.backbone.name, size, settings.crop_share)
    return net, replace(card, classes=best_names(card.classes, classes), preprocessing=shape)


def _schedule(settings: ClassifierTraining, net: nn.Module, card: ModelCard, console: Console) -> Schedule:
    """Return the schedule; a training from random weights is as long as its budget, which is printed."""
    start, schedule = settings.start, settings.schedule
    if not isinstance(start, Scratch):
        return schedule
    with weightless():
        dense = cost_of(build_classifier(card.backbone.dense), example_of(card)).macs
    slim = sparse_macs(net, nonzero_masks(net), example_of(card))
    ratio = Fraction(dense, slim)
    epochs = scratch_epochs(start.budget, schedule.epochs, ratio, start.scratch_b_cap, start.finetune_epochs)
    console.print(
        f"{start.budget}: {epochs} epochs; the dense network has {schedule.epochs}, "
        f"and {float(ratio):.4f} times the MACs ({dense:,} / {slim:,})",
        highlight=False,
        soft_wrap=True,
    )
    return schedule.stretched(epochs)
