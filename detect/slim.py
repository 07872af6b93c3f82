"""A detector with layers narrower than its parts' configs say: mmdet's config has their widths."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from detect.openmmlab import MODELS
from prune.cut.surgery import narrowed_model

__all__ = ["SLIM_DETECTOR", "slim_detector"]

SLIM_DETECTOR = "SlimDetector"
"""Its name in mmdet's registry."""


@MODELS.register_module(name=SLIM_DETECTOR)
def slim_detector(widths: Mapping[str, tuple[int, int]], dense_type: str = "FasterRCNN", **parts: Any) -> nn.Module:
    """Return mmdet's detector with narrower layers.

    Args:
        widths: Layer of the detector -> (inputs, outputs); other layers have the widths in the parts' configs.
        dense_type: mmdet's class of the dense detector.
        parts: As for that class.

    Raises:
        RequestError: If a layer is missing or narrower than its width.
    """
    return narrowed_model(MODELS.build({"type": dense_type, **parts}), widths)
