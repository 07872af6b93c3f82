"""Videos, read and written frame by frame."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from command.errors import RequestError, WorkError
from command.files import existing_file

__all__ = ["VIDEO_ENDINGS", "Video", "frames_of", "is_video", "open_video", "written_video"]

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_AVI, _MATROSKA = b"RIFF", b"\x1aE\xdf\xa3"
_MPEG4 = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # after the size of the first part


@dataclass(frozen=True)
class Video:
    """A video file that opens."""

    path: Path
    fps: float
    """Frames per second."""
    num_frames: int
    """From the file's header, which can be inexact."""

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, RGB of height x width x 3, rotated by the file's orientation."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            while (frame := capture.read())[0]:
                yield np.asarray(cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB), np.uint8)
        finally:
            capture.release()


def frames_of(source: int | str | Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a film, a camera or a stream, RGB of height x width x 3, until it ends.

    Args:
        source: A film's path, a camera's number, or the address of a stream (rtsp://, http://), which OpenCV opens.

    Raises:
        MissingFileError: If the film does not exist.
        RequestError: If it does not open.
    """
    is_address = isinstance(source, str) and "://" in source
    if not (isinstance(source, int) or is_address):
        yield from open_video(existing_file(source, "expected a film")).frames()
        return
    capture = cv2.VideoCapture(source) if isinstance(source, int) else cv2.VideoCapture(str(source))
    try:
        if not capture.isOpened():
            raise RequestError(f"{source}: does not open; expected a film, a camera's number or a stream's address")
        while (frame := capture.read())[0]:
            yield np.asarray(cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB), np.uint8)
    finally:
        capture.release()


def is_video(path: Path) -> bool:
    """Return whether a file has the suffix of a video."""
    return path.suffix.lower() in VIDEO_ENDINGS


def open_video(path: Path) -> Video:
    """Return a video after reading its first frame.

    Raises:
        RequestError: If it does not decode, or has no frame rate.
    """
    _check_container(path)
    capture = cv2.VideoCapture(str(path))
    try:
        is_read, fps = capture.read()[0], capture.get(cv2.CAP_PROP_FPS)
        if not is_read or not 0 < fps < math.inf:
            raise RequestError(f"{path}: does not decode; expected a video")
        return Video(path, fps, max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))))
    finally:
        capture.release()


def _check_container(path: Path) -> None:
    """Refuse playlists and patterns of names, from which a decoder would open other files."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith((_AVI, _MATROSKA)) and start[4:] not in _MPEG4:
        raise RequestError(f"{path}: does not decode; expected a video")


@contextmanager
def written_video(path: Path, fps: float, size_hw: tuple[int, int]) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield a function that appends an RGB frame to an MPEG-4 file, which is complete when the block ends.

    MPEG-4 has even sides: the last pixel of an odd side is cut off.

    Raises:
        WorkError: If the file cannot be written.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size_hw[::-1])
    if not writer.isOpened():
        raise WorkError(f"{path}: cannot be written as MPEG-4 video; check that the folder is writable")
    try:
        yield lambda frame: writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()
