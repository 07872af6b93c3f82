"""The class names inside an ONNX file: in its metadata, so that no other description of it can rename them."""

import json
from collections.abc import Mapping
from pathlib import Path

from command.errors import RequestError

__all__ = ["CLASSES_KEY", "classes_in"]

CLASSES_KEY = "espalier_classes"
"""Key of the metadata; its value is a JSON list of the names, in the order of the labels."""


def classes_in(path: str | Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the class names in the metadata of an ONNX file; None for files that were written without them.

    Raises:
        RequestError: If they are not a list of names.
    """
    if CLASSES_KEY not in metadata:
        return None
    try:
        names = json.loads(metadata[CLASSES_KEY])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{path}: {CLASSES_KEY} in its metadata is damaged; expected a JSON list of class names")
    return tuple(names)
