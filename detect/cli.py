"""The commands `espalier detect train` and `eval`."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, load_classifier, read_weights
from classify.cli import AsJson, Force, OutFile, Overrides, closing, model_output, refuse_existing, show
from classify.commands import check_classes, generated, origin, outcome, training_folder
from classify.config import Dense, Finetune, read_config
from classify.progress import RunProgress
from classify.synthetic import SHAPES
from detect.config import CocoData, DetectorTraining, ScenesData
from detect.data import CocoSet, check_coco, fingerprint
from detect.evaluate import evaluate_detector
from detect.model import load_detector, new_detector, save_detector, transfer
from detect.synthetic import write_scenes
from detect.train import train_detector

__all__ = ["app", "evaluate", "train"]

app = typer.Typer(help="Train, evaluate and try detectors.", no_args_is_help=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Config, as configs/detect/faster_rcnn_scenes.py.")],
    overrides: Overrides = None,
    out: OutFile = None,
    force: Force = False,
) -> None:
    """Train a Faster R-CNN, around a classifier's backbone or on from a (slim) detector."""
    settings = read_config(config, overrides or (), DetectorTraining)
    out = model_output(out, Path("runs/detect") / f"{config.stem}.safetensors")
    refuse_existing(force, out, out.with_suffix(".py"))
    data = settings.data
    classes = data.check() if isinstance(data, CocoData) else SHAPES
    detector, card = _start(settings, classes)
    prints = [fingerprint(data.train), fingerprint(data.val)] if isinstance(data, CocoData) else []
    made_from = origin(settings, settings.start.file, prints)
    progress = RunProgress(Console(stderr=True), [settings.schedule.epochs, 0.2])
    with training_folder(out, made_from, force) as work:
        train, val = _sets(data, tuple(card.preprocessing["image_size_hw"]), out.parent)
        with progress.stage("train"):
            train_detector(detector, card, train, settings.schedule, work, settings.seed, progress)
        with progress.stage("evaluate"):
            figures = evaluate_detector(detector, card, val, work / "evaluation")
        seen = {"data": prints or [fingerprint(train), fingerprint(val)]}
        save_detector(out, detector, replace(card, provenance={**made_from, **seen, **outcome(figures)}))
    closing(f"wrote {out}, and {out.with_suffix('.py')} for mmdet's tools", f"espalier deploy export {out}")


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file of a detector.")],
    annotations: Annotated[Path, typer.Argument(help="COCO annotation file.")],
    images: Annotated[Path, typer.Argument(help="Folder its file names are relative to.")],
    as_json: AsJson = False,
) -> None:
    """Measure a detector's COCO mAP."""
    detector, card = load_detector(model)
    coco = CocoSet(annotations, images)
    check_classes(model, card, check_coco(coco))
    with Console(stderr=True).status("Evaluating ..."), tempfile.TemporaryDirectory() as folder:
        figures = evaluate_detector(detector, card, coco, Path(folder))
    show(figures, as_json)
    closing(f"evaluated {model}", f"espalier deploy export {model}")


def _sets(data: ScenesData | CocoData, size_hw: tuple[int, int], beside: Path) -> tuple[CocoSet, CocoSet]:
    if isinstance(data, CocoData):
        return data.train, data.val

    def scenes(num_images: int, seed: int) -> CocoSet:
        name = f"scenes-{size_hw[0]}x{size_hw[1]}-{num_images}-seed{seed}"
        folder = generated(beside / name, lambda partial: write_scenes(partial, num_images, size_hw, seed))
        return CocoSet(folder / "instances.json", folder / "images")

    return scenes(data.num_train, data.seed), scenes(data.num_val, data.seed + 1)


def _start(settings: DetectorTraining, classes: tuple[str, ...]) -> tuple[nn.Module, ModelCard]:
    start = settings.start
    if isinstance(start, Finetune):
        detector, card = load_detector(start.file)
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
