"""Training images of a detector, and its losses on them, for methods that choose channels on data."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from classify.losses import calibration_batches
from classify.mmengine_runner import silent
from classify.train import Seeded
from detect.data import CocoSet, GivenSet
from detect.openmmlab import DATASETS
from detect.train import coco_loader
from prune.choose.measured import Losses
from prune.refit.rows import Batches

__all__ = ["detector_inputs", "detector_losses"]


def detector_losses(card: ModelCard, coco: CocoSet, batch_size: int, num_batches: int, seed: int = 0) -> Losses:
    """Return mmdet's own training loss, batch by batch, the same each time; RoIs are drawn from the seed too.

    Images are not flipped; those without objects are left out, as in training. A user's config of mmdet draws its
    images as in training. No image is read until the losses are computed.

    Args:
        card: Card of the detector.
        coco: The training set.
        batch_size: Images per batch.
        num_batches: Most batches; fewer if there are not enough images.
        seed: Seed for the choice of images and RoIs. The random state of torch is restored.
    """

    def losses(detector: nn.Module) -> Iterator[Tensor]:
        dataset = _training_images(card, coco)
        for places in calibration_batches(len(dataset), batch_size, num_batches, seed):
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed)
                loss = _loss(detector, [dataset[i] for i in places])
            yield loss

    return losses


def detector_inputs(
    detector: Any, card: ModelCard, coco: CocoSet, batch_size: int, num_batches: int, seed: int = 0
) -> Batches:
    """Return the training images as the backbone reads them, one (1, 3, H, W) after another.

    Args:
        detector: Normalises them.
        card: Its card.
        coco: The training set.
        batch_size: Times `num_batches` is the number of images.
        num_batches: See `detector_losses`.
        seed: Of the choice of images.
    """

    def inputs() -> Iterator[Tensor]:
        dataset = _training_images(card, coco)
        for places in calibration_batches(len(dataset), batch_size, num_batches, seed):
            for row in (dataset[i] for i in places):
                batch = {"inputs": [row["inputs"]], "data_samples": [row["data_samples"]]}
                yield detector.data_preprocessor(batch)["inputs"]

    return inputs


def _training_images(card: ModelCard, coco: CocoSet) -> Any:
    if isinstance(coco, GivenSet):
        with silent():
            return Seeded(DATASETS.build({**coco.loader["dataset"], "_scope_": "mmdet"}))
    settings = {**coco_loader(card, coco)["dataset"], "filter_cfg": {"filter_empty_gt": True}, "test_mode": False}
    with silent():  # pycocotools prints
        return DATASETS.build({**settings, "_scope_": "mmdet"})


def _loss(detector: Any, rows: list[dict[str, Any]]) -> Tensor:
    batch = {key: [row[key] for row in rows] for key in ("inputs", "data_samples")}
    losses = detector(**detector.data_preprocessor(batch, training=True), mode="loss")
    total: Tensor = detector.parse_losses(losses)[0]
    return total
