"""Validation images drawn again many times, the same draws for every model: how sure a figure over images is."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["drawn_means", "image_draws"]

_NUM_DRAWS = 200
"""The standard deviation over them is known to 5 %."""


def image_draws(num_images: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image counts, (num_images,), in draws of as many images with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(_NUM_DRAWS):
        yield np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)


def drawn_means(values: ArrayLike) -> list[float]:
    """Return the mean of one value per image, such as whether its class was found, in every draw."""
    values_I = np.asarray(values, float)
    return [float(values_I @ draws_I) / len(values_I) for draws_I in image_draws(len(values_I))]
