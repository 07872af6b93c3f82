"""A deployed detector in three lines of Python: load it, pass it images, get the objects in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from command.bounds import Bounds
from command.errors import MissingFileError, RequestError, WorkError
from deploy.deployment import Deployed, open_deployment
from deploy.fitting import Boxes, boxes_by_graph
from deploy.images import IMAGE_ENDINGS, image_from_file
from deploy.runtimes.runner import FileRunner
from deploy.tensors import Arrays

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Detector", "Found", "ImageLike", "as_rgb", "found_in"]

ImageLike: TypeAlias = Union[str, Path, "Image.Image", NDArray[np.uint8]]
"""A file, a PIL image of 8 or 16 bits a channel, or RGB of height x width x 3."""


@dataclass(frozen=True)
class Found:
    """One object, in pixels of its image."""

    name: str
    """Name of its class."""
    score: float
    box_xyxy: tuple[float, ...]
    label: int = -1
    """Number of its class, its place in `Detector.classes`."""


class Detector:
    """A detector that `espalier deploy export` wrote, run in the batches of its file.

    It holds the network until `close`, or the end of a `with` block.

    Args:
        deployed: Result of `open_deployment`; `Detector.load` calls it.
        runtime: See `Detector.load`.
    """

    def __init__(self, deployed: Deployed, runtime: str | None = None) -> None:
        self._deployed = deployed
        self._runner: FileRunner | None = deployed.runner(runtime)
        self._turn = Lock()  # an engine has one set of buffers

    @classmethod
    def load(cls, path: str | Path, runtime: str | None = None) -> Detector:
        """Return the detector in a folder, or of the ONNX file or an engine in it.

        Args:
            path: The folder (its ONNX file is used), or a file in it.
            runtime: A name in `deploy.runtimes.registry.RUNTIMES`; default: ONNX Runtime on the CPU, for an engine the
                backend that built it.

        Raises:
            MissingFileError: If a file is missing.
            RequestError: If it is not an Espalier detector, does not match its `deploy.json`, or is not for that
                runtime; if the runtime is not installed.
            WorkError: If the runtime needs a GPU and finds none.
        """
        return cls(open_deployment(path), runtime)

    def close(self) -> None:
        """Free the network's memory, after the pass that is running; from then on no image is taken."""
        with self._turn:
            self._runner = None

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, in the order of their labels."""
        return self._deployed.deployment.classes

    def __call__(self, images: Iterable[ImageLike], min_score: float = 0.3) -> list[list[Found]]:
        """Return the objects in each image, in pixels of that image, highest score first; any thread may call it.

        Args:
            images: Any number, or a folder: its image files, in the order of their names. Files are rotated by their
                EXIF orientation; PIL images are not.
            min_score: Boxes below it are left out, in [0, 1].

        Raises:
            MissingFileError: If a file is missing.
            RequestError: If one is not an image, `min_score` is out of range, or the detector is closed. This is
                checked before anything is run, except for image files that do not decode.
        """
        if isinstance(images, str | Path) and Path(images).is_dir():
            images = sorted(path for path in Path(images).iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
        if isinstance(images, str | Path) or _is_pil(images) or getattr(images, "ndim", 4) < 4:
            raise RequestError(f"images: a single image, got {_kind(images)}; expected a list of images")
        images = list(images)  # it may be a generator, and is iterated over twice
        for i, image in enumerate(images):
            _check(image, f"images[{i}]")
        return list(self.stream(images, min_score))

    def stream(self, images: Iterable[ImageLike], min_score: float = 0.3) -> Iterator[list[Found]]:
        """Yield the objects of each image, one image at a time: for videos and sets too large for memory."""
        Bounds(0, 1).check("min_score", min_score)
        self._open_runner()
        image, size_hw = self._deployed.inputs["image"], self._deployed.size_hw
        batch_size = image.fixed_shape("image")[0]
        pixels = (as_rgb(image, f"images[{i}]") for i, image in enumerate(images))
        for boxes in boxes_by_graph(self._run, pixels, size_hw, batch_size, image.dtype):
            yield found_in(boxes, self.classes, min_score)

    def watch(
        self, source: int | str | Path, min_score: float = 0.3
    ) -> Iterator[tuple[NDArray[np.uint8], list[Found]]]:
        """Yield every frame, RGB, and the objects in it, as they come.

        Args:
            source: A film's path, a camera's number, or the address of a stream (rtsp://, http://).
            min_score: Boxes below it are left out, in [0, 1].

        Raises:
            MissingFileError: If the film does not exist.
            RequestError: If it does not open.
        """
        from deploy.video import frames_of

        shown, searched = itertools.tee(frames_of(source))
        yield from zip(shown, self.stream(searched, min_score), strict=True)

    def _run(self, inputs: Arrays) -> Arrays:
        with self._turn:
            return self._open_runner().run(inputs)

    def _open_runner(self) -> FileRunner:
        if self._runner is None:
            raise RequestError(f"{self._deployed.file}: the detector is closed; load it again with Detector.load")
        return self._runner


def found_in(boxes: Boxes, classes: tuple[str, ...], min_score: float) -> list[Found]:
    """Return the boxes of an image with the names of their classes, highest score first.

    Raises:
        WorkError: If there are fewer classes than the detector has, or a box is not finite.
    """
    if not all(np.isfinite(array).all() for array in boxes):
        raise WorkError("outputs: not finite, got NaN or infinity; expected boxes and scores, export the model again")
    largest = int(boxes[2].max(initial=-1))
    if largest >= len(classes):
        raise WorkError(f"classes: too few, got {len(classes)} and a box of class {largest}; export the model again")
    rows = zip(*(array.tolist() for array in boxes), strict=True)
    found = [Found(classes[label], score, tuple(box), label) for box, score, label in rows if score >= min_score]
    return sorted(found, key=lambda thing: -thing.score)


def as_rgb(image: ImageLike, subject: str) -> NDArray[np.uint8]:
    """Return an image as RGB of height x width x 3; `subject` begins the error message.

    Raises:
        MissingFileError: If the file is missing.
        RequestError: If it is not an image.
    """
    _check(image, subject)
    if isinstance(image, str | Path):
        return image_from_file(image)
    if isinstance(image, np.ndarray):
        return image
    if image.mode.startswith("I;16"):  # Pillow would cut off all values above 255; OpenCV keeps the upper byte
        return np.repeat((np.asarray(image)[..., None] >> 8).astype(np.uint8), 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _check(image: Any, subject: str) -> None:
    """Raise if it is not an image; files are not decoded here."""
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise MissingFileError(f"{image}: no such file; expected an image")
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise RequestError(f"{subject}: not an RGB image, got {_kind(image)}; expected uint8 of height x width x 3")
    elif _is_pil(image) and image.mode in ("I", "F"):  # which value is white, nobody knows
        raise RequestError(f"{subject}: not 8 or 16 bits a channel, got a PIL image of mode {image.mode}; scale it")
    elif not _is_pil(image):
        raise RequestError(f"{subject}: not an image, got {_kind(image)}; expected a path, a PIL image or an RGB array")


def _is_pil(image: Any) -> bool:
    """Return whether it is a PIL image, without importing PIL, which may not be installed."""
    return hasattr(image, "convert") and hasattr(image, "getbands")


def _kind(thing: Any) -> str:
    return f"{thing.dtype} of {thing.shape}" if isinstance(thing, np.ndarray) else type(thing).__name__
