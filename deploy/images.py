"""Reads image files for detectors."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from command.errors import RequestError
from deploy.fitting import read_image

__all__ = ["image_from_file"]


def image_from_file(path: str | Path) -> NDArray[np.uint8]:
    """Return an image file as RGB, height x width x 3, rotated by its EXIF orientation.

    Raises:
        RequestError: If it does not decode.
    """
    try:
        return read_image(Path(path))
    except ValueError as error:  # fitting.py is copied into packages, without our error classes
        raise RequestError(str(error)) from error
