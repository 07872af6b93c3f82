"""Finds the images and videos to predict on, and draws detections into them."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from command.errors import MissingFileError, RequestError
from deploy.detector import Found
from deploy.video import VIDEO_ENDINGS, is_video, open_video

__all__ = ["draw", "input_files", "picture_name"]

_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp", *VIDEO_ENDINGS)


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
        for file in inside:
            _check_decodes(file)
            name = picture_name(file)
            if name in files:
                raise RequestError(f"{file}: same name as another input, got {files[name]}; expected each name once")
            files[name] = file
    return list(files.values())


def picture_name(file: Path) -> str:
    """Return the name of the image or video with the detections of that file."""
    if is_video(file):
        return f"{file.stem}.mp4"
    is_known = Image.registered_extensions().get(file.suffix.lower()) in Image.SAVE
    return file.name if is_known else f"{file.name}.png"  # keeps the whole name: frame.001 and frame.002 must differ


def draw(image: Image.Image, found: Iterable[Found]) -> Image.Image:
    """Return a copy of the image with boxes, class names and scores, the best on top."""
    picture = image.copy()
    pen, width = ImageDraw.Draw(picture), max(1, min(image.size) // 200)
    font = ImageFont.load_default(max(10, min(image.size) // 40))
    for thing in reversed(list(found)):
        colour = _colour(thing.name)
        left, top = thing.box_xyxy[:2]
        pen.rectangle(thing.box_xyxy, outline=colour, width=width)
        label = f"{thing.name} {thing.score:.2f}"
        pen.rectangle(pen.textbbox((left, top), label, font), fill=colour)
        pen.text((left, top), label, "white", font)
    return picture


def _check_decodes(file: Path) -> None:
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file; expected an image, a video or a folder of them")
    if is_video(file):
        open_video(file)
        return
    try:
        with Image.open(file):
            pass
    except OSError as error:
        raise RequestError(f"{file}: does not decode; expected an image") from error


def _colour(name: str) -> tuple[int, ...]:
    # the same colour in every image; dark enough for white text
    hue = sum(name.encode()) * 137 % 360
    return ImageColor.getrgb(f"hsl({hue}, 90%, 35%)")
