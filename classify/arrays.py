"""Labelled images held in memory, and `.npz` files of them; nothing in such a file is executed."""

import hashlib
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from classify.augmentation import Crops
from classify.class_order import numbered
from command.errors import RequestError
from command.files import existing_file, shown

__all__ = ["ArrayImages", "LabelledArrays", "common_classes", "labelled_arrays", "read_npz"]

_REMEDY = "expected a .npz file of images (N, H, W, 3) and labels (N,)"
_DAMAGE = (
    *(OSError, ValueError, LookupError, EOFError, RuntimeError, TypeError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What numpy raises for damaged files, and for those that hold Python's objects."""


@dataclass(frozen=True)
class LabelledArrays:
    """Images and their labels."""

    images: NDArray[np.uint8]
    """(N, H, W, 3), RGB."""
    labels: NDArray[np.int64]
    """(N,)."""
    classes: tuple[str, ...]
    """Names in the order of the labels; none if nobody named them."""

    def fingerprint(self) -> str:
        """Return a hash of all that is in it, whatever file it came from."""
        digest = hashlib.sha256(json.dumps([self.images.shape, self.classes]).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def labelled_arrays(subject: object, images: Any, labels: Any, classes: Sequence[str]) -> LabelledArrays:
    """Return them as the types that all the rest takes.

    Raises:
        RequestError: If shapes, types or labels are not those of labelled images; the message begins with `subject`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        got = f"{images.dtype} {images.shape}"
        raise RequestError(f"{subject}: images are not RGB bytes, got {got}; expected uint8 (N, H, W, 3)")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        got = f"{labels.dtype} {labels.shape}"
        raise RequestError(f"{subject}: not one label for each image, got {got}; expected integers ({len(images)},)")
    most = len(classes) - 1 if classes else 10**6
    if labels.min() < 0 or labels.max() > most:
        got = labels.min() if labels.min() < 0 else labels.max()
        raise RequestError(f"{subject}: a label is out of range, got {got}; expected 0 to {most:,}")
    return LabelledArrays(np.ascontiguousarray(images), labels.astype(np.int64), tuple(classes))


def read_npz(path: Path) -> LabelledArrays:
    """Read the arrays `images`, `labels` and, if there is one, `classes` (names) of a file.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it holds anything else.
    """
    held = _arrays(existing_file(path, _REMEDY))
    if missing := {"images", "labels"} - held.keys():
        got = shown(", ".join(sorted(held)) or "none")
        raise RequestError(f"{path}: lacks the array {min(missing)!r}, got {got}; {_REMEDY}")
    names = held.get("classes", np.array([], str))
    classes = tuple(names.tolist()) if names.dtype.kind == "U" and names.ndim == 1 else None
    if classes is None or len({*classes}) < len(classes):
        got = f"{names.dtype} {names.shape}"
        raise RequestError(f"{path}: classes are not a list of different names, got {got}; expected texts (C,)")
    return labelled_arrays(path, held["images"], held["labels"], classes)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("one array without a name")
        with file:
            return {name: file[name] for name in file.files if name in ("images", "labels", "classes")}
    except MemoryError as error:
        raise RequestError(f"{path}: larger than the memory, or damaged; expected fewer images") from error
    except _DAMAGE as error:
        raise RequestError(f"{path}: cannot be read, got {shown(str(error))}; {_REMEDY}") from error


def common_classes(subject: object, *parts: LabelledArrays) -> tuple[str, ...]:
    """Return the classes of all parts of a data set: the names of one, or numbers where none has any.

    Raises:
        RequestError: If they differ, or a part has labels that the names of another lack.
    """
    named = [part.classes for part in parts if part.classes]
    num = max(int(part.labels.max()) for part in parts) + 1
    classes = named[0] if named else numbered(num)
    if any(other != classes for other in named) or num > len(classes):
        got = f"{len(named[-1])} and labels up to {num - 1}"
        raise RequestError(f"{subject}: train and val differ in their classes, got {got}; expected the same in both")
    return classes


class ArrayImages(Dataset[tuple[Tensor, int]]):
    """(uint8 image (3, S, S), label) pairs of arrays."""

    def __init__(self, arrays: LabelledArrays, crops: Crops) -> None:
        self._arrays, self._crops = arrays, crops

    def __len__(self) -> int:
        return len(self._arrays.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._arrays.images[index]).permute(2, 0, 1)
        return self._crops.of_image(image), int(self._arrays.labels[index])
