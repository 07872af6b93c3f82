"""Images -> boxes: the only folder that knows mmdet.

Importing it puts torchvision's operators where mmcv lacks its own and registers `TrunkBackbone` in mmdet, so one line
`custom_imports = dict(imports=["detect"])` makes any mmdet tool open a slim detector.
"""

from detect.ops import install_ops

install_ops()

from detect.backbone import TrunkBackbone  # noqa: E402  # mmdet cannot be imported before its operators
from detect.model import (  # noqa: E402
    DetectorSettings,
    build_detector,
    detector_config,
    load_detector,
    mmdet_config,
    new_detector,
    save_detector,
    transfer,
)
from detect.slim import SlimFasterRCNN  # noqa: E402

__all__ = [
    "DetectorSettings",
    "SlimFasterRCNN",
    "TrunkBackbone",
    "build_detector",
    "detector_config",
    "load_detector",
    "mmdet_config",
    "new_detector",
    "save_detector",
    "transfer",
]
