"""Compares the detections of an exported file with those of the module it was exported from, one to one."""

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
    """Return how many detections of both sides match, and how many there are, over the batch.

    The second number is the larger of the two counts, so that extra detections of the file count against it. Two match
    if they have the same label and nearly the same score and box; each is matched at most once. Order does not matter:
    two detections with nearly equal scores may come in either order.

    Args:
        expected: {"boxes_xyxy", "scores", "labels"} of the module, with their batch dimension.
        actual: The same of the exported file.
        score_tolerance: Largest difference of scores, in [0, 1]; rounding in fp32 stays below the defaults.
        box_tolerance: Largest distance of corners, in pixels.
    """
    from scipy.optimize import linear_sum_assignment  # imported here: running a deployed file does not need scipy

    boxes, scores, labels = (
        np.abs(expected[name][:, :, None].astype(np.float64) - actual[name][:, None])
        for name in ("boxes_xyxy", "scores", "labels")
    )
    is_same = (boxes.max(-1) <= box_tolerance) & (scores <= score_tolerance) & (labels == 0)
    is_pair = is_same & (expected["labels"] >= 0)[:, :, None]
    num_agreed = sum(int(pairs[linear_sum_assignment(pairs, maximize=True)].sum()) for pairs in is_pair)
    num_expected, num_found = (int((found["labels"] >= 0).sum()) for found in (expected, actual))
    return num_agreed, max(num_expected, num_found)
