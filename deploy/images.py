"""Reads image files for detectors, and examines them before any work: decoded whole once, then remembered."""

import io
import logging
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from command.contents import contents, usable
from command.errors import RequestError
from deploy.fitting import decode_image

__all__ = [
    "IMAGE_ENDINGS",
    "REDUCTIONS",
    "ImageContent",
    "image_contents",
    "image_from_bytes",
    "image_from_file",
    "jpeg_hw",
    "usable_images",
]

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of the files that are taken for images in a folder."""
REDUCTIONS: dict[int, int] = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
"""By how much an image can be smaller than it is in the file, and OpenCV's flag for it; a JPEG is decoded faster so."""
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Without those that start another program, such as EPS."""
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    cv2.error,
)
"""What Pillow and OpenCV raise for damaged files."""
_ORIENTATION = 0x0112
"""Number of the EXIF entry."""
_NO_LOG = logging.NullHandler()


@dataclass(frozen=True)
class ImageContent:
    """What is in an image file."""

    sha256: str
    size: tuple[int, int]
    """Width and height as detectors load it: some formats are rotated by their EXIF orientation."""


def image_from_file(path: str | Path) -> NDArray[np.uint8]:
    """Return an image file as RGB, height x width x 3, rotated by its EXIF orientation.

    Raises:
        RequestError: If it does not decode.
    """
    return image_from_bytes(Path(path).read_bytes(), path)


def image_from_bytes(data: bytes, subject: str | Path, reduction: int = 1) -> NDArray[np.uint8]:
    """Return the content of an image file as `image_from_file` does.

    Args:
        data: All of the file.
        subject: Begins the error message.
        reduction: One of `REDUCTIONS`: height and width are divided by it and rounded up.

    Raises:
        RequestError: If it does not decode.
    """
    try:
        return decode_image(data, str(subject), REDUCTIONS[reduction])
    except ValueError as error:  # fitting.py is copied into packages, without our error classes
        raise RequestError(str(error)) from error


def jpeg_hw(data: bytes) -> tuple[int, int] | None:
    """Return height and width of an upright JPEG by its header alone; None of other files.

    One that is turned or mirrored when it is read has the rest of a reduced row or column on another side.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            is_upright = image.getexif().get(_ORIENTATION, 1) not in range(2, 9)
    except (*_DAMAGE, Image.DecompressionBombError):
        return None
    return (height, width) if is_upright else None


def image_contents(paths: Sequence[Path]) -> list[ImageContent]:
    """Return what is in each image file; see `command.contents` for what is remembered.

    Raises:
        MissingFileError: If a file does not exist.
        RequestError: If one is not an image that decodes; the message names the first and counts the others.
    """
    return [ImageContent(found.sha256, _size(found.about)) for found in contents(paths, _examined, _examiner())]


def usable_images(paths: Sequence[Path]) -> tuple[dict[Path, ImageContent], list[str]]:
    """Return what is in each image file that decodes, and why each of the others does not, beginning with its path.

    Raises:
        MissingFileError: If a file does not exist.
        RequestError: If one is not a regular file.
    """
    found, faults = usable(paths, _examined, _examiner())
    return {path: ImageContent(content.sha256, _size(content.about)) for path, content in found.items()}, faults


@cache
def _examiner() -> str:
    """Return what decides whether an image can be used: another version may decide otherwise."""
    import PIL  # not needed by a deployed detector

    return f"images 4, Pillow {PIL.__version__}, OpenCV {cv2.__version__}"


def _size(about: str) -> tuple[int, int]:
    width, _, height = about.partition("x")
    return int(width), int(height)


def _examined(data: bytes) -> tuple[str | None, str]:
    """Return why an image cannot be used, after decoding all of it, or None; and its upright size as text."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(_NO_LOG)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            return _read_by_opencv(data, image)
    except Image.UnidentifiedImageError:
        got = f"{len(data):,} bytes of another kind" if data else "an empty file"
        return f"does not decode, got {got}; expected a complete image, one of {', '.join(_FORMATS)}", ""
    except Image.DecompressionBombError as error:
        num_pixels, most = map(int, re.findall(r"\d+", str(error))[:2])
        return f"has too many pixels, got {num_pixels:,}; expected at most {most:,}, scale it down", ""
    except _DAMAGE as error:
        return f"cut short or damaged, got {error!s:.200}; expected a complete image, get it again", ""


def _has_png_end(data: bytes) -> bool:
    """Return whether the chunks of a PNG, each after its length, lead to its end."""
    place = 8
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            return place <= len(data)
    return False


def _read_by_opencv(data: bytes, image: Any) -> tuple[str | None, str]:
    """Return what `_examined` does of an image that Pillow has decoded: detectors read with OpenCV."""
    if image.format == "PNG" and not _has_png_end(data):  # OpenCV would take gigabytes for some lengths of chunks
        return "cut short, got a PNG without its end; expected a complete image, get it again", ""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        got = f"{image.format} of mode {image.mode}"
        return f"does not decode in OpenCV, got {got}; expected a complete PNG or JPEG, convert it", ""
    height, width = decoded.shape[:2]  # turned by the orientation in EXIF for some formats only
    return None, f"{width}x{height}"
