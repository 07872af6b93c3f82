"""Generated pictures of coloured shapes: an image folder without a download, the same bytes for the same seed."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["SHAPES", "background", "draw_shape", "write_shapes", "write_split"]

SHAPES = ("circle", "cross", "diamond", "ring", "square", "triangle")
"""Class names, in the order of their labels (alphabetical, as an image folder sorts them)."""


def write_shapes(folder: Path, num_train: int, num_val: int, image_size: int, seed: int) -> None:
    """Write both splits of an image folder, as `write_split` does; the seed of `val` is `seed` + 1."""
    write_split(folder / "train", num_train, image_size, seed)
    write_split(folder / "val", num_val, image_size, seed + 1)


def write_split(folder: Path, num: int, image_size: int, seed: int) -> None:
    """Write `<shape>/*.png`, one shape per image, classes in turn.

    Args:
        folder: Must not hold images yet; created, with a folder for every shape.
        num: Images.
        image_size: Side in pixels.
        seed: Same seed, same bytes.
    """
    rng = np.random.default_rng(seed)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True, exist_ok=True)
    for i in range(num):
        shape = SHAPES[i % len(SHAPES)]
        image = background(rng, (image_size, image_size))
        size = int(rng.uniform(0.35, 0.85) * image_size)
        x, y = (int(v) for v in rng.integers(0, image_size - size + 1, 2))
        draw_shape(image, shape, (x, y, x + size, y + size), rng)
        image.save(folder / shape / f"{i:05}.png", compress_level=1)


def background(rng: np.random.Generator, size_hw: tuple[int, int]) -> Image.Image:
    """Return a picture of smooth muted colour blotches under noise."""
    blotches = rng.integers(70, 186, (4, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blotches).resize(size_hw[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-20, 21, (*size_hw, 3), dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def draw_shape(image: Image.Image, shape: str, box_xyxy: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """Draw one shape of random vivid colour that fills `box_xyxy` (right and bottom exclusive); `image` is modified."""
    draw = ImageDraw.Draw(image)
    x0, y0, x1, y1 = box_xyxy[0], box_xyxy[1], box_xyxy[2] - 1, box_xyxy[3] - 1
    cx, cy, third = (x0 + x1) // 2, (y0 + y1) // 2, (x1 - x0) // 3
    colour = tuple(rng.permutation([rng.integers(210, 256), rng.integers(0, 46), rng.integers(0, 256)]).tolist())
    if shape == "circle":
        draw.ellipse((x0, y0, x1, y1), fill=colour)
    elif shape == "ring":
        draw.ellipse((x0, y0, x1, y1), outline=colour, width=max(2, (x1 - x0) // 5))
    elif shape == "square":
        draw.rectangle((x0, y0, x1, y1), fill=colour)
    elif shape == "triangle":
        draw.polygon([(cx, y0), (x1, y1), (x0, y1)], fill=colour)
    elif shape == "diamond":
        draw.polygon([(cx, y0), (x1, cy), (cx, y1), (x0, cy)], fill=colour)
    else:
        draw.rectangle((x0 + third, y0, x1 - third, y1), fill=colour)
        draw.rectangle((x0, y0 + third, x1, y1 - third), fill=colour)
