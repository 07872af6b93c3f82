"""Everything used from mmdet and mmcv: the only file that imports them.

mmcv's package on the registry is source only, and without a compiler it lacks `mmcv._ext`, which `mmdet.models` needs.
torchvision has the only two operators that Faster R-CNN uses, nms and RoIAlign: they are installed before mmdet is
imported.
"""

# ruff: noqa: E402, I001  # operators first, then the packages that need them

from detect.ops import install_ops

install_ops()

import mmdet
from mmcv.cnn import fuse_conv_bn
from mmcv.ops import RoIAlign
from mmcv.transforms import LoadImageFromFile
from mmdet.apis import inference_detector
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.functional import bbox_overlaps
from mmdet.evaluation.functional.mean_ap import average_precision, tpfp_default
from mmdet.models import DetDataPreprocessor, FasterRCNN
from mmdet.structures import DetDataSample
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope

from pathlib import Path

__all__ = [
    "COCO",
    "DATASETS",
    "MODELS",
    "STOCK_FASTER_RCNN",
    "TOOLS",
    "TRANSFORMS",
    "CocoDataset",
    "DefaultScope",
    "DetDataPreprocessor",
    "DetDataSample",
    "FasterRCNN",
    "LoadImageFromFile",
    "RoIAlign",
    "average_precision",
    "bbox_overlaps",
    "fuse_conv_bn",
    "inference_detector",
    "register_all_modules",
    "tpfp_default",
]

_SHIPPED = Path(mmdet.__file__).parent / ".mim"
STOCK_FASTER_RCNN = _SHIPPED / "configs/_base_/models/faster-rcnn_r50_fpn.py"
"""mmdet's own config of Faster R-CNN's parts."""
TOOLS = _SHIPPED / "tools"
"""The folder of mmdet's programs."""
