"""Reads image files for detectors, and says why one cannot be used."""

import io
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from command.errors import RequestError
from deploy.fitting import read_image

__all__ = ["image_fault", "image_from_file", "muted"]

_FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
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
)
"""What Pillow raises for damaged files."""
_PNG_END = b"IEND\xaeB`\x82"
_FROM_PILLOW = re.compile(r"PIL\.")
_NO_LOG = logging.NullHandler()

_muting = threading.Lock()
_stderr: list[int] = []
"""A copy of the standard error for each thread that is muted now; the oldest is the real one."""


def image_from_file(path: str | Path) -> NDArray[np.uint8]:
    """Return an image file as RGB, height x width x 3, rotated by its EXIF orientation.

    Raises:
        RequestError: If it does not decode.
    """
    try:
        with muted():
            return read_image(Path(path))
    except ValueError as error:  # fitting.py is copied into packages, without our error classes
        raise RequestError(str(error)) from error


def image_fault(data: bytes) -> str | None:
    """Return why the content of an image file cannot be used, after decoding all of it, or None.

    Nothing is printed or warned of, here or in later calls of Pillow. Threads may call it at the same time.
    """
    from PIL import Image  # not needed by a deployed detector

    _silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            with muted() if image.format == "TIFF" else nullcontext():  # the only one whose decoder prints
                image.load()
            if image.format == "PNG" and _PNG_END not in data:
                return "cut short, got a PNG without its end; expected a complete image, get it again"
    except Image.UnidentifiedImageError:
        got = f"{len(data):,} bytes of another kind" if data else "an empty file"
        return f"does not decode, got {got}; expected a complete image, one of {', '.join(_FORMATS)}"
    except Image.DecompressionBombError as error:
        num_pixels, most = map(int, re.findall(r"\d+", str(error))[:2])
        return f"has too many pixels, got {num_pixels:,}; expected at most {most:,}, scale it down"
    except _DAMAGE as error:
        return f"cut short or damaged, got {error!s:.200}; expected a complete image, get it again"
    return None


@contextmanager
def muted() -> Iterator[None]:
    """Discard what is written to standard error during the block, also by C libraries and in other threads."""
    with _muting:
        _stderr.append(os.dup(2))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
    try:
        yield
    finally:
        with _muting:
            if len(_stderr) == 1:
                os.dup2(_stderr[0], 2)
            os.close(_stderr.pop())


def _silence_pillow() -> None:
    # for the whole process: warnings.catch_warnings is not safe in threads
    logging.getLogger("PIL").addHandler(_NO_LOG)
    if ("ignore", None, Warning, _FROM_PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_FROM_PILLOW.pattern)
