"""A Faster R-CNN whose neck and heads are slim too: the config names their widths, and mmdet builds it."""

from collections.abc import Mapping
from typing import Any

from detect.openmmlab import MODELS, FasterRCNN
from prune.cut.surgery import narrowed_model

__all__ = ["SlimFasterRCNN"]


@MODELS.register_module()
class SlimFasterRCNN(FasterRCNN):
    """mmdet's Faster R-CNN with narrower layers outside the backbone, which has widths of its own.

    Args:
        widths: Layer of the detector -> (inputs, outputs); layers that are absent are as the parts' configs say.
        parts: As for mmdet's FasterRCNN.
    """

    def __init__(self, *, widths: Mapping[str, tuple[int, int]], **parts: Any) -> None:
        super().__init__(**parts)
        for part in ("neck", "rpn_head", "roi_head"):
            own = {name.removeprefix(f"{part}."): w for name, w in widths.items() if name.startswith(f"{part}.")}
            setattr(self, part, narrowed_model(getattr(self, part), own))
        # the extractor makes a tensor of this size, whatever the levels hold
        self.roi_head.bbox_roi_extractor.out_channels = self.neck.fpn_convs[0].conv.out_channels
