"""Image folders (`train/<class>/*`, `val/<class>/*`, as ImageNet's) as data sets of uint8 images."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from command.errors import MissingFileError, RequestError, WorkError
from deploy.images import image_contents

__all__ = ["MEAN", "STD", "centre_crop", "check_folder", "class_names", "fingerprint", "image_folder"]

MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean of R, G and B, 0..255; detectors normalise with the same figures."""
STD = (58.395, 57.12, 57.375)


def image_folder(root: Path, split: str, image_size: int) -> Dataset[tuple[Tensor, int]]:
    """Return (uint8 image (3, S, S), label) pairs of one split.

    Args:
        root: The folder that holds `train` and `val` (or `validation`).
        split: "train" (random crops and flips) or "val" (centre crops).
        image_size: Side S of the crop in pixels.
    """
    folder = str(_split_folder(root, split))
    return ImageFolder(folder, transform=_transform(split, image_size), loader=_loaded, allow_empty=True)


def centre_crop(image_size: int) -> v2.Compose:
    """Return what `image_folder` does to the images of "val"."""
    return _transform("val", image_size)


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the class folders, in the order of their labels."""
    return tuple(_class_folders(_split_folder(root, "train")))


def check_folder(root: Path) -> None:
    """Raise RequestError or FileNotFoundError unless `root` has two splits of equal classes, with images in both.

    Single classes may be empty.
    """
    classes = {}
    for split in ("train", "val"):
        folder = _split_folder(root, split)
        classes[split] = _class_folders(folder)
        if not classes[split]:
            raise RequestError(f"{folder}: holds no class folders; expected one folder per class with its images")
    if classes["train"] != classes["val"]:
        odd = sorted(set(classes["train"]) ^ set(classes["val"]))
        raise RequestError(
            f"{root}: train and val differ in the classes {odd}; expected the same class folders in both"
        )
    for split in ("train", "val"):
        folder = _split_folder(root, split)
        if not _images(folder):
            raise RequestError(f"{folder}: holds no images, got empty class folders; expected images, as .jpg or .png")


def fingerprint(root: Path, split: str) -> str:
    """Return a hash of the class folders' names and of the name and content of every image in a split.

    Raises:
        RequestError: If a file is not an image that decodes.
    """
    folder = _split_folder(root, split)
    images = _images(folder)
    named = zip((path.relative_to(folder).as_posix() for path in images), image_contents(images), strict=True)
    content = [_class_folders(folder), [(name, image.sha256) for name, image in named]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _loaded(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # Pillow would make everything above 255 white
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise WorkError(f"{path}: does not decode, {error}; replace or delete it") from error


def _images(folder: Path) -> list[Path]:
    """Return the images that torchvision's ImageFolder reads, in its order."""
    found = []
    for name in _class_folders(folder):
        for inside, _, files in sorted(os.walk(folder / name, followlinks=True)):
            found += [Path(inside, file) for file in sorted(files) if file.lower().endswith(IMG_EXTENSIONS)]
    return found


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _split_folder(root: Path, split: str) -> Path:
    names = ("val", "validation") if split == "val" else (split,)
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise MissingFileError(f"{root / names[0]}: no such folder; expected {root} to hold train/ and val/ class folders")


def _transform(split: str, image_size: int) -> v2.Compose:
    crop: list[torch.nn.Module]
    if split == "train":
        crop = [v2.RandomResizedCrop(image_size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()]
    else:
        crop = [v2.Resize(image_size), v2.CenterCrop(image_size)]
    return v2.Compose([v2.PILToTensor(), *crop])
