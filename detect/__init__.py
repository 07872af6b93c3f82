"""Object detectors: the only folder that uses mmdet.

Importing it loads neither torch nor mmdet; mmdet's own tools import `detect.register`.
"""

from typing import TYPE_CHECKING

from command.lazy import lazy_names

if TYPE_CHECKING:
    from detect.detector_file import load_detector, save_detector
    from detect.model import DetectorSettings, build_detector, detector_config, mmdet_config, new_detector, transfer
    from detect.pruning import prune_detector
    from detect.slim import slim_detector
    from detect.trunk import TrunkBackbone

__all__ = [
    "DetectorSettings",
    "TrunkBackbone",
    "build_detector",
    "detector_config",
    "load_detector",
    "mmdet_config",
    "new_detector",
    "prune_detector",
    "save_detector",
    "slim_detector",
    "transfer",
]

__getattr__ = lazy_names(__name__, __file__)
