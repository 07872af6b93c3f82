"""Detections of an exported file held against those of the module it was exported from, one to one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["agreement"]


def agreement(
    expected: dict[str, NDArray[Any]],
    actual: dict[str, NDArray[Any]],
    score_tolerance: float = 1e-4,
    box_tolerance: float = 0.1,
) -> tuple[int, int]:
    """Return how many expected detections a graph found too, and how many there are, over the batch.

    There are as many as the larger of both counts, so that what a graph finds beyond the expected ones counts against
    it. Found too: the same label, score and box nearly the same, and each found one stands for one expected one alone.
    Order does not count: two whose scores agree to the last digits may come in either order.

    Args:
        expected: {"boxes_xyxy", "scores", "labels"} of the module, with their batch dimension.
        actual: The same of the exported file.
        score_tolerance: Scores may differ by it, in [0, 1]; rounding in float32 stays below the defaults.
        box_tolerance: Corners may be so far apart, in pixels.
    """
    from scipy.optimize import linear_sum_assignment  # which running a deployed file does not need

    boxes, scores, labels = (
        np.abs(expected[name][:, :, None].astype(np.float64) - actual[name][:, None])
        for name in ("boxes_xyxy", "scores", "labels")
    )
    is_same = (boxes.max(-1) <= box_tolerance) & (scores <= score_tolerance) & (labels == 0)
    is_pair = is_same & (expected["labels"] >= 0)[:, :, None]
    num_agreed = sum(int(pairs[linear_sum_assignment(pairs, maximize=True)].sum()) for pairs in is_pair)
    num_expected, num_found = (int((found["labels"] >= 0).sum()) for found in (expected, actual))
    return num_agreed, max(num_expected, num_found)
