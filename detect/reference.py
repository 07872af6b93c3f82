"""The detections of a detector with exact NMS, with which exported graphs are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detect.fixed_boxes import keep_by_operator, rounds_to_settle
from detect.fixed_shape import NMS_ROUNDS, FixedShapeDetector
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
    rounds: int
    """Most rounds that any NMS needed to converge."""

    @property
    def safe_rounds(self) -> int:
        """Enough rounds for images like these: NMS_ROUNDS if that leaves a margin, else twice the rounds needed.

        Networks that are compared should have the same number; they do, unless one of them needs unusually many.
        """
        return NMS_ROUNDS if _MARGIN * self.rounds <= NMS_ROUNDS else 2 * self.rounds


def reference_of(
    detector: "TwoStageDetector",
    size_hw: tuple[int, int],
    examples: Sequence[Mapping[str, Tensor]],
    input_hw: tuple[int, int] | None = None,
) -> Reference:
    """Run a detector in fp32, with the NMS operator that mmdet uses instead of rounds.

    Args:
        detector: A detector for FixedShapeDetector.
        size_hw: Height and width that the detector works at.
        examples: Tensors by the names in `FixedShapeDetector.input_names`.
        input_hw: Height and width of the examples, if they are scaled first, see `ScalingDetector`.
    """
    graph = FixedShapeDetector(detector, size_hw, runtime="onnxruntime")
    rounds = []

    def suppress(boxes_X4: Tensor, valid_X: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
        rounds.append(rounds_to_settle(boxes_X4, valid_X, iou_threshold))
        return keep_by_operator(boxes_X4, valid_X, iou_threshold)

    graph.proposals.suppress = graph.detections.suppress = suppress
    module = ScalingDetector(graph, input_hw) if input_hw else graph
    with torch.no_grad():
        found = [module(*(example[name] for name in graph.input_names)) for example in examples]
    outputs = [dict(zip(graph.output_names, map(np.asarray, tensors), strict=True)) for tensors in found]
    return Reference(tuple(outputs), max(rounds, default=0))
