"""Detections of mmdet's own prediction."""

from collections.abc import Iterable, Iterator

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from torch import nn

from classify.checkpoint import ModelCard
from deploy.detector import Found, found_in
from detect.model import test_part
from detect.openmmlab import DefaultScope, inference_detector

__all__ = ["predict"]


def predict(
    detector: nn.Module, card: ModelCard, images: Iterable[NDArray[np.uint8]], min_score: float
) -> Iterator[list[Found]]:
    """Yield mmdet's detections in each RGB image (height x width x 3), highest score first."""
    detector.cfg = Config(test_part(card))  # mmdet reads the preprocessing from it
    for image_HW3 in images:
        with DefaultScope.overwrite_default_scope("mmdet"):
            instances = inference_detector(detector, np.ascontiguousarray(image_HW3[..., ::-1])).pred_instances.numpy()
        yield found_in((instances.bboxes, instances.scores, instances.labels), card.classes, min_score)
