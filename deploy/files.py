"""Files that are complete or absent, and typed JSON whose faults are told in one line.

What the files mean lives in the modules that write them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

__all__ = ["existing_file", "model_from_json", "sha256_of", "written_atomically"]

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


def existing_file(path: str | Path, remedy: str) -> Path:
    """Return `path` as a Path.

    Raises:
        FileNotFoundError: If it is not a file; the line ends with `remedy`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    return path


def sha256_of(path: str | Path) -> str:
    """Return the hash by which a file is known."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def model_from_json(model_class: type[Model], path: str | Path, remedy: str) -> Model:
    """Return the object that a JSON file describes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not describe a `model_class`; names the first fault and ends with `remedy`.
    """
    try:
        return model_class.model_validate_json(existing_file(path, remedy).read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "file"
        raise ValueError(
            f"{path}: not a readable {model_class.__name__}, got {where}: {fault['msg']}; {remedy}"
        ) from error
