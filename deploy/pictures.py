"""Finds the images and videos to predict on, and draws detections into them."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from command.errors import MissingFileError, RequestError
from deploy.detector import Found
from deploy.images import IMAGE_ENDINGS, image_contents
from deploy.text import printable
from deploy.video import VIDEO_ENDINGS, is_video, open_video

__all__ = ["draw", "input_files", "picture_name"]

_ENDINGS = (*IMAGE_ENDINGS, *VIDEO_ENDINGS)
_MOST_LETTERS = 60


def input_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given images and videos and those directly in the given folders, checked before any is processed.

    Raises:
        MissingFileError: If a path does not exist.
        RequestError: If there is none, one does not decode, or two would be drawn to the same file name.
    """
    files: dict[str, Path] = {}
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise RequestError(f"{path}: has no images, got none; expected files ending in {', '.join(_ENDINGS)}")
        _check_decode(inside)
        for file in inside:
            name = picture_name(file)
            if name in files:
                raise RequestError(f"{file}: same name as another input, got {files[name]}; expected each name once")
            files[name] = file
    return list(files.values())


def picture_name(file: Path) -> str:
    """Return the name of the image or video with the detections of that file."""
    if is_video(file):
        return f"{file.stem}.mp4"
    # the whole name is kept: frame.001 and frame.002 must differ
    return file.name if file.suffix.lower() in _ENDINGS else f"{file.name}.png"


def draw(image: Image.Image, found: Iterable[Found]) -> Image.Image:
    """Return a copy of the image with boxes, class names and scores, the best on top."""
    picture = image.copy()
    pen, width = ImageDraw.Draw(picture), max(1, min(image.size) // 200)
    font = ImageFont.load_default(max(10, min(image.size) // 40))
    for thing in reversed(list(found)):
        colour = _colour(thing.name)
        left, top, right, bottom = (min(max(side, 0), max(image.size)) for side in thing.box_xyxy)  # Pillow's limits
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
        label = f"{printable(thing.name):.{_MOST_LETTERS}} {thing.score:.2f}"
        pen.rectangle(pen.textbbox((left, top), label, font), fill=colour)
        pen.text((left, top), label, "white", font)
    return picture


def _check_decode(files: Iterable[Path]) -> None:
    files = list(files)
    for file in files:
        if not file.exists():
            raise MissingFileError(f"{file}: no such file; expected an image, a video or a folder of them")
    image_contents([file for file in files if not is_video(file)])
    for video in filter(is_video, files):
        if not video.is_file():  # a pipe would be waited for
            raise RequestError(f"{video}: not a file, got a folder, pipe or device; expected a video")
        open_video(video)


def _colour(name: str) -> tuple[int, ...]:
    # the same colour in every image; dark enough for white text
    hue = sum(name.encode()) * 137 % 360
    return ImageColor.getrgb(f"hsl({hue}, 90%, 35%)")
