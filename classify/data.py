"""Image folders (`train/<class>/*`, `val/<class>/*`, as ImageNet's) as data sets of uint8 images, and their crops."""

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from classify.val_labels import labelled_files
from command.errors import MissingFileError, RequestError, WorkError
from command.notes import note
from deploy.images import image_contents, image_from_file

__all__ = ["MEAN", "STD", "Split", "check_folder", "class_names", "crops", "fingerprint", "image_folder"]

MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean of R, G and B, 0..255; detectors normalise with the same figures."""
STD = (58.395, 57.12, 57.375)
Split = Literal["train", "val"]


def image_folder(
    root: Path,
    split: Split,
    image_size: int,
    *,
    is_augmented: bool | None = None,
    val_labels: Path | None = None,
) -> Dataset[tuple[Tensor, int]]:
    """Return (uint8 image (3, S, S), label) pairs of one split.

    Args:
        root: The folder that holds `train` and `val` (or `validation`).
        split: "train" or "val".
        image_size: Side S of the crop in pixels.
        is_augmented: Random crops and flips rather than centre crops; None for those of "train" alone.
        val_labels: Labels of a `val` without class folders; see `classify.val_labels`.
    """
    is_random = split == "train" if is_augmented is None else is_augmented
    transform = v2.Compose([v2.PILToTensor(), *crops(is_random, image_size)])
    return _Images(_labelled(root, split, val_labels), transform)


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the class folders, in the order of their labels."""
    return tuple(_class_folders(_split_folder(root, "train")))


def check_folder(root: Path, val_labels: Path | None = None) -> None:
    """Raise RequestError or FileNotFoundError unless `root` has two splits of equal classes, with images in both.

    Single classes may be empty. A line on standard error counts hidden images, which are left out.

    Args:
        root: The folder that holds `train` and `val`.
        val_labels: Labels of a `val` without class folders.
    """
    classes: dict[str, list[str]] = {}
    with_folders: tuple[Split, ...] = ("train",) if val_labels else ("train", "val")
    for split in with_folders:
        folder = _split_folder(root, split)
        classes[split] = _class_folders(folder)
        if not classes[split]:
            raise RequestError(f"{folder}: holds no class folders; expected one folder per class with its images")
    if not val_labels and classes["train"] != classes["val"]:
        odd = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise RequestError(
            f"{root}: train and val differ in the classes {odd}; expected the same class folders in both"
        )
    for split in with_folders:
        folder = _split_folder(root, split)
        if not _images(folder):
            raise RequestError(f"{folder}: holds no images, got empty class folders; expected images, as .jpg or .png")
        _tell_hidden(folder)
    _labelled(root, "val", val_labels)


def fingerprint(root: Path, split: Split, val_labels: Path | None = None) -> str:
    """Return a hash of the class folders' names and of the name, content and label of every image in a split.

    Raises:
        RequestError: If a file is not an image that decodes.
    """
    folder = _split_folder(root, split)
    labelled = _labelled(root, split, val_labels)
    images = [path for path, _ in labelled]
    named = zip((path.relative_to(folder).as_posix() for path in images), image_contents(images), strict=True)
    content: list[object] = [_class_folders(folder), [(name, image.sha256) for name, image in named]]
    if val_labels and split == "val":  # otherwise the label is in the name
        content.append([class_names(root), [label for _, label in labelled]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _loaded(path: Path) -> Image.Image:
    """Return an image as detectors read it: one network sees the same pixels in every use."""
    try:
        return Image.fromarray(image_from_file(path))
    except (OSError, RequestError) as error:  # it decoded before the work
        raise WorkError(f"{error}; replace or delete it") from error


class _Images(Dataset[tuple[Tensor, int]]):
    """What `image_folder` returns."""

    def __init__(self, labelled: list[tuple[Path, int]], transform: v2.Compose) -> None:
        self._labelled, self._transform = labelled, transform

    def __len__(self) -> int:
        return len(self._labelled)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._labelled[index]
        return self._transform(_loaded(path)), label


def _labelled(root: Path, split: Split, val_labels: Path | None) -> list[tuple[Path, int]]:
    folder = _split_folder(root, split)
    if val_labels and split == "val":
        return labelled_files(folder, val_labels, class_names(root))
    labels = {name: label for label, name in enumerate(_class_folders(folder))}
    return [(path, labels[path.relative_to(folder).parts[0]]) for path in _images(folder)]


def _images(folder: Path) -> list[Path]:
    """Return the images in class folders, at any depth."""
    files = [file for name in _class_folders(folder) for file in _files(folder / name)]
    return [file for file in files if not _is_hidden(file.relative_to(folder))]


def _files(folder: Path) -> list[Path]:
    """Return the files that are named like images, in the order of torchvision's ImageFolder."""
    named = [(inside, file) for inside, _, files in sorted(os.walk(folder, followlinks=True)) for file in sorted(files)]
    return [Path(inside, file) for inside, file in named if file.lower().endswith(IMG_EXTENSIONS)]


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(Path(entry.name)))


def _is_hidden(path: Path) -> bool:
    """Return whether a file browser, a notebook or an archive has made it, not the user."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _tell_hidden(folder: Path) -> None:
    if hidden := [file for file in _files(folder) if _is_hidden(file.relative_to(folder))]:
        note(f"{folder}: hidden images are left out, {len(hidden)} of them, first {hidden[0].relative_to(folder)}")


def _split_folder(root: Path, split: Split) -> Path:
    names = ("val", "validation") if split == "val" else (split,)
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise MissingFileError(f"{root / names[0]}: no such folder; expected {root} to hold train/ and val/ class folders")


def crops(is_random: bool, image_size: int, padding: int | None = None) -> list[torch.nn.Module]:
    """Return what makes square images of one size.

    Args:
        is_random: Random crops and flips, for training; otherwise centre crops.
        image_size: Side in pixels.
        padding: Random crops are of the whole image with so many pixels of black around it, as CIFAR's are; None for
            parts of half to all of it, scaled.
    """
    whole = [v2.Resize(image_size), v2.CenterCrop(image_size)]
    if not is_random:
        return whole
    flip = v2.RandomHorizontalFlip()
    if padding is None:
        return [v2.RandomResizedCrop(image_size, scale=(0.5, 1.0)), flip]
    return [*whole, v2.RandomCrop(image_size, padding), flip]
