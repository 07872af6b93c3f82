"""Losses of a classifier on training images: the input of criteria that measure on data."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from classify.classifier_model import ClassifierModel, collate
from classify.image_data import GivenImages
from prune.choose.measured import Losses

__all__ = ["calibration_batches", "classifier_losses"]


def classifier_losses(card: ModelCard, images: GivenImages, batch_size: int, num_batches: int, seed: int = 0) -> Losses:
    """Return the cross entropy on training images, batch by batch, each time the same.

    The images are cropped as for evaluation. No image is read until the losses are iterated.

    Args:
        card: Of the classifier.
        images: Their training images are used.
        batch_size: Images per batch.
        num_batches: At most; fewer if there are not enough images.
        seed: Of the choice of images.
    """

    def losses(net: nn.Module) -> Iterator[Tensor]:
        side = card.preprocessing.image_hw[0]
        dataset: Any = images.images("train", side, crop_share=card.preprocessing.crop_share)
        model = ClassifierModel(net)
        for places in calibration_batches(len(dataset), batch_size, num_batches, seed):
            batch = model.data_preprocessor(collate([dataset[i] for i in places]))
            yield model(**batch, mode="loss")["loss"]

    return losses


def calibration_batches(num_images: int, batch_size: int, num_batches: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of the images of each batch, drawn without repetition; the last batch may be smaller."""
    places = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    for batch in places[: batch_size * num_batches].split(batch_size):
        yield batch.tolist()
