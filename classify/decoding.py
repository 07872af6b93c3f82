"""Image files, examined before any work: decoded whole once, then known by their size and time."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from command.contents import contents
from deploy.images import image_fault

__all__ = ["ImageContent", "image_contents"]


@dataclass(frozen=True)
class ImageContent:
    """What is in an image file."""

    sha256: str
    size: tuple[int, int]
    """Width and height as it is loaded, rotated by its EXIF orientation."""


def image_contents(paths: Sequence[Path]) -> list[ImageContent]:
    """Return what is in each image file.

    Raises:
        MissingFileError: If a file does not exist.
        RequestError: If one is not an image that decodes; the message names the first and counts the others.
    """
    found = contents(paths, _examined)
    return [ImageContent(sha256, _size(about)) for sha256, about in found]


def _examined(data: bytes) -> tuple[str | None, str]:
    if fault := image_fault(data):
        return fault, ""
    with Image.open(io.BytesIO(data)) as image:
        width, height = _upright_size(image)
    return None, f"{width}x{height}"


def _size(about: str) -> tuple[int, int]:
    width, _, height = about.partition("x")
    return int(width), int(height)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (w, h) as mmdet loads the image, rotated by its EXIF orientation; 5 to 8 are quarter turns."""
    if "exif" not in image.info:  # else reading it from a PNG would decode all pixels
        return image.size
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return image.size[::-1] if is_turned else image.size
