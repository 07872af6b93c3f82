"""A Faster R-CNN with slim neck and heads: the config has their widths, and mmdet builds it."""

from collections.abc import Mapping
from typing import Any

from detect.openmmlab import MODELS, FasterRCNN
from prune.cut.surgery import narrowed_model

__all__ = ["SlimFasterRCNN"]


@MODELS.register_module()
class SlimFasterRCNN(FasterRCNN):
    """mmdet's Faster R-CNN with narrower layers outside the backbone, whose config has its own widths.

    Args:
        widths: Layer of the detector -> (inputs, outputs); other layers have the widths in the parts' configs.
        parts: As for mmdet's FasterRCNN.
    """

    def __init__(self, *, widths: Mapping[str, tuple[int, int]], **parts: Any) -> None:
        super().__init__(**parts)
        for part in ("neck", "rpn_head", "roi_head"):
            own = {name.removeprefix(f"{part}."): w for name, w in widths.items() if name.startswith(f"{part}.")}
            setattr(self, part, narrowed_model(getattr(self, part), own))
        # the extractor allocates a tensor with this many channels
        self.roi_head.bbox_roi_extractor.out_channels = self.neck.fpn_convs[0].conv.out_channels
