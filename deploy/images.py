"""Image files read as a detector takes them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from command.errors import RequestError
from deploy.fitting import read_image

__all__ = ["image_from_file"]


def image_from_file(path: str | Path) -> NDArray[np.uint8]:
    """Return an image file as RGB, height x width x 3, turned upright as its EXIF entry says.

    Raises:
        RequestError: If it does not decode.
    """
    try:
        return read_image(Path(path))
    except ValueError as error:  # fitting.py, which is handed out alone, knows no errors of ours
        raise RequestError(str(error)) from error
