"""Generated scenes in COCO format: coloured shapes on noise, the same bytes for the same seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from classify.synthetic import SHAPES, background, draw_shape
from detect.data import CocoSet

__all__ = ["write_scenes"]


def write_scenes(folder: Path, num_images: int, size_hw: tuple[int, int], seed: int) -> CocoSet:
    """Write `images/*.png` and `instances.json`; each scene has 1 to 6 shapes that hardly overlap.

    Args:
        folder: Created.
        num_images: How many scenes.
        size_hw: Of each scene, in pixels.
        seed: Same seed, same bytes.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(num_images):
        name = f"{i:05}.png"
        picture = background(rng, size_hw)
        for label, box_xyxy in _placed_shapes(rng, size_hw):
            draw_shape(picture, SHAPES[label], box_xyxy, rng)
            annotations.append(_annotation(len(annotations) + 1, i, label, box_xyxy))
        picture.save(folder / "images" / name, compress_level=1)
        images.append({"id": i, "file_name": name, "height": size_hw[0], "width": size_hw[1]})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(SHAPES)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(coco))
    return CocoSet(folder / "instances.json", folder / "images")


def _placed_shapes(rng: np.random.Generator, size_hw: tuple[int, int]) -> list[tuple[int, tuple[int, int, int, int]]]:
    placed: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(rng.integers(1, 7))):
        side = int(rng.uniform(0.12, 0.4) * min(size_hw))
        y, x = (int(rng.integers(0, limit - side)) for limit in size_hw)
        box = (x, y, x + side, y + side)
        if all(_overlap_share(box, other) < 0.1 for _, other in placed):
            placed.append((int(rng.integers(len(SHAPES))), box))
    return placed


def _overlap_share(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / min((a[2] - a[0]) ** 2, (b[2] - b[0]) ** 2)


def _annotation(number: int, image_id: int, label: int, box_xyxy: tuple[int, int, int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = box_xyxy
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
    }
