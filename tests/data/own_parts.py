"""What a user adds to mmdet: a data set with the names of its classes, and a transform that draws a number."""

import random
from typing import Any, ClassVar

from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS

from classify.synthetic import SHAPES


@TRANSFORMS.register_module()
class Dimmed(BaseTransform):
    """Makes an image up to `most` darker."""

    def __init__(self, most: float) -> None:
        self.most = most

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = (results["img"] * (1 - self.most * random.random())).astype("uint8")
        return results


@DATASETS.register_module()
class Scenes(CocoDataset):
    METAINFO: ClassVar = {"classes": SHAPES}
