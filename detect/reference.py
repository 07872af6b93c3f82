"""The detections of a detector with exact NMS, with which exported graphs are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detect.fixed_boxes import iterations_to_settle, keep_by_operator
from detect.fixed_shape import NMS_ITERATIONS, FixedShapeDetector
from detect.scaling import ScalingDetector

if TYPE_CHECKING:
    from mmdet.models import TwoStageDetector

__all__ = ["Reference", "reference_of"]

_MARGIN = 1.4  # later images may be more crowded than the examples


@dataclass(frozen=True)
class Reference:
    """Result of `reference_of`."""

    outputs: tuple[dict[str, NDArray[Any]], ...]
    """{"boxes_xyxy", "scores", "labels"} of each example, as FixedShapeDetector returns them."""
    iterations: int
    """Most iterations that any NMS needed to converge."""

    @property
    def safe_iterations(self) -> int:
        """Enough iterations for images like these: NMS_ITERATIONS if that leaves a margin, else twice the needed ones.

        Networks that are compared should have the same number; they do, unless one of them needs unusually many.
        """
        return NMS_ITERATIONS if _MARGIN * self.iterations <= NMS_ITERATIONS else 2 * self.iterations


def reference_of(
    detector: "TwoStageDetector",
    size_hw: tuple[int, int],
    examples: Sequence[Mapping[str, Tensor]],
    input_hw: tuple[int, int] | None = None,
) -> Reference:
    """Run a detector in fp32, with the NMS operator that mmdet uses instead of iterations.

    Args:
        detector: A detector for FixedShapeDetector.
        size_hw: Height and width that the detector works at.
        examples: Tensors by the names in `FixedShapeDetector.input_names`.
        input_hw: Height and width of the examples, if they are scaled first, see `ScalingDetector`.
    """
    graph = FixedShapeDetector(detector, size_hw, runtime="onnxruntime")
    iterations = []

    def suppress(boxes_X4: Tensor, valid_X: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
        iterations.append(iterations_to_settle(boxes_X4, valid_X, iou_threshold))
        return keep_by_operator(boxes_X4, valid_X, iou_threshold)

    graph.proposals.suppress = graph.detections.suppress = suppress
    module = ScalingDetector(graph, input_hw) if input_hw else graph
    with torch.no_grad():
        found = [module(*(example[name] for name in graph.input_names)) for example in examples]
    outputs = [dict(zip(graph.output_names, map(np.asarray, tensors), strict=True)) for tensors in found]
    return Reference(tuple(outputs), max(iterations, default=0))
