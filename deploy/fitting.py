"""Images of any size through a graph of one shape: images are scaled to fit it, and boxes are scaled back.

`espalier deploy package` copies this file into the package, so it may import only numpy and OpenCV.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Boxes", "Graph", "boxes_by_graph", "decode_image", "fit_image", "read_image", "stacked"]

Graph = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""A fixed-shape detector: {"image", "image_hw"} -> {"boxes_xyxy", "scores", "labels"}."""

Boxes = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""Boxes (K, 4) in pixels of their image, scores (K,) and labels (K,), highest score first."""


def boxes_by_graph(
    graph: Graph, images: Iterable[NDArray[np.uint8]], size_hw: tuple[int, int], batch_size: int, dtype: str
) -> Iterator[Boxes]:
    """Yield the boxes that a graph finds in each RGB image, height x width x 3.

    The graph always gets `batch_size` images of dtype `dtype`: the last one is repeated to fill the last batch, and
    counts once.
    """
    fitted = (fit_image(image, size_hw, dtype) for image in images)
    while batch := list(itertools.islice(fitted, batch_size)):
        outputs = graph(stacked([inputs for inputs, _ in batch], batch_size))
        boxes, scores, labels = (outputs[name] for name in ("boxes_xyxy", "scores", "labels"))
        for i, (_, grew_xyxy) in enumerate(batch):
            found = labels[i] >= 0
            yield (boxes[i][found] / grew_xyxy).astype(np.float32), scores[i][found], labels[i][found]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return an image file as RGB, height x width x 3, rotated by its EXIF orientation.

    Raises:
        ValueError: If it does not decode.
    """
    return decode_image(path.read_bytes(), str(path))


def decode_image(data: bytes, subject: str, flags: int = cv2.IMREAD_COLOR) -> NDArray[np.uint8]:
    """Return the content of an image file as `read_image` does.

    Args:
        data: All of the file.
        subject: Begins the error message.
        flags: OpenCV's, for colours.
    """
    try:
        image_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # an empty file, or one of 2**30 pixels and more
        image_HW3 = None
    if image_HW3 is None:
        raise ValueError(f"{subject}: does not decode; expected an image")
    return np.asarray(cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB, dst=image_HW3), np.uint8)


def fit_image(
    image_HW3: NDArray[np.uint8], size_hw: tuple[int, int], dtype: str = "float32"
) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """Scale an RGB image into a fixed shape, keeping its ratio, padded on the right and below.

    Returns:
        The graph's inputs (batch 1: `image` RGB 0..255 of dtype `dtype`, `image_hw` its size without padding), and the
        factors by which x0, y0, x1, y1 were scaled.
    """
    (height, width), (h0, w0) = size_hw, image_HW3.shape[:2]
    # the shape stays as it is for portrait and landscape images; a thin image keeps at least one pixel
    factor = min(height / h0, width / w0)
    h, w = max(1, int(h0 * factor + 0.5)), max(1, int(w0 * factor + 0.5))
    scaled = cv2.resize(image_HW3, (w, h), interpolation=cv2.INTER_LINEAR)
    image = np.zeros((1, 3, height, width), dtype)
    image[0, :, :h, :w] = scaled.transpose(2, 0, 1)
    grew_x, grew_y = w / w0, h / h0
    inputs = {"image": image, "image_hw": np.array([[h, w]], np.float32)}
    return inputs, np.array([grew_x, grew_y, grew_x, grew_y], np.float32)


def stacked(inputs: Sequence[dict[str, NDArray[Any]]], batch_size: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of single images as one batch, filled up with the last image."""
    filled = [*inputs, *[inputs[-1]] * (batch_size - len(inputs))]
    return {name: np.concatenate([one[name] for one in filled]) for name in filled[0]}
