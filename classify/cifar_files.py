"""CIFAR-10 and CIFAR-100 in their original files: the archive, or the folder that was unpacked from it.

Nothing is unpacked to the disk, and nothing in the pickles is executed.
"""

import gzip
import tarfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from classify.arrays import LabelledArrays, labelled_arrays
from classify.data import Split
from classify.plain_pickle import NOT_PLAIN, plain_pickle
from command.errors import MissingFileError, RequestError
from command.files import existing_file, shown

__all__ = ["cifar_place", "read_cifar"]


@dataclass(frozen=True)
class _Layout:
    archive: str
    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    meta: str
    labels: str
    names: str

    def batches(self, split: Split) -> tuple[str, ...]:
        return self.train if split == "train" else self.val


_LAYOUTS = (
    _Layout(
        *("cifar-10-python.tar.gz", "cifar-10-batches-py"),
        *(tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)),
        *("batches.meta", "labels", "label_names"),
    ),
    _Layout(
        *("cifar-100-python.tar.gz", "cifar-100-python", ("train",), ("test",)),
        *("meta", "fine_labels", "fine_label_names"),
    ),
)
"""CIFAR-10's and CIFAR-100's; https://www.cs.toronto.edu/~kriz/cifar.html describes them."""
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError, RecursionError)
"""What Python's reader of archives raises for damaged ones."""
_MOST_BYTES = 2**29
"""Of one file in an archive; the largest of the original ones has 155 million."""
_SIDE = 32


def cifar_place(root: Path) -> Path | None:
    """Return the archive or the unpacked folder that is `root` or lies in it; None if there is none.

    Raises:
        RequestError: If there are CIFAR-10 and CIFAR-100.
    """
    if root.is_file() or _unpacked(root):
        return root
    both = [[place for name in (one.folder, one.archive) if (place := root / name).exists()] for one in _LAYOUTS]
    found = [places[0] for places in both if places]
    if len(found) > 1:
        raise RequestError(f"{root}: holds CIFAR-10 and CIFAR-100; expected one of {' and '.join(map(str, found))}")
    return found[0] if found else None


def read_cifar(root: Path, split: Split) -> LabelledArrays:
    """Read the training or the test images, and the names of their (fine) classes.

    Raises:
        MissingFileError: If there is no such data set, or a file of it is missing.
        RequestError: If a file is damaged, or would execute code.
    """
    place = cifar_place(root)
    if place is None:
        expected = " or ".join(layout.archive for layout in _LAYOUTS)
        raise MissingFileError(f"{root}: no CIFAR there; expected {expected}, or what was unpacked from it")
    layout, files = _from_archive(place, split) if place.is_file() else _from_folder(place, split)
    batches = [_batch(place, name, files[name], layout.labels) for name in layout.batches(split)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    meta = _plain(place, layout.meta, files[layout.meta])
    names = [_text(place, name) for name in _listed(place, layout.meta, meta, layout.names)]
    return labelled_arrays(place, images, labels, names)


def _unpacked(folder: Path) -> _Layout | None:
    """Return whose files a folder holds."""
    firsts = ((layout, {layout.meta, layout.train[0]}) for layout in _LAYOUTS)
    return next((layout for layout, names in firsts if all((folder / name).is_file() for name in names)), None)


def _from_folder(folder: Path, split: Split) -> tuple[_Layout, Mapping[str, bytes]]:
    layout = _unpacked(folder) or _LAYOUTS[0]
    names = (*layout.batches(split), layout.meta)
    return layout, {name: existing_file(folder / name, f"unpack {layout.archive} again").read_bytes() for name in names}


def _from_archive(archive: Path, split: Split) -> tuple[_Layout, Mapping[str, bytes]]:
    """Return the files of an archive by their name in its folder; other entries, whatever their names, are not read."""
    wanted = {layout.folder: (*layout.batches(split), layout.meta) for layout in _LAYOUTS}
    try:
        found = _entries(archive, {f"{folder}/{name}" for folder, names in wanted.items() for name in names})
    except _DAMAGE as error:
        got = shown(str(error)) or type(error).__name__
        raise RequestError(f"{archive}: cut short or damaged, got {got}; expected {_LAYOUTS[0].archive}") from error
    layout = max(_LAYOUTS, key=lambda layout: sum(path.startswith(f"{layout.folder}/") for path in found))
    for name in wanted[layout.folder]:
        if f"{layout.folder}/{name}" not in found:
            raise RequestError(f"{archive}: lacks the file {layout.folder}/{name}; expected {layout.archive}")
    return layout, {name: found[f"{layout.folder}/{name}"] for name in wanted[layout.folder]}


def _entries(archive: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Return the content of regular files by their path; links are not followed."""
    found = {}
    with tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            path = PurePosixPath(entry.name).as_posix()
            if path in wanted and entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and entry.size <= _MOST_BYTES:
                file = tar.extractfile(entry)
                found[path] = file.read() if file else b""
    return found


def _batch(place: Path, name: str, content: bytes, labels: str) -> tuple[Any, Any]:
    """Return images (N, 32, 32, 3) and labels (N,) of one file."""
    held = _plain(place, name, content)
    data, size = held.get("data"), 3 * _SIDE**2
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != size or data.dtype != np.uint8:
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise RequestError(f"{place}: {name} holds no images, got {got}; expected uint8 (N, {size})")
    listed = _listed(place, name, held, labels)
    if not all(type(label) is int and 0 <= label < 256 for label in listed) or len(listed) != len(data):
        raise RequestError(
            f"{place}: {name} has not one label for each image, got {len(listed)}; expected {len(data)} whole numbers"
        )
    return data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1), np.array(listed, np.int64)


def _listed(place: Path, name: str, held: Mapping[str, Any], key: str) -> list[Any]:
    values = held.get(key)
    if type(values) is not list or not values:
        raise RequestError(f"{place}: {name} lacks the list {key!r}, got {type(values).__name__}; expected CIFAR's own")
    return values


def _plain(place: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        return plain_pickle(content)
    except NOT_PLAIN as error:
        got = shown(str(error)) or type(error).__name__
        raise RequestError(f"{place}: {name} is not plain data, got {got}; expected the original file") from error


def _text(place: Path, name: Any) -> str:
    if not isinstance(name, bytes | str) or not name:
        raise RequestError(f"{place}: a class has no name, got {shown(repr(name))}; expected a text")
    return name.decode(errors="replace") if isinstance(name, bytes) else name
