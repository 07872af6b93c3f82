"""Files that are complete or absent, and typed JSON with errors reported in one line.

The modules that write the files define their content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from command.errors import MissingFileError, RequestError

__all__ = [
    "existing_file",
    "filled_folder",
    "model_from_json",
    "sha256_of",
    "write_json",
    "written_atomically",
]

Model = TypeVar("Model", bound=BaseModel)


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`, which becomes `path` when the block ends and vanishes when it raises.

    Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def filled_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder whose files and folders move into `folder` when the block ends; none do if it raises.

    Entries of `folder` with the same names are replaced, all others stay. Missing folders are made.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder}: is a file; expected a folder, or a new name")
    # on the same disk, so that moving is renaming
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{folder.name}.") as name:
        work = Path(name)
        (work / "new").mkdir()
        yield work / "new"
        folder.mkdir(parents=True, exist_ok=True)
        _move_all(work / "new", folder, work)


def _move_all(source: Path, folder: Path, replaced: Path) -> None:
    """Move all entries of `source` into `folder`, and what they replace into `replaced`; all of them or none."""
    moved: list[tuple[Path, Path]] = []
    try:
        for made in source.iterdir():
            place, old = folder / made.name, replaced / f"old-{made.name}"
            if place.exists():
                place.replace(old)
            moved.append((place, old))
            made.replace(place)
    except OSError:
        for place, old in reversed(moved):
            if old.exists():
                place.unlink(missing_ok=True) if not place.is_dir() else shutil.rmtree(place)
                old.replace(place)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON values into a file that is complete or absent."""
    with written_atomically(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")


def existing_file(path: str | Path, remedy: str) -> Path:
    """Return `path` as a Path.

    Raises:
        MissingFileError: If it is not a file; the message ends with `remedy`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; {remedy}")
    return path


def sha256_of(path: str | Path) -> str:
    """Return the hash that identifies a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_from_json(model_class: type[Model], path: str | Path, remedy: str) -> Model:
    """Return the object that a JSON file describes.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If the file does not describe a `model_class`; names the first error and ends with `remedy`.
    """
    try:
        return model_class.model_validate_json(existing_file(path, remedy).read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "file"
        raise RequestError(
            f"{path}: not a readable {model_class.__name__}, got {where}: {fault['msg']}; {remedy}"
        ) from error
