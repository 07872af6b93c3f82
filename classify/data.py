"""Image folders (`train/<class>/*`, `val/<class>/*`, as ImageNet's) as data sets of uint8 images."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from classify.augmentation import Crops
from classify.val_labels import labelled_files
from command.errors import MissingFileError, RequestError, WorkError
from command.notes import note
from deploy.images import image_contents, usable_images

__all__ = ["MEAN", "STD", "Damaged", "Split", "check_folder", "class_names", "fingerprint", "image_folder"]

MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean of R, G and B, 0..255; detectors normalise with the same figures."""
STD = (58.395, 57.12, 57.375)
Split = Literal["train", "val"]
Damaged = Literal["refuse", "skip"]
"""What becomes of images that do not decode: nothing starts, or they are left out, named and counted."""
_LISTED = 3
"""Files that are left out are named, so many of them."""
_MOST_IN_A_ROW = 10
"""Images that may be replaced by one; with more of them the disk is at fault."""


def image_folder(
    root: Path,
    split: Split,
    crops: Crops,
    *,
    val_labels: Path | None = None,
    damaged: Damaged = "refuse",
    replaces: bool = False,
) -> Dataset[tuple[Tensor, int]]:
    """Return (uint8 image (3, S, S), label) pairs of one split.

    An image that cannot be read, though it could before, stops the work.

    Args:
        root: The folder that holds `train` and `val` (or `validation`).
        split: "train" or "val".
        crops: Makes squares of the images.
        val_labels: Labels of a `val` without class folders; see `classify.val_labels`.
        damaged: With "skip", images that do not decode are left out.
        replaces: An image that cannot be read any more is replaced by the next one in the list.
    """
    return _Images(_kept(_labelled(root, split, val_labels), damaged), crops, replaces)


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
        raise RequestError(
            f"{root}: train and val differ in their classes, got {_alone(classes, 'train')} and "
            f"{_alone(classes, 'val')}; expected the same class folders in both"
        )
    for split in with_folders:
        folder = _split_folder(root, split)
        if not _images(folder):
            raise RequestError(f"{folder}: holds no images, got empty class folders; expected images, as .jpg or .png")
        _tell_hidden(folder)
        _tell_empty(folder)
    _labelled(root, "val", val_labels)


def fingerprint(root: Path, split: Split, val_labels: Path | None = None, damaged: Damaged = "refuse") -> str:
    """Return a hash of the class folders' names and of the name, content and label of every image in a split.

    Raises:
        RequestError: If a file is not an image that decodes; with "skip", if none is.
    """
    folder = _split_folder(root, split)
    labelled = _kept(_labelled(root, split, val_labels), damaged)
    images = [path for path, _ in labelled]
    named = zip((path.relative_to(folder).as_posix() for path in images), image_contents(images), strict=True)
    content: list[object] = [_class_folders(folder), [(name, image.sha256) for name, image in named]]
    if val_labels and split == "val":  # otherwise the label is in the name
        content.append([class_names(root), [label for _, label in labelled]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Images(Dataset[tuple[Tensor, int]]):
    """What `image_folder` returns."""

    def __init__(self, labelled: list[tuple[Path, int]], crops: Crops, replaces: bool) -> None:
        self._labelled, self._crops = labelled, crops
        # shared with the processes that load images
        self._replaced = torch.zeros(len(labelled), dtype=torch.bool).share_memory_() if replaces else None

    def __len__(self) -> int:
        return len(self._labelled)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):  # ends a loop over all
            raise IndexError(index)
        for place in range(index, index + _MOST_IN_A_ROW):
            path, label = self._labelled[place % len(self)]
            try:
                return self._crops.of_file(path), label
            except (OSError, RequestError) as error:  # it decoded before the work
                fault, remedy = str(error), "replace or delete it"
                if not isinstance(error, RequestError):
                    fault, remedy = f"{path}: cannot be read any more, {error.strerror}", "bring it back"
                if self._replaced is None:
                    raise WorkError(f"{fault}; {remedy}") from error
                self._tell_replaced(place % len(self), fault)
        raise WorkError(f"{path}: cannot be read, nor can the {_MOST_IN_A_ROW - 1} images before it; check the disk")

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Images":
        return self  # mmengine copies data sets; all processes share what was replaced

    def _tell_replaced(self, place: int, fault: str) -> None:
        assert self._replaced is not None
        if not self._replaced[place]:
            self._replaced[place] = True
            num = int(self._replaced.sum())
            note(f"{fault}; from now on the next image takes its place, {num} such images so far")


def _kept(labelled: list[tuple[Path, int]], damaged: Damaged) -> list[tuple[Path, int]]:
    """Return the images to use; those that are left out are named and counted on standard error.

    Raises:
        RequestError: If none is left.
    """
    if damaged == "refuse":
        return labelled
    found, faults = usable_images([path for path, _ in labelled])
    if not found:
        raise RequestError(f"{faults[0]}; none of the {len(faults)} images can be used")
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        note(f"{len(faults)} of {len(labelled)} images are left out: {'; '.join(faults[:_LISTED])}{more}")
    return [(path, label) for path, label in labelled if path in found]


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
    named = [(inside, file) for inside, files in sorted(_folders(folder)) for file in sorted(files)]
    return [Path(inside, file) for inside, file in named if file.lower().endswith(IMG_EXTENSIONS)]


def _folders(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below with its files, each once: a link may lead to one of them, or to one above."""
    root, seen = Path(os.path.realpath(folder)), set[Path]()
    for inside, below, files in os.walk(folder, followlinks=True):
        real = Path(os.path.realpath(inside))
        if real in seen or (seen and root.is_relative_to(real)):
            below.clear()
            continue
        seen.add(real)
        below.sort()
        yield inside, files


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(Path(entry.name)))


def _is_hidden(path: Path) -> bool:
    """Return whether a file browser, a notebook or an archive has made it, not the user."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _tell_hidden(folder: Path) -> None:
    if hidden := [file for file in _files(folder) if _is_hidden(file.relative_to(folder))]:
        note(f"{folder}: hidden images are left out, {len(hidden)} of them, first {hidden[0].relative_to(folder)}")


def _tell_empty(folder: Path) -> None:
    filled = {file.relative_to(folder).parts[0] for file in _images(folder)}
    if empty := [name for name in _class_folders(folder) if name not in filled]:
        note(f"{folder}: {len(empty)} classes have no images, first {empty[0]}")


def _alone(classes: dict[str, list[str]], split: Split) -> str:
    """Return how many classes a split has, and the first ones that the other lacks."""
    others = classes["val" if split == "train" else "train"]
    alone = [name for name in classes[split] if name not in others]
    return f"{len(classes[split])} in {split}" + (f" ({', '.join(alone[:_LISTED])} there alone)" if alone else "")


def _split_folder(root: Path, split: Split) -> Path:
    names = ("val", "validation") if split == "val" else (split,)
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise MissingFileError(f"{root / names[0]}: no such folder; expected {root} to hold train/ and val/ class folders")
