"""A text file with the labels of a flat folder of images, as ImageNet's validation set comes.

A line has a class, for the images in the order of their names; or the name of an image and its class. A class is the
name of a training folder (a synset), or its place among their sorted names, from 0.
"""

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from command.errors import RequestError
from command.files import existing_file, shown

__all__ = ["labelled_files"]


def labelled_files(folder: Path, labels: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the images in a folder, sorted by name, with their labels.

    Raises:
        MissingFileError: If there is no file of labels.
        RequestError: If its classes or its number of lines do not fit.
    """
    text = existing_file(labels, "expected a text file with a class in each line").read_bytes()
    lines = [line.strip() for line in text.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    images = sorted(path for path in folder.iterdir() if path.name.lower().endswith(IMG_EXTENSIONS) and _is_seen(path))
    if not lines or len(lines) != len(images):
        raise RequestError(
            f"{labels}: not one line for each image in {folder}, got {len(lines)}; expected {len(images)}"
        )
    by_name = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    is_named = images[0].name in by_name
    labelled = []
    for image, line in zip(images, lines, strict=True):
        name = by_name.get(image.name) if is_named else line
        if name is None:
            raise RequestError(f"{labels}: no line for {image.name}; expected one for each image in {folder}")
        labelled.append((image, _label(labels, name, classes)))
    return labelled


def _is_seen(path: Path) -> bool:
    return not path.name.startswith(".")


def _label(labels: Path, name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return classes.index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    most = len(classes) - 1
    raise RequestError(
        f"{labels}: no such class, got {shown(name)!r}; expected a class folder's name, or its place in their order, "
        f"0 to {most} (ImageNet's own ground truth counts from 1 in another order: take synsets)"
    )
