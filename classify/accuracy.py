"""Figures of a classifier from its answers: accuracy in all and by class, what it mistakes for what, calibration.

Accuracies of `detailed_accuracy` are in per cent, all other shares and probabilities in [0, 1].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_BINS", "Predictions", "accuracy", "calibration", "detailed_accuracy"]

NUM_BINS = 15
"""Of confidence, as in Guo et al."""
_MOST_PAIRS = 20


@dataclass(frozen=True)
class Predictions:
    """A classifier's answers, one per image."""

    labels: NDArray[np.int64]
    """The true ones."""
    predicted: NDArray[np.int64]
    """The label with the highest score."""
    confidence: NDArray[np.float64]
    """Softmax of that score."""
    is_in_top5: NDArray[np.bool_]
    """Whether the true label is among the five with the highest scores."""

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether the predicted label is the true one."""
        return self.labels == self.predicted


def accuracy(found: Predictions) -> dict[str, float]:
    """Return {"top1", "top5"}, in [0, 1]."""
    num = len(found.labels)
    return {"top1": int(found.is_right.sum()) / num, "top5": int(found.is_in_top5.sum()) / num}


def detailed_accuracy(found: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Return all figures.

    Args:
        found: The answers.
        classes: Names in the order of the labels.

    Returns:
        `top1`, `top5` in per cent, `num_images`; `calibration_error` and `bins`, see `calibration`; `per_class`, the
        top-1 accuracy on the images of each class by its name, in per cent, None without images; `confusions`, the
        most frequent wrong answers: `label`, `predicted`, `num` and the `share` of the label's images, most frequent
        first.
    """
    error, bins = calibration(found)
    right, total = (
        np.bincount(labels, minlength=len(classes)) for labels in (found.labels[found.is_right], found.labels)
    )
    per_class = {name: 100 * int(r) / int(n) if n else None for name, r, n in zip(classes, right, total, strict=True)}
    wrong = Counter(zip(found.labels[~found.is_right].tolist(), found.predicted[~found.is_right].tolist(), strict=True))
    confusions = [
        {"label": classes[label], "predicted": classes[other], "num": num, "share": num / int(total[label])}
        for (label, other), num in sorted(wrong.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_PAIRS]
    ]
    head = {
        **{name: 100 * share for name, share in accuracy(found).items()},
        "num_images": len(found.labels),
        "calibration_error": error,
    }
    return {**head, "per_class": per_class, "confusions": confusions, "bins": bins}


def calibration(found: Predictions) -> tuple[float, list[dict[str, Any]]]:
    """Return the expected calibration error and the bins that it is computed from.

    The error is sum_b n_b / n * |accuracy_b - confidence_b| over 15 bins of equal width, the b-th of which holds the
    n_b of n images whose confidence (the largest softmax probability) is in ((b - 1) / 15, b / 15]. 0 is best. Each
    bin has its ends `low` and `high`, `num`, and the means `accuracy` and `confidence`, None without images.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equations 3 and 5.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    places = np.clip(np.digitize(found.confidence, edges, right=True) - 1, 0, NUM_BINS - 1)
    bins, error = [], 0.0
    for place in range(NUM_BINS):
        inside = places == place
        num = int(inside.sum())
        share, mean = (float(v[inside].mean()) if num else None for v in (found.is_right, found.confidence))
        error += num / len(places) * abs((share or 0.0) - (mean or 0.0))
        ends = {"low": float(edges[place]), "high": float(edges[place + 1])}
        bins.append({**ends, "num": num, "accuracy": share, "confidence": mean})
    return error, bins
