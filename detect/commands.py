"""The work of the `espalier detect` commands; `cli.py` parses their arguments and prints."""

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, check_classes, load_classifier, read_weights
from classify.config import Dense
from classify.curve import curve_file, save_curve
from classify.curve_plot import save_curve_picture
from classify.mmengine_runner import using_threads
from classify.processes import processes
from classify.provenance import origin, outcome, what_counts
from classify.synthetic import SHAPES
from classify.tracking import tracked, tracking_folder
from command.files import sha256_of
from command.folders import generated, training_folder
from command.options import Launcher
from command.own_code import code_prints
from command.progress import RunProgress
from detect.config import AnyBoxes, DetectorTraining, FinetuneDetector, GivenBoxes
from detect.data import CocoSet, check_coco, fingerprint
from detect.detector_file import load_detector, save_detector
from detect.evaluate import box_figures, found_by_detector
from detect.model import new_detector, transfer
from detect.synthetic import write_scenes
from detect.train import train_detector

__all__ = ["evaluate_file", "train_to_file"]


def train_to_file(
    settings: DetectorTraining, out: Path, force: bool, console: Console, launcher: Launcher | None = None
) -> dict[str, Any]:
    """Check the data, train, evaluate and write the model file `out` and its curve; return those of `box_figures`.

    Args:
        settings: The config.
        out: Written.
        force: Whether what another training left may be deleted.
        console: Shows progress.
        launcher: As for `classify.commands.train_to_file`.

    Raises:
        MissingFileError: If data or the file to start from is missing.
        RequestError: If data and the file to start from do not match.
    """
    data = settings.data
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes(launcher))
        tracker = stack.enter_context(tracked(settings.tracking if group.is_first else (), tracking_folder(out)))
        with group.first_one_first():
            classes = data.check() if isinstance(data, GivenBoxes) else SHAPES
            detector, card = _start(settings, classes)
            prints = [fingerprint(data.train), fingerprint(data.val)] if isinstance(data, GivenBoxes) else []
            mmdet = settings.start.mmdet if isinstance(settings.start, FinetuneDetector) else None
            config = [
                *([sha256_of(mmdet)] if mmdet else []),
                *code_prints(card.backbone.name),
            ]  # what it builds is part of what is trained
            made_from = origin(settings, settings.start.file, [*prints, *config])
            train, val = _sets(data, card.preprocessing.image_hw, out.parent)
        work = stack.enter_context(training_folder(out, what_counts(made_from), force, group.is_first))
        stack.enter_context(using_threads(settings.num_threads))
        group.wait()
        progress = RunProgress(console if group.is_first else Console(quiet=True), [settings.schedule.epochs, 0.2])
        with progress.stage("train"):
            curve = train_detector(detector, card, train, settings.schedule, work, settings.seed, progress, tracker)
        group.leave()
        if not group.is_first:
            return {}
        with progress.stage("evaluate"):
            found = found_by_detector(detector, card, val, work / "evaluation")
        figures = box_figures(val.annotations, found)
        data_prints = {"data": prints or [fingerprint(train), fingerprint(val)]}
        curve = curve.evaluated(figures)
        save_curve(curve, curve_file(out))
        made = {**made_from, **data_prints, **outcome(figures, settings.schedule)}
        save_curve_picture(curve, out)
        save_detector(out, detector, replace(card, provenance=made), mmdet)  # last: it completes them
        if tracker:
            tracker.write(figures, "validation")
    return figures


def evaluate_file(model: Path, annotations: Path, images: Path, mmdet: Path | None = None) -> dict[str, Any]:
    """Return the figures of a detector file on a COCO or VOC set, those of `box_figures`; see `load_detector`.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If the set is invalid, or its classes differ from the model's.
    """
    detector, card = load_detector(model, mmdet)
    coco = CocoSet(annotations, images)
    check_classes(model, card, check_coco(coco))
    with tempfile.TemporaryDirectory() as folder:
        return box_figures(annotations, found_by_detector(detector, card, coco, Path(folder)))


def _sets(data: AnyBoxes, size_hw: tuple[int, int], beside: Path) -> tuple[CocoSet, CocoSet]:
    if isinstance(data, GivenBoxes):
        return data.train, data.val

    def scenes(num_images: int, seed: int) -> CocoSet:
        name = f"scenes-{size_hw[0]}x{size_hw[1]}-{num_images}-seed{seed}"
        folder = generated(beside / name, lambda partial: write_scenes(partial, num_images, size_hw, seed))
        return CocoSet(folder / "instances.json", folder / "images")

    return scenes(data.num_train, data.seed), scenes(data.num_val, data.seed + 1)


def _start(settings: DetectorTraining, classes: tuple[str, ...]) -> tuple[nn.Module, ModelCard]:
    start = settings.start
    if isinstance(start, FinetuneDetector):
        detector, card = load_detector(start.file, start.mmdet)
        check_classes(start.file, card, classes)
        return detector, card
    if isinstance(start, Dense):
        backbone, spec = Architecture(start.name, len(classes), start.base_channels), None
    else:
        _, source = load_classifier(start.file)
        backbone, spec = source.backbone, source.spec
    detector, card = new_detector(backbone, classes, settings.model, settings.seed)
    if start.file:
        transfer(detector, read_weights(start.file), str(start.file))
    return detector, replace(card, spec=spec)
