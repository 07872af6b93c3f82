"""What a detector finds when suppression is carried to its end: what exported graphs are held against."""

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

_MARGIN = 1.4  # pictures to come may be more crowded than those that were looked at


@dataclass(frozen=True)
class Reference:
    """What `reference_of` saw."""

    outputs: tuple[dict[str, NDArray[Any]], ...]
    """{"boxes_xyxy", "scores", "labels"} of each example, as FixedShapeDetector gives them."""
    rounds: int
    """The most rounds that any suppression took to settle."""

    @property
    def safe_rounds(self) -> int:
        """Rounds that suffice for pictures like these: NMS_ROUNDS with a margin, else twice as many as were taken.

        Networks that are compared should have the same, as they have unless one of them needs uncommonly many.
        """
        return NMS_ROUNDS if _MARGIN * self.rounds <= NMS_ROUNDS else 2 * self.rounds


def reference_of(
    detector: "TwoStageDetector",
    size_hw: tuple[int, int],
    examples: Sequence[Mapping[str, Tensor]],
    input_hw: tuple[int, int] | None = None,
) -> Reference:
    """Run a detector in float32, suppressing by the operator that mmdet uses, not by rounds.

    Args:
        detector: As FixedShapeDetector takes it.
        size_hw: Shape that the detector sees.
        examples: Tensors by the names of `FixedShapeDetector.input_names`.
        input_hw: Shape of the examples, if they are to be scaled first, see `ScalingDetector`.
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
