"""Files that are complete or absent, and typed JSON with errors reported in one line.

The modules that write the files define their content.
"""

from __future__ import annotations

import hashlib
import json
import os
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
    folder = Path(folder)
    beside = next(path for path in folder.absolute().parents if path.exists())  # on the same disk, so moved at once
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{folder.name}.") as name:
        work = Path(name)
        yield work
        folder.mkdir(parents=True, exist_ok=True)
        for made in work.iterdir():
            place = folder / made.name
            if place.is_dir():
                place.replace(work / f".{made.name}.old")  # deleted together with `work`
            made.replace(place)


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
