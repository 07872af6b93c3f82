"""Trains detectors on a COCO-format set, with the same Runner as classifiers."""

from pathlib import Path
from typing import Any

import cv2
from torch import nn

from classify.checkpoint import ModelCard
from classify.curve import Curve
from classify.hooks import Progress
from classify.learning import MethodHook
from classify.schedule import Schedule
from classify.tracking import Tracker
from classify.train import fit
from command.errors import WorkError
from detect.annotations import as_coco
from detect.data import CocoSet, GivenSet
from detect.openmmlab import COCO, DATASETS, TRANSFORMS, CocoDataset, LoadImageFromFile

__all__ = ["CheckedCoco", "LoadCheckedImage", "coco_loader", "train_detector", "train_loader"]


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmdet's reader of images, for those that decoded before the work."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the image to mmdet's dictionary; raises WorkError if the file has been damaged since."""
        try:
            return dict(super().transform(results))
        except (AssertionError, cv2.error) as error:
            raise WorkError(f"{results['img_path']}: does not decode any more; replace or delete it") from error


@DATASETS.register_module()
class CheckedCoco(CocoDataset):
    """mmdet's data set with the annotations that were checked, as `as_coco` numbers them."""

    @staticmethod
    def COCOAPI(path: str) -> COCO:  # noqa: N802  # mmdet's name
        """Return the annotations as mmdet holds them."""
        coco = as_coco(COCO, path)
        coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names for them
        return coco


def train_detector(
    detector: nn.Module,
    card: ModelCard,
    coco: CocoSet,
    schedule: Schedule,
    work_dir: Path,
    seed: int,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
    acting: MethodHook | None = None,
) -> Curve:
    """Train mmdet's detector in place, with random flips; continues from `work_dir` if it was interrupted.

    `acting` is a pruning method on its layers.
    """
    loader = train_loader(card, coco)
    return fit(detector, loader, schedule, work_dir, seed, progress, "mmdet", tracker, acting=acting)


def train_loader(card: ModelCard, coco: CocoSet) -> dict[str, Any]:
    """Return mmengine's data loader dictionary for training, without sampler and batch size."""
    return {"dataset": _dataset(card, coco, is_train=True)}


def coco_loader(card: ModelCard, coco: CocoSet) -> dict[str, Any]:
    """Return mmengine's data loader dictionary for a test run over every image, by default one at a time."""
    if isinstance(coco, GivenSet):
        return dict(coco.loader)
    sampler = {"type": "DefaultSampler", "shuffle": False}
    return {"dataset": _dataset(card, coco, is_train=False), "batch_size": 1, "num_workers": 0, "sampler": sampler}


def _dataset(card: ModelCard, coco: CocoSet, is_train: bool) -> dict[str, Any]:
    height, width = card.preprocessing.image_hw
    pipeline: list[dict[str, Any]] = [
        {"type": "LoadCheckedImage"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "Resize", "scale": (width, height), "keep_ratio": True},
    ]
    if is_train:
        pipeline += [{"type": "RandomFlip", "prob": 0.5}]
    meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return {
        "type": "CheckedCoco",
        "ann_file": str(coco.annotations.resolve()),
        "data_prefix": {"img": str(coco.images.resolve())},
        "metainfo": {"classes": card.classes},
        "filter_cfg": {"filter_empty_gt": True} if is_train else None,
        "pipeline": [*pipeline, {"type": "PackDetInputs", "meta_keys": meta_keys}],
        "test_mode": not is_train,
    }
