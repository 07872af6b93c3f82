"""How the weights of a layer are distributed. No torch: a report is written without it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "LayerWeights", "histogram_of", "widest_of"]

_NUM_BINS = 60


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer of a model file that are not zero."""

    name: str
    values: NDArray[np.float64]
    num_zeros: int

    @classmethod
    def of(cls, name: str, weights: NDArray[np.float64]) -> "LayerWeights":
        """Return those of a layer's weights, of any shape."""
        values = weights.ravel()
        return cls(name, values[values != 0], int((values == 0).sum()))


@dataclass(frozen=True)
class Histogram:
    """The weights of one layer that are not zero, counted in bins of one width from `-widest` to `widest`."""

    widest: float
    counts: tuple[int, ...]
    """Of each bin; the few weights beyond both ends are in none."""
    std: float
    """Standard deviation of the weights that are not zero."""
    num: int
    """Weights, zero or not."""
    num_zeros: int


def widest_of(layer: LayerWeights) -> float:
    """Return what only one weight in a thousand is further from zero than; 0 where all are zero."""
    return float(np.quantile(np.abs(layer.values), 0.999)) if len(layer.values) else 0.0


def histogram_of(layer: LayerWeights, widest: float) -> Histogram:
    """Return the layer's weights in bins that reach as far as `widest`, or to 1 where that is 0."""
    reach = widest or 1.0
    counts, _ = np.histogram(layer.values, _NUM_BINS, (-reach, reach))
    std = float(layer.values.std()) if len(layer.values) else 0.0
    num = len(layer.values) + layer.num_zeros
    return Histogram(reach, tuple(counts.tolist()), std, num, layer.num_zeros)
