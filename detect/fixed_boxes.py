"""Box decoding and NMS as arithmetic of fixed shape: no loop over boxes, no plugin.

Shape letters: N images, X boxes of an image, Y chosen boxes; 4 is x1, y1, x2, y2 in pixels, or four box deltas.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

__all__ = ["BoxDecoder", "iterations_to_settle", "keep_best", "keep_by_operator", "spread_by_group", "take"]

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # default of mmdet's DeltaXYWHBBoxCoder.decode, which configs cannot change


class BoxDecoder(nn.Module):
    """mmdet's DeltaXYWHBBoxCoder.decode for a batch of images of different sizes."""

    mean: Tensor
    std: Tensor

    def __init__(self, coder: Any) -> None:
        super().__init__()
        self.clip_border = coder.clip_border
        self.register_buffer("mean", torch.tensor(coder.means), persistent=False)
        self.register_buffer("std", torch.tensor(coder.stds), persistent=False)

    def forward(self, boxes_NX4: Tensor, deltas_NX4: Tensor, image_hw: Tensor) -> Tensor:
        """Return the boxes moved by the deltas and clipped to their image, (N, X, 4)."""
        shift, log_scale = (deltas_NX4 * self.std + self.mean).chunk(2, dim=-1)
        low, high = boxes_NX4.chunk(2, dim=-1)
        size = high - low
        center = (low + high) * 0.5 + size * shift
        half = size * log_scale.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
        moved_NX4 = torch.cat([center - half, center + half], dim=-1)
        border_N14 = image_hw.flip(1).repeat(1, 2)[:, None]
        return torch.minimum(moved_NX4.clamp(min=0), border_N14) if self.clip_border else moved_NX4


def keep_best(boxes_X4: Tensor, valid_X: Tensor, iou_threshold: float, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Return which boxes greedy NMS keeps, and whether the iterations were enough for that.

    With M[j, i] = 1 where j is before i and their IoU is above the threshold, keep <- (keep . M < 0.5) is repeated. Its
    only fixed point is greedy NMS, and iteration r settles every box that depends on a chain of fewer than r others.

    Args:
        boxes_X4: Corners x1, y1, x2, y2, best score first, shape (..., X, 4).
        valid_X: False for unused places; they are not kept and suppress nothing, bool (..., X).
        iou_threshold: A box overlapping a kept one by more than this is dropped, in [0, 1].
        num_iterations: Number of iterations, at least 1.

    Returns:
        keep, bool (..., X), and converged, bool (...): True if another round would change nothing.

    Source: Cluster-NMS, in Zheng et al., Enhancing Geometric Factors in Model Learning and Inference, 2020.
    """
    overlaps_XX = _overlaps(boxes_X4, iou_threshold)
    keep_1X = valid_1X = valid_X[..., None, :]
    for _ in range(num_iterations):
        keep_1X = _iterate(keep_1X, valid_1X, overlaps_XX)
    converged_1 = (_iterate(keep_1X, valid_1X, overlaps_XX) == keep_1X).all(-1)
    return keep_1X[..., 0, :], converged_1[..., 0]


def iterations_to_settle(boxes_X4: Tensor, valid_X: Tensor, iou_threshold: float) -> int:
    """Return the fewest iterations with which `keep_best` converges on all of these boxes."""
    overlaps_XX = _overlaps(boxes_X4, iou_threshold)
    keep_1X = valid_1X = valid_X[..., None, :]
    num_iterations = 0
    while not torch.equal(after_1X := _iterate(keep_1X, valid_1X, overlaps_XX), keep_1X):
        keep_1X, num_iterations = after_1X, num_iterations + 1
    return num_iterations


def keep_by_operator(boxes_X4: Tensor, valid_X: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Return what `keep_best` returns, with one NonMaxSuppression operator per row of boxes.

    For ONNX Runtime and OpenVINO on a CPU, which run it fast; TensorRT does not. It always converges.
    """
    num_boxes = boxes_X4.shape[-2]
    rank_X = torch.arange(num_boxes, 0, -1, dtype=boxes_X4.dtype, device=boxes_X4.device)
    rows = []
    for boxes, valid in zip(boxes_X4.reshape(-1, num_boxes, 4), valid_X.reshape(-1, num_boxes), strict=True):
        # a box without area overlaps none, so invalid boxes suppress nothing
        kept = torchvision.ops.nms(torch.where(valid[:, None], boxes, 0.0), rank_X, iou_threshold)
        rows.append(torch.zeros_like(rank_X).index_fill(0, kept, 1.0))
    keep_X = (torch.stack(rows) > 0).reshape(valid_X.shape) & valid_X
    return keep_X, torch.ones_like(keep_X[..., 0])


def spread_by_group(boxes_NX4: Tensor, group_NX: Tensor, valid_NX: Tensor) -> Tensor:
    """Return the boxes moved apart by group, so that only boxes of the same group overlap.

    The same shift as mmcv's `batched_nms`, for the same rounding: group times (largest coordinate + 1).
    """
    largest_N11 = (boxes_NX4 * valid_NX[..., None]).amax((1, 2), keepdim=True)
    return boxes_NX4 + group_NX[..., None].to(boxes_NX4.dtype) * (largest_N11 + 1)


def take(values_NX4: Tensor, index_NY: Tensor) -> Tensor:
    """Return each image's values at its indices, (N, Y, 4)."""
    return values_NX4.gather(1, index_NY[..., None].expand(-1, -1, 4))


def _overlaps(boxes_X4: Tensor, iou_threshold: float) -> Tensor:
    return (_pairwise_iou(boxes_X4) > iou_threshold).to(boxes_X4.dtype).triu(1)


def _iterate(keep_1X: Tensor, valid_1X: Tensor, overlaps_XX: Tensor) -> Tensor:
    return valid_1X & (keep_1X.to(overlaps_XX.dtype) @ overlaps_XX < 0.5)


def _pairwise_iou(boxes_X4: Tensor) -> Tensor:
    left, top, right, bottom = boxes_X4.unbind(-1)
    area = (right - left) * (bottom - top)
    # clamping one side is enough: a negative height makes the quotient negative, which is below any threshold
    width = (_pairs(torch.minimum, right) - _pairs(torch.maximum, left)).clamp(min=0)
    intersection = width * (_pairs(torch.minimum, bottom) - _pairs(torch.maximum, top))
    return intersection / (area[..., :, None] + area[..., None, :] - intersection)


def _pairs(combine: Callable[[Tensor, Tensor], Tensor], values_X: Tensor) -> Tensor:
    return combine(values_X[..., :, None], values_X[..., None, :])
