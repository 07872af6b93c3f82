"""What the commands of classification do, and what trainings of all rooms have in common; `cli.py` asks and shows."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from classify.backbones import HEADS, Architecture, build_classifier, initialize
from classify.checkpoint import ModelCard, load_classifier, load_weights, read_weights, save_model
from classify.config import ClassifierTraining, Dense, FolderData, Part, Scratch, ShapesData
from classify.data import MEAN, STD, check_folder, class_names, fingerprint, image_folder
from classify.evaluate import evaluate_classifier
from classify.locks import locked
from classify.progress import RunProgress
from classify.synthetic import SHAPES, write_shapes
from classify.train import silent, train_classifier
from prune import cost_of

__all__ = [
    "check_classes",
    "evaluate_file",
    "generated",
    "origin",
    "outcome",
    "provenance",
    "train_to_file",
    "training_folder",
]


def train_to_file(settings: ClassifierTraining, out: Path, force: bool, console: Console) -> None:
    """Check the data, train, evaluate and write the model file `out`.

    Raises:
        FileNotFoundError: If data or weights are missing.
        ValueError: If data or weights do not fit.
    """
    classes = _checked_classes(settings.data)
    net, card = _start(settings, classes)
    data = (fingerprint(settings.data.root),) if isinstance(settings.data, FolderData) else ()
    made_from = origin(settings, settings.start.file, data)
    with training_folder(out, made_from, force) as work:
        images, side = _images(settings, out.parent), settings.image_size
        progress = RunProgress(console, [settings.schedule.epochs, 0.2])
        with progress.stage("train"):
            train = image_folder(images, "train", side)
            train_classifier(net, train, settings.schedule, work, settings.seed, progress)
        with progress.stage("evaluate"):
            figures = evaluate_classifier(net, image_folder(images, "val", side), work / "evaluation")
        save_model(out, net, replace(card, provenance={**made_from, **outcome(figures)}))


def evaluate_file(model: Path, images: Path) -> dict[str, Any]:
    """Return the figures of a classifier file on the `val` split of an image folder.

    Raises:
        ValueError: If the classes differ from the model's.
    """
    net, card = load_classifier(model)
    check_folder(images)
    check_classes(model, card, class_names(images))
    side = card.preprocessing["image_size"]
    cost = cost_of(net, (torch.zeros(1, 3, side, side),))
    with silent(), tempfile.TemporaryDirectory() as folder:
        figures = evaluate_classifier(net, image_folder(images, "val", side), Path(folder))
    return {**figures, "macs": cost.macs, "params": cost.params}


@contextmanager
def training_folder(out: Path, made_from: Mapping[str, Any], force: bool) -> Iterator[Path]:
    """Yield the folder beside `out` that a training works in; it is deleted once the block has ended well.

    A killed training leaves it behind and goes on in it.

    Args:
        out: Model file that the training will write.
        made_from: The training's `origin`.
        force: Delete what a training of another origin left behind.

    Raises:
        ValueError: If another training works there, or one of another origin left it behind and `force` is not given.
    """
    folder = out.with_suffix(".training")
    record, text = folder / "config.json", json.dumps(made_from, indent=1)
    with locked(folder):
        if record.is_file() and record.read_text() != text:
            if not force:
                raise ValueError(
                    f"{folder}: left by a training with another config, start file or data; "
                    "give another --out, or --force"
                )
            shutil.rmtree(folder)
            folder.mkdir()
        record.write_text(text)
        yield folder
        shutil.rmtree(folder)


def generated(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return the folder, made by `write` unless it is there; what is there is complete."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        partial.rename(folder)
    return folder


def origin(settings: Part, parent: Path | None, data: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a model is made from: the hash of the file it starts from, its config, its data's fingerprints."""
    return {
        "parent": hashlib.sha256(parent.read_bytes()).hexdigest() if parent else None,
        "config": settings.model_dump(mode="json"),
        "data": list(data),
    }


def outcome(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the other half of a model's provenance: its figures, and the torch that gave them."""
    return {"metrics": dict(figures), "torch": torch.__version__}


def provenance(settings: Part, parent: Path | None, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what led to a model that saw no data of its own."""
    return {**origin(settings, parent), **outcome(figures)}


def check_classes(model: Path, card: ModelCard, classes: tuple[str, ...]) -> None:
    """Raise ValueError unless the data's classes are those of the model file, in order."""
    if card.classes != classes:
        got, expected = (f"{len(names)} ({', '.join(names[:3])} ...)" for names in (classes, card.classes))
        raise ValueError(f"{model}: knows other classes than the data has, got {got}; expected {expected}")


def _checked_classes(data: ShapesData | FolderData) -> tuple[str, ...]:
    if isinstance(data, ShapesData):
        return SHAPES
    check_folder(data.root)
    return class_names(data.root)


def _images(settings: ClassifierTraining, beside: Path) -> Path:
    data, side = settings.data, settings.image_size
    if isinstance(data, FolderData):
        return data.root
    name = f"shapes-{side}px-{data.num_train}-{data.num_val}-seed{data.seed}"
    return generated(beside / name, lambda folder: write_shapes(folder, data.num_train, data.num_val, side, data.seed))


def _start(settings: ClassifierTraining, classes: tuple[str, ...]) -> tuple[nn.Module, ModelCard]:
    start = settings.start
    torch.manual_seed(settings.seed)
    if isinstance(start, Dense):
        arch = Architecture(start.name, len(classes), start.base_channels)
        net, card = build_classifier(arch), ModelCard("classifier", arch.to_dict(), classes)
        if start.weights:
            load_weights(net, read_weights(start.weights), str(start.weights), optional=HEADS)
    else:
        net, card = load_classifier(start.file)
        check_classes(start.file, card, classes)
        if isinstance(start, Scratch):
            initialize(net)
    preprocessing = {"image_size": settings.image_size, "mean_rgb": list(MEAN), "std_rgb": list(STD)}
    return net, replace(card, preprocessing=preprocessing)
